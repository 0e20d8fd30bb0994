"""What the one reader of tables makes of lines: headings, marks, missing values, columns that are no signal, times."""

from __future__ import annotations

import numpy as np
import pytest

from service.api.rows import Rows, read_block, to_rows
from service.columns import Clock, clock_of, not_finite, places_of
from service.contracts import RowInput
from service.errors import EntryError, NonFinite
from service.tables import Table
from tests.turns import in_slices

AB = ["acc", "mic"]


def read(text: str, names: list[str] | None = None, heading: bool | None = None) -> Table:
    table = Table(names, heading)
    for line in text.splitlines():
        for _ in table.feed(line):
            pass
    for _ in table.end():
        pass
    return table


def posted(text: str, names: list[str], heading: bool | None = None) -> Rows | EntryError:
    """As the api reads it."""

    async def rows() -> Rows:
        return await to_rows(await read_block("text/csv", text.encode(), heading), RowInput(names, 1.0, [], [], [], []))

    found: Rows | EntryError = in_slices(rows())[0]
    return found


# --- the first line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "heading"),
    [
        ("acc,mic\n1,2\n", None, AB),
        ("acc,mic\n1,2\n", AB, AB),
        ("1,2\n3,4\n", AB, None),
        ("400,410\n1,2\n", ["400", "410"], ["400", "410"]),
        ("400,410\n1,2\n", AB, None),
        ("0,1\n1,2\n", ["0", "1"], ["0", "1"]),
        ("time,400,410\n5,1,2\n", ["400", "410"], ["400", "410"]),
        ("K,Na\n1,2\n", None, ["K", "Na"]),
        ("# from the lab, Monday\nacc,mic\n1,2\n", None, AB),
        ("# acc,mic\n1,2\n", None, AB),
        ("# acc\n1,2\n", None, None),
        ('"a;b","c ""d"""\n1,2\n', None, ["a;b", 'c "d"']),
    ],
)
def test_a_heading_is_the_names_or_a_line_without_numbers(
    text: str, names: list[str] | None, heading: list[str] | None
) -> None:
    assert read(text, names).heading == heading


@pytest.mark.parametrize("line", ["NA,NA", ",", "?,nan", "N/A,-", "null,None", '"",""'])
def test_missing_values_are_values_never_names(line: str) -> None:
    table = read(f"{line}\n0.5,0.7\n")
    assert (table.heading, np.isnan(table.rows[0]).all(), table.rows[1]) == (None, True, [0.5, 0.7])
    found = posted(f"{line}\n0.5,0.7\n", AB)
    assert isinstance(found, NonFinite)
    assert found.detail == "row 1, column 1 (acc): nan; expected a finite number of float32's range"


@pytest.mark.parametrize("line", ["0,1", "0.0,1.0", '"0","1"', ",0,1", "time,0,1", "0"])
@pytest.mark.parametrize("names", [None, AB])
def test_a_first_line_that_counts_columns_is_neither_guessed_to_be_a_heading_nor_a_row(
    line: str, names: list[str] | None
) -> None:
    with pytest.raises(EntryError, match="heading or row"):
        read(f"{line}\n5,6\n", names)


def test_who_knows_what_the_first_line_is_says_so() -> None:
    rows = posted("0,1\n5,6\n", AB, heading=False)
    assert isinstance(rows, Rows)
    assert rows.values.tolist() == [[0, 1], [5, 6]]
    rows = posted("1,0\n5,6\n", ["0", "1"], heading=True)
    assert isinstance(rows, Rows)
    assert rows.values.tolist() == [[6, 5]]


@pytest.mark.parametrize(
    ("heading", "places"),
    [
        ("acc,mic", [0, 1]),
        ("mic,acc", [1, 0]),
        (' "MIC", Acc ', [1, 0]),
        (",mic,acc", [2, 1]),
        ("Time [s],mic,acc,Unnamed: 3", [2, 1]),
        ("acc,acc", None),
        ("acc,mic,acc", None),
        ("acc", None),
        ("acc,mic,light", None),
    ],
)
def test_names_find_their_columns_or_are_refused(heading: str, places: list[int] | None) -> None:
    assert places_of(heading.split(","), AB) == places


