"""What a classifier is worth while a stream still runs: how soon it is right, how steady, which events it finds.

Measured from what a net says at every step of every example (`Trace`), rolled as the service rolls it: by rolling.py.
Each example is a stream of its own that holds one label, and so one event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import msgspec
import numpy as np

from export.tasks import Trace, pad
from service.contracts import Event, GapPolicy, RollingSettings
from service.rolling import clear, fold, of_batch, row_fields, thresholds

SHARES = np.arange(1, 21) / 20  # of an example, at which accuracy is measured
HALF_LIVES_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
ENTERS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
EXITS = (0.5, 0.75)  # as shares of `enter`
DWELLS_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
TOGETHER = 1 << 23  # probabilities that are rolled at once, by several settings
TIE = 0.005  # two settings whose F1 differ by less find events equally well
SLACK = 0.05  # of an example's length: a median delay longer by no more is as early


class Rolled(NamedTuple):
    """What rolling made of a trace, an entry an example."""

    guess: list[np.ndarray]  # the rolling label at every step, (T,)
    events: list[list[Event]]


class Found(NamedTuple):
    """Events of a trace: an example has one, the `enter` of its label."""

    found: int
    missed: int
    false: int  # every other `enter`: of another label, or of the same once more
    delays: list[float]  # of those found: from the example's beginning to its `enter`, in steps

    @property
    def f1(self) -> float:
        return 2 * self.found / (2 * self.found + self.missed + self.false)


def roll(said: Trace, interval_s: float, rolling: RollingSettings, gap: GapPolicy) -> Rolled:
    """Steps lie `interval_s` apart; 0 for texts, whose words have no time of their own."""
    probabilities = pad(said)
    guess = np.zeros(probabilities.shape[:2], np.int64)
    events: list[list[Event]] = [[] for _ in said]
    rows = _new_rows(*probabilities.shape[::2])
    for t in range(probabilities.shape[1]):
        for told, more in zip(events, _fold(rows, probabilities, t, t + 1, interval_s, rolling, gap), strict=True):
            told += more
        guess[:, t] = rows["smooth"].argmax(1)
    ends = [len(y) for y in said]
    return Rolled(
        [row[:end] for row, end in zip(guess, ends, strict=True)],
        [[event for event in told if event.step <= end] for told, end in zip(events, ends, strict=True)],
    )


def count(events: Sequence[Sequence[Event]], truth: Sequence[int] | np.ndarray) -> Found:
    found, false, delays = 0, 0, []
    for told, label in zip(events, truth, strict=True):
        enters = [event for event in told if event.type == "enter"]
        right = [event for event in enters if event.label == str(label)]
        found += bool(right)
        false += len(enters) - bool(right)
        delays += [float(right[0].step)] if right else []
    return Found(found, len(events) - found, false, delays)


def choose_rolling(
    said: Sequence[Trace],
    truth: Sequence[np.ndarray],
    interval_s: float,
    rolling: RollingSettings,
    gap: GapPolicy,
) -> tuple[RollingSettings, list[RollingSettings]]:
    """Half-life and thresholds that find the most events with the fewest false ones (F1), of one part or several.

    Of settings that find as many (TIE), and hardly later than the fastest of them (SLACK), the calmest: the longest
    half-life, then the highest threshold. Returns what all parts choose, and for each part what the others choose, so
    that a part can be measured by what was not chosen on it. `rolling` gives what is not chosen: refractory time and
    `update_s`.
    """
    every: Trace = [y for part in said for y in part]
    probabilities, ends = pad(every), [len(y) for y in every]
    part_ends = np.cumsum([len(part) for part in said]).tolist()
    candidates = list(_candidates(interval_s, probabilities.shape[1], rolling))
    at_once = max(1, TOGETHER // probabilities.size)
    tried = []
    for begin in range(0, len(candidates), at_once):
        several = candidates[begin : begin + at_once]
        for settings, events in zip(several, _fold_each(probabilities, interval_s, several, gap), strict=True):
            inside = [[event for event in told if event.step <= end] for told, end in zip(events, ends, strict=True)]
            parts = zip(part_ends, truth, strict=True)
            tried.append((settings, [count(inside[end - len(labels) : end], labels) for end, labels in parts]))
    slack = SLACK * float(np.median(ends))
    others = [[n for n in range(len(said)) if n != held] or [held] for held in range(len(said))]
    return _best(tried, range(len(said)), slack), [_best(tried, rest, slack) for rest in others]


def describe(
    said: Sequence[Trace],
    truth: Sequence[np.ndarray],
    interval_s: float,
    settings: Sequence[RollingSettings],
    gap: GapPolicy,
) -> dict[str, Any]:
    """The figures of a card, of one part or several, each with its settings: `seen` (share of an example, accuracy of
    the net and of the rolling label there), first correct decision, flips, events. Times in seconds; in words where
    `interval_s` is 0.
    """
    rolled = [roll(part, interval_s, chosen, gap) for part, chosen in zip(said, settings, strict=True)]
    every = [y for part in said for y in part]
    guesses = [guess for part in rolled for guess in part.guess]
    labels = np.concatenate(truth)
    counts = [count(part.events, told) for part, told in zip(rolled, truth, strict=True)]
    per_step = interval_s or 1.0
    raw = [y.argmax(1) == label for y, label in zip(every, labels, strict=True)]
    smooth = [guess == label for guess, label in zip(guesses, labels, strict=True)]
    first = [float(hits.argmax()) + 1 for hits in raw if hits.any()]  # steps seen when first right
    stays = [_stays(hits) for hits in smooth if hits[-1]]
    flips = sum(int((np.diff(guess) != 0).sum()) for guess in guesses)
    per_flip = sum(len(y) for y in every) * per_step / (60 if interval_s else 100)
    return {
        "unit": "s" if interval_s else "words",
        "examples": len(every),
        "length": _quantiles([float(len(y)) for y in every], per_step),
        "seen": [[round(float(share), 2), _at(raw, share), _at(smooth, share)] for share in SHARES],
        "first_correct": _quantiles(first, per_step) | {"never": len(every) - len(first)},
        "correct_from": _quantiles(stays, per_step) | {"wrong_at_the_end": len(every) - len(stays)},
        "flips": round(flips / per_flip, 2),  # of the rolling label, a minute or 100 words
        "events": {
            "found": sum(part.found for part in counts),
            "missed": sum(part.missed for part in counts),
            "false": sum(part.false for part in counts),
            "delay": _quantiles([delay for part in counts for delay in part.delays], per_step),
        },
    }


def _new_rows(streams: int, labels: int) -> np.ndarray:
    rows = np.zeros(streams, np.dtype([("step", "<i8"), ("time_us", "<i8"), *row_fields(labels)]))
    clear(rows)
    return rows


def _fold(
    rows: np.ndarray,
    probabilities: np.ndarray,  # (B, T, K)
    begin: int,
    end: int,
    interval_s: float,
    rolling: RollingSettings,
    gap: GapPolicy,
) -> list[list[Event]]:
    streams, _, labels = probabilities.shape
    times = np.tile(np.round(np.arange(begin, end) * interval_s * 1e6).astype(np.int64), (streams, 1))
    names, silent, ids = [str(k) for k in range(labels)], np.zeros(labels, bool), [(begin, 0)] * streams
    events = fold(rows, probabilities[:, begin:end], times, ids, thresholds(rolling, gap, interval_s), names, silent)
    return [events.get(b, []) for b in range(streams)]


def _fold_each(
    probabilities: np.ndarray,  # (B, T, K)
    interval_s: float,
    several: Sequence[RollingSettings],
    gap: GapPolicy,
) -> list[list[list[Event]]]:
    """The events of each stream, by each of the settings: all folded together, each as if it were alone."""
    streams, steps, labels = probabilities.shape
    size = len(several) * streams
    times = np.tile(np.round(np.arange(steps) * interval_s * 1e6).astype(np.int64), (size, 1))
    limits = of_batch([thresholds(each, gap, interval_s) for each in several for _ in range(streams)])
    names, silent, ids = [str(k) for k in range(labels)], np.zeros(labels, bool), [(0, 0)] * size
    rows = _new_rows(size, labels)
    found = fold(rows, np.tile(probabilities, (len(several), 1, 1)), times, ids, limits, names, silent)
    return [[found.get(n * streams + b, []) for b in range(streams)] for n in range(len(several))]


def _best(tried: Sequence[tuple[RollingSettings, list[Found]]], parts: Iterable[int], slack: float) -> RollingSettings:
    chosen = list(parts)
    together = [
        (
            settings,
            Found(
                sum(counts[n].found for n in chosen),
                sum(counts[n].missed for n in chosen),
                sum(counts[n].false for n in chosen),
                [delay for n in chosen for delay in counts[n].delays],
            ),
        )
        for settings, counts in tried
    ]
    best = max(found.f1 for _, found in together)
    good = [
        (float(np.median(found.delays)) if found.delays else np.inf, settings)
        for settings, found in together
        if found.f1 >= best - TIE
    ]
    soonest = min(delay for delay, _ in good)
    calm = [settings for delay, settings in good if delay <= soonest + slack]
    return max(calm, key=lambda each: (each.half_life_s, each.enter, each.dwell_s, each.exit))


def _candidates(interval_s: float, steps: int, rolling: RollingSettings) -> Iterator[RollingSettings]:
    """What fits the examples: a smoothing shorter than a step, or longer than a fifth of them, is not tried."""
    length_s = steps * interval_s
    halves = [h for h in HALF_LIVES_S if h == 0 or interval_s <= h <= length_s / 5]
    dwells = [d for d in DWELLS_S if d == 0 or interval_s <= d <= length_s / 5]
    for half, enter, share, dwell in product(halves, ENTERS, EXITS, dwells):
        leave = round(enter * share, 2)
        yield msgspec.structs.replace(rolling, half_life_s=half, enter=enter, exit=leave, dwell_s=dwell)


def _stays(hits: np.ndarray) -> float:
    """Steps seen from which on all are right; the last one is."""
    wrong = np.flatnonzero(~hits)
    return float(wrong[-1]) + 2 if len(wrong) else 1.0


def _at(hits: Sequence[np.ndarray], share: float) -> float:
    return round(float(np.mean([each[max(1, round(share * len(each))) - 1] for each in hits])), 4)


def _quantiles(steps: Sequence[float], per_step: float) -> dict[str, float | None]:
    if not steps:
        return {"median": None, "p90": None}
    median, late = np.quantile(steps, (0.5, 0.9)) * per_step
    return {"median": round(float(median), 3), "p90": round(float(late), 3)}
