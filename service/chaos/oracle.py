"""What the predictions of one stream must be: each stream alone, one step after the other, nothing vectorised.

Written from the documentation, not from the worker's code: the two share no line. Another batch shape may round a
score differently, so that a decision within `TIE` of its threshold may fall either way: a tie, which is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from service.contracts import GapPolicy, Manifest, RollingSettings
from service.state import first_values

TIE: Final = 1e-5  # a decision this close to its threshold may fall either way
LABEL_MARGIN: Final = 1e-4  # and so may the label, when the two highest scores are this close


class Model(Protocol):
    """What the oracle needs of a model: ports.Engine without a promise to serve."""

    @property
    def manifest(self) -> Manifest: ...
    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...


@dataclass
class Label:
    """One label's automaton, as the documentation tells it."""

    inside: bool = False
    since: float | None = None
    quiet_until: float = -math.inf
    told_at: float = 0.0
    peak: float = 0.0  # float32, like the smoothed scores
    told: float = 0.0
    since_told: float = -math.inf  # highest smoothed score since the last report
    unsure: bool = False  # a decision was a tie: what follows from it is not compared


Told = tuple[str, str, int, float, float | None]  # type, label, step, time, start


@dataclass
class Oracle:
    """`step` one block after the other; returns what its prediction must say."""

    engine: Model
    state: dict[str, np.ndarray] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)
    smooth: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (K,)
    steps: int = 0
    last: float = 0.0
    own_rolling: RollingSettings | None = None  # of the stream's settings; else the package's
    own_gap: GapPolicy | None = None

    def __post_init__(self) -> None:
        self.begin()

    @property
    def manifest(self) -> Manifest:
        return self.engine.manifest

    @property
    def rolling(self) -> RollingSettings:
        return self.own_rolling or self.manifest.rolling

    @property
    def gap(self) -> GapPolicy:
        return self.own_gap or self.manifest.gap

    def begin(self) -> None:
        self.state = first_values(self.manifest.states, 1)
        self.labels = [Label() for _ in self.manifest.labels]
        self.smooth = np.zeros(len(self.labels), np.float32)
        self.steps = 0

    def close(self) -> list[Told]:
        """The exits of a state that ends, at its last step's time."""
        named = zip(self.manifest.labels, self.labels, strict=True)
        return [("exit", name, self.steps, self.last, label.since) for name, label in named if label.inside]

    def silence(self) -> None:
        """The stream fell silent: what `close` told is over, from the last step on. The state goes on."""
        for label in self.labels:
            if label.inside:
                label.inside, label.since, label.quiet_until = False, None, self.last + self.rolling.refractory_s

    @property
    def unsure(self) -> set[str]:
        """Labels whose events are not to be compared now."""
        return {name for name, label in zip(self.manifest.labels, self.labels, strict=True) if label.unsure}

    def step(self, x: np.ndarray, time: float, interval_s: float | None = None, stated: bool = True) -> dict[str, Any]:
        """`x` (T, …), `time` of its last step; `stated` by the entry, or its id's."""
        interval_s = self.manifest.interval_s if interval_s is None else interval_s
        if self.steps and self.is_behind(time - (len(x) - 1) * interval_s if stated else time):
            self.set_back(round(time - (len(x) - 1) * interval_s, 6))
        events: list[Told] = []
        unsure: set[str] = set()
        probabilities = np.zeros((1, 1, 0), np.float32)
        for t in range(len(x)):
            probabilities, self.state = self.engine.run(x[None, t : t + 1], self.state)
            now = round(time - (len(x) - 1 - t) * interval_s, 6)
            unsure |= self._roll(probabilities[0, 0], now, events)
        return {
            "step": self.steps,
            "probabilities": probabilities[0, 0].tolist(),
            "rolling": self.smooth.tolist(),
            "best": self._best(probabilities[0, 0]),
            "best_rolling": self._best(self.smooth),
            "events": events,
            "unsure": unsure,
        }

    def is_behind(self, time: float) -> bool:
        """Was the clock put back by more than the gap?"""
        return round(self.last - time, 6) > self.gap.gap_s

    def set_back(self, time: float) -> None:
        """The state goes on behind a hole, at another time, and no deadline is left."""
        by = self.last - time
        for label in self.labels:
            label.since = round(label.since - by, 6) if label.inside and label.since is not None else None
            label.quiet_until, label.told_at = -math.inf, time
        self.last = round(time - self.gap.gap_s, 6)

    def _best(self, scores: np.ndarray) -> tuple[str, float]:
        """The label of the highest score, and by how much it is higher than the next."""
        ordered = np.sort(scores)
        margin = float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else 1.0
        return self.manifest.labels[int(np.argmax(scores))], margin

    def _roll(self, probabilities: np.ndarray, now: float, events: list[Told]) -> set[str]:
        """Returns the labels that were unsure at this step."""
        rolling, gap = self.rolling, self.gap
        self.steps += 1
        if self.steps == 1:
            self.last = now
        now = max(now, self.last)
        passed = round(now - self.last, 6)
        if passed == 0:  # it counts for an interval all the same
            passed = self.manifest.nominal_s
            for label in self.labels:
                label.quiet_until = round(label.quiet_until - passed, 6)
                label.told_at = round(label.told_at - passed, 6)
                if label.since is not None and not label.inside:
                    label.since = round(label.since - passed, 6)
        dt = min(passed, gap.gap_s)
        weight = 1.0 if self.steps == 1 or rolling.half_life_s == 0 else 1 - 2 ** (-dt / rolling.half_life_s)
        self.last = now
        self.smooth = self.smooth + np.float32(weight) * (probabilities - self.smooth)
        told: dict[str, list[tuple[str, float | None]]] = {"exit": [], "enter": [], "update": []}
        unsure = set()
        for name, label, smooth in zip(self.manifest.labels, self.labels, self.smooth, strict=True):
            if name in self.manifest.background:
                continue
            near = bool(min(abs(smooth - rolling.enter), abs(smooth - rolling.exit)) < TIE)
            if near:
                label.unsure = label.unsure or rolling.half_life_s > 0  # without smoothing equal scores are meant
            self._decide(label, name, smooth, now, told)
            if label.unsure:
                unsure.add(name)
                outside = not near and smooth < min(rolling.enter, rolling.exit)  # however the tie was decided
                if outside and rolling.refractory_s == 0:  # else it may also be open when it can enter again
                    label.unsure = False
        events.extend((kind, name, self.steps, now, start) for kind, each in told.items() for name, start in each)
        return unsure

    def _decide(
        self, label: Label, name: str, smooth: np.float32, now: float, told: dict[str, list[tuple[str, float | None]]]
    ) -> None:
        rolling = self.rolling
        if label.inside:
            label.peak = max(label.peak, float(smooth))
            label.since_told = max(label.since_told, float(smooth))
            due = round(now - label.told_at, 6) >= rolling.update_s
            if due and rolling.half_life_s > 0 and abs(label.since_told - label.told) < TIE:
                label.unsure = True  # whether it has risen since, and so is told, may fall either way
            if smooth < np.float32(rolling.exit):
                told["exit"].append((name, label.since))
                label.inside, label.since, label.quiet_until = False, None, now + rolling.refractory_s
            elif due and label.peak > label.told:
                told["update"].append((name, label.since))
                label.told, label.told_at, label.since_told = label.peak, now, -math.inf
        elif smooth >= np.float32(rolling.enter) and now >= round(label.quiet_until, 6):
            if label.since is None:
                label.since, label.peak = now, 0.0
            label.peak = max(label.peak, float(smooth))
            if round(now - label.since, 6) >= rolling.dwell_s:
                told["enter"].append((name, label.since))
                label.inside, label.told, label.told_at, label.since_told = True, label.peak, now, -math.inf
        else:
            label.since = None


