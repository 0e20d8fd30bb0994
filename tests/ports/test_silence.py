"""A stream that goes silent with labels inside: its shard's owner ends its events, through the stream's own log."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.codec import parse_position
from service.contracts import RollingSettings, RowInput, StreamSettings, idle_exit_s_of
from service.controls import Control, NewSettings, encode_control
from service.errors import CommitRefused
from service.keys import shard_of
from service.metrics import WorkerMetrics
from service.ports import Commit, Look, Overdue
from service.worker import silence
from service.worker.janitor import Janitor
from service.worker.residence import Residence
from service.worker.shard import Shard
from tests.doubles import MemoryLog, TinyEngine, rows_fields, tiny_manifest
from tests.ports.test_controls import exported
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, wait_until
from tests.worlds import working as working_with

LOW = RollingSettings(0.0, 0.1, 0.0, 0.0, 0.0, 99.0)  # every label enters at once, and leaves only when closed
LONG = 3600.0
working = partial(working_with, state_ttl_s=LONG)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "EVERY_S", 0.05)


def engine(idle_exit_s: float | None = 0.3, **changes: Any) -> TinyEngine:
    return TinyEngine(tiny_manifest(rolling=LOW, idle_exit_s=idle_exit_s, **changes))


def post(world: World, stream: str = "a", **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.array([[1, 2, 3]], np.float32), **more))


def answered(world: World, streams: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The bodies of so many first records of each stream: where the machine is busy a silence may be told already."""
    wait_until(lambda: all(len(world.records(stream)) >= n for stream, n in streams.items()))
    return {stream: [json.loads(body) for _, _, body, _ in world.records(stream)[:n]] for stream, n in streams.items()}


def control(world: World, what: Control, stream: str = "a") -> str:
    return world.append(stream, {"stream": stream.encode(), "kind": b"control", "data": encode_control(what)})


def pass_time(world: World, seconds: float) -> None:
    if isinstance(world, MemoryWorld):
        world.clock_ms += int(1000 * seconds)
        return
    until_ms = world.now_ms() + 1000 * seconds
    wait_until(lambda: world.now_ms() >= until_ms)


def silent(world: World, stream: str = "a", seconds: float = 0.31) -> dict[str, Any]:
    """Waits for the record that tells of the silence."""
    pass_time(world, seconds)
    wait_until(lambda: world.records(stream)[-1][1] == "done", 60, "the silence is told")
    body: dict[str, Any] = json.loads(world.records(stream)[-1][2])
    assert body["action"] == "silence"
    return body


def told(body: dict[str, Any], kind: str) -> set[str]:
    return {event["label"] for event in body.get("events", []) if event["type"] == kind}


def inside(world: World, stream: str = "a") -> bool:
    """Whether the broker says so."""
    if isinstance(world, MemoryWorld):
        return stream in world.shards[shard_of(stream, SHARDS)].open
    assert isinstance(world, BrokerWorld)
    return world.client.zscore(world.keys[shard_of(stream, SHARDS)].open, stream) is not None


def last_active(world: World, stream: str = "a") -> int:
    if isinstance(world, MemoryWorld):
        return world.shards[shard_of(stream, SHARDS)].streams[stream]
    assert isinstance(world, BrokerWorld)
    return int(world.client.zscore(world.keys[shard_of(stream, SHARDS)].streams, stream) or 0)  # type: ignore[arg-type]


def test_its_labels_exit_at_the_last_step_and_the_state_goes_on(world: World) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    first, second = post(world), post(world)
    with working(world.new_log(), engine(), metrics=metrics):
        answered(world, {"a": 2})
        done = silent(world)
        assert not inside(world)
        stepped = json.loads(world.records("a")[1][2])
        assert told(done, "exit") == told(json.loads(world.records("a")[0][2]), "enter") != set()
        for event in done["events"]:
            assert (event["event"], event["step"], event["time"]) == (first, 2, stepped["time"])
        assert parse_position(world.position("a")).stepped == second.encode(), "it is no step"
        assert last_active(world) == int(second.partition("-")[0]), "and no sign of life"
        post(world)
        *_, back = answered(world, {"a": 4})["a"]
    assert (back["restarted"], back["step"]) == (None, 3)
    assert (told(back, "exit"), told(back, "enter")) == (set(), told(done, "exit"))
    assert metrics.silenced.labels("tiny").value == 1
    assert metrics.events.labels("tiny", done["events"][0]["label"], "exit").value == 1
    assert metrics.entries.labels("samples", "tiny").value == 3


