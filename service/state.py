"""The states of one model's streams: a table with one row a stream, gathered and scattered by slot.

A row is everything a stream remembers of its model: step count, time of the last step, rolling automaton,
recurrent tensors. A stored state record is a short header and the row's bytes, so that encoding a whole batch is
one gather. Position is not part of it: it lies in `pos`, so that it outlives the state.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from service import rolling
from service.codec import Position
from service.contracts import Manifest, Restart, StateTensor

MAGIC: Final = b"RCS1"
BLOCK_BYTES: Final = 2 << 20  # of rows that a table grows and shrinks by
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
        self.dtype = _padded(ordered)
        name = manifest.name.encode()
        self.header = _HEADER.pack(MAGIC, bytes.fromhex(schema), manifest.version) + bytes([len(name)]) + name
        self._schema = bytes.fromhex(schema)
        self._name = name
        self.fresh = np.zeros((), self.dtype)
        rolling.clear(self.fresh)
        for tensor in manifest.states:
            self.fresh[f"state:{tensor.name}"] = first_value(tensor)

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


def first_value(tensor: StateTensor) -> np.ndarray:
    """What a new stream's tensor holds: an array of its shape and dtype.

    >>> first_value(StateTensor("h", [2, 2], initial=[0.0, 1.0, 2.0, 3.0])).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    values = np.asarray(tensor.initial, tensor.dtype)
    return np.broadcast_to(values.reshape(tensor.shape) if values.ndim else values, tensor.shape)


def first_values(tensors: Sequence[StateTensor], batch: int) -> dict[str, np.ndarray]:
    """The recurrent tensors of `batch` new streams: name -> (B, *shape), contiguous."""
    return {tensor.name: np.repeat(first_value(tensor)[None], batch, axis=0) for tensor in tensors}


class StateTable:
    """Rows of one model's resident streams. Written only by Worker.run.

    Rows lie in blocks, so that growing is one more block and nothing is ever copied; the lowest free slots are taken
    first, so that blocks at the end fall empty and are given back. A slot stays a stream's until `free`.
    """

    def __init__(self, layout: StateLayout, block_rows: int = 0) -> None:
        self.layout = layout
        self._block_rows = block_rows or max(16, BLOCK_BYTES // layout.dtype.itemsize)
        self._blocks: list[np.ndarray] = []
        self._free: list[list[int]] = []  # free slots, a list a block
        self._lowest = 0  # no block before this one has a free slot
        self._used = 0

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Bytes of the resident streams' rows."""
        return self._used * self.layout.dtype.itemsize

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all blocks; of one that was never full, the system has given only the pages that were written."""
        return sum(block.nbytes for block in self._blocks)

    def put(self, row: np.void | None) -> int:
        """Takes a slot and fills it: `row`, or a new stream's. Returns the slot."""
        while self._lowest < len(self._free) and not self._free[self._lowest]:
            self._lowest += 1
        if self._lowest == len(self._free):
            first = len(self._free) * self._block_rows
            self._blocks.append(np.zeros(self._block_rows, self.layout.dtype))
            self._free.append(list(range(first + self._block_rows - 1, first - 1, -1)))
        slot = self._free[self._lowest].pop()
        self._used += 1
        self._blocks[self._lowest][slot % self._block_rows] = self.layout.fresh if row is None else row
        return slot

    def free(self, slot: int) -> None:
        block = slot // self._block_rows
        self._free[block].append(slot)
        self._lowest = min(self._lowest, block)
        self._used -= 1
        while len(self._free) > 1 and len(self._free[-1]) == len(self._free[-2]) == self._block_rows:
            del self._free[-1], self._blocks[-1]  # one empty block is kept: no to and fro at a boundary
        self._lowest = min(self._lowest, len(self._free))

    def gather(self, slots: np.ndarray) -> np.ndarray:
        """(B,) rows, copied: what happens to them touches nothing until `scatter`."""
        if len(self._blocks) == 1:
            alone: np.ndarray = self._blocks[0][slots]
            return alone
        rows = np.empty(len(slots), self.layout.dtype)
        for block, mine, places in self._by_block(slots):
            rows[mine] = block[places]
        return rows

    def scatter(self, slots: np.ndarray, rows: np.ndarray) -> None:
        if len(self._blocks) == 1:
            self._blocks[0][slots] = rows
            return
        for block, mine, places in self._by_block(slots):
            block[places] = rows[mine]

    def row(self, slot: int) -> np.void:
        row: np.void = self._blocks[slot // self._block_rows][slot % self._block_rows]
        return row

    def _by_block(self, slots: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Each block that is touched: where in `slots` it is, and the rows in it."""
        blocks, places = np.divmod(slots, self._block_rows)
        for number in np.unique(blocks).tolist():
            mine = np.flatnonzero(blocks == number)
            yield self._blocks[number], mine, places[mine]


def _padded(ordered: list[tuple[str, str, tuple[int, ...]]]) -> np.dtype[np.void]:
    """Rows of these items, larger ones first. The bytes behind the last one are an item, too, so that copies of rows
    copy them: numpy leaves out what has no name, and stored records would end in what the memory held before."""
    dtype = np.dtype(ordered, align=True)
    spare = dtype.itemsize - sum(np.dtype(form).itemsize * math.prod(shape) for _, form, shape in ordered)
    return np.dtype([*ordered, ("padding", f"V{spare}")], align=True) if spare else dtype


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


def restart_on_load(position: Position | None, has_state: bool, fits: bool, bound: bool = False) -> Restart | None:
    """Why a stream's next step begins anew, judged when the stream is first touched; None: it goes on.

    A stream that is bound to a model (`bound`) and has no position was idle for so long that the janitor removed it.

    >>> restart_on_load(None, False, False)
    'first'
    """
    if position is None:
        return "ttl" if bound else "first"
    if position.stepped in (b"-", b"deleted"):
        return "first"
    if position.stepped in (b"reset", b"version", b"start"):
        return position.stepped.decode()  # type: ignore[return-value]
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
