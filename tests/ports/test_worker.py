"""What a worker makes of a log. Every sentence holds on the log in memory and on a real broker."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest

from service.codec import parse_head
from service.contracts import GapPolicy, Limits, RollingSettings, StateTensor
from service.keys import shard_of
from tests.doubles import BrightnessEngine, TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.worlds import SHARDS, MemoryWorld, World, answered, wait_until, working


def post(world: World, stream: str, rows: Any, shard: int | None = None, **more: bytes) -> str:
    return world.append(stream, rows_fields(stream, np.asarray(rows, np.float32), **more), shard)


def test_any_interleaving_and_cutting_of_streams_equals_each_stream_alone(world: World) -> None:
    rng = np.random.default_rng(1)
    streams = {f"s{n}": 4 * rng.normal(size=(60, 3)).astype(np.float32) for n in range(12)}
    place = dict.fromkeys(streams, 0)
    blocks: dict[str, list[tuple[np.ndarray, float]]] = {stream: [] for stream in streams}
    while any(place[s] < 60 for s in streams):
        stream = f"s{rng.integers(12)}"
        size = int(rng.choice([1, 1, 2, 3, 7]))
        block = streams[stream][place[stream] : place[stream] + size]
        place[stream] += size
        if len(block):
            time = 1000.0 + 0.1 * min(place[stream], 60)
            blocks[stream].append((block, time))
            post(world, stream, block, time=repr(time).encode())
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        bodies = answered(world, {stream: len(blocks[stream]) for stream in streams})
    seen = 0
    for stream in streams:
        oracle = Oracle(engine)
        for (block, time), body in zip(blocks[stream], bodies[stream], strict=True):
            same(body, oracle.step(block, time))
            seen += len(body["events"])
    assert seen > 50, "events of every kind were compared"
    assert max(b for b, _ in engine.calls) > 1, "streams were batched"


def test_the_first_prediction_says_first_and_the_next_ones_nothing(world: World) -> None:
    for _ in range(3):
        post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"a": 3})
    assert [body["restarted"] for body in bodies["a"]] == ["first", None, None]
    assert [body["step"] for body in bodies["a"]] == [1, 2, 3]


def test_start_begins_anew_before_and_end_after_its_entry(world: World) -> None:
    rows = np.eye(3, dtype=np.float32)
    post(world, "a", rows)
    post(world, "a", rows, start=b"1")
    post(world, "a", rows, end=b"1")
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        answered(world, {"a": 3})
        assert world.state("a") is None
    post(world, "a", rows)
    with working(world.new_log("another worker, which has only the broker's word"), engine):
        bodies = answered(world, {"a": 4})["a"]
    assert [body["restarted"] for body in bodies] == ["first", "start", None, "first"]
    assert [body["step"] for body in bodies] == [3, 3, 6, 3]
    assert bodies[0]["probabilities"] == bodies[1]["probabilities"] == bodies[3]["probabilities"]


def test_a_label_that_is_inside_exits_when_its_state_ends(world: World) -> None:
    engine = TinyEngine(tiny_manifest(rolling=tiny_manifest().rolling.__class__(0.0, 0.1, 0.0, 0.0, 0.0, 99.0)))
    post(world, "a", [[9, 9, 9]])
    post(world, "a", [[9, 9, 9]], end=b"1")
    with working(world.new_log(), engine):
        first, last = answered(world, {"a": 2})["a"]
    entered = {event["label"] for event in first["events"] if event["type"] == "enter"}
    assert entered
    assert {event["label"] for event in last["events"] if event["type"] == "exit"} >= entered
    assert all(event["event"] == first["id"] for event in last["events"] if event["label"] in entered)


def test_a_reset_takes_its_turn_and_the_next_prediction_says_so(world: World) -> None:
    post(world, "a", [[1, 2, 3]])
    world.append("a", {"stream": b"a", "kind": b"control", "data": b'{"action": "reset"}'})
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        first, done, second = answered(world, {"a": 3})["a"]
    assert (done["type"], done["action"]) == ("done", "reset")
    assert second["restarted"] == "reset"
    assert second["probabilities"] == first["probabilities"]


def test_an_equal_seq_is_a_duplicate_a_lower_one_is_dropped_and_neither_steps(world: World) -> None:
    first = post(world, "a", [[1, 2, 3]], seq=b"7")
    post(world, "a", [[1, 2, 3]], seq=b"7")
    post(world, "a", [[1, 2, 3]], seq=b"6")
    post(world, "a", [[1, 2, 3]], seq=b"8")
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"a": 4})["a"]
    assert [body["type"] for body in bodies] == ["prediction", "duplicate", "dropped", "prediction"]
    assert (bodies[1]["of"], bodies[1]["seq"]) == (first, 7)
    assert bodies[2]["reason"] == "late"
    assert bodies[3]["step"] == 2


def test_seq_is_remembered_over_a_restart(world: World) -> None:
    first = post(world, "a", [[1, 2, 3]], seq=b"7")
    engine = TinyEngine(tiny_manifest())
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
    post(world, "a", [[1, 2, 3]], seq=b"7")
    with working(world.new_log("w2"), engine):
        assert answered(world, {"a": 2})["a"][1]["of"] == first


def test_a_state_that_rested_longer_than_its_ttl_begins_anew(world: World) -> None:
    engine = TinyEngine(tiny_manifest())
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), engine, state_ttl_s=0.05):
        answered(world, {"a": 1})
        if isinstance(world, MemoryWorld):
            world.clock_ms += 60
        else:  # the entries' ids decide: the next one is older by more than the TTL
            ms = int(world.records("a")[0][0].partition("-")[0]) + 1000
            world.client.xadd(world.keys[shard_of("a", SHARDS)].inbox, rows_fields("a", np.ones((1, 3))), id=f"{ms}-0")
            assert answered(world, {"a": 2})["a"][1]["restarted"] == "ttl"
            return
        post(world, "a", [[1, 2, 3]])
        assert answered(world, {"a": 2})["a"][1]["restarted"] == "ttl"


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "catching up"])
def test_a_state_lives_for_its_ttl_to_the_millisecond(world: World, at_once: bool) -> None:
    now_ms = world.now_ms()
    ids = [f"{now_ms + after}-0" for after in (1000, 6000, 11_001, 16_001)]
    fields = rows_fields("a", np.ones((1, 3), np.float32))
    if at_once:
        for entry_id in ids:
            world.append("a", fields, entry_id=entry_id)
    with working(world.new_log(), TinyEngine(tiny_manifest()), state_ttl_s=5.0):
        for n, entry_id in enumerate([] if at_once else ids, 1):
            world.append("a", fields, entry_id=entry_id)
            answered(world, {"a": n})
        bodies = answered(world, {"a": 4})["a"]
    assert [body["restarted"] for body in bodies] == ["first", None, "ttl", None]


def test_a_gap_lies_between_the_last_row_before_and_the_first_of_a_block(world: World) -> None:
    """Rows lie 0.1 s apart: a block of 81 takes longer than the longest gap by itself."""
    engine = TinyEngine(tiny_manifest(gap=GapPolicy("reset", 5.0)))
    rows = np.ones((81, 3), np.float32)
    for stream, at_once in (("a", True), ("b", False)):
        with working(world.new_log(), engine):
            for n, time in enumerate((b"100", b"113", b"126", b"139.1"), 1):  # 5 s, 5 s and 5.1 s between them
                post(world, stream, rows, time=time)
                if not at_once:
                    answered(world, {stream: n})
            bodies = answered(world, {stream: 4})[stream]
        assert [body["restarted"] for body in bodies] == ["first", None, None, "gap"]


def test_exits_of_a_state_that_ended_come_first_and_those_of_one_that_ends_last(world: World) -> None:
    """A label may leave and enter again in one entry: who follows events must see it in that order."""
    engine = TinyEngine(tiny_manifest(rolling=RollingSettings(0.0, 0.0, 0.0, 0.0, 0.0, 99.0)))  # every label is inside
    rows = np.array([[0.1, 0.2, 0.3]], np.float32)
    post(world, "a", rows)
    post(world, "a", rows, start=b"1")
    post(world, "a", rows, start=b"1", end=b"1")
    with working(world.new_log(), engine):
        first, again, last = answered(world, {"a": 3})["a"]
    labels = engine.manifest.labels
    assert [event["label"] for event in first["events"]] == labels

    def all_of(kind: str, body: dict[str, Any]) -> list[tuple[str, str, str]]:
        return [(kind, label, body["id"]) for label in labels]

    told = [[(event["type"], event["label"], event["event"]) for event in body["events"]] for body in (again, last)]
    assert told[0] == [*all_of("exit", first), *all_of("enter", again)]
    assert told[1] == [*all_of("exit", again), *all_of("enter", last), *all_of("exit", last)]


def test_a_hole_in_time_resets_where_the_gap_policy_says_so(world: World) -> None:
    engine = TinyEngine(tiny_manifest(gap=GapPolicy("reset", 5.0)))
    for time in (b"100", b"104.9", b"110"):
        post(world, "a", [[1, 2, 3]], time=time)
    with working(world.new_log(), engine):
        bodies = answered(world, {"a": 3})["a"]
    assert [body["restarted"] for body in bodies] == ["first", None, "gap"]


def test_whatever_begins_anew_begins_with_the_learnt_state(world: World) -> None:
    row = [[0.1, 0.2, 0.3]]
    learnt = StateTensor("h", [6], initial=[0.9, -0.8, 0.7, -0.6, 0.5, -0.4])
    manifest = tiny_manifest(gap=GapPolicy("reset", 5.0), states=[learnt, StateTensor("n", [1], "int64")])
    post(world, "a", row, time=b"100")
    post(world, "a", row, time=b"200")  # behind a gap
    world.append("a", {"stream": b"a", "kind": b"control", "data": b'{"action": "reset"}'})
    post(world, "a", row, time=b"201")
    post(world, "a", row, time=b"202", start=b"1")
    with working(world.new_log(), TinyEngine(manifest)):
        bodies = [body for body in answered(world, {"a": 5})["a"] if body["type"] == "prediction"]
    assert [body["restarted"] for body in bodies] == ["first", "gap", "reset", "start"]
    expected = Oracle(TinyEngine(manifest)).step(np.float32(row), 100.0)["probabilities"]
    zeros = TinyEngine(manifest).run(np.float32([row]), {"h": np.zeros((1, 6), "f4"), "n": np.zeros((1, 1), int)})
    assert np.abs(zeros[0][0, 0] - expected).max() > 1e-3
    for body in bodies:
        assert np.allclose(body["probabilities"], expected, atol=1e-6)


def test_a_state_that_vanished_is_said_to_be_lost(world: World) -> None:
    engine = TinyEngine(tiny_manifest())
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
    world.forget_state("a")
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log("w2"), engine):
        body = answered(world, {"a": 2})["a"][1]
    assert (body["restarted"], body["step"]) == ("lost", 1)


def test_a_state_of_another_schema_begins_anew(world: World) -> None:
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {"a": 1})
    post(world, "a", [[1, 2, 3]])
    other = tiny_manifest(count=3, version=2, sha256="0" * 64)
    with working(world.new_log("w2"), TinyEngine(other)):
        body = answered(world, {"a": 2})["a"][1]
    assert (body["restarted"], body["version"]) == ("version", 2)


FAULTS = {
    "malformed": {"kind": b"samples", "shape": b"one", "data": b""},
    "wrong_shape": {"kind": b"samples", "shape": b"1,2", "data": bytes(8)},
    "unknown_model": {"kind": b"samples", "shape": b"1,3", "data": bytes(12), "model": b"nobody"},
    "wrong_kind": {"kind": b"samples", "shape": b"1,3", "data": bytes(12), "model": b"brightness"},
    "non_finite": {"kind": b"samples", "shape": b"1,3", "data": np.float32([1, np.nan, 3]).tobytes()},
    "bad_image": {"kind": b"frame", "data": b"\xff\xd8\xff\xe0 this is not a picture", "model": b"brightness"},
    "unsupported_media": {"kind": b"frame", "data": b"GIF89a", "model": b"brightness"},
    "too_large": {"kind": b"frame", "data": bytes(60_001), "model": b"brightness"},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_bad_entry_is_refused_in_its_turn_kept_with_its_bytes_and_stops_nothing(world: World, reason: str) -> None:
    fields = {"stream": b"a", **FAULTS[reason]}
    if alone := fields.get("model") == b"brightness":
        world.append("a", fields)
    else:
        post(world, "a", [[1, 2, 3]])
        world.append("a", fields)
        post(world, "a", [[1, 2, 3]])
    post(world, "b", [[1, 2, 3]])
    limits = Limits(frame_bytes=60_000)
    with working(world.new_log(), TinyEngine(tiny_manifest()), BrightnessEngine(), limits=limits):
        expected = 1 if alone else 3
        bodies = answered(world, {"a": expected, "b": 1})
    refused = [body for body in bodies["a"] if body["type"] == "refused"]
    assert [body["reason"] for body in refused] == [reason]
    assert len(refused[0]["detail"]) > 20, "it says what was wrong and what was expected"
    if reason == "non_finite":  # in the words of the api
        assert refused[0]["detail"] == "row 1, column 2 (x1): nan; expected a finite number of float32's range"
    assert world.dead() == [(reason, "a", FAULTS[reason]["data"])]
    assert bodies["b"][0]["type"] == "prediction"
    if expected == 3:
        assert [body.get("step") for body in bodies["a"]] == [1, None, 2], "the state is as it was before"


def test_an_entry_may_be_as_large_as_its_limit_and_no_larger(world: World) -> None:
    for size in (60_000, 60_001):
        world.append("a", {"stream": b"a", "kind": b"frame", "data": bytes(size)})
    for rows in (100, 101):
        world.append("b", rows_fields("b", np.ones((rows, 3), np.float32)))
    limits = Limits(frame_bytes=60_000, entry_bytes=1200)
    with working(world.new_log(), TinyEngine(tiny_manifest()), BrightnessEngine(), limits=limits):
        bodies = answered(world, {"a": 2, "b": 2})
    assert [body["reason"] for body in bodies["a"]] == ["unsupported_media", "too_large"]
    assert [body.get("reason", body["type"]) for body in bodies["b"]] == ["prediction", "too_large"]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(world: World) -> None:
    _, picture = cv2.imencode(".png", np.zeros((200, 300), np.uint8))
    world.append("a", {"stream": b"a", "kind": b"frame", "data": picture.tobytes()})
    with working(world.new_log(), BrightnessEngine(), limits=Limits(pixels=59_999)):
        body = answered(world, {"a": 1})["a"][0]
    assert (body["reason"], body["type"]) == ("too_large", "refused")
    assert "300" in body["detail"]


def test_frames_are_decoded_beside_the_loop_and_keep_their_order(world: World) -> None:
    for n in range(40):
        _, picture = cv2.imencode(".png", np.full((8, 8), 6 * n, np.uint8))
        world.append(f"s{n % 3}", {"stream": b"s%d" % (n % 3), "kind": b"frame", "data": picture.tobytes()})
    with working(world.new_log(), BrightnessEngine(), decode_threads=4):
        bodies = answered(world, {"s0": 14, "s1": 13, "s2": 13})
    for place, stream in enumerate(("s0", "s1", "s2")):
        bright = [body["probabilities"][1] for body in bodies[stream]]
        np.testing.assert_allclose(bright, np.arange(place, 40, 3) * 6 / 255, atol=1e-5)


def test_what_is_refused_at_once_waits_for_the_earlier_entry_of_its_stream_that_is_being_decoded(world: World) -> None:
    _, large = cv2.imencode(".png", np.full((3000, 3000), 255, np.uint8))  # some 50 ms
    frames = [large.tobytes(), b"GIF89a", cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()]
    for data in frames:
        world.append("a", {"stream": b"a", "kind": b"frame", "data": data})
    post(world, "b", [[1, 2, 3]])
    with working(world.new_log(), BrightnessEngine(), TinyEngine(tiny_manifest()), decode_threads=3):
        bodies = answered(world, {"a": 3, "b": 1})["a"]
    assert [body.get("label") or body["reason"] for body in bodies] == ["bright", "unsupported_media", "dark"]


def test_an_entry_of_another_model_than_the_streams_is_refused(world: World) -> None:
    post(world, "a", [[1, 2, 3]], model=b"tiny")
    post(world, "a", [[1, 2, 3]], model=b"other")
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest()), TinyEngine(tiny_manifest("other"))):
        bodies = answered(world, {"a": 3})["a"]
    assert [body.get("reason") for body in bodies] == [None, "other_model", None]
    assert [body["model"] for body in bodies] == ["tiny", "other", "tiny"]


def test_without_a_model_the_only_fitting_one_is_taken_else_the_candidates_are_named(world: World) -> None:
    engines = TinyEngine(tiny_manifest()), TinyEngine(tiny_manifest("twin")), TinyEngine(tiny_manifest("wide", 5))
    post(world, "a", np.ones((1, 5)))
    post(world, "b", np.ones((1, 3)))
    with working(world.new_log(), *engines):
        bodies = answered(world, {"a": 1, "b": 1})
    assert bodies["a"][0]["model"] == "wide"
    assert bodies["b"][0]["reason"] == "model_needed"
    assert "tiny (3 columns)" in bodies["b"][0]["detail"]


def test_an_entry_in_a_shard_that_is_not_its_streams_is_refused_there(world: World) -> None:
    home = shard_of("a", SHARDS)
    other = (home + 1) % SHARDS
    post(world, "a", [[1, 2, 3]], shard=other)
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        assert answered(world, {"a": 1})["a"][0]["step"] == 1
    (_, kind, body, _), *rest = world.records("a", other)
    assert (kind, json.loads(body)["reason"], rest) == ("refused", "wrong_shard", [])


def test_an_entry_without_a_legal_stream_is_answered_under_a_question_mark(world: World) -> None:
    world.append("a", {"kind": b"samples", "shape": b"1,3", "data": bytes(12)})
    post(world, "a", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {"a": 1})
    (_, kind, body, _), *rest = world.records("?", shard_of("a", SHARDS))
    assert (kind, json.loads(body)["reason"], rest) == ("refused", "bad_stream", [])


def test_the_field_of_a_shards_last_control_is_not_taken_for_settings(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for fields in ({"stream": b"a", "kind": b"control", "data": b'{"action": "delete"}'}, {"kind": b"samples"}):
        world.append("a", fields)
        with working(world.new_log(), TinyEngine(tiny_manifest())):
            wait_until(lambda: world.logged() == 0, 60, "it is answered")
    assert world.records("?", shard_of("a", SHARDS))
    assert "foreign value" not in caplog.text


def test_a_step_that_would_leave_infinity_behind_is_refused_alone(world: World) -> None:
    for stream in "abcd":
        post(world, stream, [[1, 2, 3]])
    post(world, "b", [[3e38, 3e38, 3e38]])
    for stream in "acd":
        post(world, stream, [[1, 2, 4]])
    post(world, "b", [[1, 2, 4]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        bodies = answered(world, {"a": 2, "b": 3, "c": 2, "d": 2})
    assert [body.get("reason") for body in bodies["b"]] == [None, "non_finite", None]
    assert bodies["b"][2]["probabilities"] == bodies["a"][1]["probabilities"]


def test_a_model_that_takes_one_step_a_call_gives_the_same(world: World) -> None:
    rows = np.random.default_rng(2).normal(size=(9, 3)).astype(np.float32)
    many, single = TinyEngine(tiny_manifest("many")), TinyEngine(tiny_manifest("single", many_steps=False))
    post(world, "a", rows, model=b"many", time=b"5")
    post(world, "b", rows, model=b"single", time=b"5")
    with working(world.new_log(), many, single):
        bodies = answered(world, {"a": 1, "b": 1})
    np.testing.assert_allclose(bodies["a"][0]["probabilities"], bodies["b"][0]["probabilities"], atol=1e-6)
    assert {t for _, t in single.calls} == {1}


def test_finished_entries_leave_the_log(world: World) -> None:
    for n in range(300):
        post(world, f"s{n % 5}", [[1, 2, 3]])
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        answered(world, {f"s{n}": 60 for n in range(5)})
        wait_until(lambda: world.logged() == 0, 60, "the log is empty once everything is answered")
        for n in range(5):
            wait_until(lambda n=n: parse_head(world.head(f"s{n}")).kept == 0, 60, "and nobody counts on them")  # type: ignore[misc]


def test_repeats_count_as_finished_entries_that_the_log_still_has(world: World) -> None:
    """A takeover reads what lies above `low` again; lag is what is in the log less what is known as finished."""
    names = [name for n in range(100) if shard_of(name := f"s{n}", SHARDS) == 0][:10]
    engine, kept = TinyEngine(tiny_manifest()), {"input_history_s": 1e9}
    for name in names:
        post(world, name, [[1, 2, 3]])
    with working(world.new_log(), engine, **kept):
        answered(world, dict.fromkeys(names, 1))
        wait_until(lambda: parse_head(world.head(names[0])).kept == 10, 60, "they are counted")
    head = parse_head(world.head(names[0]))
    world.set_head(names[0], head._replace(low=0, kept=0).encode())  # as if an earlier entry had not been finished
    with working(world.new_log("w2"), engine, **kept):
        wait_until(lambda: parse_head(world.head(names[0])).kept == 10, 60, "they are counted again")
    assert world.logged() == 10
