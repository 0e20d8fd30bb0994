"""What the replay expects of a stream's life, from the documentation alone."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np

from service.chaos.objects import object_of, put_back
from service.chaos.oracle import Oracle
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