@dataclass
class Difference:
    """How a prediction differs from what it must be. Equal when `what` is empty."""

    what: list[str] = field(default_factory=list)
    largest: float = 0.0  # of all probabilities, raw and rolling
    ties: int = 0  # decisions too close to compare


def compare(record: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 1e-5) -> Difference:
    """A prediction and the oracle's: step, scores and, where the margin is clear, labels, the model's and the rolling
    ones; events and their order."""
    if record["type"] != "prediction":
        return Difference([f"type {record['type']}, expected prediction"])
    found = Difference()
    if record["step"] != expected["step"]:
        found.what.append(f"step {record['step']}, expected {expected['step']}")
    for name, said, scores, best in (
        ("probabilities", record, expected["probabilities"], expected["best"]),
        ("rolling", record["rolling"], expected["rolling"], expected["best_rolling"]),
    ):
        ours, theirs, (label, margin) = np.asarray(said["probabilities"]), np.asarray(scores), best
        largest = float(np.abs(ours - theirs).max()) if len(ours) == len(theirs) else math.inf
        found.largest = max(found.largest, largest)
        if not largest <= tolerance:
            found.what.append(f"{name} differ by {largest:.1e}")
        if not abs(said["score"] - theirs.max()) <= tolerance:
            found.what.append(f"{name}: score {said['score']}, expected {theirs.max():.6f}")
        if margin <= LABEL_MARGIN:
            found.ties += said["label"] != label
        elif said["label"] != label:
            found.what.append(f"{name}: label {said['label']}, expected {label}")
    unsure = expected["unsure"]
    told = told_in(record)
    clear = [one for one in told if one[1] not in unsure]
    if clear != [one for one in expected["events"] if one[1] not in unsure]:
        found.what.append(f"events {told}, expected {expected['events']}")
    elif told != expected["events"]:
        found.ties += 1
    return found


def told_in(record: Mapping[str, Any]) -> list[Told]:
    """The events of a record, in their order, as the oracle has them."""
    events = record.get("events", ())
    return [(e["type"], e["label"], e["step"], round(e["time"], 6), round(e["start"], 6)) for e in events]
