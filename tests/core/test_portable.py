"""A state as an object: taken away and put back, and refused where it does not fit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from service import rolling as rolling_module
from service.codec import MAX_TIME_S
from service.contracts import GapPolicy, RollingSettings
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
            rows[name] = rng.uniform(size=rows[name].shape)
    rows["step"], rows["time_us"], rows["inside"] = 7, 12_500_000, True
    rows["event_ms"], rows["since"], rows["peak"] = 1_763_860_000_000, 12_000_000, 1.0
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
    "score of 3e38": (
        rolling(smooth=array([0, 3e38, 0, 0], "<f4")),
        Malformed,
        "smooth of label 1.*from 0 to 1",
    ),
    "score below 0": (rolling(smooth=array([0, 0, 0, -0.1], "<f4")), Malformed, "rolling.smooth of label 3"),
    "peak": (rolling(peak=array([1.1] * 4, "<f4")), Malformed, "rolling.peak of label 0"),
    "reported": (rolling(reported=array([-3e38] * 4, "<f4")), Malformed, "rolling.reported of label 0"),
    "reported above peak": (rolling(peak=array([0] * 4, "<f4")), Malformed, "rolling.reported.*at most peak"),
    "half a truth": (rolling(inside=Array("|b1", [4], b"\x01\x00\x02\x01")), Malformed, "rolling.inside.*0 and 1"),
    "inside since never": (rolling(since=array([-(2**63)] * 4, "<i8")), Malformed, "rolling.since.*is inside"),
    "inside of no entry": (rolling(event_ms=array([0] * 4, "<u8")), Malformed, "rolling.event_ms.*is inside"),
    "entry of no time": (rolling(event_ms=array([2**64 - 1] * 4, "<u8")), Malformed, "rolling.event_ms.*milliseconds"),
    "since a time to come": (rolling(since=array([2**61] * 4, "<i8")), Malformed, "rolling.since"),
    "mark long before": (rolling(mark=array([-(2**61)] * 4, "<i8")), Malformed, "rolling.mark"),
    "mark almost never": (rolling(mark=array([-(2**63) + 1] * 4, "<i8")), Malformed, "rolling.mark"),
    "time before all": (changed(time_us=-(2**61)), Malformed, "time_us"),
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", -1), ("version", 0), ("version", 2**64 - 1), ("steps", 2**64 - 1), ("time_us", 2**64 - 1),
        ("entry", "x"), ("entry", "9" * 21 + "-0"), ("stream", "s" * 129), ("format", 2), ("object", "cake"),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    found: Any = msgspec.msgpack.decode(export_state(LAYOUT, a_row(), "cam-1", "17-0"))
    with pytest.raises(Malformed, match=field):
        restore_row(LAYOUT, read_state(msgspec.msgpack.encode(found | {field: value})))


def test_whatever_an_automaton_comes_to_goes_back() -> None:
    """Whatever the scores, times and settings: the checks know nothing that `rolling.fold` does not keep to."""
    labels, rng = list(tiny_manifest().labels), np.random.default_rng(7)
    for _ in range(200):
        rows = np.repeat(LAYOUT.fresh[None], 1)
        settings = RollingSettings(
            half_life_s=float(rng.choice([0, 0.1, 5])), enter=float(rng.uniform(0.2, 0.9)), exit=0.1,
            dwell_s=float(rng.choice([0, 1])), refractory_s=float(rng.choice([0, 1e9])),
            update_s=float(rng.choice([0, 2])),
        )  # fmt: skip
        limits = rolling_module.thresholds(settings, GapPolicy(), 0.1)
        at = int(rng.choice([0, 1_763_860_000_000_000, int(MAX_TIME_S * 1e6)]))
        for n in range(20):
            scores = rng.dirichlet([0.2] * len(labels), (1, 3)).astype(np.float32)
            times = np.clip(
                at + np.cumsum(rng.integers(-500_000, 2_000_000, (1, 3)), axis=1), None, int(MAX_TIME_S * 1e6)
            )
            silent = np.array([True, *[False] * (len(labels) - 1)])
            rolling_module.fold(rows, scores, times, [(1_763_860_000_000 + n, n)], limits, labels, silent)
            row = rows[0].copy()
            assert restore_row(LAYOUT, read_state(export_state(LAYOUT, row, "cam-1", "17-0"))) == row


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