def test_names_that_differ_are_refused_with_both_lists() -> None:
    found = posted("acc,light\n1,2\n", AB)
    assert isinstance(found, EntryError)
    assert found.detail == "CSV: heading acc, light: expected 2: acc, mic"


def test_a_model_that_has_learnt_a_time_column_gets_it() -> None:
    rows = posted("acc,time\n1,2\n", ["time", "acc"])
    assert isinstance(rows, Rows)
    assert (rows.values.tolist(), rows.left_out) == ([[2, 1]], "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acc,acc\n1,2\n", "calls two columns 'acc'"),
        ("acc,NA\n1,2\n", "calls a column 'NA'"),
        ("time,index\n1,2\n", "no column of the heading is a signal"),
        ("acc,mic\nx,y\n", "row 1, column 1: 'x' is not a number"),
        ("acc,5\n1,2\n", "row 1, column 1: 'acc' is not a number"),
        ("1,2\n3\n", "row 2 has 1 columns, the rows before 2"),
        ("acc,mic\n1,2\n3\n", "row 2 has 1 columns, expected 2: acc, mic"),
        ("index,acc\n1,x\n", "row 1, column 2: 'x' is not a number"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(EntryError, match=said):
        read(text)


# --- marks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("acc;mic\n0,52;-0,04\n1;2,5e3\n", [[0.52, -0.04], [1, 2500]]),
        ("0,52;0,04\n", [[0.52, 0.04]]),
        ("0.52;0.04\n", [[0.52, 0.04]]),
        ("acc\tmic\n0,52\t1\n", [[0.52, 1]]),
        ("1,\t2\n3,4\n", [[1, 2], [3, 4]]),
        ("0,52\n3,4\n", [[0, 52], [3, 4]]),
        ("acc,mic,\n1,2,\n3,4,\n", [[1, 2], [3, 4]]),
        ("1,2,\n3,4,\n", [[1, 2], [3, 4]]),
        ("\ufeff1,2\n", None),
    ],
)
def test_marks_and_decimal_commas_are_read_where_every_line_agrees(text: str, rows: list[list[float]] | None) -> None:
    found = posted(text, AB)
    assert isinstance(found, Rows)
    assert found.values.tolist() == (np.float32(rows).tolist() if rows else [[1, 2]])


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("acc;mic\n0,52;1\n0.5;1\n", AB, "row 2: decimal commas and decimal points in one table"),
        ("acc;mic\n1.234,5;1\n", AB, "decimal commas and decimal points"),
        ("acc;mic\n1;2\n1,2\n", AB, "row 2 has 1 columns"),
        ("0,52\n-0,04\n", ["acc"], "decimal commas of a single column are not read"),
        ("acc\n0,52\n", ["acc"], "decimal commas of a single column are not read"),
        ("0,0.5,0.7\n1,0.6,0.8\n", AB, "only where a heading names the columns"),
        ("1,2,\n3,4,5\n", AB, "row 2: it does not end with a mark"),
    ],
)
def test_what_does_not_agree_is_refused(text: str, names: list[str], said: str) -> None:
    found = posted(text, names)
    assert isinstance(found, EntryError)
    assert said in found.detail


def test_two_columns_of_whole_numbers_may_be_one_with_decimal_commas() -> None:
    assert read("0,52\n-0,04\n").doubtful
    assert not read("0,52\n-0,04\n1.5,2\n").doubtful
    assert not read("acc,mic\n0,52\n").doubtful


# --- no signal, and times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "time", "Timestamp", "INDEX", "date", "Date Time", "time_ms", "Time [µs]", "t"])
def test_names_that_are_no_signals_are_known(name: str) -> None:
    assert (clock_of(name) is None) == (name == "t")


