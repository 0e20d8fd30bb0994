"""What idle streams leave in the broker goes, a little at a time, and only by the shard's owner."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.codec import Head, Position, id_number
from service.controls import Control, NewSettings, encode_control
from service.errors import CommitRefused
from service.keys import shard_of
from service.metrics import WorkerMetrics
from service.worker.janitor import PORTION, Janitor
from service.worker.residence import Residence
from service.worker.shard import Shard
from tests.doubles import MemoryLog, TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, answered, wait_until, working

HISTORY_S, TTL_S = 5.0, 10.0  # they pass as a test says, not as slowly as a busy machine works


def post(world: World, stream: str, **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.ones((1, 3), np.float32), **more))


def left(world: World, stream: str) -> dict[str, bool]:
    """What the broker still has of a stream."""
    if isinstance(world, MemoryWorld):
        it = world.shards[shard_of(stream, SHARDS)]
        kept: dict[str, Any] = {"records": it.out, "state": it.states, "pos": it.pos, "streams": it.streams}
        return {name: stream in where for name, where in {**kept, "settings": it.settings}.items()}
    assert isinstance(world, BrokerWorld)
    keys, client = world.keys[shard_of(stream, SHARDS)], world.client
    return {
        "records": client.exists(keys.out(stream)) == 1,
        "state": client.exists(keys.state(stream)) == 1,
        "pos": bool(client.hexists(keys.pos, stream)),
        "streams": client.zscore(keys.streams, stream) is not None,
        "settings": bool(client.hexists(keys.settings, stream)),
    }


def pass_time(world: World, seconds: float) -> None:
    if isinstance(world, MemoryWorld):
        world.clock_ms += int(seconds * 1000)
        return
    assert isinstance(world, BrokerWorld)
    for dates in (key for keys in world.keys for key in (keys.streams, keys.configured)):
        for stream in world.client.zrange(dates, 0, -1):  # type: ignore[union-attr]
            world.client.zadd(dates, {stream: -seconds * 1000}, xx=True, incr=True)  # it becomes so much older


def settle(world: World, stream: str, **settings: Any) -> str:
    data = encode_control(Control("settings", NewSettings(**settings)))
    return world.append(stream, {"stream": stream.encode(), "kind": b"control", "data": data})


def revision(world: World, stream: str) -> bytes | None:
    """What api processes look at, of the stream's shard."""
    if isinstance(world, MemoryWorld):
        return world.shards[shard_of(stream, SHARDS)].settings.get("?")
    assert isinstance(world, BrokerWorld)
    return world.client.hget(world.keys[shard_of(stream, SHARDS)].settings, "?")  # type: ignore[return-value]


def test_idle_streams_lose_their_records_then_all_the_rest_and_return_as_new_ones(world: World) -> None:
    engine, metrics = TinyEngine(tiny_manifest()), WorkerMetrics(CollectorRegistry())
    options = {"state_ttl_s": TTL_S, "output_history_s": HISTORY_S, "metrics": metrics}
    with working(world.new_log(), engine, **options) as worker:
        for stream in ("a", "b", "c"):
            post(world, stream)
        answered(world, {"a": 1, "b": 1, "c": 1})
        assert all(left(world, "a").values())
        pass_time(world, HISTORY_S + 0.01)
        wait_until(lambda: not left(world, "a")["records"], 60, "the records go when their time is over")
        if isinstance(world, MemoryWorld):
            assert left(world, "a")["pos"], "the state is still alive"
        pass_time(world, TTL_S)
        wait_until(lambda: not left(world, "a")["pos"], 60, "the stream is removed")
        assert not any(left(world, "a").values()), "the model that its first entry bound goes, too"
        assert (revision(world, "a") or b"").endswith(b"-0"), "api processes forget it"
        wait_until(lambda: metrics.swept.labels("streams").value == 3, 60, "all three are counted")
        assert metrics.swept.labels("records").value <= 3, "what goes altogether is not counted twice"
        assert not any("a" in shard.streams for shard in worker._shards.values()), "it left the memory, too"
        post(world, "a")
        body = answered(world, {"a": 1})["a"][0]
    assert (body["restarted"], body["step"]) == ("first", 1)


