"""What answers say of streams, states and quarantine: the shapes of their JSON, and how they are filled."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from service.codec import RESTORED, decode_record, number_id, read_position, read_settings
from service.contracts import Manifest, Prediction, StreamSettings, idle_exit_s_of
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
    silent: bool = False  # nothing was stepped for its `idle_exit_s`, and nothing waits
    silent_since: float | None = None  # when its last stepped entry came, s since 1970; null: it is not silent


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
    found = read_position(position)
    stepped = found.stepped if found else b"-"
    return stepped.removesuffix(RESTORED).decode() if stepped[:1].isdigit() else None


def summarise_stream(
    row: StreamRow, record: OutRecord | None, lag: Lag | None, models: Mapping[str, Manifest], state_ttl_s: float
) -> StreamSummary:
    """`record`: that of its last prediction, if it is kept; `lag`: if something waits; `state_ttl_s`: of the
    deployment."""
    position, settings = read_position(row.position), read_settings(row.settings)
    last = decode_record(record.body) if record is not None else None
    predicted = last if isinstance(last, Prediction) else None
    entry = stepped_entry(row.position)
    since_ms = int(entry.partition("-")[0]) if entry is not None else row.last_entry_ms
    idle_s = idle_exit_s_of(settings, models.get(settings.model or ""), state_ttl_s)
    silent = lag is None and row.now_ms - since_ms >= 1000 * idle_s
    return StreamSummary(
        stream=row.stream,
        model=settings.model,
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
        silent=silent,
        silent_since=since_ms / 1000 if silent else None,
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
