"""Several entries of one stream in a batch: which ones, and what is put together of them. Plain calls, no I/O.

A stream that lags is advanced by a run of entries in one call; each still leaves its own record, and the result is
that of stepping them one by one. A stream of which only the latest entry counts answers at once what was superseded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from service.codec import MAX_MS
from service.contracts import Entry
from service.decode import decode_text
from service.errors import BadId, EntryError, StepFailed
from service.worker.model import ServedModel, judged_us
from service.worker.shard import Item, Stream

CATCH_UP_ENTRIES: Final = 64  # of one stream in one call
CATCH_UP_STEPS: Final = 1024  # of one stream in one call
CATCH_UP_S: Final = 0.02  # what catching up may add to a batch: other streams wait for it


class Run:
    """Says which entries may be stepped in one call behind `first`: those that by themselves only carry the state on.

    An item that joins is ready to be stepped. Bounded by `budget` steps.
    """

    def __init__(self, first: Item, model: ServedModel, budget: int, ttl: int) -> None:
        stream = first.key
        self._model, self._budget, self._ttl_ms = model, budget - first.steps, ttl_ms(stream, model, ttl)
        self._before, self._seq = first, first.entry.seq if first.entry.seq is not None else stream.seq
        gap = stream.settings.gap or model.manifest.gap
        self._hole = stream.lost_after if stream.lost and first.number <= stream.lost_after else None
        self._resets = gap.policy == "reset"  # so that a hole, in time or in `seq`, begins anew
        self._gap_us = gap.gap_s * 1e6
        self._least_us = self._most_us = first.time_us  # the stream's time lies between: `first` may begin it anew
        if stream.model is model and stream.slot >= 0:
            self._most_us = max(first.time_us, int(model.table.row(stream.slot)["time_us"]))

    def __call__(self, item: Item) -> bool:
        entry, before, model = item.entry, self._before, self._model
        if before.entry.end or entry.start or entry.fault is not None or item.error is not None:
            return False
        if item.drop is not None or item.fresh_until_ms or entry.model not in (None, model.name):
            return False
        if entry.kind != model.info.kind or (entry.shape is not None and entry.shape[1] != model.info.width):
            return False
        if entry.kind == "frame" and (item.x is None or item.model is not model):
            return False
        if entry.ms - before.entry.ms > self._ttl_ms or (self._hole is not None and entry.number > self._hole):
            return False
        missed = 0 if entry.seq is None or self._seq is None else entry.seq - self._seq - 1
        if missed < 0 or (missed and self._resets):
            return False
        try:
            time_us, steps = event_time_us(entry), steps_of(item, model)
        except EntryError:
            return False  # it is refused in its turn
        begins_us = time_us - round((steps - 1) * model.interval_of(entry))
        if steps == 0 or steps > self._budget or (self._resets and begins_us - self._least_us > self._gap_us):
            return False
        if self._most_us - judged_us(entry, begins_us, time_us) > self._gap_us:
            return False
        item.model, item.served, item.steps, item.time_us = model, model.name, steps, time_us
        item.missed = missed
        self._budget -= steps
        self._least_us, self._most_us = max(self._least_us, time_us), max(self._most_us, time_us)
        self._before, self._seq = item, entry.seq if entry.seq is not None else self._seq
        return True


class UpToTheNewest:
    """Lets entries that a newer one superseded go by, and then that one: it ends the run."""

    def __init__(self) -> None:
        self._over = False

    def __call__(self, item: Item) -> bool:
        if self._over or item.entry.kind == "control":
            return False
        self._over = item.drop != "superseded"
        return True


def inputs_of_runs(model: ServedModel, runs: Sequence[Sequence[Item]], steps: int) -> np.ndarray:
    """x (B, T, …) of B runs of T = `steps` steps."""
    kind = model.manifest.kind
    if kind == "samples":
        data = b"".join([item.entry.data for run in runs for item in run])
        return np.frombuffer(data, "<f4").reshape(len(runs), steps, model.info.width or 0)
    if kind == "frame":
        return np.stack([np.stack([item.x for item in run if item.x is not None]) for run in runs])
    return np.stack([np.concatenate([item.x for item in run if item.x is not None]) for run in runs])


def ttl_ms(stream: Stream, model: ServedModel, deployment_ms: int) -> int:
    """A stream's time to live: its own, else its model's, at most the deployment's. (States are stored no longer.)"""
    own_s = stream.settings.state_ttl_s or model.manifest.state_ttl_s
    return deployment_ms if own_s is None else min(deployment_ms, int(own_s * 1000))


def power_of_two(limit: int) -> int:
    """The largest power of two up to `limit` (at least 1)."""
    return 1 << (max(1, limit).bit_length() - 1)


def event_time_us(entry: Entry) -> int:
    """What the entry says, else its id's. Raises BadId for one that is no time."""
    if entry.time is not None:
        return round(entry.time * 1e6)
    if entry.ms > MAX_MS:
        raise BadId(f"id {entry.id.decode()}: expected at most {MAX_MS} ms, the end of the year 9999")
    return entry.ms * 1000


def steps_of(item: Item, model: ServedModel) -> int:
    """A block has as many as rows, a text as many as tokens, a frame one. Gives a text its tokens."""
    if item.entry.shape is not None:
        return item.entry.shape[0]
    spec = model.manifest.text
    if spec is None:
        return 1
    if model.tokenizer is None:
        raise StepFailed(f"model {model.name!r} is served without its tokenizer")
    item.x = decode_text(item.entry.data, model.tokenizer, spec)  # tens of microseconds, not worth a thread
    return len(item.x)