def test_settings_that_somebody_set_outlive_the_stream_for_their_time(world: World) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    options = {"state_ttl_s": TTL_S, "output_history_s": HISTORY_S, "settings_ttl_s": 100.0, "metrics": metrics}
    with working(world.new_log(), TinyEngine(tiny_manifest()), **options):
        for stream in ("a", "b"):
            settle(world, stream, model="tiny")
        put = settle(world, "never-posted", state_ttl_s=5.0)
        post(world, "a")
        answered(world, {"a": 2, "b": 1, "never-posted": 1})
        pass_time(world, TTL_S + 0.01)
        for stream in ("a", "b", "never-posted"):
            wait_until(lambda s=stream: not left(world, s)["pos"], 60, "the stream is removed")  # type: ignore[misc]
            assert left(world, stream)["settings"], "somebody set them"
        post(world, "a")
        assert answered(world, {"a": 1})["a"][0]["restarted"] == "ttl"
        pass_time(world, 60.0)
        wait_until(lambda: not left(world, "a")["pos"], 60, "the stream is removed once more")
        post(world, "a")
        answered(world, {"a": 1})
        pass_time(world, 41.0)
        for stream in ("b", "never-posted"):
            wait_until(lambda s=stream: not left(world, s)["settings"], 60, "their time is over")  # type: ignore[misc]
            assert not any(left(world, stream).values())
        assert left(world, "a")["settings"], "its last entry is younger"
        assert revision(world, "never-posted") not in (None, put.encode())
        pass_time(world, 60.0)
        wait_until(lambda: not left(world, "a")["settings"], 60, "its time is over as well")
    assert metrics.swept.labels("settings").value >= 3


def test_settings_that_belong_to_no_stream_are_dated_and_go_in_their_time(world: World) -> None:
    """Earlier versions left them for ever."""
    if isinstance(world, MemoryWorld):
        world.shards[shard_of("old", SHARDS)].settings["old"] = b'{"model":"tiny"}'
    else:
        assert isinstance(world, BrokerWorld)
        world.client.hset(world.keys[shard_of("old", SHARDS)].settings, "old", '{"model":"tiny"}')
    options = {"state_ttl_s": TTL_S, "output_history_s": HISTORY_S, "settings_ttl_s": 100.0}
    with working(world.new_log(), TinyEngine(tiny_manifest()), **options):
        post(world, "new")
        answered(world, {"new": 1})

        def gone() -> bool:
            pass_time(world, 0.0 if not dated(world, "old") else 101.0)
            return not left(world, "old")["settings"]

        wait_until(gone, 60, "it was dated, and its time is over")


def dated(world: World, stream: str) -> bool:
    if isinstance(world, MemoryWorld):
        return stream in world.shards[shard_of(stream, SHARDS)].configured
    assert isinstance(world, BrokerWorld)
    return world.client.zscore(world.keys[shard_of(stream, SHARDS)].configured, stream) is not None


def test_what_is_in_quarantine_for_too_long_leaves_it_and_is_no_overflow(world: World) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    with working(world.new_log(), TinyEngine(tiny_manifest()), metrics=metrics, dead_history_s=1.0):
        for n in range(5):
            world.append("a", {"stream": b"a", "kind": b"movie", "data": bytes([n])})
        answered(world, {"a": 5})
        pass_time(world, 2.0)
        wait_until(lambda: world.dead() == [], 60, "their time is over")
        wait_until(lambda: metrics.swept.labels("quarantine").value == 5, 60, "all are counted")
    assert metrics.dead_overflow.value == 0
    if isinstance(world, BrokerWorld):
        keys = world.keys[shard_of("a", SHARDS)]
        assert world.client.exists(keys.dead_data, keys.dead_places) == 0


def test_a_stream_that_goes_on_keeps_everything(world: World) -> None:
    options = {"state_ttl_s": TTL_S, "output_history_s": HISTORY_S}
    with working(world.new_log(), TinyEngine(tiny_manifest()), **options):
        post(world, "idle")
        n, deadline = 0, time.monotonic() + 30
        while left(world, "idle")["pos"] or n == 0:
            assert time.monotonic() < deadline
            post(world, "busy")
            n += 1
            pass_time(world, 0.5)
            wait_until(lambda at=n: steps(world, "busy") >= at, 60, "the busy one is answered")  # type: ignore[misc]
        left_over = [json.loads(body) for _, _, body, _ in world.records("busy")]
    assert [body["step"] for body in left_over] == list(range(n - len(left_over) + 1, n + 1)), "one state, to the end"


def steps(world: World, stream: str) -> int:
    """Of its newest record: those past their time are trimmed meanwhile."""
    records = world.records(stream)
    return int(json.loads(records[-1][2])["step"]) if records else 0


def test_nothing_is_removed_under_another_head() -> None:
    world = MemoryWorld(SHARDS)
    _assert_fenced(world, world.new_log())


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_nothing_is_removed_under_another_head_on_a_broker(kind: str, start_broker: Any, prefix: str) -> None:
    world = BrokerWorld(start_broker(kind).url, prefix)
    _assert_fenced(world, world.new_log())


