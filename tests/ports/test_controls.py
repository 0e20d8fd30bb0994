"""The life of a stream as a worker decides it: settings, restore, reset, delete, and holes in `seq`, each in its turn.

Every sentence holds on the log in memory and on real brokers. `again` gives the shard to another worker, which has
only the broker's word.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.codec import NOWHERE, parse_head, parse_position
from service.contracts import GapPolicy, Manifest, RollingSettings
from service.controls import Control, NewSettings, encode_control
from service.embedded import EmbeddedBroker
from service.keys import shard_of
from service.metrics import WorkerMetrics
from service.portable import export_state
from service.ports import Commit
from service.state import StateLayout
from service.worker import loop
from tests.doubles import BrightnessEngine, MemoryLog, TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, answered, wait_until
from tests.worlds import working as working_with

LEASE_S = 5.0  # nobody dies here: a busy machine must not look like a dead worker
working = partial(working_with, lease_s=LEASE_S)


@pytest.fixture(params=["memory", "valkey", "redis"])
def world(request: pytest.FixtureRequest, prefix: str, start_broker: Callable[[str], EmbeddedBroker]) -> World:
    if request.param == "memory":
        return MemoryWorld(SHARDS)
    return BrokerWorld(start_broker(request.param).url, prefix, LEASE_S)


def post(world: World, stream: str, rows: Any, **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.asarray(rows, np.float32), **more))


def control(world: World, stream: str, what: Control) -> str:
    return world.append(stream, {"stream": stream.encode(), "kind": b"control", "data": encode_control(what)})


def settings(world: World, stream: str, **values: Any) -> str:
    return control(world, stream, Control("settings", NewSettings(**values)))


def layout(manifest: Manifest) -> StateLayout:
    return StateLayout(manifest, manifest.sha256[:16])


def exported(world: World, stream: str, manifest: Manifest) -> bytes:
    record, made = world.state(stream), layout(manifest)
    assert record is not None
    row = made.decode(record)
    assert row is not None
    return export_state(made, row, stream, "1-0")


ROW = [[1, 2, 3]]
LOW = RollingSettings(0.0, 0.1, 0.0, 0.0, 0.0, 99.0)  # every label enters at once, and leaves only when closed


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_another_model_begins_with_a_new_state_and_says_version(world: World, again: bool) -> None:
    engines = TinyEngine(tiny_manifest(rolling=LOW)), TinyEngine(tiny_manifest("other", rolling=LOW), seed=1)
    post(world, "a", ROW, model=b"tiny")
    settings(world, "a", model="other")
    with working(world.new_log(), *engines):
        first, done = answered(world, {"a": 2})["a"]
        if not again:
            post(world, "a", ROW)
            answered(world, {"a": 3})
        else:
            assert world.state("a") is None
    if again:
        post(world, "a", ROW)
    with working(world.new_log("w2"), *engines):
        *_, second = answered(world, {"a": 3})["a"]
    assert (done["type"], done["action"]) == ("done", "settings")
    entered = {event["label"] for event in first["events"]}
    assert {(event["type"], event["label"]) for event in done["events"]} == {("exit", label) for label in entered}
    assert (second["model"], second["step"], second["restarted"]) == ("other", 1, "version")


def test_the_same_model_again_changes_nothing(world: World) -> None:
    post(world, "a", ROW)
    settings(world, "a", model="tiny")
    post(world, "a", ROW)
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        _, done, last = answered(world, {"a": 3})["a"]
    assert "events" not in done
    assert (last["step"], last["restarted"]) == (2, None)


def test_settings_bind_a_stream_before_its_first_entry(world: World) -> None:
    settings(world, "a", model="twin")
    post(world, "a", ROW)
    with working(world.new_log(), TinyEngine(tiny_manifest()), TinyEngine(tiny_manifest("twin"))):
        _, body = answered(world, {"a": 2})["a"]
    assert (body["model"], body["restarted"]) == ("twin", "first")


def test_a_streams_own_rolling_and_gap_are_those_of_a_package_that_has_them(world: World) -> None:
    rng = np.random.default_rng(3)
    rows = 4 * rng.normal(size=(40, 3)).astype(np.float32)
    own, gap = RollingSettings(0.05, 0.55, 0.35, 0.0, 0.1, 0.3), GapPolicy("carry", 0.2)
    settings(world, "a", model="tiny", rolling=own, gap=gap)
    for n, row in enumerate(rows):
        for stream in "ab":
            post(world, stream, row[None], time=b"%.1f" % (100 + n / 10))
    engine = TinyEngine(tiny_manifest(many_steps=False))  # nothing but batches brings entries together
    with working(world.new_log(), engine):
        bodies = answered(world, {"a": 41, "b": 40})
    oracles = {"a": Oracle(TinyEngine(tiny_manifest(rolling=own, gap=gap))), "b": Oracle(TinyEngine(tiny_manifest()))}
    seen = {"a": 0, "b": 0}
    for stream, oracle in oracles.items():
        for n, body in enumerate(bodies[stream][-40:]):
            same(body, oracle.step(rows[n : n + 1], 100 + n / 10))
            seen[stream] += len(body["events"])
    assert min(seen.values()) > 5, "both had events to compare"
    assert max(b for b, _ in engine.calls) > 1, "and they were in one batch"


def test_own_settings_are_kept_for_the_next_worker_and_replaced_as_a_whole(world: World) -> None:
    settings(world, "a", model="tiny", gap=GapPolicy("reset", 5.0))
    post(world, "a", ROW, time=b"100")
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        answered(world, {"a": 2})
    post(world, "a", ROW, time=b"110")
    settings(world, "a")
    post(world, "a", ROW, time=b"120")
    with working(world.new_log("w2"), engine):
        *_, held, _, carried = answered(world, {"a": 5})["a"]
    assert (held["restarted"], held["model"]) == ("gap", "tiny")
    assert (carried["restarted"], carried["model"], carried["step"]) == (None, "tiny", 2), "the model stays"


@pytest.mark.parametrize(("own", "packages"), [(1.0, None), (None, 1.0), (1.0, 1e-3), (1.0, 1e6)])
def test_a_streams_own_ttl_or_its_packages_is_counted_by_its_entries_ids(
    world: World, own: float | None, packages: float | None
) -> None:
    settings(world, "a", state_ttl_s=own)
    ids = [post(world, "a", ROW)]
    ms = int(ids[0].partition("-")[0])
    for later in (900, 2500):
        if isinstance(world, MemoryWorld):
            world.clock_ms = ms + later
            post(world, "a", ROW)
        else:
            fields = rows_fields("a", np.array(ROW, np.float32))
            world.client.xadd(world.keys[shard_of("a", SHARDS)].inbox, fields, id=f"{ms + later}-0")  # type: ignore[arg-type, attr-defined]
    with working(world.new_log(), TinyEngine(tiny_manifest(state_ttl_s=packages))):
        bodies = answered(world, {"a": 4})["a"]
    assert [body["restarted"] for body in bodies[1:]] == ["first", None, "ttl"]


@pytest.mark.parametrize(
    ("values", "reason", "text"),
    [
        ({"model": "nobody"}, "unknown_model", "known are: tiny"),
        ({"state_ttl_s": 100_000.0}, "malformed", "at most the deployment's state_ttl_s, 86400"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_change_nothing(
    world: World, values: dict[str, Any], reason: str, text: str
) -> None:
    post(world, "a", ROW)
    settings(world, "a", **values)
    post(world, "a", ROW)
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        _, refused, last = answered(world, {"a": 3})["a"]
    assert (refused["type"], refused["reason"]) == ("refused", reason)
    assert text in refused["detail"]
    assert (last["step"], last["model"]) == (2, "tiny")


def test_a_stream_may_live_as_long_as_its_deployment_says_and_no_longer(world: World) -> None:
    for state_ttl_s in (60.0, 60.001):
        settings(world, "a", state_ttl_s=state_ttl_s)
    with working(world.new_log(), TinyEngine(tiny_manifest()), state_ttl_s=60.0):
        bodies = answered(world, {"a": 2})["a"]
    assert [body["type"] for body in bodies] == ["done", "refused"]


def test_a_package_that_would_live_longer_lives_as_long_as_its_deployment_says(world: World) -> None:
    now_ms, fields = world.now_ms(), rows_fields("a", np.array(ROW, np.float32))
    for later in (1000, 6000, 11_001):
        world.append("a", fields, entry_id=f"{now_ms + later}-0")
    with working(world.new_log(), TinyEngine(tiny_manifest(state_ttl_s=1e6)), state_ttl_s=5.0):
        bodies = answered(world, {"a": 3})["a"]
    assert [body["restarted"] for body in bodies] == ["first", None, "ttl"]


def test_a_stream_that_never_stepped_has_nothing_to_reset(world: World) -> None:
    world.append("a", {"stream": b"a", "kind": b"control", "data": b'{"action": "reset"}'})
    post(world, "a", ROW)
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        done, first = answered(world, {"a": 2})["a"]
    assert (done["type"], first["restarted"]) == ("done", "first")


def test_a_frame_that_waited_while_its_stream_got_another_model_is_decoded_for_that_one(world: World) -> None:
    """It was decoded, or could not be, when it was read: before the control had its turn."""
    small, large = BrightnessEngine(), BrightnessEngine()
    frames = small.manifest.frames
    assert frames is not None
    wide = frames.__class__(16, 16, 1, "gray")
    large.manifest = tiny_manifest("large", kind="frame", labels=["dark", "bright"], states=[], rows=None, frames=wide)
    _, picture = cv2.imencode(".png", np.full((32, 32), 51, np.uint8))
    for more in ({"model": b"brightness"}, None, {}, {"model": b"large"}):
        if more is None:
            settings(world, "a", model="large")
        else:
            world.append("a", {"stream": b"a", "kind": b"frame", "data": picture.tobytes(), **more})
    with working(world.new_log(), small, large):
        bodies = answered(world, {"a": 4})["a"]
    assert [body.get("model") for body in bodies] == ["brightness", None, "large", "large"]
    assert bodies[3]["probabilities"] == pytest.approx([0.8, 0.2], abs=1e-3)


# --- restore -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_a_restored_stream_goes_on_as_if_it_had_never_stopped(world: World, again: bool) -> None:
    engine = TinyEngine(tiny_manifest())
    rows = np.random.default_rng(4).normal(size=(12, 3)).astype(np.float32)
    post(world, "a", rows[:8], time=b"100")
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
    state = exported(world, "a", engine.manifest)
    post(world, "b", rows[:3], time=b"50")
    control(world, "b", Control("restore", state=state))
    if again:
        with working(world.new_log("w2"), engine):
            answered(world, {"b": 2})
    for stream in "ab":
        post(world, stream, rows[8:], time=b"100.4")
    with working(world.new_log("w3"), engine):
        bodies = answered(world, {"a": 2, "b": 3})
    straight, restored = bodies["a"][1], bodies["b"][2]
    assert bodies["b"][1]["action"] == "restore"
    for name in ("step", "probabilities", "rolling", "restarted"):
        assert restored[name] == straight[name]
    assert restored["step"] == 12


def test_a_restored_state_keeps_the_streams_own_position_and_seq(world: World) -> None:
    engine = TinyEngine(tiny_manifest())
    first = post(world, "a", ROW, seq=b"7")
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
        state = exported(world, "a", engine.manifest)  # says that it is of entry 1-0: a foreign position
        control(world, "a", Control("restore", state=state))
        post(world, "a", ROW, seq=b"7")
        post(world, "a", ROW, seq=b"8")
        _, done, repeated, last = answered(world, {"a": 4})["a"]
    assert (repeated["type"], repeated["of"]) == ("duplicate", first)
    assert (last["step"], last["restarted"]) == (2, None)
    assert int(done["id"].partition("-")[0]) > 1


@pytest.mark.parametrize("again", [False, True])
def test_a_gap_is_counted_from_the_restoring_entry_however_old_the_state_is(world: World, again: bool) -> None:
    engine = TinyEngine(tiny_manifest(gap=GapPolicy("reset", 5.0)))
    post(world, "a", ROW, time=b"100")
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
        state = exported(world, "a", engine.manifest)
        restored = {stream: control(world, stream, Control("restore", state=state)) for stream in "bc"}
        answered(world, {"b": 1, "c": 1})
        if not again:
            post_after(world, restored)
            bodies = answered(world, {"b": 3, "c": 2})
    if again:
        post_after(world, restored)
        with working(world.new_log("w2"), engine):
            bodies = answered(world, {"b": 3, "c": 2})
    assert [(body["step"], body["restarted"]) for body in bodies["b"][1:]] == [(2, None), (1, "gap")]
    assert (bodies["c"][1]["step"], bodies["c"][1]["restarted"]) == (1, "gap")


def post_after(world: World, restored: dict[str, str]) -> None:
    s = {stream: int(entry_id.partition("-")[0]) / 1000 for stream, entry_id in restored.items()}
    for stream, later in (("b", 4.0), ("b", 10.0), ("c", 6.0)):
        post(world, stream, ROW, time=b"%.3f" % (s[stream] + later))


@pytest.mark.parametrize("again", [False, True])
def test_restoring_binds_a_new_stream_to_the_states_model(world: World, again: bool) -> None:
    engines = TinyEngine(tiny_manifest()), TinyEngine(tiny_manifest("twin"))
    post(world, "a", ROW, model=b"twin")
    with working(world.new_log(), *engines):
        answered(world, {"a": 1})
        control(world, "b", Control("restore", state=exported(world, "a", engines[1].manifest)))
        answered(world, {"b": 1})
        if not again:
            post(world, "b", ROW)
            answered(world, {"b": 2})
    if again:
        post(world, "b", ROW)
    with working(world.new_log("w2"), *engines):
        _, body = answered(world, {"b": 2})["b"]
    assert (body["model"], body["step"], body["restarted"]) == ("twin", 2, None)


def test_restoring_exits_what_was_inside_before(world: World) -> None:
    engine = TinyEngine(tiny_manifest(rolling=LOW))
    control(
        world,
        "a",
        Control("restore", state=export_state(layout(engine.manifest), layout(engine.manifest).fresh[()], "a", "1-0")),
    )
    post(world, "a", ROW)
    control(
        world,
        "a",
        Control("restore", state=export_state(layout(engine.manifest), layout(engine.manifest).fresh[()], "a", "1-0")),
    )
    with working(world.new_log(), engine):
        _, body, done = answered(world, {"a": 3})["a"]
    entered = {event["label"] for event in body["events"] if event["type"] == "enter"}
    assert entered
    assert {(e["type"], e["label"]) for e in done["events"]} == {("exit", label) for label in entered}


@pytest.mark.parametrize("fault", ["schema", "model", "nan", "garbage"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(world: World, fault: str) -> None:
    engine = TinyEngine(tiny_manifest())
    made = layout(engine.manifest)
    row = made.fresh.copy()
    if fault == "nan":
        row["state:h"] = np.nan
    if fault == "schema":
        made = StateLayout(engine.manifest, "f" * 16)
    if fault == "model":
        made = layout(tiny_manifest("other"))
    state = b"garbage" if fault == "garbage" else export_state(made, row[()], "a", "1-0")
    post(world, "a", ROW)
    control(world, "a", Control("restore", state=state))
    post(world, "a", ROW)
    with working(world.new_log(), engine):
        _, refused, last = answered(world, {"a": 3})["a"]
    reasons = {"schema": "other_schema", "model": "other_model", "nan": "non_finite", "garbage": "malformed"}
    assert refused["reason"] == reasons[fault]
    if fault == "schema":
        assert "'ffffffffffffffff'" in refused["detail"]
        assert repr(engine.manifest.sha256[:16]) in refused["detail"]
    assert (last["step"], last["restarted"]) == (2, None)


# --- upgrades ----------------------------------------------------------------------------------------------------


def test_a_new_version_of_the_same_schema_carries_the_states_on(world: World) -> None:
    old = tiny_manifest()
    post(world, "a", ROW)
    with working(world.new_log(), TinyEngine(old)):
        answered(world, {"a": 1})
    post(world, "a", ROW)
    with working(world.new_log("w2"), TinyEngine(tiny_manifest(version=2))):
        _, body = answered(world, {"a": 2})["a"]
    assert (body["version"], body["step"], body["restarted"]) == (2, 2, None)


# --- delete ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_a_deleted_stream_leaves_its_done_record_and_begins_as_new(world: World, again: bool) -> None:
    engines = TinyEngine(tiny_manifest(rolling=LOW)), TinyEngine(tiny_manifest("other"))
    for seq in (1, 2, 3):
        post(world, "a", ROW, model=b"tiny", seq=b"%d" % seq)
    with working(world.new_log(), *engines):
        *_, last = answered(world, {"a": 3})["a"]
        deleted = control(world, "a", Control("delete"))
        post(world, "b", ROW, model=b"tiny")
        answered(world, {"b": 1})
        wait_for_record(world, deleted)
    ((entry_id, kind, body, prev),) = world.records("a")
    assert (entry_id, kind, prev) == (deleted, "done", last["id"]), "one answer, and subscribers see a gap before it"
    assert json.loads(body)["action"] == "delete"
    assert {event["type"] for event in json.loads(body)["events"]} == {"exit"}
    assert world.state("a") is None
    post(world, "a", ROW, model=b"other", seq=b"1")
    with working(world.new_log("w2" if again else "w"), *engines):
        wait_for_record(world, "", 2)
    _, (_, kind, body, prev) = world.records("a")
    new = json.loads(body)
    assert (kind, prev) == ("prediction", deleted)
    assert (new["model"], new["step"], new["restarted"]) == ("other", 1, "first"), "no binding, no seq, no state"


def wait_for_record(world: World, entry_id: str, count: int = 1) -> None:
    wait_until(lambda: len(world.records("a")) == count and (not entry_id or world.records("a")[0][0] == entry_id))


def test_a_deleted_stream_is_not_stepped_again_by_its_shards_next_owner(world: World) -> None:
    """Its position outlives it: entries that are still in the log were answered before."""
    if isinstance(world, MemoryWorld):
        world.clock_ms = int(time.time() * 1000)  # the log's history is counted by the worker's clock
    post(world, "a", ROW)
    deleted = control(world, "a", Control("delete"))
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine, input_history_s=3600.0):
        wait_for_record(world, deleted)
    assert world.logged() == 2, "both are still there to be read"
    rewind(world, shard_of("a", SHARDS))
    with working(world.new_log("w2"), engine, input_history_s=3600.0):
        post(world, "b", ROW)
        answered(world, {"b": 1})
    assert [record[0] for record in world.records("a")] == [deleted]


def rewind(world: World, shard: int) -> None:
    """As if an entry before them all had not been finished."""
    if isinstance(world, MemoryWorld):
        it = world.shards[shard]
        it.head = parse_head(it.head)._replace(low=0).encode()
    else:
        head = world.keys[shard].head  # type: ignore[attr-defined]
        found = world.client.get(head)  # type: ignore[attr-defined]
        world.client.set(head, parse_head(found)._replace(low=0).encode())  # type: ignore[attr-defined]


def test_a_refused_entry_after_the_deletion_makes_the_stream_be_there_again(world: World) -> None:
    post(world, "a", ROW)
    control(world, "a", Control("delete"))
    post(world, "a", [[1, np.nan, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        wait_for_record(world, "", 2)
    position = position_of(world, "a")
    assert position.stepped == b"-"


def position_of(world: World, stream: str) -> Any:
    if isinstance(world, MemoryWorld):
        found = world.shards[shard_of(stream, SHARDS)].pos.get(stream)
    else:
        found = world.client.hget(world.keys[shard_of(stream, SHARDS)].pos, stream)  # type: ignore[attr-defined]
    return parse_position(found) if found else NOWHERE


# --- seq ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "restarted"), [("carry", None), ("reset", "gap")])
def test_a_hole_in_seq_follows_the_gap_policy_and_is_told(world: World, policy: Any, restarted: str | None) -> None:
    for seq in (b"3", b"4", b"8"):
        post(world, "a", ROW, seq=seq)
    with working(world.new_log(), TinyEngine(tiny_manifest(gap=GapPolicy(policy, 5.0)))):
        bodies = answered(world, {"a": 3})["a"]
    assert [body.get("missed") for body in bodies] == [None, None, 3]
    assert bodies[2]["restarted"] == restarted
    assert bodies[2]["step"] == (1 if restarted else 3)


def test_a_refused_entrys_seq_is_missed_and_may_come_again(world: World) -> None:
    engine = TinyEngine(tiny_manifest())
    post(world, "a", ROW, seq=b"1")
    post(world, "a", [[1, np.nan, 3]], seq=b"2")
    post(world, "a", ROW, seq=b"2")
    post(world, "a", [[1, np.nan, 3]], seq=b"3")
    post(world, "a", ROW, seq=b"4")
    with working(world.new_log(), engine):
        bodies = answered(world, {"a": 5})["a"]
    assert [body["type"] for body in bodies] == ["prediction", "refused", "prediction", "refused", "prediction"]
    assert [body.get("missed") for body in bodies] == [None, None, None, None, 1]


def test_seq_is_remembered_over_a_reset_a_rebinding_and_a_restart(world: World) -> None:
    engines = TinyEngine(tiny_manifest()), TinyEngine(tiny_manifest("other"))
    first = post(world, "a", ROW, seq=b"7", model=b"tiny")
    control(world, "a", Control("reset"))
    post(world, "a", ROW, seq=b"7")
    settings(world, "a", model="other")
    with working(world.new_log(), *engines):
        answered(world, {"a": 4})
    post(world, "a", ROW, seq=b"7")
    post(world, "a", ROW, seq=b"10")
    with working(world.new_log("w2"), *engines):
        bodies = answered(world, {"a": 6})["a"]
    assert [(b["type"], b.get("of")) for b in (bodies[2], bodies[4])] == [("duplicate", first)] * 2
    assert (bodies[5]["missed"], bodies[5]["restarted"]) == (2, "version")


# --- quarantine --------------------------------------------------------------------------------------------------


def test_quarantine_is_bounded_in_number_and_what_leaves_is_counted(world: World) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    for _ in range(30):
        post(world, "a", [[1, np.nan, 3]])
    with working(world.new_log(dead_kept=7), TinyEngine(tiny_manifest()), metrics=metrics):
        answered(world, {"a": 30})
    assert len(world.dead()) == 7
    assert metrics.dead_overflow.value == 23
    assert metrics.dead.labels("non_finite").value == 30


def test_quarantine_is_bounded_in_bytes_too(world: World) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    for n in range(20):
        world.append("a", {"stream": b"a", "kind": b"frame", "data": bytes([n]) * 50_000})
    with working(world.new_log(dead_bytes=300_000), TinyEngine(tiny_manifest()), metrics=metrics):
        answered(world, {"a": 20})
    kept = world.dead()
    assert 1 <= len(kept) <= 6
    assert [data[0] for _, _, data in kept] == list(range(20 - len(kept), 20)), "the newest ones"
    assert metrics.dead_overflow.value == 20 - len(kept)


# --- lost replies ------------------------------------------------------------------------------------------------


class Losing(MemoryLog):
    """Loses commit `lost`, counted from 1: before it is applied, or its reply after it was."""

    def __init__(self, broker: MemoryWorld, lost: int, applied: bool) -> None:
        super().__init__(broker)
        self.left, self.applied = lost, applied

    def send(self, commit: Commit) -> None:
        self.left -= 1
        if self.left == 0:
            self.fail_send, self.fail_reply = int(not self.applied), int(self.applied)
        super().send(commit)


def test_a_stream_is_bound_by_the_commit_of_its_first_record_and_by_no_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bound without a position it would be taken for one that was removed, and begin with `ttl`."""
    monkeypatch.setattr(loop, "COMMIT_BYTES", 1)  # a commit for each stream
    world, streams = MemoryWorld(SHARDS), [s for n in range(99) if shard_of(s := f"s{n}", SHARDS) == 0][:4]
    for stream in streams:
        post(world, stream, ROW)
    with working(Losing(world, 2, applied=False), TinyEngine(tiny_manifest())):
        bodies = answered(world, dict.fromkeys(streams, 1))
    assert [bodies[stream][0]["restarted"] for stream in streams] == ["first"] * 4


