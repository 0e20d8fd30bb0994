"""From a batch of items to what is committed of them: choose, refuse, group, step, roll. Plain calls, no I/O.

Every item has its turn here in stream order, whatever its outcome. A failed one leaves the state as it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from service import rolling
from service.choosing import choose_model
from service.codec import encode_settings
from service.contracts import Event, FrameInput, ModelInfo, Restart
from service.controls import decode_control
from service.decode import decode_frame, decode_text
from service.errors import EntryError, NonFinite, StepFailed, WrongShard
from service.worker import records
from service.worker.controls import Controls
from service.worker.model import GROUP_STEPS, ServedModel
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
        max_pixels: int,
    ) -> None:
        self.models = models
        self._infos: dict[str, ModelInfo] = {name: model.info for name, model in models.items()}
        self._defaults = defaults
        self._ttl_ms = int(state_ttl_s * 1000)
        self._controls = Controls(models, state_ttl_s, self.forget)
        self._max_pixels = max_pixels

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

    def step(self, items: Sequence[Item]) -> tuple[dict[Stream, bytes], list[Call]]:
        """Gives every item its type, body and state.

        Returns the settings that streams were bound by, to be stored, and what was called.
        """
        groups: dict[tuple[ServedModel, int], list[Item]] = {}
        for item in items:
            try:
                if (steps := self._prepare(item)) and item.model is not None:
                    groups.setdefault((item.model, steps), []).append(item)
            except EntryError as error:
                self._refuse(item, error)
        bound: dict[Stream, bytes] = {}
        calls: list[Call] = []
        for (model, steps), group in groups.items():
            size = max(1, GROUP_STEPS // steps)
            for at in range(0, len(group), size):
                self._step_group(model, group[at : at + size], steps, bound, calls)
        return bound, calls

    # --- one item ------------------------------------------------------------------------------------------------

    def _prepare(self, item: Item) -> int:
        """Decides what happens to an item. Returns the steps it takes: 0 when it is answered already."""
        entry, stream = item.entry, item.key
        if stream.stepped == b"deleted":
            stream.stepped = b"-"  # whatever becomes of this entry, the stream is there again
        if entry.fault is not None:
            raise entry.fault
        if entry.seq is not None and stream.seq is not None and entry.seq <= stream.seq:
            if entry.seq == stream.seq:
                records.write_duplicate(item, stream.seq_id, entry.seq)
            else:
                records.write_late(item, stream.seq)
            return 0
        if stream.misplaced is not None:
            raise WrongShard(f"stream {stream.name!r} lives in shard {stream.misplaced}, not in {stream.shard.number}")
        if entry.kind == "control":
            self._control(item)
            return 0
        model = self.choose(item)
        if item.error is not None:
            raise item.error
        if model.manifest.frames is not None and (item.x is None or item.model is not model):
            # a control between gave the stream another model than it had when the frame was read
            item.x = self._decode(entry.data, model.manifest.frames)
        item.model = model
        item.time_us = entry.ms * 1000 if entry.time is None else round(entry.time * 1e6)
        item.served = model.name
        if entry.seq is not None and stream.seq is not None:
            item.missed = entry.seq - stream.seq - 1
        item.steps = _steps(item, model)
        return item.steps

    def _decode(self, data: bytes, form: FrameInput) -> np.ndarray:
        try:
            return decode_frame(data, form, max_pixels=self._max_pixels)
        except EntryError:
            raise
        except Exception as error:  # whatever a decoder does to itself, it is this entry's fault alone
            raise EntryError(f"decoding failed: {error}") from error

    def _control(self, item: Item) -> None:
        control, exits = decode_control(item.entry.data), self._exits(item.key)
        ended = self._controls.carry_out(item, control)
        item.events = exits if ended else []
        records.write_done(item, control.action, item.events)

    def _refuse(self, item: Item, error: EntryError) -> None:
        model = item.entry.model or item.key.settings.model
        item.steps = 0
        item.served = model if model and model in self.models else ""
        records.write_refused(item, error, model)

    # --- a group: one model, one T -------------------------------------------------------------------------------

    def _step_group(
        self, model: ServedModel, group: list[Item], steps: int, bound: dict[Stream, bytes], calls: list[Call]
    ) -> None:
        began = time.perf_counter()
        x, group = self._inputs(model, group, steps)
        if not group:
            return
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
        scores = model.advance(x, rows)
        called = time.perf_counter()
        stepped = model.roll(
            scores, rows, [item.entry for item in group], [item.time_us for item in group], _limits(model, group)
        )
        if stepped.failed:
            good = [b for b in range(len(group)) if b not in stepped.failed]
            table.scatter(slots[good], rows[good])
        else:
            table.scatter(slots, rows)
        for b, item in enumerate(group):
            if item.entry.end and b not in stepped.failed and rows[b]["inside"].any():
                stepped.events.setdefault(b, []).extend(rolling.close(rows[b], model.labels))
        records.write_predictions(model, group, stepped, closed)
        calls.append(Call(model.name, len(group), called - began, time.perf_counter() - called))
        for b, item in enumerate(group):
            if b in stepped.failed:
                self._refuse(item, stepped.failed[b])
            else:
                self._advance(item, model, bound)

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
        for b in np.flatnonzero(~finite):
            row, column = np.argwhere(~np.isfinite(x[b]))[0]
            self._refuse(
                group[b], NonFinite(f"row {row}, column {column} is {x[b, row, column]}: expected a finite number")
            )
        return x[finite], [item for b, item in enumerate(group) if finite[b]]

    def _restarts(self, item: Item, model: ServedModel, steps: int) -> Restart | None:
        """Why this item's step begins anew, by ids, times, position and settings only; None: the state goes on."""
        entry, stream = item.entry, item.key
        if entry.start:
            return "start"
        if stream.restart in ("first", "reset"):
            return stream.restart
        own_s = stream.settings.state_ttl_s
        ttl_ms = self._ttl_ms if own_s is None else int(own_s * 1000)
        if stream.stepped_ms and entry.ms - stream.stepped_ms > ttl_ms:
            return "ttl"
        if stream.restart is not None:
            return stream.restart
        gap = stream.settings.gap or model.manifest.gap
        if gap.policy == "reset":
            if item.missed:
                return "gap"
            first_us = item.time_us - round((steps - 1) * model.interval_of(entry))
            if first_us - int(model.table.row(stream.slot)["time_us"]) > gap.gap_s * 1e6:
                return "gap"
        return None

    def _advance(self, item: Item, model: ServedModel, bound: dict[Stream, bytes]) -> None:
        """What a successful step changes of its stream."""
        entry, stream = item.entry, item.key
        stream.restart = None
        stream.stepped, stream.stepped_ms = entry.id, entry.ms
        if entry.seq is not None:
            stream.seq, stream.seq_id = entry.seq, entry.id
        if stream.settings.model is None:
            stream.settings = msgspec.structs.replace(stream.settings, model=model.name)
            bound[stream] = encode_settings(stream.settings)
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


def _limits(model: ServedModel, group: Sequence[Item]) -> rolling.Thresholds:
    """The model's, unless a stream has settings of its own."""
    for item in group:
        settings = item.key.settings
        if settings.rolling is not None or settings.gap is not None:
            break
    else:
        return model.limits
    return rolling.of_batch([model.limits_of(item.key.settings) for item in group])


def _steps(item: Item, model: ServedModel) -> int:
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