@pytest.mark.parametrize(
    ("text", "time", "interval_s", "left_out"),
    [
        (",acc,mic\n0,1,2\n1,3,4\n", None, None, "column 1 (no name)"),
        ("timestamp,acc,mic\n1700000000,1,2\n1700000000.5,3,4\n", 1700000000.5, 0.5, "column 1 (timestamp)"),
        ("timestamp,acc,mic\n1700000000000,1,2\n1700000000500,3,4\n", 1700000000.5, 0.5, "column 1 (timestamp)"),
        ("acc,mic,t_ns\n1,2,5\n", None, None, None),
        ("time_ns,acc,mic\n1700000000000000000,1,2\n1700000000500000000,3,4\n", 1700000000.5, 0.5, "column 1 (time)"),
        ("time,acc,mic\n0,1,2\n0.02,3,4\n", None, None, "column 1 (time)"),
        (",acc,mic\n2023-11-14 22:13:20,1,2\n2023-11-14 22:13:20.5,3,4\n", 1700000000.5, 0.5, "column 1 (no name)"),
        ("date;time;acc;mic\n2023-11-14;22:13:20;1,0;2\n2023-11-14;22:13:21;3;4\n", 1700000001.0, 1.0, "column 1 (da"),
        ("time,acc,mic\n2023-11-14T23:13:20+01:00,1,2\n2023-11-14T22:13:20Z,3,4\n", 1700000000.0, None, "column 1 (t"),
        ("date,acc,mic\n2023-11-14,1,2\n2023-11-14,3,4\n", None, None, "column 1 (date)"),
        ("index,acc,mic\n2023-11-14 22:13:20,1,2\n2023-11-14 22:13:21,3,4\n", 1700000001.0, 1.0, "column 1 (index)"),
        ("time,acc,mic\n12:00:00,1,2\n12:00:01,3,4\n", None, None, "column 1 (time)"),
        ("time,acc,mic\n14.11.2023 22:13,1,2\n14.11.2023 22:14,3,4\n", None, None, "column 1 (time)"),
    ],
)
def test_columns_that_are_no_signal_are_left_out_and_tell_the_time(
    text: str, time: float | None, interval_s: float | None, left_out: str | None
) -> None:
    found = posted(text, AB)
    if left_out is None:
        assert isinstance(found, EntryError)
        return
    assert isinstance(found, Rows)
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert found.time == time
    assert found.interval_s == (None if interval_s is None else pytest.approx(interval_s, abs=1e-6))
    assert found.left_out.startswith(left_out)


def test_a_time_that_runs_backwards_is_refused() -> None:
    found = posted("time,acc,mic\n1700000001,1,2\n1700000000,3,4\n", AB)
    assert isinstance(found, EntryError)
    assert "time runs backwards" in found.detail


@pytest.mark.parametrize("cell", ["", "NaT", "7"])
def test_a_block_among_times_that_has_none_itself_is_refused(cell: str) -> None:
    """It would be of when it comes, years behind the others."""
    found = posted(f"time,acc,mic\n1700000000,1,2\n{cell},3,4\n", AB)
    assert isinstance(found, EntryError)
    assert found.detail == f"CSV: row 2: time '{cell}' is no time, and those before have one"
    inside = posted(f"time,acc,mic\n1700000000,1,2\n{cell},3,4\n1700000001,5,6\n", AB)
    assert isinstance(inside, Rows)
    assert (inside.time, inside.interval_s) == (1700000001.0, 0.5)


def test_a_clock_keeps_to_one_column() -> None:
    clock = Clock.of(["index", "timestamp"])
    assert clock is not None
    assert clock.seconds(["7", "1700000000"]) == 1.7e9
    assert clock.seconds(["7", "?"]) is None


def test_a_value_that_is_not_finite_is_named_with_row_and_column_from_1() -> None:
    rows = np.float32([[1, 2], [3, np.inf]])
    error = not_finite(rows, AB)
    assert error is not None
    assert error.detail == "row 2, column 2 (mic): inf; expected a finite number of float32's range"
    assert not_finite(rows[:1], AB) is None