def test_a_label_that_left_in_silence_waits_for_its_refractory_time(world: World) -> None:
    quiet = RollingSettings(0.0, 0.1, 0.0, 0.0, 50.0, 99.0)
    with working(world.new_log(), TinyEngine(tiny_manifest(rolling=quiet, idle_exit_s=0.3))):
        post(world, time=b"100")
        answered(world, {"a": 1})
        left = told(silent(world), "exit")
        post(world, time=b"149.9")
        assert not told(answered(world, {"a": 3})["a"][-1], "enter") & left
        post(world, time=b"150.1")
        assert told(answered(world, {"a": 4})["a"][-1], "enter") >= left


def test_a_stream_without_labels_inside_is_told_nothing(world: World) -> None:
    with working(world.new_log(), engine()):
        post(world, "ended", end=b"1")
        post(world, "reset")
        control(world, Control("reset"), "reset")
        post(world, "deleted")
        control(world, Control("delete"), "deleted")
        post(world)
        expected = {"ended": 1, "reset": 2, "deleted": 1}
        wait_until(lambda: all(len(world.records(stream)) == n for stream, n in expected.items()))
        silent(world)
        for stream, records in expected.items():
            assert not inside(world, stream)
            assert len(world.records(stream)) == records


def test_its_own_time_counts_and_a_change_of_it_at_once(world: World) -> None:
    with working(world.new_log(), engine(LONG)):
        post(world)
        answered(world, {"a": 1})
        wait_until(lambda: looked_at_next(world) > world.now_ms() + 1000, 60, "it is not due for long")
        control(world, Control("settings", NewSettings(rolling=LOW, idle_exit_s=0.2)))
        answered(world, {"a": 2})
        pass_time(world, 0.21)
        done = answered(world, {"a": 3})["a"][-1]
    assert (done["action"], bool(done["events"])) == ("silence", True)


def looked_at_next(world: World, stream: str = "a") -> int:
    if isinstance(world, MemoryWorld):
        return world.shards[shard_of(stream, SHARDS)].open[stream]
    assert isinstance(world, BrokerWorld)
    return int(world.client.zscore(world.keys[shard_of(stream, SHARDS)].open, stream) or 0)  # type: ignore[arg-type]


def test_a_restored_state_with_labels_inside_falls_silent_too(world: World) -> None:
    served = engine()
    with working(world.new_log(), served):
        post(world, "b")
        answered(world, {"b": 1})
        state = exported(world, "b", served.manifest)
        control(world, Control("restore", state=state))
        answered(world, {"a": 1})
        pass_time(world, 0.31)
        restored, done = answered(world, {"a": 2})["a"]
    assert (restored["action"], done["action"], told(done, "exit") > set()) == ("restore", "silence", True)


def test_who_takes_the_shard_over_finds_what_fell_silent_meanwhile_and_what_is_past_its_time(world: World) -> None:
    """The state's time is over by then: the exits are told all the same, and not again by the entry that says `ttl`."""
    served = engine(state_ttl_s=0.5)
    with working(world.new_log(), served):
        post(world)
        entered = told(answered(world, {"a": 1})["a"][0], "enter")
    pass_time(world, 0.6)
    with working(world.new_log("w2"), served):
        done = silent(world, seconds=0.0)
        post(world)
        *_, back = answered(world, {"a": 3})["a"]
    assert told(done, "exit") == entered
    assert (back["restarted"], back["step"], told(back, "exit")) == ("ttl", 1, set())


