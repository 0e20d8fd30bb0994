"""Who is in a worker's memory: few at a time, any number in all, and nobody's state is lost or another's."""

from __future__ import annotations

from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from service.metrics import WorkerMetrics
from service.worker import Worker
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.worlds import World, answered, wait_until, working


def post(world: World, stream: str, rows: Any, **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.asarray(rows, np.float32), **more))


class Watched(TinyEngine):
    """Notes how many streams are in memory at each call."""

    worker: Worker
    most = 0

    def run(self, x: Any, states: Any) -> Any:
        self.most = max(self.most, len(self.worker._residence))
        return super().run(x, states)


def test_many_more_streams_than_fit_come_and_go_with_their_states(world: World) -> None:
    streams, limit = [f"s{n:04d}" for n in range(1200)], 200
    rng = np.random.default_rng(0)
    rounds = [4 * rng.normal(size=(len(streams), 1, 3)).astype(np.float32) for _ in range(2)]
    engine, metrics = Watched(tiny_manifest()), WorkerMetrics(CollectorRegistry())
    with working(world.new_log(), engine, max_resident_streams=limit, metrics=metrics) as worker:
        engine.worker = worker
        for number, rows in enumerate(rounds):
            for stream, row in zip(streams, rows, strict=True):
                post(world, stream, row, time=b"%d" % (100 + number))
        answered_by = metrics.records.labels("tiny", "prediction")
        wait_until(lambda: answered_by.value == 2 * len(streams), 60, "all are answered")
        wait_until(lambda: metrics.streams.labels("stored").value > 0, 60, "the stored streams were counted")
        wait_until(lambda: metrics.evictions.value > 0, 60, "evictions were counted")
        assert worker._stepper.models["tiny"].table.reserved_bytes < 4 << 20
        assert metrics.streams.labels("resident").value <= limit
    oracles = {stream: Oracle(engine) for stream in streams[::7]}
    for place, stream in list(enumerate(streams))[::7]:
        bodies = answered(world, {stream: 2})[stream]
        for number, (rows, body) in enumerate(zip(rounds, bodies, strict=True)):
            same(body, oracles[stream].step(rows[place], 100.0 + number))
            assert body["restarted"] == ("first" if number == 0 else None)
    assert 0 < engine.most <= limit
    assert metrics.evictions.value >= 2 * len(streams) - 2 * limit
    assert metrics.loads.value >= len(streams) - limit


def test_the_least_recently_used_leave_and_the_used_stay(world: World) -> None:
    engine, metrics = TinyEngine(tiny_manifest()), WorkerMetrics(CollectorRegistry())
    answers = metrics.records.labels("tiny", "prediction")

    def post_and_wait(*streams: str) -> None:
        expected = answers.value + len(streams)
        for stream in streams:
            post(world, stream, [[1, 2, 3]])
        wait_until(lambda: answers.value == expected, 60, "they are answered")

    with working(world.new_log(), engine, max_resident_streams=64, metrics=metrics) as worker:

        def resident() -> set[str]:
            return {name for shard in worker._shards.values() for name in shard.streams}

        first = [f"a{n}" for n in range(64)]
        post_and_wait(*first)
        post_and_wait(*first[:32])  # used again
        post_and_wait(*(f"b{n}" for n in range(32)))
        assert resident() == {*first[:32], *(f"b{n}" for n in range(32))}
        post_and_wait(*first[32:])
    for stream in first:
        assert [body["step"] for body in answered(world, {stream: 2})[stream]] == [1, 2]


def test_a_stream_with_entries_waiting_or_uncommitted_never_leaves(world: World) -> None:
    """One stream is always busy among many that come once; it is stepped without a hole or a restart."""
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine, max_resident_streams=64):
        for n in range(600):
            post(world, f"once{n}", [[1, 2, 3]])
            post(world, "busy", [[1, 2, 3]])
        bodies = answered(world, {"busy": 600}, 60)["busy"]
    assert [body["step"] for body in bodies] == list(range(1, 601))
    assert [body["restarted"] for body in bodies] == ["first"] + [None] * 599


def test_what_kept_no_state_is_remembered_while_the_stream_is_away(world: World) -> None:
    """`end`, a reset, a refused first entry and a seq: all of it lies in the broker."""
    crowd = iter(range(10_000))
    engine, metrics = TinyEngine(tiny_manifest()), WorkerMetrics(CollectorRegistry())
    answers = metrics.records.labels("tiny", "prediction")
    with working(world.new_log(), engine, max_resident_streams=64, metrics=metrics):

        def crowd_out() -> None:
            expected = answers.value + 200
            for _ in range(200):
                post(world, f"crowd{next(crowd)}", [[1, 2, 3]])
            wait_until(lambda: answers.value == expected, 60, "the crowd was here")

        post(world, "ended", [[1, 2, 3]], end=b"1")
        post(world, "reset", [[1, 2, 3]])
        world.append("reset", {"stream": b"reset", "kind": b"control", "data": b'{"action": "reset"}'})
        post(world, "refused", [[1, np.nan, 3]])
        first = post(world, "counted", [[1, 2, 3]], seq=b"7")
        answered(world, {"ended": 1, "reset": 2, "refused": 1, "counted": 1})
        wait_until(lambda: answers.value == 3, 60, "and counted")
        crowd_out()
        for stream in ("ended", "reset", "refused"):
            post(world, stream, [[1, 2, 3]])
        post(world, "counted", [[1, 2, 3]], seq=b"7")
        bodies = answered(world, {"ended": 2, "reset": 3, "refused": 2, "counted": 2})
    assert bodies["ended"][1]["restarted"] == "first"
    assert bodies["reset"][2]["restarted"] == "reset"
    assert bodies["refused"][1]["restarted"] == "first"
    assert (bodies["counted"][1]["type"], bodies["counted"][1]["of"]) == ("duplicate", first)
