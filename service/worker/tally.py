"""What a worker counts: by batch, once it is committed. Children are resolved once; latencies go in as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import get_args

from service.contracts import RECORD_TYPES, Restart
from service.errors import BadId, EntryError
from service.metrics import WorkerMetrics
from service.worker.model import ServedModel
from service.worker.shard import Group, Item
from service.worker.stepping import Call

STAGES = ("read", "decode", "queue", "step", "roll", "commit")
DROPS = ("late", "superseded", "stale")
EVENTS = ("enter", "update", "exit")
LOSSES = ("fenced", "lease", "broker")  # why a shard was thrown away
Alike = tuple[bytes, str, str]  # type of the record, model, kind of the entry


class Tally:
    """Turns committed items into metrics. Written only by Worker.run."""

    def __init__(self, metrics: WorkerMetrics, models: Iterable[ServedModel]) -> None:
        self._metrics = metrics
        self._models = {model.name: model for model in models}
        self._commits: list[tuple[Sequence[Item], float]] = []  # answered and not yet counted: items, when
        self._unwritten: set[Item] = set()  # of those
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

    def decoded(self, seconds: Sequence[float]) -> None:
        self._stages["decode"].observe_many(seconds)

    def committed(self, items: Sequence[Item], seconds: float, now_s: float, unwritten: Collection[Item] = ()) -> None:
        """One commit was answered; `seconds` from sending it to its checked reply. The records of `unwritten` are not
        there: a foreign write kept them out. Counted by the next `count`."""
        self._stages["commit"].observe(seconds)
        if items:
            self._commits.append((items, now_s))
            self._unwritten.update(unwritten)

    def count(self) -> None:
        """Counts what was committed since: a batch is many small commits, one a shard, and counted as one."""
        if not self._commits:
            return
        now_s = self._commits[-1][1]  # they were answered together
        items = [item for answered, _ in self._commits for item in answered]
        groups = Counter([item.group for item in items])
        whole = [group for group, n in groups.items() if group is not None and n == group.entries]
        if len({group.model for group in whole}) == 1 and len(whole) == len(groups) and not self._unwritten:
            self._predicted(whole, len(items), now_s)
        else:
            for key, alike in _alike(items).items():
                self._answered(key, alike)
                self._age(key[1], [item.entry.ms for item in alike], now_s)
        self._commits.clear()
        self._unwritten.clear()

    def repaired(self, items: Iterable[Item]) -> None:
        """Their records were missing, and are written now."""
        for item in items:
            self._metrics.records.labels(item.served, item.type.decode()).inc()

    def batch(self, now: float, items: Sequence[Item], calls: Sequence[Call]) -> None:
        """One batch that was stepped: how long its entries had waited, and each call of a model."""
        self._stages["queue"].observe_many([now - item.arrived for item in items])
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

    def expelled(self, entries: int) -> None:
        """Put into quarantine under an id that no clock gives: they have no record."""
        self._metrics.dead.labels(BadId.reason).inc(entries)

    def trimmed(self, entries: int) -> None:
        """They left the log unanswered."""
        self._metrics.entries_trimmed.inc(entries)

    def dead_overflow(self, entries: int) -> None:
        self._metrics.dead_overflow.inc(entries)

    def commit_error(self) -> None:
        self._metrics.commit_errors.inc()

    def _predicted(self, groups: Sequence[Group], entries: int, now_s: float) -> None:
        """Whole groups of one model, by column: the usual case, which costs an entry a fifth of the other one."""
        metrics, model = self._metrics, groups[0].model
        metrics.entries.labels(model.manifest.kind, model.name).inc(entries)
        metrics.records.labels(model.name, "prediction").inc(entries)
        confidence, steps = metrics.confidence.labels(model.name), metrics.steps.labels(model.name)
        for group in groups:
            steps.inc(group.entries * group.steps)
            confidence.observe_many(group.scores)
            self._age(model.name, group.born_ms, now_s)
            for k, n in Counter(group.labels).items():
                metrics.predicted.labels(model.name, model.labels[k]).inc(n)
            for item in group.told:
                self._told(item)

    def _answered(self, key: Alike, items: Sequence[Item]) -> None:
        (kind, served, entry_kind), metrics = key, self._metrics
        metrics.entries.labels(entry_kind, served).inc(len(items))
        metrics.records.labels(served, kind.decode()).inc(sum(item not in self._unwritten for item in items))
        for item in items:
            if (group := item.group) is not None:
                metrics.steps.labels(served).inc(item.steps)
                metrics.confidence.labels(served).observe(group.scores[item.at])
                metrics.predicted.labels(served, group.model.labels[group.labels[item.at]]).inc()
            if item.dead and item.error is not None:
                metrics.dead.labels(item.error.reason).inc()
                if item.error.reason == "non_finite":
                    metrics.nonfinite.labels(served).inc()
            self._told(item)
        if kind == b"dropped":
            for item in items:
                metrics.dropped.labels(item.drop or "late").inc()
        elif kind == b"duplicate":
            metrics.duplicates.inc(len(items))

    def _told(self, item: Item) -> None:
        if item.reason is not None and item.group is not None:
            self._metrics.restarts.labels(item.served, item.reason).inc()
        if item.quiet and item.events:
            self._metrics.silenced.labels(item.served).inc()
        for event in item.events:
            self._metrics.events.labels(item.served, event.label, event.type).inc()

    def _age(self, model: str, born_ms: Sequence[int], now_s: float) -> None:
        now_ms = now_s * 1000
        ages_s = [(now_ms - ms) / 1000 for ms in born_ms]
        if min(ages_s) < 0:  # the broker's clock is ahead of ours
            ages_s = [max(0.0, age_s) for age_s in ages_s]
        self._metrics.end_to_end_seconds.labels(model).observe_many(ages_s)

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
        metrics.silenced.labels(name)
        metrics.steps.labels(name)
        metrics.nonfinite.labels(name)


def _alike(items: Sequence[Item]) -> dict[Alike, list[Item]]:
    groups: dict[Alike, list[Item]] = {}
    for item in items:
        groups.setdefault((item.type, item.served, item.kind), []).append(item)
    return groups
