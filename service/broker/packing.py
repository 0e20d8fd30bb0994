"""A commit as the bytes of one transaction, and what repairs the elements of it that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import hiredis

from service.broker import quarantine, scripts
from service.broker.wire import Argument, pack
from service.codec import encode_behind, encode_feed
from service.keys import GROUP, ShardKeys
from service.ports import Commit

# The two commands an entry costs, packed by one formatting each: half of what the general packer takes (bench.drain).
_XADD_RECORD: Final = (
    b"*12\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n%b\r\n$1\r\n~\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
    b"$4\r\ntype\r\n$%d\r\n%b\r\n$4\r\nbody\r\n$%d\r\n%b\r\n$4\r\nprev\r\n$%d\r\n%b\r\n"
)
_SET_STATE: Final = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n"
_TYPES: Final = {b"XADD": b"stream", b"HSET": b"hash", b"ZADD": b"zset", b"ZINCRBY": b"zset", b"ZREM": b"zset"}
BYTES_SHARE: Final = 0.75  # of what quarantine may take of a shard: no entry's bytes push out all others and itself


class Keep(NamedTuple):
    """How much stays, as the commands say it."""

    records: bytes  # of a stream
    dead: bytes
    dead_bytes: int
    feed_commits: bytes
    state_ms: bytes  # how long a state outlives its last entry


def pack_commit(commit: Commit, keys: ShardKeys, keep: Keep, repairs: Sequence[bytes]) -> list[bytes]:
    """The transaction, packed, a command each: in the order of docs/protocol.md."""
    out, state = keys.out_prefix, keys.state_prefix
    kept, px = keep.records, keep.state_ms
    commands = [pack((b"MULTI",)), pack((b"SET", keys.head, commit.after)), *repairs]

    def append(command: tuple[Argument, ...]) -> None:
        commands.append(pack(command))

    if commit.deleted:
        append((b"DEL", *(out + stream.encode() for stream in commit.deleted)))
    for stream, entry_id, kind, body, prev, cut in commit.records:
        key, limit = out + stream.encode(), cut or kept
        commands.append(
            _XADD_RECORD
            % (
                len(key), key, b"$5\r\nMINID" if cut else b"$6\r\nMAXLEN", len(limit), limit,
                len(entry_id), entry_id, len(kind), kind, len(body), body, len(prev), prev,
            )
        )  # fmt: skip
    for dead in commit.dead:
        append(
            (
                b"XADD", keys.dead, b"*", b"id", dead.id, b"stream", dead.stream, b"kind", dead.kind,
                b"reason", dead.reason, b"detail", dead.detail, b"bytes", len(dead.data),
                *(part for field in dead.more for part in field),
            )
        )  # fmt: skip
    if kept_bytes := {dead.id: dead.data for dead in commit.dead if len(dead.data) <= BYTES_SHARE * keep.dead_bytes}:
        append((b"HSET", keys.dead_data, *(part for item in kept_bytes.items() for part in item)))
    for stream, record in commit.states.items():
        key = state + stream.encode()
        commands.append(_SET_STATE % (len(key), key, len(record), record, len(px), px))
    if commit.forgotten:
        append((b"DEL", *(state + stream.encode() for stream in commit.forgotten)))
    if commit.positions:
        append((b"HSET", keys.pos, *(part for item in commit.positions.items() for part in item)))
    if commit.settings:
        append((b"HSET", keys.settings, *(part for item in commit.settings.items() for part in item)))
    if commit.deleted:
        append((b"HDEL", keys.settings, *commit.deleted))
        append((b"ZREM", keys.drops, *commit.deleted))
        append((b"ZREM", keys.restarts, *commit.deleted))
        append((b"ZREM", keys.configured, *commit.deleted))
    if commit.configured:
        append((b"ZADD", keys.configured, *(part for name, ms in commit.configured.items() for part in (ms, name))))
    if commit.touched:
        append((b"ZADD", keys.streams, *(part for stream, ms in commit.touched.items() for part in (ms, stream))))
    if commit.configured:  # other settings, another limit: those that are there are looked at again
        append((b"ZADD", keys.open, b"XX", *(part for name, ms in commit.configured.items() for part in (ms, name))))
    if opened := {name: ms for name, ms in commit.openings.items() if ms is not None}:
        append((b"ZADD", keys.open, b"NX", *(part for name, ms in opened.items() for part in (ms, name))))
    if len(opened) < len(commit.openings):
        append((b"ZREM", keys.open, *(name for name in commit.openings if name not in opened)))
    for key, counts in ((keys.drops, commit.drops), (keys.restarts, commit.restarts)):
        for stream, more in counts.items():
            append((b"ZINCRBY", key, more, stream))
    behind = encode_behind(commit.behind, commit.records[-1].id if commit.records else b"")
    answered = encode_feed([part for record in commit.records for part in (record.stream.encode(), record.id)])
    append(
        (
            b"XADD", keys.feed, b"MAXLEN", b"~", keep.feed_commits, b"%d-0" % commit.n,
            b"token", commit.token, b"records", answered, b"behind", behind,
        )
    )  # fmt: skip
    if commit.dead:
        where = keys.dead, keys.dead_data, keys.dead_places
        append((b"EVAL", quarantine.BOUND, len(where), *where, keep.dead, keep.dead_bytes, len(commit.dead)))
    if commit.trim_below is not None:
        append((b"XTRIM", keys.inbox, b"MINID", commit.trim_below))
        append((b"XGROUP", b"SETID", keys.inbox, GROUP, commit.low))
    commands += [pack((b"EXEC",)), pack((b"WATCH", keys.head)), pack((b"GET", keys.head))]
    return commands


def repairs_of(commands: Sequence[bytes], failed: Sequence[int], keys: ShardKeys) -> list[bytes]:
    """Commands for the next commit that do what those at `failed` (ascending) could not: somebody else had written to
    our keys, or the broker came back with a part of a transaction.

    A stream is rebuilt up to the item before the first that failed; what this commit added to it behind goes with that,
    and is added again.
    """
    repairs: list[bytes] = []
    rebuilt: set[bytes] = set()
    for at in failed:
        name, key, *rest = _unpack(commands[at])
        if key in rebuilt:
            continue
        if name == b"XADD" and key == keys.feed:
            entry_id, item = rest[3], rest[4:]
            last = b"%d-0" % (int(entry_id.partition(b"-")[0]) - 1)
            repairs.append(pack((b"EVAL", scripts.REPAIR_ITEM, 1, key, last, entry_id, *item)))
        elif name == b"XADD" and key != keys.dead:  # a record: its last value is `prev`
            repairs.append(pack((b"EVAL", scripts.REPAIR_ITEM, 1, key, rest[-1], rest[3], *rest[4:])))
            rebuilt.add(key)
            repairs += [later for later in commands[at + 1 :] if _unpack(later)[:2] == [b"XADD", key]]
        elif name in _TYPES:
            repairs.append(pack((b"EVAL", scripts.REPAIR_KEY, 1, key, _TYPES[name], name, *rest)))
    return repairs


def _unpack(command: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(command)
    words: list[bytes] = reader.gets()
    return words
