"""Rows of states: gathered, scattered, stored and read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codec import NOWHERE, Position
from service.contracts import StateTensor
from service.state import StateLayout, StateTable, first_values, restart_on_load, tensors_of
from tests.doubles import tiny_manifest

SCHEMA = "0123456789abcdef"


def layout(**changes: object) -> StateLayout:
    return StateLayout(tiny_manifest(**changes), SCHEMA)  # type: ignore[arg-type]


def test_a_new_row_holds_the_initial_values() -> None:
    table = StateTable(layout(states=[StateTensor("h", [2, 3], initial=0.5), StateTensor("n", [], "int64")]))
    rows = table.gather(np.array([table.put(None)]))
    assert tensors_of(table.layout, rows)["h"].tolist() == [[[0.5] * 3] * 2]
    assert tensors_of(table.layout, rows)["n"].tolist() == [0]
    assert rows["step"].tolist() == [0]


def test_a_new_row_holds_a_learnt_state_value_by_value_also_where_another_stream_was() -> None:
    learnt = [0.5, -1.0, 2.0, 0.25, 0.0, 3.0]
    table = StateTable(layout(states=[StateTensor("h", [2, 3], initial=learnt)]))
    slot = table.put(None)
    rows = table.gather(np.array([slot]))
    rows["state:h"] = 9.0
    table.scatter(np.array([slot]), rows)
    table.free(slot)
    assert table.put(None) == slot
    again = tensors_of(table.layout, table.gather(np.array([slot])))["h"]
    assert again.tolist() == [[[0.5, -1.0, 2.0], [0.25, 0.0, 3.0]]]
    assert first_values([StateTensor("h", [2, 3], initial=learnt)], 2)["h"].tolist() == [again[0].tolist()] * 2


def test_what_is_gathered_is_a_copy_until_it_is_scattered() -> None:
    table = StateTable(layout())
    slots = np.array([table.put(None), table.put(None)])
    rows = table.gather(slots)
    rows["step"] = [3, 4]
    assert table.row(int(slots[0]))["step"] == 0
    table.scatter(slots, rows)
    assert table.gather(slots[::-1])["step"].tolist() == [4, 3]


def test_a_record_reads_back_to_the_same_row() -> None:
    made = layout()
    table = StateTable(made)
    slot = table.put(None)
    rows = table.gather(np.array([slot]))
    rows["state:h"] = np.random.default_rng(0).normal(size=rows["state:h"].shape)
    rows["step"], rows["inside"] = 7, True
    (record,) = made.encode(rows)
    assert len(record) == made.record_bytes
    assert made.decode(record) == rows[0]


@pytest.mark.parametrize("labels", [1, 3, 8])
@pytest.mark.parametrize("block_rows", [0, 1])
def test_a_stored_record_holds_nothing_of_what_the_memory_held_before(labels: int, block_rows: int) -> None:
    states = [StateTensor("h", [3], "float16"), StateTensor("n", [5], "int8")]
    made = layout(labels=[f"l{k}" for k in range(labels)], states=states)
    table = StateTable(made, block_rows)
    slots = np.array([table.put(None), table.put(None)])
    dirty = np.full(2 * made.dtype.itemsize, 0xA5, np.uint8).view(made.dtype)  # as memory that was used before
    dirty[:] = table.gather(slots)
    table.scatter(slots, dirty)
    expected = made.header + made.fresh.tobytes()
    assert made.encode(dirty) == made.encode(table.gather(slots)) == [expected] * 2


OTHERS = {
    "size": layout(count=5),
    "model": layout(name="other"),
    "schema": StateLayout(tiny_manifest(), "f" * 16),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_record_of_another_model_or_schema_is_not_taken(other: StateLayout) -> None:
    made = layout()
    (record,) = made.encode(made.fresh[None])
    assert other.decode(record) is None
    assert made.decode(record[:-1]) is None
    assert made.decode(b"") is None


def test_a_newer_version_of_the_same_schema_takes_the_record() -> None:
    (record,) = layout().encode(layout().fresh[None])
    assert layout(version=2).decode(record) is not None


def test_a_table_grows_and_reuses_what_was_freed() -> None:
    table = StateTable(layout(), block_rows=2)
    slots = [table.put(None) for _ in range(100)]
    assert len(set(slots)) == len(table) == 100
    table.free(slots[0])
    assert table.put(None) == slots[0]
    assert table.nbytes == table.reserved_bytes == 100 * table.layout.dtype.itemsize


def test_a_table_gives_back_what_it_no_longer_needs() -> None:
    table = StateTable(layout(), block_rows=10)
    slots = [table.put(None) for _ in range(1000)]
    for slot in slots[15:]:
        table.free(slot)
    assert (len(table), table.reserved_bytes) == (15, 30 * table.layout.dtype.itemsize), "one empty block stays"
    assert sorted(table.put(None) for _ in range(15)) == list(range(15, 30))


@given(st.lists(st.one_of(st.just(None), st.integers(0, 30)), max_size=200), st.integers(1, 7))
def test_rows_stay_where_they_are_however_a_table_grows_and_shrinks(script: list[int | None], block: int) -> None:
    table = StateTable(layout(), block_rows=block)
    held: dict[int, int] = {}  # the oracle: slot -> step
    for turn, choice in enumerate(script):
        if choice is None or not held:
            slot = table.put(None)
            assert slot not in held
            assert table.row(slot)["step"] == 0
            rows = table.gather(np.array([slot]))
            rows["step"] = held[slot] = turn + 1
            table.scatter(np.array([slot]), rows)
        else:
            gone = sorted(held)[choice % len(held)]
            table.free(gone)
            del held[gone]
        some = np.array(list(held)[::-1], np.int64)
        assert table.gather(some)["step"].tolist() == [held[slot] for slot in some.tolist()]
        assert len(table) == len(held)


def test_why_a_stream_begins_anew_when_it_is_first_touched() -> None:
    stepped = Position(1 << 64, b"1-0", None, b"-", b"1-0")
    assert restart_on_load(None, False, False) == "first"
    assert restart_on_load(None, False, False, bound=True) == "ttl", "the janitor removed what it had left"
    assert restart_on_load(NOWHERE, True, True) == "first"
    assert restart_on_load(stepped._replace(stepped=b"start"), False, False) == "start"
    assert restart_on_load(stepped._replace(stepped=b"reset"), False, False) == "reset"
    assert restart_on_load(stepped, False, False) == "lost"
    assert restart_on_load(stepped, True, False) == "version"
    assert restart_on_load(stepped, True, True) is None
