"""One hot stream beside quiet ones: it waits for itself, they do not wait for it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from service.codec import parse_feed
from service.keys import shard_of
from service.worker import inbox, loop
from service.worker.inbox import STREAM_ENTRIES
from service.worker.shard import Held
from tests.doubles import BrightnessEngine, TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, answered, wait_until, working


class SlowEngine(TinyEngine):
    """Every call takes a while, so that what is waiting has to wait."""

    def run(self, x: Any, states: Any) -> Any:
        time.sleep(0.002)
        self.calls.append(x.shape[:2])
        score = np.full((*x.shape[:2], 4), 0.25, np.float32)
        return score, dict(states)


def flood(world: World, stream: str, entries: int) -> None:
    row = rows_fields(stream, np.ones((1, 3), np.float32))
    if isinstance(world, BrokerWorld):
        pipe = world.client.pipeline(transaction=False)
        for _ in range(entries):
            pipe.xadd(world.keys[shard_of(stream, SHARDS)].inbox, dict(row))
        pipe.execute()
    else:
        for _ in range(entries):
            world.append(stream, row)


def count(world: World, stream: str) -> int:
    if isinstance(world, BrokerWorld):
        return int(world.client.xlen(world.keys[shard_of(stream, SHARDS)].out(stream)))  # type: ignore[arg-type]
    assert isinstance(world, MemoryWorld)
    return len(world.shards[shard_of(stream, SHARDS)].out.get(stream, ()))


def answered_before(world: World, hot: str, quiet: list[str]) -> int:
    """Entries of `hot` in the shard's commits up to the one that answered the last of `quiet`."""
    shard = shard_of(hot, SHARDS)
    if isinstance(world, BrokerWorld):
        items: Any = world.client.xrange(world.keys[shard].feed)
        assert items[0][0] == b"1-0", "nothing of the feed is trimmed yet"
        commits = [parse_feed(item[b"records"]) for _, item in items]
    else:
        assert isinstance(world, MemoryWorld)
        commits = list(world.shards[shard].feed.values())
    last = max(n for n, pairs in enumerate(commits) if any(stream in quiet for stream, _ in pairs))
    return sum(stream == hot for pairs in commits[: last + 1] for stream, _ in pairs)


@pytest.mark.parametrize("many_steps", [False, True], ids=["one by one", "catching up"])
def test_a_hot_stream_keeps_only_its_own_entries_waiting(world: World, many_steps: bool) -> None:
    """20,000 entries of one stream lie in the log before those of its neighbours on the same shard."""
    hot, entries = "hot", 6_000 if isinstance(world, MemoryWorld) else 20_000
    quiet = [name for n in range(200) if shard_of(name := f"q{n}", SHARDS) == shard_of(hot, SHARDS)][:10]
    flood(world, hot, entries)
    for stream in quiet:
        world.append(stream, rows_fields(stream, np.ones((1, 3), np.float32)))
    engine = SlowEngine(tiny_manifest(many_steps=many_steps))
    with working(world.new_log(), engine, lease_s=5.0) as worker:
        answered(world, dict.fromkeys(quiet, 1), 60)
        done = answered_before(world, hot, quiet)
        most = max(len(shard.unfinished) for shard in worker._shards.values())
        assert done < entries / 2, "the quiet ones were answered long before the hot one"
        assert most < 4096 + 4 * STREAM_ENTRIES, "most of the hot one is in the log only"


def test_a_quiet_stream_waits_for_few_entries_of_a_hot_one_that_floods(world: World) -> None:
    """Whatever a worker has in memory of the hot one: more of it waits in the log, before the quiet one's."""
    entries = 6_000 if isinstance(world, MemoryWorld) else 20_000
    quiet = next(name for n in range(200) if shard_of(name := f"q{n}", SHARDS) == shard_of("hot", SHARDS))
    with working(world.new_log(), SlowEngine(tiny_manifest(many_steps=False)), lease_s=5.0):
        flood(world, "hot", entries)
        waited_for = []
        for n in range(10):
            before = count(world, "hot")
            world.append(quiet, rows_fields(quiet, np.ones((1, 3), np.float32)))
            answered(world, {quiet: n + 1}, 60)
            waited_for.append(answered_before(world, "hot", [quiet]) - before)
    assert max(waited_for) < 1_000, waited_for


def test_nothing_is_lost_when_a_worker_leaves_in_the_middle_of_a_flood(world: World) -> None:
    flood(world, "hot", 1500)
    with working(world.new_log(), TinyEngine(tiny_manifest()), lease_s=5.0):
        wait_until(lambda: count(world, "hot") > 200, 60, "some are answered")
    with working(world.new_log(), TinyEngine(tiny_manifest()), lease_s=5.0):
        bodies = answered(world, {"hot": 1500}, 60)["hot"]
        wait_until(lambda: world.logged() == 0, 60, "and the log is trimmed")
    assert [body["step"] for body in bodies] == list(range(1, 1501))
    assert [body["restarted"] for body in bodies] == ["first"] + [None] * 1499


def test_reading_stops_when_too_much_is_unfinished_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "SHARD_ENTRIES", 2000)
    world = MemoryWorld(SHARDS)
    flood(world, "hot", 6000)
    workers: list[Any] = []
    held = [0]

    def look(point: str) -> None:
        for worker in workers:
            held.extend(shard.held + len(shard.unfinished) for shard in worker._shards.values())

    with working(world.new_log(), SlowEngine(tiny_manifest()), lease_s=60.0, fault=look) as worker:
        workers.append(worker)
        wait_until(lambda: count(world, "hot") >= 6000, 120, "all are answered")
    assert 2000 <= max(held) < 2000 + 1024, "one read more than the bound, at most"


def test_what_waits_in_memory_is_bounded_in_bytes_from_the_first_read_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large entries lay in the log before the worker came, and nothing tells their size before the first is read."""
    monkeypatch.setattr(loop, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(loop, "AHEAD_BYTES", 2 << 20)
    entries, size, waited = 240, 100_000, [0]
    for n in range(entries):
        stream = f"s{n % 12}"
        world.append(stream, {"stream": stream.encode(), "kind": b"frame", "data": b"\xff\xd8" + bytes(size)})

    def look(point: str) -> None:
        if workers:
            waited.append(workers[0]._inbox.bytes)

    workers: list[Any] = []
    with working(world.new_log(dead_kept=1), BrightnessEngine(), lease_s=5.0, fault=look) as worker:
        workers.append(worker)
        answered(world, {f"s{n}": entries // 12 for n in range(12)}, 60)
    assert 10 * size < max(waited) < (2 << 20) + 4 * 4 * size, "the bound, and what one read may bring"


def test_held_ids_come_back_in_order_within_a_number_and_a_size() -> None:
    held = Held()
    for number, size in ((1, 10), (2, 10), (3, 100), (4, 10)):
        held.ids.append(number)
        held.sizes.append(size)
    assert held.take(10, 25) == [1, 2]
    assert held.oldest() == 3
    assert held.take(10, 5) == [3], "one at least"
    assert held.take(0, 100) == []
    assert (held.take(5, 100), held.oldest()) == ([4], 0)
