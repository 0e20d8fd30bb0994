"""What a worker counts: by batch, once it is committed. Children are resolved once; latencies go in as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np

from service.metrics import WorkerMetrics
from service.worker.model import ServedModel
from service.worker.shard import Item
from service.worker.stepping import Call

STAGES = ("read", "decode", "queue", "step", "roll", "commit")
_counted = attrgetter("type", "served", "kind", "steps", "k")


class Tally:
    """Turns committed items into metrics. Written only by Worker.run."""

    def __init__(self, metrics: WorkerMetrics, models: Iterable[ServedModel]) -> None:
        self._metrics = metrics
        self._models = {model.name: model for model in models}
        self._stages = {stage: metrics.stage_seconds.labels(stage) for stage in STAGES}
        for model in self._models.values():
            metrics.model_info.labels(model.name, model.version, model.manifest.sha256).set(1)

    def stage(self, name: str, seconds: float) -> None:
        self._stages[name].observe(seconds)

    def decoded(self, seconds: np.ndarray) -> None:
        self._stages["decode"].observe_many(seconds)

    def committed(self, items: Sequence[Item], seconds: float, now_s: float) -> None:
        """Counts what one commit answered; `seconds` from sending it to its checked reply."""
        metrics = self._metrics
        self._stages["commit"].observe(seconds)
        for (kind, served, entry_kind, steps, k), n in Counter(map(_counted, items)).items():
            name = kind.decode()
            metrics.entries.labels(entry_kind, served).inc(n)
            metrics.records.labels(served, name).inc(n)
            if name == "prediction":
                metrics.steps.labels(served).inc(n * steps)
                metrics.predicted.labels(served, self._models[served].labels[k]).inc(n)
            elif name == "duplicate":
                metrics.duplicates.inc(n)
        for served in {item.served for item in items}:
            born_ms = np.array([item.entry.ms for item in items if item.served == served], np.float64)
            metrics.end_to_end_seconds.labels(served).observe_many(np.maximum(0.0, now_s - born_ms / 1000))
        for item in items:
            if item.drop is not None:
                metrics.dropped.labels(item.drop).inc()
            if item.reason is not None and item.k >= 0:
                metrics.restarts.labels(item.served, item.reason).inc()
            if item.dead and item.error is not None:
                metrics.dead.labels(item.error.reason).inc()
                if item.error.reason == "non_finite":
                    metrics.nonfinite.labels(item.served).inc()
            for event in item.events:
                metrics.events.labels(item.served, event.label, event.type).inc()

    def batch(self, now: float, items: Sequence[Item], calls: Sequence[Call]) -> None:
        """One batch that was stepped: how long its entries had waited, and each call of a model."""
        self._stages["queue"].observe_many(now - np.array([item.arrived for item in items]))
        for call in calls:
            self._metrics.batch_entries.labels(call.model).observe(call.entries)
            self._stages["step"].observe(call.step_s)
            self._stages["roll"].observe(call.roll_s)

    def loaded(self) -> None:
        """A state was read back from the broker."""
        self._metrics.loads.inc()

    def residence(self, evicted: int) -> None:
        """`evicted`: streams that left memory since the start."""
        self._metrics.evictions.inc(evicted - self._metrics.evictions.value)
        self._metrics.streams.labels("resident").set(sum(len(model.table) for model in self._models.values()))
        self._metrics.state_bytes.set(sum(model.table.nbytes for model in self._models.values()))

    def fenced(self) -> None:
        self._metrics.fenced.inc()

    def dead_overflow(self, entries: int) -> None:
        self._metrics.dead_overflow.inc(entries)

    def commit_error(self) -> None:
        self._metrics.commit_errors.inc()
