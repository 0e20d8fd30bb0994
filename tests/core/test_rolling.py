"""Smoothing and events: the vectorised fold is the automaton that the documentation tells, label by label."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import rolling
from service.contracts import Event, GapPolicy, Manifest, RollingSettings, RowInput
from service.state import StateLayout, times_of_steps
from tests.doubles import tiny_manifest
from tests.oracle import Oracle

LABELS = ["rest", "walk", "run"]


def manifest(**changes: object) -> Manifest:
    rows = RowInput(["x"], 10.0, [0.0], [1.0], [0.0], [1.0])
    return tiny_manifest(labels=LABELS, background=["rest"], states=[], rows=rows, **changes)


class Scores:
    """An engine that says what it is fed: x (B, T, K) are the probabilities."""

    def __init__(self, made: Manifest) -> None:
        self.manifest = made

    def run(self, x: np.ndarray, states: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return x.astype(np.float32), {}


def fold(made: Manifest, rows: np.ndarray, scores: np.ndarray, last_s: list[float]) -> dict[int, list[Event]]:
    times = times_of_steps([round(t * 1e6) for t in last_s], [1e5] * len(rows), scores.shape[1])
    limits = rolling.thresholds(made.rolling, made.gap)
    ids = [(17, b) for b in range(len(rows))]
    return rolling.fold(rows, scores, times, ids, limits, LABELS, np.array([True, False, False]))


def fresh(made: Manifest, count: int) -> np.ndarray:
    return np.repeat(StateLayout(made, "00" * 8).fresh[None], count)


steps = st.lists(st.tuples(*[st.sampled_from([0.0, 0.2, 0.35, 0.5, 0.7, 1.0])] * 3), min_size=1, max_size=40)


# a busy machine draws slowly: neither that nor a slow example is a failure
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    streams=st.lists(steps, min_size=1, max_size=4),
    cut=st.integers(1, 7),
    half_life=st.sampled_from([0.0, 0.1, 0.37]),
    dwell=st.sampled_from([0.0, 0.1, 0.3]),
    refractory=st.sampled_from([0.0, 0.2, 0.5]),
    update=st.sampled_from([0.0, 0.3]),
)
def test_any_cutting_and_batching_equals_the_plain_automaton(
    streams: list[list[tuple[float, float, float]]],
    cut: int,
    half_life: float,
    dwell: float,
    refractory: float,
    update: float,
) -> None:
    # both fold in float32, in the same order and with the same weights: every bit of the scores is to be equal, or a
    # peak that rises by the last bit would be an `update` to one of them only
    made = manifest(rolling=RollingSettings(half_life, 0.451, 0.301, dwell, refractory, update))
    length = max(map(len, streams))
    scores = np.array([(s + s[-1:] * length)[:length] for s in streams], np.float32)  # (B, T, K)
    oracles = [Oracle(Scores(made)) for _ in streams]  # type: ignore[arg-type]
    rows = fresh(made, len(streams))
    for at in range(0, length, cut):
        block = scores[:, at : at + cut]
        last = round(100 + 0.1 * (at + block.shape[1]), 6)
        events = fold(made, rows, block, [last] * len(streams))
        for b, oracle in enumerate(oracles):
            expected = oracle.step(block[b], last)
            np.testing.assert_array_equal(rows["smooth"][b], np.float32(expected["rolling"]))
            assert [(e.type, e.label, e.step, e.time, e.start) for e in events.get(b, [])] == expected["events"]


def test_an_event_tells_its_beginning_its_peak_and_the_entry_in_which_it_entered() -> None:
    made = manifest(rolling=RollingSettings(0.0, 0.5, 0.4, 0.2, 0.0, 10.0))
    rows = fresh(made, 1)
    climb = np.array([[[0, p, 0] for p in (0.6, 0.7, 0.9, 0.8)]], np.float32)
    (entered,) = fold(made, rows, climb, [100.0])[0]
    assert entered == Event("enter", "walk", "17-0", 3, 99.9, 99.7, 0.9, 0.9)
    (left,) = fold(made, rows, np.array([[[0, 0.1, 0]]], np.float32), [100.1])[0]
    assert (left.type, left.event, left.step, left.start, left.peak) == ("exit", "17-0", 5, 99.7, 0.9)


def test_a_background_label_makes_no_events() -> None:
    made = manifest()
    assert fold(made, fresh(made, 1), np.ones((1, 50, 1), np.float32) * [1, 0, 0], [100.0]) == {}


def test_an_update_comes_only_when_the_peak_rose_and_not_too_often() -> None:
    made = manifest(rolling=RollingSettings(0.0, 0.5, 0.4, 0.0, 0.0, 0.3))
    rising = np.array([[[0, p, 0] for p in (0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9)]], np.float32)
    events = fold(made, fresh(made, 1), rising, [100.0])[0]
    assert [(e.type, e.step) for e in events] == [("enter", 1), ("update", 4)]


def test_a_long_silence_moves_the_score_no_further_than_the_gap_says() -> None:
    made = manifest(rolling=RollingSettings(1.0, 0.99, 0.01, 0.0, 0.0, 1.0), gap=GapPolicy("carry", 1.0))
    rows = fresh(made, 1)
    fold(made, rows, np.array([[[0, 1, 0]]], np.float32), [100.0])
    fold(made, rows, np.array([[[0, 0, 1]]], np.float32), [100_000.0])
    np.testing.assert_allclose(rows["smooth"][0], [0, 0.5, 0.5], atol=1e-6)


def test_a_stream_decides_the_same_whether_its_neighbours_have_settings_of_their_own_or_not() -> None:
    plain = rolling.thresholds(RollingSettings(0.0, 0.7, 0.3, 0.0, 0.0, 99.0), GapPolicy("carry", 1.0))
    other = rolling.thresholds(RollingSettings(0.2, 0.9, 0.1, 0.3, 0.1, 0.1), GapPolicy("carry", 9.0))
    made = manifest()
    on_the_edge = np.float32(0.7)  # less than 0.7 as a float64
    scores = np.array([[[0, on_the_edge, 0.3]]] * 2, np.float32).repeat(3, axis=1)
    scores[:, 2] = np.float32(0.3) - np.float32(1e-7)
    times = np.array([[1, 2, 3]] * 2) * 100_000
    told = []
    for limits in (plain, rolling.of_batch([plain, plain]), rolling.of_batch([plain, other])):
        rows = fresh(made, 2)
        events = rolling.fold(rows, scores, times, [(17, 0), (17, 1)], limits, LABELS, np.zeros(3, bool))
        told.append([(event.type, event.label, event.step) for event in events[0]])
    assert told[0] == told[1] == told[2] == [("enter", "walk", 1), ("exit", "walk", 3)]


def test_closing_a_state_exits_what_is_inside() -> None:
    made = manifest(rolling=RollingSettings(0.0, 0.5, 0.4, 0.0, 0.0, 1.0))
    rows = fresh(made, 2)
    fold(made, rows, np.array([[[0, 1, 1]], [[1, 0, 0]]], np.float32), [100.0, 100.0])
    assert [(e.type, e.label, e.time) for e in rolling.close(rows[0], LABELS)] == [
        ("exit", "walk", 100.0),
        ("exit", "run", 100.0),
    ]
    assert rolling.close(rows[1], LABELS) == []


def test_what_leaves_in_silence_leaves_as_at_an_exit_and_the_rest_stays() -> None:
    made = manifest(rolling=RollingSettings(0.0, 0.5, 0.4, 0.2, 0.3, 9.0))
    rows = fresh(made, 1)
    inside = np.array([[[0.0, 0.9, 0.0]] * 4])
    fold(made, rows, np.concatenate([inside, [[[0.0, 0.9, 0.6]]]], axis=1).astype(np.float32), [1.0])
    left, rising = rows[0].copy(), int(rows[0]["since"][2])
    assert [event.label for event in rolling.close(left, LABELS)] == ["walk"]
    rolling.leave(left, 300_000)
    rows[0] = left
    assert not left["inside"].any()
    assert int(left["since"][2]) == rising != rolling.NEVER, "what was about to enter goes on to"
    again = fold(made, rows, np.array([[[0.0, 0.9, 0.0]] * 6], np.float32), [1.6])
    assert [(event.type, event.label, event.start, event.time) for event in again[0]] == [("enter", "walk", 1.3, 1.5)]