def life_story(lost: int = 0, applied: bool = False) -> list[tuple[Any, ...]]:
    """A stream that meets every control, with one commit lost: what its records say, ids apart."""
    world = MemoryWorld(SHARDS)
    engines = TinyEngine(tiny_manifest(rolling=LOW)), TinyEngine(tiny_manifest("other"), seed=1)
    made = layout(engines[0].manifest)
    row = made.fresh.copy()
    row["step"], row["state:h"] = 41, 0.5
    told = 0
    seen: list[tuple[Any, ...]] = []
    with working(Losing(world, lost, applied), *engines):
        for part in (
            lambda: post(world, "a", ROW, model=b"tiny", seq=b"1"),
            lambda: settings(world, "a", model="other", gap=GapPolicy("reset", 1.0)),
            lambda: post(world, "a", ROW, seq=b"2"),
            lambda: settings(world, "a", model="tiny"),
            lambda: control(world, "a", Control("restore", state=export_state(made, row[()], "x", "1-0"))),
            lambda: post(world, "a", ROW, seq=b"3"),
            lambda: control(world, "a", Control("reset")),
            lambda: post(world, "a", ROW, seq=b"3"),
            lambda: post(world, "a", ROW, seq=b"7"),
        ):
            part()
            told += 1
            bodies = answered(world, {"a": told})["a"]
        deleted = control(world, "a", Control("delete"))
        wait_for_record(world, deleted)
        bodies.append(json.loads(world.records("a")[0][2]))
        post(world, "a", ROW, model=b"other", seq=b"1")
        wait_for_record(world, deleted, 2)
        bodies.append(json.loads(world.records("a")[1][2]))
    for body in bodies:
        events = [(event["type"], event["label"]) for event in body.get("events", [])]
        names = ("type", "action", "model", "step", "restarted", "missed", "probabilities")
        seen.append((*(body.get(name) for name in names), events))
    return seen


@pytest.mark.parametrize("applied", [False, True], ids=["not applied", "applied"])
def test_no_lost_commit_changes_what_controls_came_to(applied: bool) -> None:
    whole = life_story()
    assert [(told[0], told[3], told[4]) for told in whole] == [
        ("prediction", 1, "first"),
        ("done", None, None),
        ("prediction", 1, "version"),
        ("done", None, None),
        ("done", None, None),
        ("prediction", 42, None),
        ("done", None, None),
        ("duplicate", None, None),
        ("prediction", 1, "reset"),
        ("done", None, None),
        ("prediction", 1, "first"),
    ]
    for lost in range(1, len(whole) + 1):
        assert life_story(lost, applied) == whole, f"commit {lost}"
