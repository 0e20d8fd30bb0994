"""The states of one model's streams: a table with one row a stream, gathered and scattered by slot.

A row is everything a stream remembers of its model: step count, time of the last step, rolling automaton,
recurrent tensors. A stored state record is a short header and the row's bytes, so that encoding a whole batch is
one gather. Position is not part of it: it lies in `pos`, so that it outlives the state.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from service import rolling
from service.codec import Position
from service.contracts import Manifest, Restart

MAGIC: Final = b"RCS1"
_HEADER: Final = struct.Struct("<4s8sI")  # magic, schema, version; the model's name follows, with its length before it


class StateLayout:
    """Where things lie in a row of one model, and the record's header. Never changes once built."""

    def __init__(self, manifest: Manifest, schema: str) -> None:
        self.model, self.version, self.schema = manifest.name, manifest.version, schema
        self.tensors = [tensor.name for tensor in manifest.states]
        eight: list[tuple[str, str, tuple[int, ...]]] = [("step", "<i8", ()), ("time_us", "<i8", ())]
        fields = rolling.row_fields(len(manifest.labels))
        tensors = [
            (f"state:{t.name}", np.dtype(t.dtype).newbyteorder("<").str, tuple(t.shape)) for t in manifest.states
        ]
        ordered = sorted(eight + fields + tensors, key=lambda field: -np.dtype(field[1]).itemsize)
        self.dtype = np.dtype(ordered, align=True)
        name = manifest.name.encode()
        self.header = _HEADER.pack(MAGIC, bytes.fromhex(schema), manifest.version) + bytes([len(name)]) + name
        self._schema = bytes.fromhex(schema)
        self._name = name
        self.fresh = np.zeros((), self.dtype)
        rolling.clear(self.fresh)
        for tensor in manifest.states:
            self.fresh[f"state:{tensor.name}"] = tensor.initial

    @property
    def record_bytes(self) -> int:
        return len(self.header) + self.dtype.itemsize

    def encode(self, rows: np.ndarray) -> list[bytes]:
        """One record a row (B,)."""
        size, header = self.dtype.itemsize, self.header
        flat = rows.tobytes()
        return [header + flat[at : at + size] for at in range(0, len(flat), size)]

    def decode(self, record: bytes) -> np.void | None:
        """The row of a record, or None when it is of another model or schema (another version may fit)."""
        if len(record) != self.record_bytes:
            return None
        magic, schema, _ = _HEADER.unpack_from(record)
        named = record[_HEADER.size : len(self.header)]
        if magic != MAGIC or schema != self._schema or named != bytes([len(self._name)]) + self._name:
            return None
        row: np.void = np.frombuffer(record, self.dtype, offset=len(self.header))[0]
        return row


class StateTable:
    """Rows of one model's resident streams. Written only by Worker.run.

    `rows` grows by half when full; a slot stays a stream's until `free`.
    """

    def __init__(self, layout: StateLayout, capacity: int = 64) -> None:
        self.layout = layout
        self._rows = np.zeros(capacity, layout.dtype)
        self._free = list(range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._rows) - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of the resident streams' rows."""
        return len(self) * self.layout.dtype.itemsize

    def put(self, row: np.void | None) -> int:
        """Takes a slot and fills it: `row`, or a new stream's. Returns the slot."""
        if not self._free:
            old = len(self._rows)
            self._rows = np.concatenate([self._rows, np.zeros(old // 2 + 32, self.layout.dtype)])
            self._free = list(range(len(self._rows) - 1, old - 1, -1))
        slot = self._free.pop()
        self._rows[slot] = self.layout.fresh if row is None else row
        return slot

    def free(self, slot: int) -> None:
        self._free.append(slot)

    def gather(self, slots: np.ndarray) -> np.ndarray:
        """(B,) rows, copied: what happens to them touches nothing until `scatter`."""
        rows: np.ndarray = self._rows[slots]
        return rows

    def scatter(self, slots: np.ndarray, rows: np.ndarray) -> None:
        self._rows[slots] = rows

    def row(self, slot: int) -> np.void:
        row: np.void = self._rows[slot]
        return row

    def clear(self) -> None:
        """Forgets every row (the shard was lost)."""
        self._free = list(range(len(self._rows) - 1, -1, -1))


def label_of(record: bytes) -> tuple[str, int, str] | None:
    """Model, version and schema (hex) that a stored record names; None when it is not one."""
    if len(record) <= _HEADER.size:
        return None
    magic, schema, version = _HEADER.unpack_from(record)
    name = record[_HEADER.size + 1 : _HEADER.size + 1 + record[_HEADER.size]]
    return (name.decode(errors="replace"), version, schema.hex()) if magic == MAGIC else None


def tensors_of(layout: StateLayout, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The recurrent tensors of gathered rows: name -> (B, *shape), contiguous."""
    return {name: np.ascontiguousarray(rows[f"state:{name}"]) for name in layout.tensors}


def restart_on_load(position: Position | None, has_state: bool, fits: bool) -> Restart | None:
    """Why a stream's next step begins anew, judged when the stream is first touched; None: it goes on.

    >>> restart_on_load(None, False, False)
    'first'
    """
    if position is None or position.stepped in (b"-", b"deleted"):
        return "first"
    if position.stepped == b"reset":
        return "reset"
    if position.stepped == b"version":
        return "version"
    if not has_state:
        return "lost"
    return None if fits else "version"


def times_of_steps(
    last_us: Sequence[int] | np.ndarray,  # (B,) event time of each entry's last step
    intervals_us: Sequence[float] | np.ndarray,  # (B,) between steps
    steps: int,
) -> np.ndarray:  # (B, T) int64
    """Event times of every step: the entry's time is its last one's, the others lie an interval apart before it."""
    back = np.arange(steps - 1, -1, -1, dtype=np.float64)
    return np.asarray(last_us, np.int64)[:, None] - np.rint(
        np.multiply.outer(np.asarray(intervals_us, np.float64), back)
    ).astype(np.int64)
