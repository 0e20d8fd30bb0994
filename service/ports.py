"""What the worker and the api need of the world, as protocols. Tests fake them; broker and engine implement them.

`Log` is the worker's side of the broker (plain calls), `Predictions` the api's side (coroutines), `Engine` a model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from service.contracts import Manifest


class Engine(Protocol):
    """One model. Holds weights only: state travels as a value."""

    @property
    def manifest(self) -> Manifest: ...

    def run(
        self,
        x: np.ndarray,  # (B, T, F) float32, (B, T, H, W, C) uint8 or (B, T) int64
        states: Mapping[str, np.ndarray],  # name -> (B, *shape)
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # probabilities (B, T, K) float32, next states by name
        """One step of T times for B streams. Raises StepFailed."""
        ...


# --- the api's side ----------------------------------------------------------------------------------------------


class OutRecord(NamedTuple):
    """One record as it lies in `out`: `body` is JSON, `prev` the id of the stream's previous record or `0-0`."""

    id: str
    type: str
    body: bytes
    prev: str


class FeedItem(NamedTuple):
    """One commit: what it answered, in order."""

    shard: int
    n: int
    token: str
    records: list[tuple[str, str]]  # (stream, id)


class StreamRow(NamedTuple):
    """One stream, as listed."""

    stream: str
    shard: int
    last_entry_ms: int
    position: bytes | None  # `pos` of it
    settings: bytes | None  # `settings` of it


class ShardStatus(NamedTuple):
    """What an api process measures of a shard from the broker."""

    shard: int
    owned: bool
    lag_entries: int
    lag_s: float


class Predictions(Protocol):
    """The api's side of the broker. Every call raises BrokerAway when the broker does not answer."""

    @property
    def shards(self) -> int: ...

    async def append(self, stream: str, fields: Mapping[str, bytes]) -> str:
        """XADD into the stream's shard, once. Returns the id; raises AppendUnknown when the reply was lost."""
        ...

    async def records(self, stream: str, after: str, limit: int, until: str = "+") -> list[OutRecord]:
        """Records with after < id ≤ until, ascending, at most `limit`."""
        ...

    async def newest(self, stream: str, limit: int) -> list[OutRecord]:
        """The newest `limit` records, ascending."""
        ...

    async def fetch(self, wanted: Sequence[tuple[str, str]]) -> list[OutRecord | None]:
        """The records of (stream, id) pairs, in one round trip a shard; None where trimmed."""
        ...

    def follow(self) -> AsyncIterator[list[FeedItem]]:
        """What every shard commits from now on. Ends with BrokerAway; the caller follows again."""
        ...

    async def last_generated(self, stream: str) -> str:
        """Last id the shard's log ever gave (a cursor above it is from a lost tail), `0-0` when empty."""
        ...

    async def position(self, stream: str) -> bytes | None:
        """`pos` of the stream."""
        ...

    async def settings(self, stream: str) -> bytes | None:
        """`settings` of the stream."""
        ...

    async def streams(self) -> list[StreamRow]:
        """All streams, ascending by name."""
        ...

    async def shard_status(self) -> list[ShardStatus]: ...

    async def workers(self) -> list[Mapping[str, object]]:
        """What each live worker says of itself: id, models, metrics address."""
        ...

    async def ping(self) -> None: ...
