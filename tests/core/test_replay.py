"""What the replay expects of a stream's life, from the documentation alone."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from service.chaos.objects import object_of, put_back
from service.chaos.oracle import Oracle, compare
from service.chaos.replay import Expected, Replay, superseding
from service.contracts import GapPolicy, RollingSettings
from tests.doubles import TinyEngine, rows_fields, tiny_manifest

ROWS = np.array([[1, 2, 3]], np.float32)


def good(**more: bytes) -> dict[bytes, bytes]:
    fields = rows_fields("s", ROWS, **more) | {"chaos": b"good", "model": b"tiny"}
    return {name.encode(): value for name, value in fields.items()}


def control(action: str, **more: Any) -> dict[bytes, bytes]:
    return {b"kind": b"control", b"data": json.dumps({"action": action} | more).encode(), b"chaos": action.encode()}


def restarted(expected: Expected) -> Any:
    assert expected.type == "prediction"
    return expected.body["restarted"]


def test_a_hole_in_seq_is_missed_and_with_the_policy_reset_a_gap() -> None:
    replay = Replay(TinyEngine(tiny_manifest()), 60.0)
    replay.expect("1000-0", good(seq=b"1"))
    carried = replay.expect("1001-0", good(seq=b"4"))
    assert (restarted(carried), carried.body["missed"]) == (None, 2)
    replay.expect("1002-0", control("settings", settings={"gap": {"policy": "reset"}}))
    assert restarted(replay.expect("1003-0", good(seq=b"6"))) == "gap"


def test_an_own_time_to_live_counts_by_ids_and_a_deletion_forgets_it_and_seq() -> None:
    replay = Replay(TinyEngine(tiny_manifest()), 60.0)
    replay.expect("1000-0", control("settings", settings={"state_ttl_s": 0.5}))
    assert restarted(replay.expect("1001-0", good(seq=b"9"))) == "first"
    assert restarted(replay.expect("1501-0", good(seq=b"10"))) is None
    assert restarted(replay.expect("2002-0", good(seq=b"11"))) == "ttl"
    assert replay.expect("2003-0", control("delete")).body["action"] == "delete"
    assert restarted(replay.expect("2004-0", good(seq=b"1"))) == "first"
    assert restarted(replay.expect("4004-0", good(seq=b"2"))) is None


def test_a_drop_is_believed_only_where_the_latest_counts_and_a_newer_one_waited() -> None:
    replay = Replay(TinyEngine(tiny_manifest()), 60.0)
    assert replay.expect("1-0", good(seq=b"1"), dropped="superseded", newer=True).type == "prediction"
    replay.expect("2-0", control("settings", settings={"freshness": {"mode": "latest"}}))
    assert replay.expect("3-0", good(seq=b"2"), dropped="superseded", newer=False).type == "prediction"
    assert replay.expect("4-0", good(seq=b"3"), dropped="stale", newer=True).type == "prediction"
    assert replay.expect("5-0", good(seq=b"4", start=b"1"), dropped="superseded", newer=True).type == "dropped"
    assert restarted(replay.expect("6-0", good(seq=b"5"))) == "start"
    entries = [(b"1-0", good(seq=b"1")), (b"2-0", control("reset")), (b"3-0", good(seq=b"2")), (b"4-0", good(seq=b"3"))]
    assert superseding(entries) == [False, True, True, False]


def test_a_restored_state_goes_on_where_it_was_taken() -> None:
    engine = TinyEngine(tiny_manifest())
    one, other = Oracle(engine), Oracle(engine)
    one.step(ROWS, 1.0)
    state = msgspec.msgpack.encode(object_of(one, "schema"))
    put_back(other, state)
    replay = Replay(engine, 60.0)
    replay.expect("1001-0", control("restore", state=base64.b64encode(state).decode()))
    expected = one.step(ROWS, 1.1)
    assert other.step(ROWS, 1.1) == expected
    after = replay.expect("1002-0", good(seq=b"1", time=b"1.1")).body
    assert (after["step"], after["restarted"]) == (2, None)
    assert after["probabilities"] == expected["probabilities"]


def test_a_gap_is_counted_from_the_restoring_entry_and_then_from_the_step_after_it() -> None:
    engine = TinyEngine(tiny_manifest(gap=GapPolicy("reset", 5.0)))
    one = Oracle(engine)
    one.step(ROWS, 1.0)
    state = base64.b64encode(msgspec.msgpack.encode(object_of(one, "schema"))).decode()
    for times, expected in (((1004, 1012), [None, "gap"]), ((1008, 1009), ["gap", None])):
        replay = Replay(engine, 60.0)
        replay.expect("1000000-0", control("restore", state=state))
        found = [replay.expect(f"{s}000-0", good(time=b"%d" % s)) for s in times]
        assert [restarted(one) for one in found] == expected


def test_a_silence_is_believed_when_it_came_and_judged_by_what_it_tells() -> None:
    low = RollingSettings(0.0, 0.1, 0.0, 0.0, 0.0, 99.0)
    replay = Replay(TinyEngine(tiny_manifest(rolling=low)), 60.0)
    silence = {b"kind": b"control", b"chaos": b"silence"}
    entered = {event[1] for event in replay.expect("1000-0", good()).body["events"]}
    assert replay.expect("1001-0", silence | {b"told": b"0"}).body["events"] == []
    told = replay.expect("1002-0", silence | {b"told": b"1"}).body
    assert (told["action"], {event[:2] for event in told["events"]}) == (
        "silence",
        {("exit", name) for name in entered},
    )
    assert replay.expect("1003-0", silence | {b"told": b"1"}).body["events"] == []
    back = replay.expect("1004-0", good())
    assert restarted(back) is None
    assert {event[:2] for event in back.body["events"]} == {("enter", name) for name in entered} != set()


# --- what is compared ------------------------------------------------------------------------------------------------


def a_step() -> tuple[dict[str, Any], dict[str, Any]]:
    """A prediction with events of every type, and what the oracle expects: the same."""
    engine = TinyEngine(tiny_manifest(rolling=RollingSettings(0.0, 0.4, 0.3, 0.0, 0.0, 0.0)))
    rows = 4 * np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    expected = Oracle(engine).step(rows, 100.0)
    labels = engine.manifest.labels
    best = {
        name: {"label": labels[int(np.argmax(scores))], "score": max(scores), "probabilities": scores}
        for name, scores in (("model", expected["probabilities"]), ("rolling", expected["rolling"]))
    }
    names = ("type", "label", "step", "time", "start")
    events = [dict(zip(names, one, strict=True)) for one in expected["events"]]
    assert {event["type"] for event in events} == {"enter", "update", "exit"}
    record = {"type": "prediction", "step": 40, **best["model"], "rolling": best["rolling"], "events": events}
    assert not compare(record, expected).what
    return record, expected


def reverse(record: dict[str, Any]) -> None:
    record["events"].reverse()


OTHERWISE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "type": lambda record: record.update(type="done"),
    "step": lambda record: record.update(step=39),
    "label": lambda record: record.update(label="another"),
    "score": lambda record: record.update(score=record["score"] - 2e-5),
    "probabilities": lambda record: record["probabilities"].insert(0, record["probabilities"].pop()),
    "rolling label": lambda record: record["rolling"].update(label="another"),
    "rolling score": lambda record: record["rolling"].update(score=record["rolling"]["score"] + 2e-5),
    "rolling probabilities": lambda record: record["rolling"].update(probabilities=[0.25] * 4),
    "an event's type": lambda record: record["events"][0].update(type="update"),
    "an event's label": lambda record: record["events"][0].update(label="another"),
    "an event's step": lambda record: record["events"][0].update(step=0),
    "an event's time": lambda record: record["events"][0].update(time=99.0),
    "an event's start": lambda record: record["events"][0].update(start=99.0),
    "order of events": reverse,
    "an event less": lambda record: record["events"].pop(),
}


@pytest.mark.parametrize("otherwise", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_whatever_a_prediction_says_otherwise_is_a_difference(otherwise: Callable[[dict[str, Any]], Any]) -> None:
    record, expected = a_step()
    changed = copy.deepcopy(record)
    otherwise(changed)
    assert changed != record
    assert compare(changed, expected).what


@pytest.mark.parametrize("which", ["best", "best_rolling"])
def test_a_label_may_fall_either_way_only_where_the_two_highest_scores_are_close(which: str) -> None:
    record, expected = a_step()
    said = record if which == "best" else record["rolling"]
    label = said["label"]
    said["label"] = "another"
    for margin, ties in ((0.9e-4, 1), (1.1e-4, 0)):
        found = compare(record, expected | {which: (label, margin)})
        assert (found.ties, bool(found.what)) == (ties, not ties)
