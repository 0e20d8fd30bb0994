"""What the demo counts: each prediction against the known label of the entry it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """The newest of one stream, as the table shows it."""

    stream: str
    model: str
    known: str
    label: str
    score: float
    rolling_label: str
    rolling_score: float
    step: int
    latency_s: float


class Tally:
    """Joins what producers posted with what watchers saw, by entry id; either may come first.

    Only entries of this run are counted: an earlier run's late records have ids nobody here posted.
    """

    def __init__(self, least_accuracy: Mapping[str, float]) -> None:
        self.least_accuracy = dict(least_accuracy)
        self.posted = 0
        self.refused: list[str] = []  # why, the first few
        self.troubles = 0  # answers that had to be asked for again
        self.right = dict.fromkeys(least_accuracy, 0)
        self.answered = dict.fromkeys(least_accuracy, 0)
        self.latencies_s: list[float] = []
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}  # stream and id -> label, posted and not yet answered
        self._early: dict[str, tuple[dict[str, Any], float]] = {}  # seen before their POST was answered
        self._rows: dict[str, Row] = {}

    def on_posted(self, stream: str, entry_id: str, label: str) -> None:
        with self._lock:
            self.posted += 1
            key = f"{stream} {entry_id}"
            early = self._early.pop(key, None)
            if early is None:
                self._known[key] = label
            else:
                self._count(label, *early)

    def on_record(self, stream: str, body: dict[str, Any]) -> None:
        seen = time.time()
        with self._lock:
            key = f"{stream} {body.get('id')}"
            label = self._known.pop(key, None)
            if label is not None:
                self._count(label, body, seen)
            else:
                self._early[key] = (body, seen)

    def on_trouble(self) -> None:
        with self._lock:
            self.troubles += 1

    @property
    def unanswered(self) -> int:
        with self._lock:
            return len(self._known)

    def rows(self) -> list[Row]:
        with self._lock:
            return [self._rows[stream] for stream in sorted(self._rows)]

    def accuracy(self, model: str) -> float:
        """Share of right labels; 0 while there are none."""
        return self.right[model] / self.answered[model] if self.answered[model] else 0.0

    def _count(self, label: str, body: dict[str, Any], seen: float) -> None:
        if body["type"] != "prediction":
            self.refused = [*self.refused[:4], f"{body['stream']}: {body['type']}, {body.get('detail', '')}"]
            return
        model = body["model"]
        self.answered[model] += 1
        self.right[model] += body["label"] == label
        latency_s = seen - int(body["id"].partition("-")[0]) / 1000  # the id is the broker's time of entry
        self.latencies_s.append(latency_s)
        rolling = body["rolling"]
        self._rows[body["stream"]] = Row(
            body["stream"], model, label, body["label"], body["score"],
            rolling["label"], rolling["score"], body["step"], latency_s,
        )  # fmt: skip
