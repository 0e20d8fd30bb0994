"""Redis keys and shards. The one place that spells them; docs/formats.md describes what each holds.

    {prefix}:meta                   deployment: format, shards           (own slot)
    {prefix}:workers                live workers by last heartbeat       (own slot)
    {prefix}:worker:ID              what a live worker says of itself    (own slot)
    {prefix}:{p}:in                 the shard's log of entries
    {prefix}:{p}:owner              lease: liveness only
    {prefix}:{p}:head               the fence
    {prefix}:{p}:pos                positions, a field a stream
    {prefix}:{p}:settings           settings, a field a stream
    {prefix}:{p}:configured         streams whose settings somebody set
    {prefix}:{p}:streams            last entry of each stream, ms
    {prefix}:{p}:open               streams with labels inside, by when they are looked at next, ms
    {prefix}:{p}:drops              how many entries of a stream were dropped
    {prefix}:{p}:restarts           how often a stream's state began anew
    {prefix}:{p}:state:STREAM       state record
    {prefix}:{p}:out:STREAM         records
    {prefix}:{p}:feed               one item a commit
    {prefix}:{p}:dead               refused entries, without their bytes
    {prefix}:{p}:dead-data          their bytes, a field an entry's id
    {prefix}:{p}:dead-places        their places in dead, a field an entry's id
    {prefix}:{p}:suspect            entry under careful trial

`{p}` is the shard number in braces: Redis Cluster's hash tag, so that a shard's keys share a slot.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

FORMAT: Final = 1  # of everything under the prefix; written into meta
GROUP: Final = "rollcast"  # the consumer group that exists for display only


def shard_of(stream: str, shards: int) -> int:
    """CRC16 (XMODEM, as in the Redis Cluster specification) of the stream id, modulo `shards`.

    >>> crc_hqx(b"123456789", 0) == 0x31C3
    True
    >>> shard_of("cam-1", 32)
    26
    """
    return crc_hqx(stream.encode(), 0) % shards


class ShardKeys:
    """The keys of one shard, as bytes, spelt once."""

    __slots__ = (
        "configured", "dead", "dead_data", "dead_places", "drops", "feed", "head", "inbox", "open", "out_prefix",
        "owner", "pos", "restarts", "settings", "shard", "state_prefix", "streams", "suspect",
    )  # fmt: skip

    def __init__(self, prefix: str, shard: int) -> None:
        base = f"{prefix}:{{{shard}}}:"
        self.shard = shard
        self.inbox = f"{base}in".encode()
        self.owner = f"{base}owner".encode()
        self.head = f"{base}head".encode()
        self.pos = f"{base}pos".encode()
        self.settings = f"{base}settings".encode()
        self.configured = f"{base}configured".encode()
        self.streams = f"{base}streams".encode()
        self.open = f"{base}open".encode()
        self.drops = f"{base}drops".encode()
        self.restarts = f"{base}restarts".encode()
        self.feed = f"{base}feed".encode()
        self.dead = f"{base}dead".encode()
        self.dead_data = f"{base}dead-data".encode()
        self.dead_places = f"{base}dead-places".encode()
        self.suspect = f"{base}suspect".encode()
        self.state_prefix = f"{base}state:".encode()
        self.out_prefix = f"{base}out:".encode()

    def state(self, stream: str) -> bytes:
        return self.state_prefix + stream.encode()

    def out(self, stream: str) -> bytes:
        return self.out_prefix + stream.encode()


def meta_key(prefix: str) -> str:
    return f"{prefix}:meta"


def workers_key(prefix: str) -> str:
    return f"{prefix}:workers"


def worker_key(prefix: str, worker: str) -> str:
    return f"{prefix}:worker:{worker}"
