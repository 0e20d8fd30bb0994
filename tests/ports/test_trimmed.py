"""A producer that trims the log (MAXLEN), or deletes from it: what nobody has read is told, and nothing else is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.codec import id_number
from service.contracts import GapPolicy
from service.keys import shard_of
from service.metrics import WorkerMetrics
from service.worker import Worker, account
from service.worker.shard import Held as HeldIds
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.worlds import LEASE_S, SHARDS, BrokerWorld, MemoryWorld, World, answered, wait_until, working

HERE = "a"
BESIDE = next(name for name in map(str, range(1000)) if shard_of(name, SHARDS) == shard_of(HERE, SHARDS))


def post(world: World, stream: str = HERE, **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.ones((1, 3), np.float32), **more))


def keep(world: World, choose: Callable[[list[int]], list[int]]) -> None:
    """Deletes what `choose` does not keep of the shard's log."""
    shard = shard_of(HERE, SHARDS)
    if isinstance(world, BrokerWorld):
        key = world.keys[shard].inbox
        found: Any = world.client.xrange(key)
        ids = {id_number(entry_id): entry_id for entry_id, _ in found}
        gone = sorted(set(ids) - set(choose(sorted(ids))))
        if gone == sorted(ids)[: len(gone)]:
            world.client.xtrim(key, maxlen=len(ids) - len(gone), approximate=False)
        else:
            world.client.xdel(key, *(ids[number] for number in gone))
    else:
        assert isinstance(world, MemoryWorld)
        it = world.shards[shard]
        it.remove(sorted(set(it.log) - set(choose(sorted(it.log)))))


