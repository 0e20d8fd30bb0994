"""What every way in shares: an entry is checked, its model chosen, its fields written. Routes only read bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from service.api.bodies import Text, check_text
from service.api.context import Context
from service.api.posted import PostedEntry
from service.api.rows import Block, to_rows
from service.choosing import choose_model
from service.codec import MAX_TIME_S, entry_fields
from service.contracts import ModelInfo, check_stream_id, check_text_size
from service.errors import (
    EntryError,
    Malformed,
    ModelNeeded,
    NoWorker,
    RollcastError,
    TooLarge,
    Unavailable,
    UnknownModel,
    WrongShape,
)
from service.images import check


class Ready(NamedTuple):
    """An entry that may be appended. `new`: it would be its stream's first. `left_out`: columns that are no signal."""

    stream: str
    model: str
    fields: Mapping[str, bytes]
    new: bool = False
    left_out: str = ""


class More(NamedTuple):
    """What may be said of an entry beside its content."""

    model: str | None = None
    seq: int | None = None
    time: float | None = None
    start: bool = False
    end: bool = False
    interval_s: float | None = None


NOTHING_MORE: Final = More()


class Intake:
    """Raises what errors.py names under EntryError, and Unavailable; nothing was appended then."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._models = context.infos()
        for error in Unavailable.__subclasses__():
            context.metrics.turned_away.labels(error.reason)

    async def posted(self, entry: PostedEntry) -> Ready:
        """Of a map: exactly one of `data`, `samples` and `text` is given, by kind."""
        stream = check_stream_id(entry.stream)
        more = More(entry.model, entry.seq, entry.time, bool(entry.start), bool(entry.end), entry.interval_s)
        given = [name for name in ("data", "samples", "text") if getattr(entry, name) is not None]
        allowed = {"frame": ("data",), "samples": ("data", "samples"), "text": ("text",)}[entry.kind]
        if len(given) != 1 or given[0] not in allowed:
            found = " and ".join(given) or "nothing"
            raise Malformed(f"kind {entry.kind} with {found}: expected {' or '.join(allowed)}")
        if entry.kind == "text":
            assert entry.text is not None
            return await self.text(stream, Text(entry.text), more)
        if entry.kind == "frame":
            assert entry.data is not None
            self._check_size(len(entry.data), self._context.limits.frame_bytes)
            return await self.frame(stream, entry.data, more)
        if entry.samples is not None and not entry.samples:
            raise WrongShape("samples: no rows; expected at least one")
        block = Block(entry.samples or entry.data or b"")
        if entry.data is not None:
            self._check_size(len(entry.data), self._context.limits.entry_bytes)
            if entry.shape is not None and 4 * entry.shape[0] * entry.shape[1] != len(entry.data):
                rows, columns = entry.shape
                raise WrongShape(
                    f"shape {rows},{columns}: expected {4 * rows * columns} bytes, found {len(entry.data)}"
                )
        ready = await self.samples(stream, block, more)
        if entry.shape is not None and ready.fields["shape"] != b"%d,%d" % entry.shape:
            raise WrongShape(f"shape {entry.shape[0]},{entry.shape[1]}: expected {ready.fields['shape'].decode()}")
        return ready

    async def frame(self, stream: str, image: bytes, more: More = NOTHING_MORE) -> Ready:
        check(image, self._context.limits.pixels)
        model, new = await self._choose(stream, "frame", more.model)
        fields = entry_fields(
            stream, "frame", image, model=model, time=more.time, seq=more.seq, start=more.start, end=more.end
        )
        return Ready(stream, model, fields, new)

    async def samples(self, stream: str, block: Block, more: More = NOTHING_MORE) -> Ready:
        model, new = await self._choose(stream, "samples", more.model, block)
        spec = self._context.models[model].rows
        if spec is None:
            raise UnknownModel(f"model {model!r} does not describe its rows")
        found = await to_rows(block, spec)
        rows = found.values
        self._check_size(rows.nbytes, self._context.limits.entry_bytes)
        said, interval_s = event_time(more.time, block.time), more.interval_s
        if said is None:  # else the column of times is another clock's
            said, interval_s = event_time(None, found.time), found.interval_s if interval_s is None else interval_s
        fields = entry_fields(
            stream, "samples", rows.tobytes(),
            model=model, time=said, seq=more.seq, start=more.start, end=more.end,
            shape=(rows.shape[0], rows.shape[1]), interval_s=interval_s,
        )  # fmt: skip
        return Ready(stream, model, fields, new, found.left_out)

    async def text(self, stream: str, text: Text, more: More = NOTHING_MORE) -> Ready:
        check_text(text)
        model, new = await self._choose(stream, "text", more.model)
        data = text.text.encode()
        self._check_size(len(data), self._context.limits.entry_bytes)
        if (spec := self._context.models[model].text) is not None:
            check_text_size(len(data), spec)
        fields = entry_fields(
            stream, "text", data,
            model=model, time=event_time(more.time, text.time), seq=more.seq, start=more.start, end=more.end,
        )  # fmt: skip
        return Ready(stream, model, fields, new)

    async def append(self, ready: Ready, fsync: bool = False) -> str:
        """One XADD. Returns the id; with `fsync` when it is on disk."""
        metrics = self._context.metrics
        try:
            self._context.backlog.admit(ready.stream, len(ready.fields["data"]), ready.new)
            entry_id = await self._context.predictions.append(ready.stream, ready.fields, fsync)
        except Unavailable as error:
            metrics.turned_away.labels(error.reason).inc()
            raise
        metrics.appended.inc()
        return entry_id

    async def append_many(
        self, entries: Sequence[Ready], fsync: bool = False, held: dict[str, Unavailable] | None = None
    ) -> list[str | RollcastError]:
        """In order, in one round trip; of each its id (`fsync`: when it is on disk), or why it is not in the log.

        `held`: streams of which an entry before had no room. What follows of them has none either: the caller comes
        back with all of it, in order.
        """
        held = {} if held is None else held
        answers: list[str | RollcastError] = []
        admitted: list[int] = []
        for ready in entries:
            full = held.get(ready.stream)
            if full is None:
                try:
                    self._context.backlog.admit(ready.stream, len(ready.fields["data"]), ready.new)
                    admitted.append(len(answers))
                except Unavailable as error:
                    full = held[ready.stream] = error
            answers.append(full or "")
        wanted = [(entries[at].stream, entries[at].fields) for at in admitted]
        for at, found in zip(admitted, await self._context.predictions.append_many(wanted, fsync), strict=True):
            answers[at] = found
        for answer in answers:
            if isinstance(answer, Unavailable):
                self._context.metrics.turned_away.labels(answer.reason).inc()
        self._context.metrics.appended.inc(sum(isinstance(answer, str) for answer in answers))
        return answers

    async def _choose(self, stream: str, kind: str, asked: str | None, block: Block | None = None) -> tuple[str, bool]:
        """The model, and whether the entry would be its stream's first."""
        try:
            return await self._chosen(stream, kind, asked, block)
        except Unavailable as error:
            self._context.metrics.turned_away.labels(error.reason).inc()
            raise

    async def _chosen(self, stream: str, kind: str, asked: str | None, block: Block | None) -> tuple[str, bool]:
        bindings = self._context.bindings
        bound = await bindings.model(stream)
        try:
            chosen = await self._choose_for(kind, asked, block, bound)
        except EntryError:  # a refusal is not given on old news: the stream may have another model meanwhile
            if not bindings.forget(stream):
                raise
            bound = await bindings.model(stream)
            chosen = await self._choose_for(kind, asked, block, bound)
        return chosen, await self._context.backlog.census.is_new(stream, bound is not None)

    async def _choose_for(self, kind: str, asked: str | None, block: Block | None, bound: str | None) -> str:
        default = self._context.defaults.get(kind)
        named = asked or bound or default
        if named is None and block is not None and block.width is None:
            named = asked = _model_by_bytes(self._models, len(block.rows))
        width = None if named is not None or block is None else block.width  # with a model, `to_rows` says more
        chosen = choose_model(self._models, kind, asked=asked, bound=bound, default=default, width=width).name
        if not await self._context.monitor.serves(chosen):
            raise NoWorker(f"no live worker serves model {chosen!r}", retry_after_s=2.0)
        return chosen

    def _check_size(self, size: int, limit: int) -> None:
        if size > limit:
            raise TooLarge(f"entry of {size} bytes: the limit is {limit} bytes")


def event_time(asked: float | None, said: float | None) -> float | None:
    """Of the last step, from the query or from what the body `said`."""
    if said is None:
        return asked
    if asked is not None:
        raise Malformed("time is given in the query and in the body: expected one of them")
    if not 0.0 <= said <= MAX_TIME_S:
        raise Malformed(f"time {said}: expected seconds from 0 to {MAX_TIME_S:g}")
    return said


def _model_by_bytes(models: Mapping[str, ModelInfo], size: int) -> str:
    """Raw float32 does not say its width: the only model whose rows would divide it."""
    fitting = [m.name for m in models.values() if m.kind == "samples" and m.width and size % (4 * m.width) == 0]
    if size == 0 or len(fitting) != 1:
        widths = ", ".join(f"{m.name} ({m.width} columns)" for m in models.values() if m.kind == "samples")
        raise ModelNeeded(
            f"{size} bytes of float32 rows do not tell the model: name one with model; there are: {widths}"
        )
    return fitting[0]