def test_a_janitor_waits_for_the_exits_and_keeps_their_record(world: World) -> None:
    """Nobody was there for longer than everything is kept of a stream."""
    options = {"state_ttl_s": 0.6, "output_history_s": 0.5}
    with working(world.new_log(), engine(), **options):
        post(world)
        entered = told(answered(world, {"a": 1})["a"][0], "enter")
    pass_time(world, 1.3)
    with working(world.new_log("w2"), engine(), **options):
        record: list[bytes] = []

        def seen() -> bool:
            record.extend(body for _, kind, body, _ in world.records("a") if kind == "done")
            return bool(record)

        wait_until(seen, 60, "the exits are told")
        assert told(json.loads(record[0]), "exit") == entered
        assert world.position("a") is not None, "the stream is not removed with the record just written"
        pass_time(world, 0.6)
        wait_until(lambda: not world.records("a"), 60, "in its time all goes")


def test_a_control_too_many_does_nothing(world: World) -> None:
    """Its owner died between the append and the commit and the next one appended again; or the camera came back."""
    first = post(world)
    for _ in range(2):
        control(world, Control("silence", after=first))
    post(world)
    control(world, Control("silence", after=first))
    with working(world.new_log(), engine(LONG)):
        one, exits, none, back, late = answered(world, {"a": 5})["a"]
        assert told(exits, "exit") == told(one, "enter") == told(back, "enter")
        assert not none.get("events")
        assert not late.get("events")
        assert inside(world), "it came back"
        assert back["restarted"] is None


def test_one_that_was_on_its_way_brings_no_deleted_stream_back(world: World) -> None:
    first = post(world)
    control(world, Control("delete"))
    control(world, Control("silence", after=first))
    with working(world.new_log(), engine(LONG)):
        wait_until(lambda: len(world.records("a")) == 2)  # the deletion took the prediction with it
        assert parse_position(world.position("a")).stepped == b"deleted"
        post(world)
        wait_until(lambda: len(world.records("a")) == 3)
    assert json.loads(world.records("a")[-1][2])["restarted"] == "first"


def test_one_by_hand_harms_nobody(world: World) -> None:
    control(world, Control("silence", after="99999999999999-0"), "nobody")
    post(world)
    for data in (b'{"action":"silence"}', b'{"action":"silence","after":"now"}', b'{"action":"reset","after":"1-0"}'):
        world.append("a", {"stream": b"a", "kind": b"control", "data": data})
    huge = b'{"action":"silence","after":"99999999999999999999-0"}'
    world.append("a", {"stream": b"a", "kind": b"control", "data": huge})
    with working(world.new_log(), engine(LONG)):
        bodies = answered(world, {"nobody": 1, "a": 5})
    assert bodies["nobody"][0]["type"] == "done"
    assert last_active(world, "nobody"), "so that it is swept away in its time"
    assert [body.get("reason") for body in bodies["a"]] == [None] + ["malformed"] * 4


def test_many_that_fall_silent_at_once_are_told_in_portions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PORTION", 7)
    streams = [f"s{n}" for n in range(60)]
    metrics = WorkerMetrics(CollectorRegistry())
    with working(world.new_log(), engine(), metrics=metrics):
        for stream in streams:
            post(world, stream)
        wait_until(lambda: all(world.records(stream) for stream in streams))
        pass_time(world, 0.31)
        bodies = answered(world, dict.fromkeys(streams, 2))
        wait_until(lambda: metrics.silenced.labels("tiny").value == len(streams), 60, "each is counted once")
    for first, done in bodies.values():
        assert told(done, "exit") == told(first, "enter") != set()


def test_a_paused_owner_appends_nothing(world: World) -> None:
    post(world)
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 1})
    shard = shard_of("a", SHARDS)
    old, taker = world.new_log("w2"), world.new_log("w2")  # the same name: it takes the shard back at once
    head = old.acquire(shard)
    assert head is not None
    data = encode_control(Control("silence", after="1-0"))
    look = Look("a", 0, world.position("a"), data)
    newer = taker.acquire(shard)
    before = world.logged()
    old.silence({shard: (head, [look])})
    assert world.logged() == before
    assert newer is not None
    taker.silence({shard: (newer, [look._replace(position=b"1-0")])})
    assert world.logged() == before, "nor does anybody where the stream was answered since"
    taker.silence({shard: (newer, [look])})
    assert world.logged() == before + 1
    for log in (old, taker):
        log.release(shard)
        log.close()


