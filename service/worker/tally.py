"""What a worker counts: by batch, once it is committed. Children are resolved once; latencies go in as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import get_args

import numpy as np

from service.contracts import RECORD_TYPES, Restart
from service.errors import EntryError
from service.metrics import WorkerMetrics
from service.worker.model import ServedModel
from service.worker.shard import Item
from service.worker.stepping import Call

STAGES = ("read", "decode", "queue", "step", "roll", "commit")
DROPS = ("late", "superseded", "stale")
EVENTS = ("enter", "update", "exit")
LOSSES = ("fenced", "lease", "broker")  # why a shard was thrown away
_counted = attrgetter("type", "served", "kind", "steps", "k")


class Tally:
    """Turns committed items into metrics. Written only by Worker.run."""

    def __init__(self, metrics: WorkerMetrics, models: Iterable[ServedModel]) -> None:
        self._metrics = metrics
        self._models = {model.name: model for model in models}
        self._stages = {stage: metrics.stage_seconds.labels(stage) for stage in STAGES}
        for model in self._models.values():
            metrics.model_info.labels(model.name, model.version, model.manifest.sha256).set(1)
            self._show(model)
        for reason in DROPS:
            metrics.dropped.labels(reason)
        for error in EntryError.__subclasses__():
            metrics.dead.labels(error.reason)
        for reason in LOSSES:
            metrics.shards_lost.labels(reason)
        metrics.entries.labels("control", "")
        for kind in RECORD_TYPES:
            metrics.records.labels("", kind)

    def stage(self, name: str, seconds: float) -> None:
        self._stages[name].observe(seconds)

    def decoded(self, seconds: np.ndarray) -> None:
        self._stages["decode"].observe_many(seconds)

    def committed(self, items: Sequence[Item], seconds: float, now_s: float, unwritten: Collection[Item] = ()) -> None:
        """Counts what one commit answered; `seconds` from sending it to its checked reply. The records of `unwritten`
        are not there: a foreign write kept them out."""
        metrics = self._metrics
        self._stages["commit"].observe(seconds)
        counted = Counter(map(_counted, items))
        for (kind, served, entry_kind, steps, k), n in counted.items():
            name = kind.decode()
            metrics.entries.labels(entry_kind, served).inc(n)
            if name == "prediction":
                metrics.steps.labels(served).inc(n * steps)
                metrics.predicted.labels(served, self._models[served].labels[k]).inc(n)
            elif name == "duplicate":
                metrics.duplicates.inc(n)
        if unwritten:
            counted = Counter(map(_counted, (item for item in items if item not in unwritten)))
        self._written(counted)
        for served in {item.served for item in items}:
            born_ms = np.array([item.entry.ms for item in items if item.served == served], np.float64)
            metrics.end_to_end_seconds.labels(served).observe_many(np.maximum(0.0, now_s - born_ms / 1000))
            if scores := [item.score for item in items if item.k >= 0 and item.served == served]:
                metrics.confidence.labels(served).observe_many(np.array(scores))
        for item in items:
            if item.drop is not None and item.type == b"dropped":
                metrics.dropped.labels(item.drop).inc()
            if item.reason is not None and item.k >= 0:
                metrics.restarts.labels(item.served, item.reason).inc()
            if item.dead and item.error is not None:
                metrics.dead.labels(item.error.reason).inc()
                if item.error.reason == "non_finite":
                    metrics.nonfinite.labels(item.served).inc()
            for event in item.events:
                metrics.events.labels(item.served, event.label, event.type).inc()

    def repaired(self, items: Iterable[Item]) -> None:
        """Their records were missing, and are written now."""
        self._written(Counter(map(_counted, items)))

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

    def held(self, shards: int) -> None:
        self._metrics.shards_held.set(shards)

    def lost(self, shards: int, reason: str) -> None:
        """`reason`: one of LOSSES."""
        self._metrics.shards_lost.labels(reason).inc(shards)

    def fenced(self) -> None:
        self._metrics.fenced.inc()

    def dead_overflow(self, entries: int) -> None:
        self._metrics.dead_overflow.inc(entries)

    def commit_error(self) -> None:
        self._metrics.commit_errors.inc()

    def _written(self, counted: Mapping[tuple[bytes, str, str, int, int], int]) -> None:
        for (kind, served, *_), n in counted.items():
            self._metrics.records.labels(served, kind.decode()).inc(n)

    def _show(self, model: ServedModel) -> None:
        """Its series at 0: what was never seen before has no increase when it comes."""
        metrics, name = self._metrics, model.name
        metrics.entries.labels(model.manifest.kind, name)
        for kind in RECORD_TYPES:
            metrics.records.labels(name, kind)
        for reason in get_args(Restart):
            metrics.restarts.labels(name, reason)
        for label in model.labels:
            metrics.predicted.labels(name, label)
            for happening in EVENTS:
                metrics.events.labels(name, label, happening)
        metrics.steps.labels(name)
        metrics.nonfinite.labels(name)
