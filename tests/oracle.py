"""What the predictions of one stream must be: each stream alone, one step after the other, nothing vectorised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.contracts import Manifest
from service.ports import Engine


@dataclass
class Label:
    """One label's automaton, as the documentation tells it."""

    smooth: float = 0.0
    inside: bool = False
    since: float | None = None
    quiet_until: float = -math.inf
    told_at: float = 0.0
    peak: float = 0.0
    told: float = 0.0


@dataclass
class Oracle:
    """`step` one block after the other; returns what its prediction must say."""

    engine: Engine
    state: dict[str, np.ndarray] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)
    steps: int = 0
    last: float = 0.0

    def __post_init__(self) -> None:
        self.begin()

    @property
    def manifest(self) -> Manifest:
        return self.engine.manifest

    def begin(self) -> None:
        self.state = {t.name: np.full((1, *t.shape), t.initial, t.dtype) for t in self.manifest.states}
        self.labels = [Label() for _ in self.manifest.labels]
        self.steps = 0

    def step(self, x: np.ndarray, time: float) -> dict[str, Any]:
        """`x` (T, …), `time` of its last step."""
        events: list[tuple[str, str, int, float]] = []
        for t in range(len(x)):
            probabilities, self.state = self.engine.run(x[None, t : t + 1], self.state)
            now = round(time - (len(x) - 1 - t) * self.manifest.interval_s, 6)
            self._roll(probabilities[0, 0], now, events)
        smooth = [label.smooth for label in self.labels]
        return {
            "step": self.steps,
            "probabilities": probabilities[0, 0].tolist(),
            "rolling": smooth,
            "events": events,
            "label": self.manifest.labels[int(np.argmax(probabilities[0, 0]))],
            "margin": float(np.diff(np.sort(probabilities[0, 0]))[-1]),
        }

    def _roll(self, probabilities: np.ndarray, now: float, events: list[tuple[str, str, int, float]]) -> None:
        rolling, gap = self.manifest.rolling, self.manifest.gap
        self.steps += 1
        dt = min(max(now - self.last, 0.0), gap.gap_s)
        weight = 1.0 if self.steps == 1 or rolling.half_life_s == 0 else 1 - 2 ** (-dt / rolling.half_life_s)
        self.last = now
        told: dict[str, list[str]] = {"exit": [], "enter": [], "update": []}
        for name, label, p in zip(self.manifest.labels, self.labels, probabilities, strict=True):
            label.smooth += weight * (float(p) - label.smooth)
            if name in self.manifest.background:
                continue
            if label.inside:
                label.peak = max(label.peak, label.smooth)
                if label.smooth < rolling.exit:
                    told["exit"].append(name)
                    label.inside, label.since, label.quiet_until = False, None, now + rolling.refractory_s
                elif label.peak > label.told and round(now - label.told_at, 6) >= rolling.update_s:
                    told["update"].append(name)
                    label.told, label.told_at = label.peak, now
            elif label.smooth >= rolling.enter and now >= round(label.quiet_until, 6):
                if label.since is None:
                    label.since, label.peak = now, 0.0
                label.peak = max(label.peak, label.smooth)
                if round(now - label.since, 6) >= rolling.dwell_s:
                    told["enter"].append(name)
                    label.inside, label.told, label.told_at = True, label.peak, now
            else:
                label.since = None
        events.extend((kind, name, self.steps, now) for kind, names in told.items() for name in names)


def same(record: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Asserts that a prediction is the oracle's: step, scores, rolling, label where the margin is clear, events."""
    assert record["type"] == "prediction", record
    assert record["step"] == expected["step"]
    np.testing.assert_allclose(record["probabilities"], expected["probabilities"], atol=tolerance)
    np.testing.assert_allclose(record["rolling"]["probabilities"], expected["rolling"], atol=tolerance)
    if expected["margin"] > tolerance:
        assert record["label"] == expected["label"]
    told = [(e["type"], e["label"], e["step"], round(e["time"], 6)) for e in record["events"]]
    assert told == expected["events"]
