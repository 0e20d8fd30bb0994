"""A stream that lags is advanced several entries a call, and nothing but the time it takes is different."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.codec import encode_settings
from service.contracts import GapPolicy, Manifest, StreamSettings
from service.keys import shard_of
from service.portable import export_state
from service.state import StateLayout
from tests.doubles import BrightnessEngine, TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.worlds import SHARDS, MemoryWorld, World, answered, wait_until, working


def post(world: World, stream: str, rows: Any, **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.asarray(rows, np.float32), **more))


def test_a_backlog_of_one_stream_is_stepped_in_few_calls_and_as_one_by_one(world: World) -> None:
    rng = np.random.default_rng(3)
    blocks = [rng.normal(size=(int(rng.choice([1, 1, 1, 2, 5])), 3)).astype(np.float32) * 3 for _ in range(300)]
    time = 100.0
    times = []
    for block in blocks:
        time = round(time + 0.1 * len(block), 6)
        times.append(time)
        post(world, "a", block, time=repr(time).encode())
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        bodies = answered(world, {"a": len(blocks)})["a"]
    calls = len(engine.calls)
    oracle = Oracle(engine)
    for block, at, body in zip(blocks, times, bodies, strict=True):
        same(body, oracle.step(block, at), tolerance=1e-5)
    assert sum(len(body["events"]) for body in bodies) > 10
    assert calls < len(blocks) / 2, "several entries went into one call"


class HeldUpOnce(TinyEngine):
    """Its first run of several steps takes as long as if the machine had done something else meanwhile."""

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if x.shape[1] > 1 and all(t == 1 for _, t in self.calls):
            time.sleep(0.2)
        return super().run(x, states)


def test_a_first_run_that_was_held_up_does_not_end_catching_up(world: World) -> None:
    for _ in range(300):
        post(world, "a", [[1.0, 2.0, 3.0]])
    engine = HeldUpOnce(tiny_manifest())
    with working(world.new_log(), engine):
        answered(world, {"a": 300})
    (first, *others) = [t for _, t in engine.calls if t > 1]
    assert first <= 4
    assert sum(others) > 100, "after some entries one by one it was tried again"


def test_a_bad_entry_in_a_block_is_refused_alone(world: World) -> None:
    rows = np.random.default_rng(4).normal(size=(40, 1, 3)).astype(np.float32)
    rows[17] = 3e38  # the step overflows
    rows[29, 0, 1] = np.nan
    for block in rows:
        post(world, "a", block)
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        bodies = answered(world, {"a": 40})["a"]
    assert [n for n, body in enumerate(bodies) if body["type"] == "refused"] == [17, 29]
    assert {body["reason"] for body in bodies if body["type"] == "refused"} == {"non_finite"}
    assert [body["step"] for body in bodies if body["type"] == "prediction"] == list(range(1, 39))
    assert max(t for _, t in engine.calls) > 1


def test_a_model_that_takes_one_step_a_call_is_never_given_more(world: World) -> None:
    for _ in range(40):
        post(world, "a", [[1, 2, 3]])
    engine = TinyEngine(tiny_manifest(many_steps=False))
    with working(world.new_log(), engine):
        answered(world, {"a": 40})
    assert {t for _, t in engine.calls} == {1}


def test_frames_of_a_stream_that_lags_go_into_one_call(world: World) -> None:
    import cv2

    for n in range(60):
        _, picture = cv2.imencode(".png", np.full((8, 8), 4 * n, np.uint8))
        world.append("a", {"stream": b"a", "kind": b"frame", "data": picture.tobytes()})
    with working(world.new_log(), BrightnessEngine()):
        bodies = answered(world, {"a": 60})["a"]
    bright = [body["probabilities"][1] for body in bodies]
    np.testing.assert_allclose(bright, np.arange(60) * 4 / 255, atol=1e-5)
    assert [body["step"] for body in bodies] == list(range(1, 61))


def test_a_stream_of_its_own_thresholds_keeps_them_beside_others(world: World) -> None:
    quiet = tiny_manifest().rolling.__class__(half_life_s=0.0, enter=2.0, exit=0.0)
    jumpy = GapPolicy("reset", 0.05)
    for stream, own in (("quiet", StreamSettings(rolling=quiet)), ("jumpy", StreamSettings(gap=jumpy))):
        put_settings(world, stream, own)
    rng = np.random.default_rng(5)
    for n in range(30):
        for stream in ("quiet", "jumpy", "plain"):
            post(world, stream, 4 * rng.normal(size=(1, 3)), time=b"%.1f" % (100 + n / 10))
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"quiet": 30, "jumpy": 30, "plain": 30})
    assert not any(body["events"] for body in bodies["quiet"])
    assert all(body["rolling"]["probabilities"] == body["probabilities"] for body in bodies["quiet"])
    assert [body["restarted"] for body in bodies["jumpy"]] == ["first"] + ["gap"] * 29
    assert any(body["events"] for body in bodies["plain"])
    assert [body["restarted"] for body in bodies["plain"]] == ["first"] + [None] * 29


def test_a_stream_of_its_own_time_to_live_begins_anew_after_it(world: World) -> None:
    put_settings(world, "short", StreamSettings(state_ttl_s=0.05))
    put_settings(world, "long", StreamSettings(state_ttl_s=1e9))
    for stream in ("short", "long", "plain"):
        post(world, stream, [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest()), state_ttl_s=10):
        answered(world, {"short": 1, "long": 1, "plain": 1})
        for _ in range(2):
            if isinstance(world, MemoryWorld):
                world.clock_ms += 100
            else:
                wait_past(world, "long", 0.1)
            for stream in ("short", "long", "plain"):
                post(world, stream, [[1, 2, 3]])
        bodies = answered(world, {"short": 3, "long": 3, "plain": 3})
    assert [body["restarted"] for body in bodies["short"]] == ["first", "ttl", "ttl"]
    assert [body["restarted"] for body in bodies["long"]] == ["first", None, None]
    assert [body["restarted"] for body in bodies["plain"]] == ["first", None, None]


def put_settings(world: World, stream: str, own: StreamSettings) -> None:
    if isinstance(world, MemoryWorld):
        world.shards[shard_of(stream, SHARDS)].settings[stream] = encode_settings(own)
    else:
        world.client.hset(world._of(stream).settings, stream, encode_settings(own))  # type: ignore[attr-defined]


def wait_past(world: World, stream: str, seconds: float) -> None:
    """Until the broker's clock is that much past the stream's last entry."""
    client = world.client  # type: ignore[attr-defined]
    newest = max(int(client.xinfo_stream(keys.inbox)["last-generated-id"].split(b"-")[0]) for keys in world.keys)  # type: ignore[attr-defined]

    def past() -> bool:
        s, us = client.time()
        return bool(s * 1000 + us // 1000 > newest + seconds * 1000)

    wait_until(past, 60, "the broker's clock goes on")


# --- any cut, any mixture ------------------------------------------------------------------------------------------

WHAT = ["start", "end", "reset", "settings", "restore", "nan", "inf", "other", "shape", "pause"]
row = st.lists(st.sampled_from([-3.0, -0.5, 0.0, 1.0, 4.0]), min_size=3, max_size=3)
entry = st.fixed_dictionaries(
    {
        "rows": st.lists(row, min_size=1, max_size=3),
        "stream": st.sampled_from("ab"),
        "what": st.sampled_from(["plain"] * 12 + WHAT),
        "seq": st.sampled_from([None, None, None, 0, 1, 1, 1, 2]),  # steps of the counter; 0 repeats, none: no seq
        "dt": st.sampled_from([0.1, 0.1, 0.1, 2.0, 9.0]),
    }
)


def play(script: list[dict[str, Any]], manifest: Manifest, batch_entries: int) -> tuple[Any, list[tuple[int, int]]]:
    """All that is left in the broker after a script of entries, and the calls of the model."""
    layout = StateLayout(manifest, manifest.sha256[:16])
    state = base64.b64encode(export_state(layout, layout.fresh[()], "x", "1-0")).decode()
    world, clock, counter = MemoryWorld(SHARDS), {"a": 100.0, "b": 100.0}, {"a": 5, "b": 5}
    for one in script:
        stream, what, rows = one["stream"], one["what"], np.array(one["rows"], np.float32)
        clock[stream] = round(clock[stream] + one["dt"], 3)
        more = {"time": repr(clock[stream]).encode()}
        if one["seq"] is not None:
            counter[stream] += one["seq"]
            more["seq"] = b"%d" % counter[stream]
        if what in ("start", "end"):
            more[what] = b"1"
        elif what == "nan":
            rows[0, 0] = np.nan
        elif what == "inf":
            rows[-1] = 3e38
        elif what == "other":
            more["model"] = b"other"
        elif what == "pause":
            world.clock_ms += 1000
        if what in ("reset", "settings", "restore"):
            given = {"gap": {"policy": "carry" if len(rows) > 1 else "reset", "gap_s": 5.0}, "state_ttl_s": 0.2}
            more = {"settings": given} if what == "settings" else {"state": state} if what == "restore" else {}
            data = json.dumps({"action": what} | more).encode()
            world.append(stream, {"stream": stream.encode(), "kind": b"control", "data": data})
        elif what == "shape":
            world.append(stream, rows_fields(stream, rows[:, :2], **more))
        else:
            post(world, stream, rows, **more)
    engine = TinyEngine(manifest)
    others = [TinyEngine(tiny_manifest("other"))]
    with working(
        world.new_log(), engine, *others, batch_entries=batch_entries, defaults={"samples": "tiny"}, state_ttl_s=0.5
    ):
        wait_until(lambda: world.logged() == 0 or len(seen(world)) == len(script), 60, "all are answered")
        wait_until(lambda: len(seen(world)) == len(script), 60, "all are answered")
    left = [
        (it.pos, it.settings, {name: repr(layout.decode(record)) for name, record in it.states.items()})
        for it in world.shards
    ]
    return (seen(world), left, sorted(world.dead(), key=repr)), engine.calls


def seen(world: MemoryWorld) -> list[Any]:
    return [(stream, json.loads(body)) for stream in "ab" for _, _, body, _ in world.records(stream)]


@given(st.lists(entry, min_size=1, max_size=40), st.sampled_from([8, 64]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_catching_up_equals_stepping_one_by_one_under_any_mixture(script: list[dict[str, Any]], batch: int) -> None:
    manifest = tiny_manifest(gap=GapPolicy("reset", 5.0))
    one_by_one, calls = play(script, manifest, 1)
    assert {b for b, _ in calls} <= {1}
    together, _ = play(script, manifest, batch)
    assert together == one_by_one


@pytest.mark.parametrize("policy", ["reset", "carry"])
@pytest.mark.parametrize("what", [*WHAT, "gap", "duplicate", "hole"])
def test_no_block_crosses_what_is_more_than_one_step_further(what: str, policy: Literal["reset", "carry"]) -> None:
    plain = {"rows": [[1.0, -0.5, 4.0]], "stream": "a", "what": "plain", "seq": None, "dt": 0.1}
    changed = {"gap": {"dt": 9.0}, "duplicate": {"seq": 0}, "hole": {"seq": 3}}.get(what, {"what": what})
    script = [plain | {"seq": 1}]
    for some in (20, 3, 6, 9, 14, 20):  # wherever in a block it may fall
        script += [*[plain] * some, plain | changed]
    manifest = tiny_manifest(gap=GapPolicy(policy, 5.0))
    one_by_one, _ = play(script, manifest, 1)
    together, calls = play(script, manifest, 64)
    assert together == one_by_one
    assert max(t for _, t in calls) > 1
