"""A state as an object that can be taken away and put back: one MessagePack map that describes itself.

Format 1, media type `application/vnd.rollcast.state+msgpack`:

    object     "rollcast-state"
    format     1
    stream     whose it was
    entry      id of the entry after which it was so; says where it came from, and decides nothing
    model, version, schema      what it is a state of; it goes back to this model and schema only
    steps, time_us              steps it has seen, and the event time of the last, us
    rolling    name -> array: the automaton, a value a label (rolling.row_fields)
    tensors    name -> array: the recurrent tensors, as the manifest names them

An array is {"dtype": "<f4", "shape": [2, 64], "data": bytes}: little-endian, C order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import numpy as np

from service.errors import Malformed, NonFinite, OtherModel, OtherSchema
from service.rolling import NEVER, row_fields
from service.state import StateLayout

MEDIA_TYPE: Final = "application/vnd.rollcast.state+msgpack"
_LARGEST: Final = 2**62  # of a step count or a time, us: far from where int64 overflows
_ROLLING: Final = tuple(name for name, _, _ in row_fields(1))


class Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of one stream."""

    dtype: str
    shape: list[int]
    data: bytes


class StateObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stream's state, described by itself; the fields are explained above."""

    object: Literal["rollcast-state"]
    format: Literal[1]
    stream: str
    entry: str
    model: str
    version: int
    schema: str
    steps: int
    time_us: int
    rolling: dict[str, Array]
    tensors: dict[str, Array]


_decoder = msgspec.msgpack.Decoder(StateObject)


def export_state(layout: StateLayout, row: np.void, stream: str, entry: str) -> bytes:
    """The object of one row of `layout`."""
    return msgspec.msgpack.encode(
        StateObject(
            "rollcast-state", 1, stream, entry, layout.model, layout.version, layout.schema,
            int(row["step"]), int(row["time_us"]),
            {name: _array(row[name]) for name in _ROLLING},
            {name: _array(row[f"state:{name}"]) for name in layout.tensors},
        )
    )  # fmt: skip


def read_state(data: bytes) -> StateObject:
    """Raises Malformed."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"state: {error}; expected what GET of a state answers, format 1 ({MEDIA_TYPE})") from None


def restore_row(layout: StateLayout, state: StateObject) -> np.void:
    """The row of a state object. Raises OtherModel, OtherSchema, NonFinite and Malformed."""
    if state.model != layout.model:
        raise OtherModel(f"the state is of model {state.model!r}, the stream has model {layout.model!r}")
    if state.schema != layout.schema:
        raise OtherSchema(
            f"the state has schema {state.schema!r} (version {state.version} of model {state.model!r}), "
            f"the package that is served has schema {layout.schema!r} (version {layout.version})"
        )
    rows = np.repeat(layout.fresh[None], 1)
    if not (0 <= state.steps < _LARGEST and 0 <= state.time_us < _LARGEST):
        raise Malformed(f"state: steps {state.steps}, time_us {state.time_us}: expected numbers from 0 below 2^62")
    rows["step"], rows["time_us"] = state.steps, state.time_us
    _fill(rows, "rolling", state.rolling, {name: name for name in _ROLLING})
    _fill(rows, "tensors", state.tensors, {name: f"state:{name}" for name in layout.tensors})
    for name in ("since", "mark"):
        far = (rows[name] != NEVER) & (np.abs(rows[name]) >= _LARGEST)
        if far.any():
            raise Malformed(f"state: rolling.{name} holds a time beyond 2^62 us")
    row: np.void = rows[0]
    return row


def norm_of(row: np.void, name: str) -> float:
    """Euclidean norm of one recurrent tensor."""
    return float(np.linalg.norm(np.asarray(row[f"state:{name}"], np.float64)))


def _array(value: np.ndarray) -> Array:
    value = np.asarray(value)
    return Array(value.dtype.str, list(value.shape), value.tobytes())


def _fill(rows: np.ndarray, part: str, arrays: Mapping[str, Array], places: Mapping[str, str]) -> None:
    """Writes `arrays` into the only row, each where `places` says."""
    if arrays.keys() != places.keys():
        raise Malformed(f"state: {part} holds {sorted(arrays)[:20]}, expected {sorted(places)}")
    for name, place in places.items():
        array, field = arrays[name], rows[place][0]
        dtype, shape = rows[place].dtype.str, list(np.shape(field))
        if (array.dtype, array.shape) != (dtype, shape) or len(array.data) != rows[place].nbytes:
            raise Malformed(
                f"state: {part}.{name} is {array.dtype} {array.shape} in {len(array.data)} bytes, "
                f"expected {dtype} {shape} in {rows[place].nbytes} bytes"
            )
        values = np.frombuffer(array.data, array.dtype).reshape(shape)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NonFinite(f"state: {part}.{name} holds values that are not finite")
        rows[place] = values
