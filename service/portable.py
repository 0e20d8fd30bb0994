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
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from service.codec import MAX_INTERVAL_S, MAX_TIME_S
from service.contracts import MAX_ROWS
from service.errors import Malformed, NonFinite, OtherModel, OtherSchema
from service.rolling import NEVER, row_fields
from service.state import StateLayout

MEDIA_TYPE: Final = "application/vnd.rollcast.state+msgpack"
_LARGEST: Final = 2**62  # of a step count, or of the end of a refractory time, us: far from where int64 overflows
_LATEST_US: Final = int(MAX_TIME_S * 1e6)  # of event times
_EARLIEST_US: Final = -int(MAX_ROWS * MAX_INTERVAL_S * 1e6)  # of the first row of an entry whose time is 0
_SCORES: Final = ("smooth", "peak", "reported")
_ABOVE: Final = 1e-3  # by how much a smoothed score may miss 0 and 1: probabilities sum to 1 within rounding
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
    stream: Annotated[str, msgspec.Meta(max_length=128)]
    entry: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}$")]
    model: str
    version: Annotated[int, msgspec.Meta(ge=1, lt=10**9)]
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
    if not 0 <= state.steps < _LARGEST:
        raise Malformed(f"state: steps {state.steps}: expected a number from 0 below 2^62")
    if not _EARLIEST_US <= state.time_us <= _LATEST_US:
        raise Malformed(f"state: time_us {state.time_us}: expected microseconds from 0 to {_LATEST_US}")
    rows["step"], rows["time_us"] = state.steps, state.time_us
    _fill(rows, "rolling", state.rolling, {name: name for name in _ROLLING})
    _fill(rows, "tensors", state.tensors, {name: f"state:{name}" for name in layout.tensors})
    _check_automaton(rows)
    row: np.void = rows[0]
    return row


def _check_automaton(rows: np.ndarray) -> None:
    """Raises Malformed for what no automaton can have come to: it would be in the stream's records from then on."""

    def expect(right: np.ndarray, name: str, expected: str) -> None:
        if not right.all():
            raise Malformed(f"state: rolling.{name} of label {int(np.argmin(right[0]))}: expected {expected}")

    for name, latest in (("since", _LATEST_US), ("mark", _LARGEST - 1)):
        values = rows[name]
        near = (values >= _EARLIEST_US) & (values <= latest)
        expect(near | (values == NEVER), name, f"microseconds from 0 to {latest}, or {NEVER} for never")
    for name in _SCORES:
        expect((rows[name] >= -_ABOVE) & (rows[name] <= 1 + _ABOVE), name, "a number from 0 to 1")
    expect(rows["event_ms"] <= _LATEST_US // 1000, "event_ms", f"milliseconds up to {_LATEST_US // 1000}")
    inside = rows["inside"]
    expect(~inside | (rows["since"] != NEVER), "since", "a time, since the label is inside")
    expect(~inside | (rows["event_ms"] > 0), "event_ms", "an entry's id, since the label is inside")
    expect(~inside | (rows["peak"] >= rows["reported"]), "reported", "at most peak, since the label is inside")


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
        if values.dtype.kind == "b" and max(array.data, default=0) > 1:
            raise Malformed(f"state: {part}.{name} holds bytes other than 0 and 1")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NonFinite(f"state: {part}.{name} holds values that are not finite")
        rows[place] = values
