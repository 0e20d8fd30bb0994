"""What the service says of streams, states, models and refused entries: JSON objects, typed."""

from __future__ import annotations

from typing import Any, TypedDict


class StreamSummary(TypedDict):
    """One stream, as listed. Its numbers are those of its last prediction; None where none is kept."""

    stream: str
    model: str | None
    steps: int | None
    label: str | None  # rolling
    score: float | None  # rolling
    last_entry: str | None  # id of the last finished entry
    last_record: str | None
    seq: int | None  # the producer's last counter
    shard: int
    lag_s: float  # age of its oldest unfinished entry; 0: nothing waits
    drops: int
    restarts: int
    silent: bool  # nothing was stepped for its `idle_exit_s`, and nothing waits
    silent_since: float | None  # when its last stepped entry came, s since 1970


class Backlog(TypedDict):
    """What waits; `complete` says whether `entries` are all of the stream's."""

    entries: int
    complete: bool
    shard: int  # unfinished entries of all streams in its shard


class TensorSummary(TypedDict):
    """One recurrent tensor."""

    name: str
    dtype: str
    shape: list[int]
    norm: float


class StateSummary(TypedDict):
    """What a stream remembers, in words."""

    model: str
    version: int
    schema: str
    bytes: int
    entry: str  # id of the entry after which it is so
    age_s: float
    steps: int | None
    time: float | None  # event time of the last step, s
    norm: float | None
    tensors: list[TensorSummary] | None


class StreamDetail(StreamSummary):
    """One stream, with what it remembers, what waits, its settings and its last record."""

    backlog: Backlog
    state: StateSummary | None
    settings: dict[str, Any]
    last: dict[str, Any] | None


class Model(TypedDict):
    """A model package: its manifest (docs/formats.md), and what is known of it here."""

    name: str
    version: int
    kind: str
    labels: list[str]
    metrics: dict[str, Any]  # accuracy, its interval, what it counts, figures while a stream runs
    weights_terms: str
    parity: dict[str, Any]
    served: bool  # a live worker has it


class Models(TypedDict):
    models: list[Model]


class DeadSummary(TypedDict):
    """A refused entry in quarantine."""

    id: str
    stream: str
    kind: str
    reason: str
    detail: str
    bytes: int
    shard: int
    refused: float  # when, s since 1970


class DeadDetail(DeadSummary):
    """The same with its other fields and its bytes in base64; None where they were too many to be kept."""

    fields: dict[str, str]
    data: str | None