def test_a_stream_of_which_something_waits_is_not_silent(world: World) -> None:
    """What was not read yet may be its own: the silence is counted up to there."""
    post(world)
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 1})
    log, shard = world.new_log("w2"), shard_of("a", SHARDS)
    assert log.acquire(shard) is not None
    waiting = int(post(world).partition("-")[0])
    pass_time(world, 0.5)
    cursor = parse_position(world.position("a")).last
    found = log.overdue({shard: cursor}, 10)
    assert isinstance(found[shard], Overdue)
    assert (found[shard].read_ms, [row[0] for row in found[shard].streams]) == (waiting, ["a"])
    read = log.overdue({shard: cursor + (1 << 80)}, 10)[shard]
    assert read.read_ms == read.now_ms >= waiting + 500
    log.release(shard)
    log.close()


def test_a_broker_that_takes_nothing_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, refused = MemoryWorld(SHARDS), []

    class Full(MemoryLog):
        def silence(self, looks: Any) -> None:
            if len(refused) < 3:
                refused.append(1)
                raise CommitRefused("OOM")
            super().silence(looks)

    with working(Full(world), engine()):
        post(world)
        answered(world, {"a": 1})
        assert told(silent(world), "exit")
    assert len(refused) == 3


def test_a_log_without_an_id_left_is_no_reason_to_doubt_all_others(world: World) -> None:
    first = post(world)
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 1})
    shard = shard_of("a", SHARDS)
    world.append("a", rows_fields("a", np.ones((1, 3), np.float32)), entry_id=f"{2**64 - 1}-{2**64 - 1}")
    log = world.new_log("w2")
    head = log.acquire(shard)
    assert head is not None
    look = Look("a", 0, world.position("a"), encode_control(Control("silence", after=first)))
    log.silence({shard: (head, [look])})
    assert world.logged() == 1
    log.close()


@pytest.mark.parametrize("lost", ["fail_send", "fail_reply"])
def test_it_is_told_once_when_its_commit_is_in_doubt(lost: str) -> None:
    """The shard is lost then, and read again: before the commit was applied, or after."""
    world = MemoryWorld(SHARDS)

    class Doubtful(MemoryLog):
        def send(self, commit: Commit) -> None:
            if any(b'"action":"silence"' in record.body for record in commit.records) and not doubted:
                doubted.append(1)
                setattr(self, lost, 1)
            super().send(commit)

    doubted: list[int] = []
    with working(Doubtful(world), engine()):
        post(world)
        entered = told(answered(world, {"a": 1})["a"][0], "enter")
        assert told(silent(world), "exit") == entered
        post(world)
        *_, back = answered(world, {"a": 3})["a"]
    assert doubted
    assert (back["step"], told(back, "exit")) == (2, set())


def test_labels_that_nobody_here_can_name_wait_for_whoever_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "UNSERVED_MS", 100)
    world, served = MemoryWorld(SHARDS), engine()
    post(world)
    with working(world.new_log(), served):
        entered = told(answered(world, {"a": 1})["a"][0], "enter")
    pass_time(world, 1.0)
    with working(world.new_log("w2"), engine(name="other")):
        wait_until(lambda: looked_at_next(world) > world.clock_ms, 60, "it was looked at")
    assert len(world.records("a")) == 1
    pass_time(world, 1.0)
    with working(world.new_log("w3"), served):
        assert told(silent(world), "exit") == entered


def test_who_cannot_name_the_labels_carries_the_control_out_and_leaves_them_to_who_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "UNSERVED_MS", 100)
    served, first = engine(), post(world)
    with working(world.new_log(), engine(LONG)):
        entered = told(answered(world, {"a": 1})["a"][0], "enter")
    control(world, Control("silence", after=first))  # its owner ended before the control had its turn
    with working(world.new_log("w2"), engine(name="other")):
        assert "events" not in answered(world, {"a": 2})["a"][1]
    assert inside(world)
    pass_time(world, 0.4)
    with working(world.new_log("w3"), served):
        assert told(answered(world, {"a": 3})["a"][2], "exit") == entered


