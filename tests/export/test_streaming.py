"""How soon, how steady, which events: figures of streams whose answers are written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from export.streaming import _candidates, _fold_each, choose_rolling, count, describe, roll
from export.tasks import Trace
from service.contracts import Event, GapPolicy, RollingSettings

PLAIN = RollingSettings(half_life_s=0.0, enter=0.6, exit=0.3)
GAP = GapPolicy("carry", 10.0)


def said(*guesses: str, sure: float = 0.9) -> Trace:
    """A letter a step: `a` and `b` are labels 0 and 1, said with `sure`; `-` is neither, 0.5 each."""
    odds = {"a": (sure, 1 - sure), "b": (1 - sure, sure), "-": (0.5, 0.5)}
    return [np.array([odds[letter] for letter in guess], np.float32) for guess in guesses]


def test_accuracy_grows_with_what_was_seen_of_streams_of_any_length() -> None:
    figures = describe([said("bbbbaaaaaa", "aaaaa")], [np.array([0, 0])], 1.0, [PLAIN], GAP)
    seen = {share: accuracy for share, accuracy, _ in figures["seen"]}
    assert seen[0.2] == 0.5  # of ten steps two are wrong, of five one is right
    assert seen[0.4] == 0.5
    assert seen[0.5] == seen[1.0] == 1.0


def test_times_count_the_steps_that_were_seen() -> None:
    figures = describe([said("bbaaa", "aaaaa", "bbbbb")], [np.array([0, 0, 0])], 0.5, [PLAIN], GAP)
    assert figures["unit"] == "s"
    assert figures["first_correct"] == {"median": 1.0, "p90": pytest.approx(1.4), "never": 1}
    assert figures["correct_from"] == {"median": 1.0, "p90": pytest.approx(1.4), "wrong_at_the_end": 1}
    assert figures["events"]["delay"]["median"] == 1.0
    assert figures["length"]["median"] == 2.5


def test_flips_are_counted_a_minute_and_of_texts_in_100_words() -> None:
    trace, truth = [said("ababababab")], [np.array([0])]
    assert describe(trace, truth, 0.5, [PLAIN], GAP)["flips"] == 9 * 60 / 5
    words = describe(trace, truth, 0.0, [PLAIN], GAP)
    assert (words["flips"], words["unit"]) == (90.0, "words")


def test_events_found_missed_and_falsely_said() -> None:
    #        found    missed, false   found, once more: false   nothing
    trace = said("-aaa", "bbbb", "aabbaa", "----")
    found = count(roll(trace, 1.0, PLAIN, GAP).events, [0, 0, 0, 0])
    assert (found.found, found.missed, found.false) == (2, 2, 3)
    assert found.delays == [2, 1]
    assert found.f1 == 2 * 2 / (2 * 2 + 2 + 3)


def test_nothing_is_told_behind_the_end_of_a_shorter_stream() -> None:
    dwelling = RollingSettings(half_life_s=0.0, enter=0.6, exit=0.3, dwell_s=3.0)
    short, long = roll(said("aa", "aaaaaaaa"), 1.0, dwelling, GAP).events
    assert short == []
    assert [(event.type, event.step) for event in long] == [("enter", 4)]


def test_the_rolling_label_is_the_service_s_whatever_the_cut() -> None:
    rng = np.random.default_rng(0)
    odds = rng.dirichlet(np.ones(3), (4, 40)).astype(np.float32)
    smooth = RollingSettings(half_life_s=0.4, enter=0.45, exit=0.3)
    whole = roll(list(odds), 0.1, smooth, GAP)
    cut = roll([row[:17] for row in odds], 0.1, smooth, GAP)
    for guess, part, events, early in zip(whole.guess, cut.guess, whole.events, cut.events, strict=True):
        assert (guess[:17] == part).all()
        assert [event for event in events if event.step <= 17] == early
    by_hand, weight = odds[0, 0], 1 - 2 ** (-0.1 / 0.4)
    for t, odd in enumerate(odds[0]):
        by_hand = by_hand + (weight if t else 1) * (odd - by_hand)
        assert whole.guess[0][t] == by_hand.argmax()


def test_settings_are_chosen_that_hear_events_and_no_blips() -> None:
    blips = said(*["bb" + "a" * 38] * 6, sure=0.95)  # a short false start, then the truth
    chosen, _ = choose_rolling([blips], [np.zeros(6, np.int64)], 0.1, PLAIN, GAP)
    found = count(roll(blips, 0.1, chosen, GAP).events, [0] * 6)
    assert (found.found, found.false) == (6, 0)
    assert count(roll(blips, 0.1, PLAIN, GAP).events, [0] * 6).false == 6, "what was there before did not"
    assert chosen.exit < chosen.enter
    assert chosen.update_s == PLAIN.update_s


def test_a_part_is_measured_by_what_the_others_chose() -> None:
    calm, loud = said(*["-" * 5 + "a" * 35] * 5, sure=0.55), said(*["bbb" + "a" * 37] * 5, sure=0.95)
    truth = [np.zeros(5, np.int64)] * 2
    _, (for_calm, for_loud) = choose_rolling([calm, loud], truth, 0.1, PLAIN, GAP)
    assert for_calm == choose_rolling([loud], truth[:1], 0.1, PLAIN, GAP)[0]
    assert for_loud == choose_rolling([calm], truth[:1], 0.1, PLAIN, GAP)[0]
    assert for_calm != for_loud
    assert count(roll(calm, 0.1, for_calm, GAP).events, [0] * 5).found == 0, "too unsure for what the loud ones chose"


def test_texts_have_no_time_to_smooth_over() -> None:
    chosen, _ = choose_rolling([said("ba", "aa", "bb")], [np.array([0, 0, 1])], 0.0, PLAIN, GAP)
    assert (chosen.half_life_s, chosen.dwell_s) == (0, 0)


def test_settings_that_are_tried_together_find_what_each_finds_alone() -> None:
    rng = np.random.default_rng(0)
    said = [np.cumsum(rng.normal(size=(60, 3)), 0).astype(np.float32) for _ in range(5)]
    streams = np.stack([np.exp(y) / np.exp(y).sum(1, keepdims=True) for y in said])
    several = list(_candidates(0.1, 60, PLAIN))[::7]
    together = _fold_each(streams, 0.1, several, GAP)
    assert len({len(events) for each in together for events in each}) > 3, "or there is nothing to compare"
    for settings, events in zip(several, together, strict=True):
        alone = [roll([y], 0.1, settings, GAP).events[0] for y in streams]
        assert [list(map(_what, told)) for told in events] == [list(map(_what, told)) for told in alone], settings


def _what(event: Event) -> tuple[str, str, int, float, float]:
    return event.type, event.label, event.step, event.start, event.score
