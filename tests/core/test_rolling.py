"""Smoothing and events: the vectorised fold is the automaton that the documentation tells, label by label."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import rolling
from service.contracts import Event, FrameInput, GapPolicy, Manifest, RollingSettings, RowInput, TextInput
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
    limits = rolling.thresholds(made.rolling, made.gap, made.nominal_s)
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


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    walk=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.integers(-7, 12)), min_size=2, max_size=40),
    cuts=st.lists(st.integers(1, 5), min_size=40, max_size=40),
    half_life=st.sampled_from([0.0, 0.37]),
    wait=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_late_and_equal_times_decide_the_same_however_steps_are_cut_and_whatever_is_beside(
    walk: list[tuple[float, int]], cuts: list[int], half_life: float, wait: float
) -> None:
    made = manifest(rolling=RollingSettings(half_life, 0.451, 0.301, wait, wait, wait), gap=GapPolicy("carry", 99.0))
    scores = np.array([[[0, p, 1 - p] for p, _ in walk]] * 2, np.float32)
    times = 10**8 + np.cumsum([0.1 * 10**6 * n for _, n in walk]).astype(np.int64)[None].repeat(2, axis=0)
    times[1] = 10**8 + 10**5 * np.arange(len(walk))  # a neighbour with a good clock
    rows, told, at = fresh(made, 2), [], 0
    limits = rolling.thresholds(made.rolling, made.gap, made.nominal_s)
    for n, cut in enumerate(cuts):
        part = slice(at, at := min(at + cut, len(walk)))
        if part.start < part.stop:
            more = rolling.fold(
                rows,
                scores[:, part],
                times[:, part],
                [(17, n), (17, n)],
                limits,
                LABELS,
                np.array([True, False, False]),
            )
            told += [(e.type, e.label, e.step, e.time, e.start) for e in more.get(0, [])]
    oracle = Oracle(Scores(made))  # type: ignore[arg-type]
    expected = [oracle.step(scores[0, t : t + 1], times[0, t] / 1e6, stated=False) for t in range(len(walk))]
    np.testing.assert_allclose(rows["smooth"][0], expected[-1]["rolling"], atol=1e-6)
    assert told == [event for step in expected for event in step["events"]]
    assert rows["time_us"][0] == times[0].max()


def test_a_late_step_moves_nothing_after_it() -> None:
    made = manifest(rolling=RollingSettings(2.0, 0.99, 0.01, 0.0, 0.0, 1.0))
    after = []
    for between in ([], [9.0]):
        rows = fresh(made, 1)
        for at in [10.0, 11.0, *between]:
            fold(made, rows, np.array([[[0, 1, 0]]], np.float32), [at])
        fold(made, rows, np.array([[[0, 0, 1]]], np.float32), [12.0])
        after.append(rows["smooth"][0].tolist())
        assert rows["time_us"][0] == 12_000_000
    assert after[0] == after[1]
    assert after[0][2] < 0.3, "the last one weighs one second, with a late one or without"


def test_a_clock_that_stands_still_stops_neither_smoothing_nor_deadlines() -> None:
    made = manifest(rolling=RollingSettings(0.1, 0.6, 0.4, 0.3, 0.2, 99.0))  # steps of 0.1 s
    rows = fresh(made, 1)
    told = []
    for score in [0] + [1] * 7 + [0] * 2 + [1] * 7:
        told += fold(made, rows, np.array([[[0, score, 0]]], np.float32), [100.0]).get(0, [])
    assert [(e.type, e.step, e.time) for e in told] == [("enter", 6, 100.0), ("exit", 10, 100.0), ("enter", 15, 100.0)]
    assert rows["time_us"][0] == 100_000_000


def test_no_deadline_of_a_clock_that_was_put_back_is_left() -> None:
    made = manifest(rolling=RollingSettings(0.0, 0.5, 0.4, 0.0, 60.0, 1.0))
    rows = fresh(made, 1)
    fold(made, rows, np.array([[[0, 0.9, 0.6], [0, 0.1, 0.6]]], np.float32), [5000.0])  # walk has left, run is inside
    rolling.set_back(rows, np.array([1_000_000_000]), 10_000_000)
    told = fold(made, rows, np.array([[[0, 0.9, 0.6]]], np.float32), [1000.0])[0]
    assert [(e.type, e.label, e.time) for e in told] == [("enter", "walk", 1000.0)]
    (update,) = fold(made, rows, np.array([[[0, 0.9, 0.7]]], np.float32), [1001.0])[0]
    assert (update.type, update.label, update.start) == ("update", "run", 999.9), "inside for as long as before"


def test_words_and_frames_without_a_rate_count_for_a_nominal_time() -> None:
    frames = tiny_manifest(kind="frame", rows=None, frames=FrameInput(8, 8, 1, "gray"))
    text = tiny_manifest(kind="text", rows=None, text=TextInput())
    assert (frames.nominal_s, text.nominal_s, manifest().nominal_s) == (0.04, 0.25, 0.1)


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
    plain = rolling.thresholds(RollingSettings(0.0, 0.7, 0.3, 0.0, 0.0, 99.0), GapPolicy("carry", 1.0), 0.1)
    other = rolling.thresholds(RollingSettings(0.2, 0.9, 0.1, 0.3, 0.1, 0.1), GapPolicy("carry", 9.0), 0.1)
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
