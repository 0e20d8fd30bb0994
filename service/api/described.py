"""What answers say of streams, states and quarantine: the shapes of their JSON, and how they are filled."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from service.codec import RESTORED, decode_record, decode_settings, number_id, parse_position
from service.contracts import Prediction, StreamSettings
from service.portable import norm_of
from service.ports import DeadRow, Lag, OutRecord, StateRow, StreamRow
from service.state import StateLayout, label_of


class StreamSummary(msgspec.Struct, frozen=True):
    """One stream, as listed. Its numbers are those of its last prediction; null where none is kept."""

    stream: str
    model: str | None
    steps: int | None
    label: str | None  # rolling
    score: float | None  # rolling
    last_entry: str | None  # id of the last finished entry
    last_record: str | None
    seq: int | None  # the producer's last counter
    shard: int
    lag_s: float = 0.0  # age of its oldest unfinished entry; 0: nothing waits
    drops: int = 0  # entries dropped, since it began
    restarts: int = 0  # how often its state began anew, but for the first time


class TensorSummary(msgspec.Struct, frozen=True):
    """One recurrent tensor of a stored state."""

    name: str
    dtype: str
    shape: list[int]
    norm: float  # Euclidean


class StateSummary(msgspec.Struct, frozen=True):
    """A stored state. Where the package that is served does not understand it, only what its label says."""

    model: str
    version: int  # of the package that wrote it
    schema: str
    bytes: int
    entry: str  # id of the entry after which it is so
    age_s: float  # since that entry came
    steps: int | None = None
    time: float | None = None  # event time of the last step, s
    norm: float | None = None  # Euclidean, over all tensors
    tensors: list[TensorSummary] | None = None


class Backlog(msgspec.Struct, frozen=True):
    """What waits. `entries` counts the stream's own, as far as that is cheap: `complete` says whether it is all."""

    entries: int
    complete: bool
    shard: int  # unfinished entries of all streams in its shard


class StreamDetail(StreamSummary, frozen=True, kw_only=True):
    """One stream, with what it remembers, what waits, and its settings."""

    backlog: Backlog
    state: StateSummary | None
    settings: StreamSettings


class DeadSummary(msgspec.Struct, frozen=True):
    """A refused entry in quarantine."""

    id: str
    stream: str
    kind: str
    reason: str
    detail: str
    bytes: int
    shard: int
    refused: float  # when, s since 1970


def stepped_entry(position: bytes | None) -> str | None:
    """Id of the last entry whose state is kept, if there is one."""
    stepped = parse_position(position).stepped if position else b"-"
    return stepped.removesuffix(RESTORED).decode() if stepped[:1].isdigit() else None


def summarise_stream(row: StreamRow, record: OutRecord | None, lag: Lag | None) -> StreamSummary:
    """`record`: that of its last prediction, if it is kept; `lag`: if something waits."""
    position = parse_position(row.position) if row.position else None
    settings = decode_settings(row.settings) if row.settings else None
    last = decode_record(record.body) if record is not None else None
    predicted = last if isinstance(last, Prediction) else None
    return StreamSummary(
        stream=row.stream,
        model=settings.model if settings else None,
        steps=predicted.step if predicted else None,
        label=predicted.rolling.label if predicted else None,
        score=predicted.rolling.score if predicted else None,
        last_entry=number_id(position.last).decode() if position else None,
        last_record=position.record.decode() if position else None,
        seq=position.seq if position else None,
        shard=row.shard,
        lag_s=lag.age_s if lag else 0.0,
        drops=row.drops,
        restarts=row.restarts,
    )


def summarise_state(found: StateRow, layouts: Mapping[str, StateLayout]) -> StateSummary | None:
    """None when the stream has no state."""
    entry = stepped_entry(found.position)
    label = label_of(found.state) if found.state else None
    if found.state is None or label is None or entry is None:
        return None
    model, version, schema = label
    age_s = max(0, found.now_ms - int(entry.partition("-")[0])) / 1000
    summary = StateSummary(model, version, schema, len(found.state), entry, age_s)
    layout = layouts.get(model)
    row = layout.decode(found.state) if layout is not None else None
    if layout is None or row is None:
        return summary
    tensors = [
        TensorSummary(name, str(row[f"state:{name}"].dtype), list(row[f"state:{name}"].shape), norm_of(row, name))
        for name in layout.tensors
    ]
    return msgspec.structs.replace(
        summary,
        steps=int(row["step"]),
        time=int(row["time_us"]) / 1e6,
        norm=sum(tensor.norm**2 for tensor in tensors) ** 0.5,
        tensors=tensors,
    )


def summarise_dead(row: DeadRow) -> DeadSummary:
    refused = int(row.at.partition("-")[0]) / 1000
    return DeadSummary(row.id, row.stream, row.kind, row.reason, row.detail, row.bytes, row.shard, refused)