class Held(TinyEngine):
    """Steps only while it is let; with `once` each call by itself."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(tiny_manifest(**changes))
        self.go, self.waits, self.once = threading.Event(), threading.Event(), False
        self.go.set()

    def run(self, *given: Any) -> Any:
        if not self.go.is_set():
            self.waits.set()
            assert self.go.wait(30)
        if self.once:
            self.go.clear()
        return super().run(*given)

    def let_one_pass(self) -> None:
        """And waits until the worker stands in the next."""
        self.waits.clear()
        self.go.set()
        assert self.waits.wait(30)

    @contextmanager
    def held_up(self, world: World) -> Iterator[None]:
        """The worker stands in the middle of a step, of one more entry."""
        self.waits.clear()
        self.go.clear()
        post(world)
        assert self.waits.wait(30)
        yield
        self.go.set()


def counted() -> WorkerMetrics:
    return WorkerMetrics(CollectorRegistry())


def bodies(world: World, stream: str = HERE) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, body, _ in world.records(stream)]


def missed(world: World, stream: str = HERE) -> list[int]:
    return [body.get("missed", 0) for body in bodies(world, stream)]


def test_what_was_trimmed_while_the_worker_was_held_up_is_told_by_the_next_prediction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "LOOK_EVERY_S", 0.0)
    engine, metrics = Held(gap=GapPolicy("reset", 3600.0)), counted()
    with working(world.new_log(), engine, metrics=metrics):
        post(world)
        answered(world, {HERE: 1})
        with engine.held_up(world):
            for _ in range(30):
                post(world)
            keep(world, lambda ids: ids[-5:])
        wait_until(lambda: metrics.entries_trimmed.value > 0, what="it is counted")
        post(world)
        wait_until(lambda: len(world.records(HERE)) + metrics.entries_trimmed.value == 33, what="the rest is answered")
    told = bodies(world)
    assert sum(missed(world)) == metrics.entries_trimmed.value
    assert {body["restarted"] for body in told[1:]} == {None}, "nobody knows that the stream lost something"
    if isinstance(world, BrokerWorld):
        assert missed(world)[-6] > 0, "the first of those that were kept says it"


def test_the_next_owner_finds_what_left_the_log_while_nobody_worked(world: World) -> None:
    engine, metrics = TinyEngine(tiny_manifest()), counted()
    with working(world.new_log(), engine):
        for stream in (HERE, BESIDE):
            post(world, stream)
        answered(world, {HERE: 1, BESIDE: 1})
    for _ in range(30):
        for stream in (HERE, BESIDE):
            post(world, stream)
    keep(world, lambda ids: ids[-5:])
    with working(world.new_log("w2"), engine, metrics=metrics):
        answered(world, {HERE: 3, BESIDE: 4})
    assert metrics.entries_trimmed.value == 55
    assert missed(world) == [0, 55, 0], "how many of which stream nobody knows: at most so many"
    assert missed(world, BESIDE) == [0, 55, 0, 0]
    with working(world.new_log("w3"), engine, metrics=metrics):
        post(world)
        answered(world, {HERE: 4})
    assert metrics.entries_trimmed.value == 55, "once is enough"


def test_a_seq_knows_better(world: World) -> None:
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        post(world, seq=b"1")
        post(world, BESIDE)
        answered(world, {HERE: 1, BESIDE: 1})
    for n in range(2, 6):
        post(world, seq=b"%d" % n)
        post(world, BESIDE)
    keep(world, lambda ids: ids[-2:])
    with working(world.new_log("w2"), engine):
        answered(world, {HERE: 2, BESIDE: 2})
    assert (missed(world), missed(world, BESIDE)) == ([0, 3], [0, 6])


def test_a_seq_without_a_hole_tells_nobody_what_others_lost(world: World) -> None:
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        post(world, seq=b"1")
        post(world, BESIDE)
        answered(world, {HERE: 1, BESIDE: 1})
    for _ in range(3):
        post(world, BESIDE)
    post(world, seq=b"2")
    keep(world, lambda ids: ids[-1:])
    with working(world.new_log("w2"), engine):
        assert "missed" not in answered(world, {HERE: 2})[HERE][1]
    with working(world.new_log("w3"), engine):
        post(world, BESIDE)
        assert answered(world, {BESIDE: 2})[BESIDE][1]["missed"] == 3


def test_entries_that_are_deleted_in_the_middle_of_the_log_are_found_as_well(world: World) -> None:
    engine, metrics = TinyEngine(tiny_manifest()), counted()
    with working(world.new_log(), engine):
        post(world)
        answered(world, {HERE: 1})
    for _ in range(20):
        post(world)
    keep(world, lambda ids: [number for n, number in enumerate(ids) if n not in (5, 6, 7)])
    with working(world.new_log("w2"), engine, metrics=metrics):
        answered(world, {HERE: 18})
        wait_until(lambda: metrics.entries_trimmed.value == 3)
    assert sum(missed(world)) == 3


def test_of_entries_that_were_kept_by_id_it_is_known_whose_they_were(world: World) -> None:
    engine, metrics = Held(), counted()
    with working(world.new_log(), engine, metrics=metrics):
        for _ in range(100):
            post(world)
        post(world, BESIDE)
        answered(world, {HERE: 100, BESIDE: 1})
        with engine.held_up(world):
            for _ in range(400):
                post(world)
            post(world, BESIDE)
            engine.once = True
            for _ in range(3):
                engine.let_one_pass()  # by then all are read, most as ids only
            engine.once = False
            keep(world, lambda ids: ids[-20:])
        answered(world, {BESIDE: 2})
        wait_until(lambda: len(world.records(HERE)) + metrics.entries_trimmed.value == 501)
    assert metrics.entries_trimmed.value > 200
    assert sum(missed(world)) == metrics.entries_trimmed.value
    assert missed(world, BESIDE) == [0, 0]


def test_a_new_stream_is_told_though_more_of_it_came_after_the_look() -> None:
    world, engine = MemoryWorld(SHARDS), TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        post(world)
        answered(world, {HERE: 1})
    for _ in range(4):
        post(world, BESIDE)
    keep(world, lambda ids: ids[-1:])
    worker = Worker(world.new_log("w2"), {"tiny": (engine, "0" * 16)}, counted(), lease_s=LEASE_S)
    worker._beat()
    worker._ask()  # what was seen of the log is older than the answer
    post(world, BESIDE)
    for _ in range(3):
        worker._turn()
    assert missed(world, BESIDE) == [3, 0]
    worker._drain()
    worker._end()


def test_of_a_shard_that_is_found_to_be_lost_nothing_more_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    world, engine = MemoryWorld(SHARDS), TinyEngine(tiny_manifest())
    for stream in (HERE, BESIDE):
        post(world, stream)
    worker = Worker(world.new_log(), {"tiny": (engine, "0" * 16)}, counted(), lease_s=LEASE_S)
    worker._beat()
    worker._receive()
    shard = worker._shards[shard_of(HERE, SHARDS)]
    streams, (fields, *_) = shard.streams, world.shards[shard.number].log.values()
    assert len(worker._scheduler) == 2
    shard.holding[streams[BESIDE]] = HeldIds()
    answer = [(streams[HERE], [], 1, 0), (streams[BESIDE], [(b"9-9", fields)], 0, 0)]
    monkeypatch.setattr(worker._inbox, "fetch", lambda broker: answer)
    world.shards[shard.number].owner = "another"
    worker._receive()
    assert shard.lost
    assert (len(worker._scheduler), worker._inbox.bytes) == (0, 0)
    worker._end()


@pytest.mark.parametrize("history_s", [0.0, 60.0])
def test_what_leaves_the_log_when_it_is_finished_is_no_loss(world: World, history_s: float) -> None:
    metrics = counted()
    n = 0
    for worker in ("w1", "w2", "w3"):
        with working(world.new_log(worker), TinyEngine(tiny_manifest()), metrics=metrics, input_history_s=history_s):
            for _ in range(100):
                post(world)
                world.append(HERE, {"stream": HERE.encode(), "kind": b"samples", "data": b"bad", "shape": b"1,3"})
            n += 200
            wait_until(lambda: len(world.records(HERE)) == n)  # noqa: B023
        keep(world, lambda ids: ids[len(ids) // 2 :])  # all of it is finished
        for _ in range(70):
            post(world)
        n += 70
    with working(world.new_log("w4"), TinyEngine(tiny_manifest()), metrics=metrics):
        wait_until(lambda: len(world.records(HERE)) == n)
        post(world)
        answered(world, {HERE: n + 1})
    assert metrics.entries_trimmed.value == 0
    assert not any(body.get("missed") for body in bodies(world))


def test_entries_that_are_taken_out_for_ids_that_no_clock_gives_are_no_loss(world: World) -> None:
    metrics, engine = counted(), TinyEngine(tiny_manifest())
    with working(world.new_log(), engine, metrics=metrics):
        post(world)
        answered(world, {HERE: 1})
        world.append(HERE, rows_fields(HERE, np.ones((1, 3), np.float32)), entry_id=f"{2**60}-0")
        post(world)  # moved to an id of now
        answered(world, {HERE: 2})
    for worker in ("w2", "w3"):
        with working(world.new_log(worker), engine, metrics=metrics):
            post(world)
            answered(world, {HERE: 3 + (worker == "w3")})
    assert metrics.entries_trimmed.value == 0
    post(world)
    post(world)
    keep(world, lambda ids: ids[-1:])
    with working(world.new_log("w4"), engine, metrics=metrics):
        answered(world, {HERE: 5})
    assert metrics.entries_trimmed.value == 1
    assert missed(world)[-1] == 1