@pytest.mark.parametrize(
    ("settings", "manifest", "expected"),
    [
        ({}, None, 30.0),
        ({}, {}, 30.0),  # ten rows a second
        ({}, {"rate_hz": 0.1}, 100.0),
        ({}, {"idle_exit_s": 5.0}, 5.0),
        ({"idle_exit_s": 2.0}, {"idle_exit_s": 5.0}, 2.0),
        ({"state_ttl_s": 2.0}, {"idle_exit_s": 5.0}, 2.0),
        ({}, {"idle_exit_s": 5000.0}, LONG),
        ({}, {"state_ttl_s": 7.0}, 7.0),
        ({"state_ttl_s": 9000.0, "idle_exit_s": 9000.0}, {"state_ttl_s": 7.0}, LONG),
    ],
)
def test_how_long_is_silent(settings: dict[str, Any], manifest: dict[str, Any] | None, expected: float) -> None:
    """Ten times the usual time between steps, 30 s at least, unless somebody said; within the time to live."""
    made = None
    if manifest is not None:
        rows = RowInput(["x"], manifest.pop("rate_hz", 10.0), *[[0.0]] * 4)
        made = tiny_manifest(rows=rows, **manifest)
    assert idle_exit_s_of(StreamSettings(**settings), made, LONG) == expected


def test_a_setting_beyond_the_time_to_live_is_refused(world: World) -> None:
    control(world, Control("settings", NewSettings(model="tiny", idle_exit_s=8.0)))
    control(world, Control("settings", NewSettings(model="tiny", idle_exit_s=7.0)))
    with working(world.new_log(), engine(None, state_ttl_s=7.0)):
        refused, done = answered(world, {"a": 2})["a"]
    assert (refused["reason"], done["type"]) == ("malformed", "done")
    assert "idle_exit_s is 8, expected at most the stream's time to live, 7" in refused["detail"]


def test_what_a_janitor_is_told_of_exits_and_their_record(world: World) -> None:
    first, shard = post(world), shard_of("a", SHARDS)
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 1})
    log = world.new_log("w2")
    pass_time(world, 0.01)
    (one,) = log.idle(shard, 0, 0, 10, kept_ms=3_600_000)
    assert (one.inside, one.young) == (True, False)
    control(world, Control("silence", after=first))
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 2})
    pass_time(world, 0.01)
    for kept_ms, young in ((3_600_000, True), (0, False)):
        (one,) = log.idle(shard, 0, 0, 10, kept_ms=kept_ms)
        assert (one.inside, one.young) == (False, young)
    log.close()


def test_a_janitor_removes_nothing_before_its_exits_are_told_and_read() -> None:
    world, shard = MemoryWorld(SHARDS), shard_of("a", SHARDS)

    def sweep() -> bool:
        """Whether the stream and its records are there afterwards."""
        log = world.new_log("w2")
        head = log.acquire(shard)
        assert head is not None
        residence = Residence(100, lambda stream: None)
        metrics = WorkerMetrics(CollectorRegistry())
        janitor = Janitor(log, residence, metrics, state_ttl_s=0.5, output_history_s=0.5)
        janitor.sweep([Shard(shard, head)], 1.0, lambda stream: False)
        log.release(shard)
        return "a" in world.shards[shard].pos and bool(world.records("a"))

    first = post(world)
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 1})
    world.clock_ms += 400
    assert sweep()
    world.shards[shard].streams["a"] -= 1000
    kept = dict(world.shards[shard].out["a"])
    sweep()
    assert "a" in world.shards[shard].pos, "its exits are not told"
    world.shards[shard].out["a"] = kept
    control(world, Control("silence", after=first))
    with working(world.new_log(), engine(LONG)):
        answered(world, {"a": 2})
    assert sweep(), "the record of its exits is young"
    world.clock_ms += 600
    assert not sweep()
