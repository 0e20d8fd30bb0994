"""From a batch of items to what is committed of them: choose, refuse, group, step, roll. Plain calls, no I/O.

Every item has its turn here in stream order, whatever its outcome. A failed one leaves the state as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from service import rolling
from service.batching import Scheduler
from service.choosing import choose_model
from service.codec import RESTORED, encode_settings
from service.columns import not_finite
from service.contracts import Event, FrameInput, ModelInfo, Restart, StreamSettings
from service.controls import decode_control
from service.errors import EntryError, NonFinite, WrongShard
from service.worker import records
from service.worker.controls import Controls
from service.worker.model import GROUP_STEPS, Scores, ServedModel, Stepped, judged_us
from service.worker.runs import (
    CATCH_UP_ENTRIES,
    CATCH_UP_S,
    CATCH_UP_STEPS,
    Run,
    UpToTheNewest,
    event_time_us,
    inputs_of_runs,
    power_of_two,
    steps_of,
    ttl_ms,
)
from service.worker.shard import Item, Stream


class Call(NamedTuple):
    """One group of entries through a model: how many, and how long the two stages took, s."""

    model: str
    entries: int
    step_s: float
    roll_s: float


class Stepper:
    """Steps batches. Owns the served models; changes streams and tables. Used by Worker.run only."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        defaults: Mapping[str, str | None],
        state_ttl_s: float,
        decode: Callable[[bytes, FrameInput], np.ndarray],  # raises EntryError
    ) -> None:
        self.models = models
        self._infos: dict[str, ModelInfo] = {name: model.info for name, model in models.items()}
        self._defaults = defaults
        self._ttl_ms = int(state_ttl_s * 1000)
        self._controls = Controls(models, state_ttl_s, self.forget)
        self._decode_now = decode

    def choose(self, item: Item) -> ServedModel:
        """The model of an item: what its entry says, else its stream's, else the default. Raises EntryError."""
        entry, stream = item.entry, item.key
        model = stream.model
        if model is not None and stream.settings.model == model.name and entry.model in (None, model.name):
            info = model.info  # the usual case, without the rest of the rule
            if entry.kind == info.kind and (entry.shape is None or entry.shape[1] == info.width):
                return model
        width = entry.shape[1] if entry.shape else None
        default, bound = self._defaults.get(entry.kind), stream.settings.model
        chosen = choose_model(self._infos, entry.kind, asked=entry.model, bound=bound, default=default, width=width)
        return self.models[chosen.name]

    def step(
        self, items: list[Item], now_ms: float, more: Scheduler[Item] | None = None, room: int = 0
    ) -> tuple[list[Item], dict[Stream, bytes], list[Call]]:
        """Gives every item its type, body and state. `now_ms` tells which entries of fresh streams are stale.

        Where there is `room`, streams that lag are advanced by several entries at once: those are taken from `more`.
        Returns all items, those of one stream side by side; the settings that streams were bound by, to be stored; and
        what was called.
        """
        bound: dict[Stream, bytes] = {}
        calls: list[Call] = []
        todo: list[Item] = []
        for item in items:
            self._try(item, now_ms, todo)
        runs: dict[Item, list[Item]] = {}
        if more is not None and more.lagging and room > 0:
            runs = self._extend(more, room, now_ms, todo)
            items = [one for item in items for one in runs.get(item, (item,))]
        groups: dict[tuple[ServedModel, int], list[Item]] = {}
        many: dict[tuple[ServedModel, tuple[int, ...]], list[list[Item]]] = {}
        for item in todo:
            if item.model is None:
                continue
            if runs and (run := runs.get(item)) is not None:
                many.setdefault((item.model, tuple([one.steps for one in run])), []).append(run)
            else:
                groups.setdefault((item.model, item.steps), []).append(item)
        for (model, steps), group in groups.items():
            size = max(1, GROUP_STEPS // steps)
            for at in range(0, len(group), size):
                self._step_group(model, group[at : at + size], steps, bound, calls)
        for (model, shape), ahead in many.items():
            size = max(1, GROUP_STEPS // sum(shape))
            for at in range(0, len(ahead), size):
                self._step_runs(model, ahead[at : at + size], shape, bound, calls)
        return items, bound, calls

    def _try(self, item: Item, now_ms: float, todo: list[Item]) -> None:
        """Prepares an item; it is to be stepped, or answered already."""
        try:
            if self._prepare(item, now_ms):
                todo.append(item)
        except EntryError as error:
            self._refuse(item, error)

    # --- one item ------------------------------------------------------------------------------------------------

    def _prepare(self, item: Item, now_ms: float) -> int:
        """Decides what happens to an item. Returns the steps it takes: 0 when it is answered already."""
        entry, stream = item.entry, item.key
        if deleted := stream.stepped == b"deleted":
            stream.stepped = b"-"  # whatever becomes of this entry, the stream is there again
        if entry.fault is not None:
            raise entry.fault
        if entry.seq is not None and stream.seq is not None and entry.seq <= stream.seq:
            if entry.seq == stream.seq:
                records.write_duplicate(item, stream.seq_id, entry.seq)
            else:
                detail = f"seq {entry.seq} lies below the stream's last, {stream.seq}"
                records.write_dropped(item, "late", detail, [])
            return 0
        if stream.misplaced is not None:
            raise WrongShard(f"stream {stream.name!r} lives in shard {stream.misplaced}, not in {stream.shard.number}")
        if entry.kind == "control":
            self._control(item)
            if deleted and item.quiet:  # but for a silence that was on its way
                stream.stepped = b"deleted"
            return 0
        if item.drop is not None or 0 < item.fresh_until_ms < now_ms:
            self._drop(item, now_ms)
            return 0
        model = self.choose(item)
        if item.error is not None:
            raise item.error
        if model.manifest.frames is not None and (item.x is None or item.model is not model):
            # a control between gave the stream another model than it had when the frame was read
            item.x = self._decode(entry.data, model.manifest.frames)
        item.model = model
        item.time_us = event_time_us(entry)
        item.served = model.name
        item.missed = _missed(item)
        item.steps = steps_of(item, model)
        return item.steps

    def _decode(self, data: bytes, form: FrameInput) -> np.ndarray:
        try:
            return self._decode_now(data, form)
        except EntryError:
            raise
        except Exception as error:  # whatever a decoder does to itself, it is this entry's fault alone
            raise EntryError(f"decoding failed: {error}") from error

    def _control(self, item: Item) -> None:
        control, exits, model = decode_control(item.entry.data), self._exits(item.key), item.key.model
        ended = self._controls.carry_out(item, control)
        item.events = exits if ended else []
        if item.quiet and exits and model is not None:
            item.served = model.name
        records.write_done(item, control.action, item.events)

    def _drop(self, item: Item, now_ms: float) -> None:
        """Answers an entry that is no longer fresh. What it says of the state's life (`start`, `end`) still holds."""
        entry, stream = item.entry, item.key
        if item.drop == "superseded":
            detail = "a newer entry of the stream was waiting"
        else:
            item.drop, limit_s = "stale", (item.fresh_until_ms - entry.ms) / 1000
            detail = f"{(now_ms - entry.ms) / 1000:.3f} s old: expected at most {limit_s:g} s"
        events: list[Event] = []
        if entry.start or entry.end:
            events = self._exits(stream)
            self.forget(stream)
            stream.restart, stream.stepped = ("first", b"-") if entry.end else ("start", b"start")
            stream.stepped_ms, item.forget = 0, True
        if entry.seq is not None:
            stream.seq, stream.seq_id = entry.seq, entry.id
        item.served = entry.model or stream.settings.model or ""
        if item.served not in self.models:
            item.served = ""
        records.write_dropped(item, item.drop, detail, events)

    def _refuse(self, item: Item, error: EntryError) -> None:
        model = item.entry.model or item.key.settings.model
        item.steps = 0
        item.served = model if model and model in self.models else ""
        records.write_refused(item, error, model)

    # --- several entries of a stream -----------------------------------------------------------------------------

    def _extend(self, waiting: Scheduler[Item], room: int, now_ms: float, todo: list[Item]) -> dict[Item, list[Item]]:
        """Takes more of the streams that lag, as long as a batch has room: by its first item, all of each run."""
        runs: dict[Item, list[Item]] = {}
        too_slow: set[ServedModel] = set()
        share = room // len(waiting.lagging)
        ahead = min(CATCH_UP_ENTRIES, power_of_two(share + 1)) - 1  # few lengths, so that runs are stepped together
        for first in waiting.lagging:
            if first.drop == "superseded":
                more = waiting.take_more(first.key, UpToTheNewest(), share)
                for item in more:
                    self._try(item, now_ms, todo)
                if more:
                    runs[first] = [first, *more]
            elif ahead and not first.type and first.fresh_until_ms == 0 and first.model is not None:
                budget = min(CATCH_UP_STEPS, self._affordable(first.model, len(waiting.lagging)))
                if budget < 2:
                    too_slow.add(first.model)
                joins = Run(first, first.model, budget, self._ttl_ms)
                if first.model.manifest.many_steps and (more := waiting.take_more(first.key, joins, ahead)):
                    runs[first] = [first, *more]
        for model in too_slow:  # something else may have held up what was measured: in a while it is tried again
            model.step_s *= 0.95
        return runs

    def _affordable(self, model: ServedModel, runs: int) -> int:
        """Steps a run may have, so that all together do not keep the other streams waiting."""
        return 4 if model.step_s == 0 else int(CATCH_UP_S / model.step_s / runs)

    def _step_runs(
        self,
        model: ServedModel,
        runs: list[list[Item]],  # B of them, of M entries each
        steps: tuple[int, ...],  # M; of each entry, the same in all runs
        bound: dict[Stream, bytes],
        calls: list[Call],
    ) -> None:
        """All entries of each run in one call, rolled entry by entry. What fails is done again one by one."""
        began = time.perf_counter()
        x = inputs_of_runs(model, runs, sum(steps))
        firsts = [run[0] for run in runs]
        rows, slots, closed = self._gather(model, firsts, steps[0])
        scores = model.advance(x, rows) if np.isfinite(x).all() else None
        if scores is None or scores.failed:
            failed = range(len(runs)) if scores is None else scores.failed
            for b in failed:
                for item in runs[b]:
                    item.reason, item.missed = None, _missed(item)  # what was refused before it was not stepped
                    self._step_group(model, [item], item.steps, bound, calls)
            if good := [run for b, run in enumerate(runs) if b not in failed]:
                self._step_runs(model, good, steps, bound, calls)
            return
        called = time.perf_counter()
        settings = _settings_apart(firsts)
        at, last = 0, len(steps) - 1
        for place, wide in enumerate(steps):
            group = [run[place] for run in runs]
            part = Scores(scores.probabilities[:, at : at + wide], {})
            stepped = model.roll(part, rows, [i.entry for i in group], [i.time_us for i in group], settings)
            at += wide
            if place == last:
                _exits_at_end(model, group, rows, stepped)
            records.write_predictions(model, group, stepped, closed if place == 0 else {}, keep=place == last)
        model.table.scatter(slots, rows)
        for run in runs:
            for item in run:
                self._advance(item, model, bound)
        ended = time.perf_counter()
        model.step_s += (0.2 if model.step_s else 1.0) * ((ended - began) / (len(runs) * sum(steps)) - model.step_s)
        calls.append(Call(model.name, len(runs) * len(steps), called - began, ended - called))

    # --- a group: one model, one T -------------------------------------------------------------------------------

    def _step_group(
        self, model: ServedModel, group: list[Item], steps: int, bound: dict[Stream, bytes], calls: list[Call]
    ) -> None:
        began = time.perf_counter()
        x, group = self._inputs(model, group, steps)
        if not group:
            return
        rows, slots, closed = self._gather(model, group, steps)
        scores = model.advance(x, rows)
        called = time.perf_counter()
        settings = _settings_apart(group)
        entries, last_us = [item.entry for item in group], [item.time_us for item in group]
        stepped = model.roll(scores, rows, entries, last_us, settings)
        if stepped.failed:
            good = [b for b in range(len(group)) if b not in stepped.failed]
            model.table.scatter(slots[good], rows[good])
        else:
            model.table.scatter(slots, rows)
        _exits_at_end(model, group, rows, stepped)
        records.write_predictions(model, group, stepped, closed)
        calls.append(Call(model.name, len(group), called - began, time.perf_counter() - called))
        for b, item in enumerate(group):
            if b in stepped.failed:
                self._refuse(item, stepped.failed[b])
            else:
                self._advance(item, model, bound)

    def _gather(
        self, model: ServedModel, group: list[Item], steps: int
    ) -> tuple[np.ndarray, np.ndarray, dict[int, list[Event]]]:
        """The rows (B,) that the group's items, of `steps` each, step from, copied; their slots; and the exits of those
        whose state begins anew."""
        table = model.table
        fresh: list[int] = []
        closed: dict[int, list[Event]] = {}
        for b, item in enumerate(group):
            stream = item.key
            if stream.model is not model:  # its first step here, or after one that failed under another model
                self.forget(stream)
                stream.model, stream.slot = model, table.put(None)
            if (reason := self._restarts(item, model, steps)) is not None:
                item.reason = reason
                fresh.append(b)
                if stream.restart is None and (exits := self._exits(stream)):
                    closed[b] = exits
        slots = np.array([item.key.slot for item in group])
        rows = table.gather(slots)
        if fresh:
            rows[fresh] = model.layout.fresh
        return rows, slots, closed

    def _inputs(self, model: ServedModel, group: list[Item], steps: int) -> tuple[np.ndarray, list[Item]]:
        """x of the group, and the items that are in it: the others had values that are not finite."""
        if model.manifest.kind == "frame":
            return np.stack([item.x for item in group if item.x is not None])[:, None], group
        if model.manifest.kind == "text":
            return np.stack([item.x for item in group if item.x is not None]), group
        width = model.info.width or 0
        x = np.frombuffer(b"".join([item.entry.data for item in group]), "<f4").reshape(len(group), steps, width)
        if np.isfinite(x.sum(dtype=np.float64)):
            return x, group
        finite = np.isfinite(x).all(axis=(1, 2))
        names = model.manifest.rows.features if model.manifest.rows else ()
        for b in np.flatnonzero(~finite):
            self._refuse(group[b], not_finite(x[b], names) or NonFinite())
        return x[finite], [item for b, item in enumerate(group) if finite[b]]

    def _restarts(self, item: Item, model: ServedModel, steps: int) -> Restart | None:
        """Why this item's step begins anew, by ids, times, position and settings only; None: the state goes on."""
        entry, stream = item.entry, item.key
        if entry.start:
            return "start"
        if stream.restart in ("first", "reset"):
            return stream.restart
        if stream.stepped_ms and entry.ms - stream.stepped_ms > ttl_ms(stream, model, self._ttl_ms):
            return "ttl"
        if stream.restart is not None:
            return stream.restart
        gap = stream.settings.gap or model.manifest.gap
        if gap.policy == "reset":
            if item.missed and entry.seq is not None:
                return "gap"
            first_us = item.time_us - round((steps - 1) * model.interval_of(entry))
            restored = stream.stepped.endswith(RESTORED)  # whose times need have nothing to do with this stream's
            last_us = stream.stepped_ms * 1000 if restored else int(model.table.row(stream.slot)["time_us"])
            behind_us = 0 if restored else last_us - judged_us(entry, first_us, item.time_us)
            if max(first_us - last_us, behind_us) > gap.gap_s * 1e6:
                return "gap"
        return None

    def _advance(self, item: Item, model: ServedModel, bound: dict[Stream, bytes]) -> None:
        """What a successful step changes of its stream."""
        entry, stream = item.entry, item.key
        stream.restart = None
        stream.stepped, stream.stepped_ms = entry.id, entry.ms
        if stream.lost and entry.number > stream.lost_after:
            stream.lost = 0
            stream.shard.account.told(item.missed)
        if entry.seq is not None:
            stream.seq, stream.seq_id = entry.seq, entry.id
        if stream.settings.model is None:
            stream.settings, bound[stream] = _bind(stream.settings, model.name)
            stream.usual = model.freshness
        if entry.end:
            self.forget(stream)
            stream.restart, stream.stepped, stream.stepped_ms = "first", b"-", 0
            item.state, item.forget = None, True

    def _exits(self, stream: Stream) -> list[Event]:
        if stream.model is None or stream.slot < 0:
            return []
        return rolling.close(stream.model.table.row(stream.slot), stream.model.labels)

    def forget(self, stream: Stream) -> None:
        """Frees the stream's row."""
        if stream.model is not None and stream.slot >= 0:
            stream.model.table.free(stream.slot)
        stream.model, stream.slot = None, -1


def _missed(item: Item) -> int:
    """Numbers between the last `seq` that was stepped and this one; without a `seq`, how many of its stream's entries
    may have left the log unread."""
    entry, stream = item.entry, item.key
    if entry.seq is None:
        return stream.lost if stream.lost and entry.number > stream.lost_after else 0
    return 0 if stream.seq is None else entry.seq - stream.seq - 1


def _exits_at_end(model: ServedModel, group: Sequence[Item], rows: np.ndarray, stepped: Stepped) -> None:
    """Adds the exits of the labels that are inside where an entry ends its state."""
    for b, item in enumerate(group):
        if item.entry.end and b not in stepped.failed and rows[b]["inside"].any():
            stepped.events.setdefault(b, []).extend(rolling.close(rows[b], model.labels))


def _settings_apart(group: Sequence[Item]) -> dict[int, StreamSettings]:
    """The settings of those streams that are not rolled as their package says."""
    return {
        b: settings
        for b, item in enumerate(group)
        if (settings := item.key.settings).rolling is not None or settings.gap is not None
    }


@lru_cache(maxsize=1024)
def _bind(settings: StreamSettings, model: str) -> tuple[StreamSettings, bytes]:
    """Settings bound to a model, and encoded. One object for all streams that are alike."""
    binding = msgspec.structs.replace(settings, model=model)
    return binding, encode_settings(binding)
