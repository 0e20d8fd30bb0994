"""Who has which shard, as it stands in the broker: looked at again while shards change hands."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

from service.broker.predictions import RedisPredictions
from service.codec import Head, id_number, number_id, parse_head
from service.doctor.reading import AGAIN_S, SETTLE_S, TIMEOUT_S, Reading, count, text
from service.keys import ShardKeys, workers_key
from service.ports import WorkerInfo


class Shard(NamedTuple):
    """One shard as it stands in the broker."""

    number: int
    owner: str  # a worker's id; empty: none
    n: int  # commits
    tries: int
    suspect: str  # the entry under careful trial
    dead: int  # refused entries that are kept
    last_ms: int  # of the last id its log ever gave
    lag_entries: int
    lag_s: float


class Standing(NamedTuple):
    """`unowned`: shards that had no live owner, and `strange`: names that are listed and say nothing that can be read,
    at every look."""

    workers: list[WorkerInfo]  # the live ones
    rows: list[Shard]
    unowned: set[int]
    strange: set[str]

    @property
    def names(self) -> dict[str, str]:
        """Of the live workers by id: their process and host; where two have the same, their ids with it."""
        short = {worker.id: _name(worker) for worker in self.workers}
        shared = Counter(short.values())
        return {one: name if shared[name] == 1 or name == one else f"{name} ({one})" for one, name in short.items()}


def stand(reading: Reading, url: str, prefix: str, shards: int) -> Standing:
    """Looks until each shard has had a live owner and each name was understood, no longer than SETTLE_S: a worker that
    ends or begins leaves shards without an owner for a moment, and that is no fault. Raises BrokerAway."""
    unowned, strange = set(range(shards)), None
    end = time.monotonic() + SETTLE_S
    while True:
        listed = {name.decode(errors="replace") for name in reading.ask(("ZRANGE", workers_key(prefix), 0, -1))[0]}
        workers = asyncio.run(_live(url, prefix, shards))
        rows = [read_shard(reading, ShardKeys(prefix, shard)) for shard in range(shards)]
        live = {worker.id for worker in workers}
        unowned &= {row.number for row in rows if row.owner not in live}
        unread = listed - live
        strange = unread if strange is None else strange & unread
        if (workers and not unowned and not strange) or time.monotonic() >= end:
            return Standing(workers, rows, unowned, strange)
        time.sleep(AGAIN_S)


async def _live(url: str, prefix: str, shards: int) -> list[WorkerInfo]:
    """As the api does."""
    predictions = RedisPredictions(url, prefix, shards, timeout_s=TIMEOUT_S)
    try:
        return await predictions.workers()
    finally:
        await predictions.close()


def read_shard(reading: Reading, keys: ShardKeys) -> Shard:
    """By plain commands: whoever only looks may not run scripts."""
    owner, head_said, suspect, dead, length, about = reading.ask(
        ("GET", keys.owner), ("GET", keys.head), ("GET", keys.suspect), ("XLEN", keys.dead), ("XLEN", keys.inbox),
        ("XINFO", "STREAM", keys.inbox),
    )  # fmt: skip
    head = read_head(text(head_said))
    fields = dict(zip(about[::2], about[1::2], strict=True)) if isinstance(about, list) else {}
    last_ms = id_number(text(fields.get(b"last-generated-id")) or "0-0") >> 64
    lag_s = max(0.0, reading.now_s - first_ms / 1000) if (first_ms := _oldest_ms(reading, keys, head)) else 0.0
    lag_entries = max(0, count(length) - head.kept)
    return Shard(
        keys.shard, text(owner).partition(" ")[0], head.n, head.tries, text(suspect), count(dead), last_ms,
        lag_entries, lag_s,
    )  # fmt: skip


def _oldest_ms(reading: Reading, keys: ShardKeys, head: Head) -> int:
    """When the oldest unfinished entry came; 0: none waits. The entry comes with its bytes, one a shard."""
    (found,) = reading.ask(("XRANGE", keys.inbox, b"(" + number_id(head.low), "+", "COUNT", 1))
    return id_number(text(found[0][0])) >> 64 if isinstance(found, list) and found else 0


def read_head(said: str) -> Head:
    """One that says nothing where there is none."""
    try:
        return parse_head(said.encode())
    except ValueError:
        return Head("", "", 0, 0, 0, 0)


def _name(worker: WorkerInfo) -> str:
    return f"{worker.process} on {worker.host}" if worker.process and worker.host else worker.process or worker.id
