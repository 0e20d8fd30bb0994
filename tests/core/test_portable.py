"""A state as an object: taken away and put back, and refused where it does not fit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from service.errors import EntryError, Malformed, NonFinite, OtherModel, OtherSchema
from service.portable import Array, StateObject, export_state, norm_of, read_state, restore_row
from service.state import StateLayout, label_of
from tests.doubles import tiny_manifest

SCHEMA = "0123456789abcdef"
LAYOUT = StateLayout(tiny_manifest(), SCHEMA)


def a_row() -> np.void:
    rows = np.repeat(LAYOUT.fresh[None], 1)
    rng = np.random.default_rng(0)
    for name in rows.dtype.names:
        if rows[name].dtype.kind == "f":
            rows[name] = rng.normal(size=rows[name].shape)
    rows["step"], rows["time_us"], rows["inside"] = 7, 12_500_000, True
    rows["event_ms"], rows["since"] = 1_763_860_000_000, 12_000_000
    return rows[0]


def test_what_is_exported_is_restored_to_the_same_row() -> None:
    row = a_row()
    state = read_state(export_state(LAYOUT, row, "cam-1", "17-0"))
    assert restore_row(LAYOUT, state) == row
    assert (state.stream, state.entry, state.model, state.version) == ("cam-1", "17-0", "tiny", 1)
    assert (state.schema, state.steps, state.time_us) == (SCHEMA, 7, 12_500_000)


def test_the_object_describes_itself_to_who_knows_nothing_of_the_model() -> None:
    found: Any = msgspec.msgpack.decode(export_state(LAYOUT, a_row(), "cam-1", "17-0"))
    assert (found["object"], found["format"]) == ("rollcast-state", 1)
    h = found["tensors"]["h"]
    values = np.frombuffer(h["data"], h["dtype"]).reshape(h["shape"])
    assert values.tolist() == a_row()["state:h"].tolist()
    assert set(found["rolling"]) == {
        "since", "mark", "event_ms", "event_seq", "smooth", "peak", "reported", "inside",
    }  # fmt: skip


def test_a_newer_version_of_the_same_schema_takes_it() -> None:
    state = read_state(export_state(LAYOUT, a_row(), "cam-1", "17-0"))
    assert restore_row(StateLayout(tiny_manifest(version=2), SCHEMA), state)["step"] == 7


def test_another_schema_is_refused_and_both_are_named() -> None:
    state = read_state(export_state(LAYOUT, a_row(), "cam-1", "17-0"))
    with pytest.raises(OtherSchema, match=f"'{SCHEMA}'.*'ffffffffffffffff'"):
        restore_row(StateLayout(tiny_manifest(), "f" * 16), state)
    with pytest.raises(OtherModel, match=r"'tiny'.*'other'"):
        restore_row(StateLayout(tiny_manifest("other"), SCHEMA), state)


def changed(**changes: Any) -> StateObject:
    return msgspec.structs.replace(read_state(export_state(LAYOUT, a_row(), "cam-1", "17-0")), **changes)


def tensors(**changes: Array) -> StateObject:
    state = changed()
    return msgspec.structs.replace(state, tensors=state.tensors | changes)


def rolling(**changes: Array) -> StateObject:
    state = changed()
    return msgspec.structs.replace(state, rolling=state.rolling | changes)


def array(values: Any, dtype: str) -> Array:
    made = np.asarray(values, dtype)
    return Array(made.dtype.str, list(made.shape), made.tobytes())


BAD: dict[str, tuple[StateObject, type[EntryError], str]] = {
    "NaN": (tensors(h=array([np.nan] * 6, "<f4")), NonFinite, "tensors.h"),
    "infinity": (rolling(smooth=array([np.inf] * 4, "<f4")), NonFinite, "rolling.smooth"),
    "shape": (tensors(h=array([0.0] * 5, "<f4")), Malformed, r"tensors.h is <f4 \[5\].*expected <f4 \[6\]"),
    "dtype": (tensors(h=array([0.0] * 6, "<f8")), Malformed, "expected <f4"),
    "too few bytes": (tensors(h=Array("<f4", [6], b"1234")), Malformed, "in 4 bytes.*in 24 bytes"),
    "one too many": (tensors(c=array([0.0], "<f4")), Malformed, r"holds \['c', 'h', 'n'\], expected \['h', 'n'\]"),
    "missing": (changed(tensors={}), Malformed, r"tensors holds \[\]"),
    "steps": (changed(steps=-1), Malformed, "steps -1"),
    "time": (changed(time_us=2**62), Malformed, "time_us"),
    "far": (rolling(mark=array([2**62] * 4, "<i8")), Malformed, "rolling.mark"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_poison_the_stream_is_refused_by_name(case: str) -> None:
    state, error, text = BAD[case]
    with pytest.raises(error, match=text):
        restore_row(LAYOUT, state)


@pytest.mark.parametrize("data", [b"", b"\x80", b"RCS1", b"\xff" * 100, msgspec.msgpack.encode({"object": "cake"})])
def test_what_is_no_state_object_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="format 1"):
        read_state(data)


def test_another_format_is_malformed() -> None:
    found: Any = msgspec.msgpack.decode(export_state(LAYOUT, a_row(), "cam-1", "17-0"))
    with pytest.raises(Malformed, match="format"):
        read_state(msgspec.msgpack.encode(found | {"format": 2}))


def test_a_norm_is_that_of_the_tensor() -> None:
    assert norm_of(a_row(), "h") == pytest.approx(float(np.sqrt((a_row()["state:h"].astype(np.float64) ** 2).sum())))


def test_a_stored_record_says_whose_it_is() -> None:
    (record,) = LAYOUT.encode(LAYOUT.fresh[None])
    assert label_of(record) == ("tiny", 1, SCHEMA)
    assert label_of(b"RCS1") is None
    assert label_of(b"x" * 100) is None
