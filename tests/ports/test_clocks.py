"""Event times that do not ascend: late entries, clocks that stand still, clocks that are put back."""

from __future__ import annotations

import random
from typing import Any, Literal

import numpy as np
import pytest

from service.contracts import GapPolicy, RollingSettings
from service.controls import Control, encode_control
from service.portable import export_state
from service.state import StateLayout
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.worlds import World, answered, working

GAP_S = 5.0


def post(world: World, stream: str, rows: Any, time: float | None = None, **more: bytes) -> str:
    stated = {} if time is None else {"time": repr(time).encode()}
    return world.append(stream, rows_fields(stream, np.asarray(rows, np.float32), **stated, **more))


def some_clock(dice: random.Random, entries: int, lengths: list[int]) -> list[float]:
    """Mostly right; now and then late, standing still, ahead, or put back."""
    now, times = 10_000.0, []
    for _, length in zip(range(entries), lengths, strict=True):
        chance = dice.random()
        if chance < 0.7:
            now += 0.1 * length
        elif chance < 0.78:
            now += 0.37
        elif chance < 0.82:
            now += dice.choice([4.0, 6.0, 3600.0])
        elif chance < 0.86:
            now -= dice.choice([4.0, 6.0, 3600.0])
        times.append(round(now - (dice.choice([0.3, 2.0]) if chance > 0.92 else 0.0), 6))
    return times


@pytest.mark.parametrize("policy", ["carry", "reset"])
def test_whatever_the_clock_does_the_result_is_that_of_one_by_one(
    world: World, policy: Literal["carry", "reset"]
) -> None:
    made = tiny_manifest(gap=GapPolicy(policy, GAP_S))
    engine, normal = TinyEngine(made), np.random.default_rng(3)
    names = [f"s{n}" for n in range(5)]
    posted: dict[str, list[tuple[np.ndarray, float]]] = {}
    for name in names:
        lengths = [random.Random(f"{name} {n}").choice([1, 1, 1, 2, 5]) for n in range(120)]
        times = some_clock(random.Random(name), len(lengths), lengths)
        posted[name] = [
            (3 * normal.normal(size=(n, 3)).astype(np.float32), t) for n, t in zip(lengths, times, strict=True)
        ]
    for half in (slice(0, 60), slice(60, 120)):  # a backlog each, of which the second meets stored states
        for entries in zip(*(posted[name][half] for name in names), strict=True):
            for name, (rows, time) in zip(names, entries, strict=True):
                post(world, name, rows, time)
        with working(world.new_log(), engine):
            bodies = answered(world, dict.fromkeys(names, half.stop))
    gaps = 0
    for name in names:
        oracle = Oracle(engine)
        for (rows, time), body in zip(posted[name], bodies[name], strict=True):
            if body["restarted"] is not None:
                first = time - 0.1 * (len(rows) - 1)
                hole = first - oracle.last > GAP_S or oracle.is_behind(first)
                assert body["restarted"] == ("gap" if oracle.steps else "first")
                assert hole or not oracle.steps
                exits, gaps = oracle.close(), gaps + 1
                oracle.begin()
            else:
                exits = []
            expected = oracle.step(rows, time)
            same(body, expected | {"events": [*exits, *expected["events"]]}, tolerance=1e-5)
    assert gaps == len(names) if policy == "carry" else gaps > 2 * len(names)
    assert max(steps for _, steps in engine.calls) > 5, "streams that lagged were caught up"


def test_a_label_enters_again_at_once_when_the_clock_was_put_back(world: World) -> None:
    jumpy = RollingSettings(half_life_s=0.0, enter=0.5, exit=0.4, refractory_s=60.0)
    engine = TinyEngine(tiny_manifest(rolling=jumpy, gap=GapPolicy("carry", GAP_S)))
    ups = [[[9.0, 0.0, 0.0]], [[-9.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]]]
    for rows, time in zip(ups, (10_000.0, 10_001.0, 6_400.0), strict=True):
        post(world, "a", rows, time)
    with working(world.new_log(), engine):
        first, second, third = answered(world, {"a": 3})["a"]
    entered = {event["label"] for event in first["events"]}
    left = {event["label"] for event in second["events"] if event["type"] == "exit"}
    assert entered == left != set()
    again = [event for event in third["events"] if event["type"] == "enter" and event["label"] in entered]
    assert [event["time"] for event in again] == [6_400.0]
    assert third["restarted"] is None


def test_blocks_without_time_that_are_posted_at_once_overlap_and_are_no_gap(world: World) -> None:
    engine = TinyEngine(tiny_manifest(gap=GapPolicy("reset", 1.0)))
    for _ in range(30):
        post(world, "a", np.ones((40, 3)))  # 4 s of rows, within a moment
    with working(world.new_log(), engine):
        bodies = answered(world, {"a": 30})["a"]
    assert [body["restarted"] for body in bodies] == ["first"] + [None] * 29
    assert bodies[-1]["step"] == 1200


def test_a_restored_state_of_another_time_goes_on(world: World) -> None:
    """Its times need have nothing to do with those of the stream it is given to."""
    engine = TinyEngine(tiny_manifest(gap=GapPolicy("reset", GAP_S)))
    post(world, "a", [[1, 2, 3]], 4_000_000_000.0)
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
        layout = StateLayout(engine.manifest, engine.manifest.sha256[:16])
        row = layout.decode(world.state("a") or b"")
        assert row is not None
        control = encode_control(Control("restore", state=export_state(layout, row, "a", "17-0")))
        world.append("b", {"stream": b"b", "kind": b"control", "data": control})
        for time in (1000.0, 1001.0):
            post(world, "b", [[1, 2, 3]], time)
        bodies = answered(world, {"b": 3})["b"][1:]
    assert [(body["step"], body["restarted"], body["time"]) for body in bodies] == [(2, None, 1000), (3, None, 1001)]