def _assert_fenced(world: World, log: Any) -> None:
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        post(world, "a")
        answered(world, {"a": 1})
    number = shard_of("a", SHARDS)
    old = log.acquire(number)
    log.release(number)
    now = log.acquire(number)
    assert old is not None
    assert now is not None
    before = left(world, "a")
    assert not log.remove(number, old, ["a"], [])
    assert not log.remove(number, old, [], ["a"])
    assert left(world, "a") == before
    assert not log.unsettle(number, old, ["a"])
    assert log.adopt(number, old, b"0") is None
    assert log.tidy_dead(number, old, 0) == (0, 0, False)
    assert left(world, "a") == before
    assert log.remove(number, now, ["a"], [])
    assert left(world, "a") == before | {"records": False}
    assert log.unsettle(number, now, ["a"])
    assert left(world, "a")["settings"], "the stream is there"
    log.close()


def test_many_idle_streams_go_in_small_portions() -> None:
    world, swept = MemoryWorld(1), []

    class Counting(MemoryLog):
        def remove(self, shard: int, head: bytes, records: Any, streams: Any) -> bool:
            swept.append(len(records) + len(streams))
            return super().remove(shard, head, records, streams)

    it = world.shards[0]
    for n in range(450):
        it.streams[f"s{n}"], it.pos[f"s{n}"] = world.clock_ms, Position(1, b"1-0", None, b"-", b"1-0").encode()
    shard = Shard(0, Head("life", "token", 1, 5, 0, 0).encode())
    it.head = shard.written
    world.clock_ms += 2000
    metrics = WorkerMetrics(CollectorRegistry())
    janitor = Janitor(
        Counting(world), Residence(10, lambda stream: None), metrics, state_ttl_s=1.0, output_history_s=1.0
    )
    for turn in range(8):
        janitor.sweep([shard], turn * 10.0, lambda stream: False)
    assert it.pos == it.streams == {}
    assert max(swept) <= 2 * PORTION
    assert len(swept) >= 5
    assert metrics.swept.labels("streams").value == 450


def test_records_of_more_streams_of_one_millisecond_than_a_portion_all_go(world: World) -> None:
    names, record = [f"s{n}" for n in range(2 * PORTION + 50)], {"type": b"", "body": b"", "prev": b"0-0"}
    if isinstance(world, MemoryWorld):
        it = world.shards[0]
        for name in names:
            it.streams[name], it.out[name] = world.clock_ms - 3_600_000, {1: (b"", b"", b"")}
    else:
        assert isinstance(world, BrokerWorld)
        pipe, ms = world.client.pipeline(transaction=False), int(time.time() * 1000) - 3_600_000
        for name in names:
            pipe.zadd(world.keys[0].streams, {name: ms})
            pipe.xadd(world.keys[0].out(name), record)  # type: ignore[arg-type]
        pipe.execute()
    log, metrics = world.new_log(), WorkerMetrics(CollectorRegistry())
    head = log.acquire(0)
    assert head is not None
    shard = Shard(0, head)
    janitor = Janitor(log, Residence(10, lambda stream: None), metrics, state_ttl_s=1e6, output_history_s=1.0)
    for turn in range(5):
        janitor.sweep([shard], turn * 100.0, lambda stream: False)
    log.close()
    assert [name for name in names if world.records(name, 0)] == []
    assert metrics.swept.labels("records").value == len(names)


def test_quarantine_is_looked_after_where_a_full_broker_refuses_to_date_settings() -> None:
    class Full(MemoryLog):
        def adopt(self, shard: int, head: bytes, cursor: bytes) -> bytes | None:
            raise CommitRefused("OOM")

    world = MemoryWorld(1)
    it = world.shards[0]
    it.dead = {number << 64: {"id": b"1-%d" % number} for number in range(1, 4)}
    world.clock_ms += 10_000
    shard = Shard(0, Head("life", "token", 1, 5, 0, 0).encode())
    it.head = shard.written
    metrics = WorkerMetrics(CollectorRegistry())
    janitor = Janitor(
        Full(world), Residence(10, lambda stream: None), metrics,
        state_ttl_s=1.0, output_history_s=1.0, dead_history_s=1.0,
    )  # fmt: skip
    with pytest.raises(CommitRefused):
        janitor.sweep([shard], 0.0, lambda stream: False)
    assert it.dead == {}
    assert metrics.swept.labels("quarantine").value == 3


def test_a_stream_whose_last_entry_lies_above_low_is_left_alone() -> None:
    """Without its position that entry would be stepped a second time after a takeover."""
    world = MemoryWorld(1)
    it, last = world.shards[0], id_number("7-0")
    it.streams["a"], it.pos["a"] = 7, Position(last, b"7-0", None, b"-", b"7-0").encode()
    world.clock_ms += 10_000
    metrics = WorkerMetrics(CollectorRegistry())
    janitor = Janitor(
        MemoryLog(world), Residence(10, lambda stream: None), metrics, state_ttl_s=1.0, output_history_s=1.0
    )
    for low, expected in ((last - 1, {"a"}), (last, set())):
        shard = Shard(0, Head("life", "token", 1, low, 0, 0).encode())
        it.head = shard.written
        janitor.sweep([shard], 0.0, lambda stream: False)
        assert set(it.pos) == expected
