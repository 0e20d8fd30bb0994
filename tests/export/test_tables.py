"""A file means the same to whoever reads it: the api, `rollcast post`, the Python client, and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer

from export.data import DataError
from export.own import Examples, read_own, read_rows
from export.plan import Candidate, own_task
from export.tables import agreed_hz, in_order
from rollcast import entries
from rollcast.calls import post_samples
from rollcast.content import body_of
from service.api.rows import read_block, to_rows
from service.cli.contents import Block, contents
from service.contracts import RowInput
from service.errors import EntryError
from tests.turns import in_slices

AB = ["acc", "mic"]
ROWS = [[1.0, 2.5], [3.0, 4.0], [0.5, 7.0]]


class Frame:
    """What the client takes a DataFrame for."""

    def __init__(self, columns: list[Any], rows: list[list[Any]]) -> None:
        self.columns, self._rows = columns, rows

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self._rows, dtype or object)


# --- the ways in -------------------------------------------------------------------------------------------------


def by_http(body: bytes, media: str = "text/csv", heading: bool | None = None) -> Any:
    async def rows() -> Any:
        return (await to_rows(await read_block(media, body, heading), RowInput(AB, 1.0, [], [], [], []))).values

    found = in_slices(rows())[0]
    if isinstance(found, EntryError):
        raise found
    return found


def by_client(rows: Any) -> Any:
    body, media = body_of(rows)
    return by_http(body, media.partition(";")[0], True if "header=present" in media else None)


def by_command(path: Path) -> Any:
    blocks = [block for block in contents([str(path)], 2, None) if isinstance(block, Block)]
    return np.concatenate([by_client(block if block.columns else block.rows) for block in blocks])


def by_training(folder: Path) -> Any:
    found = read_rows(folder)
    return in_order("", found.x[0], found.features, AB if sorted(found.features) == AB else found.features)


def told(read: Any, *given: Any) -> Any:
    """The rows, or why not."""
    try:
        return read(*given).tolist()
    except (EntryError, typer.BadParameter, DataError) as error:
        return str(error)


FILES: list[tuple[str, Frame | None, Any]] = [
    ("acc,mic\n1,2.5\n3,4\n0.5,7\n", Frame(AB, ROWS), ROWS),
    ("1,2.5\n3,4\n0.5,7\n", Frame([0, 1], ROWS), ROWS),
    ("mic,acc\r\n2.5,1\r\n4,3\r\n7,0.5\r\n", Frame(["mic", "acc"], [row[::-1] for row in ROWS]), ROWS),
    ("\ufeff# from the lab\n\nacc;mic\n1;2,5\n3;4\n0,5;7\n", None, ROWS),
    ("acc\tmic\n1\t2.5\n3\t4\n0.5\t7\n", None, ROWS),
    ("1,2.5,\n3,4,\n0.5,7,\n", None, ROWS),
    (",acc,mic\n0,1,2.5\n1,3,4\n2,0.5,7\n", Frame(["", *AB], [[n, *row] for n, row in enumerate(ROWS)]), ROWS),
    (
        "timestamp,acc,mic\n2024-01-01,1,2.5\n2024-01-02,3,4\n2024-01-03,0.5,7\n",
        Frame(["timestamp", *AB], [[f"2024-01-0{n}", *row] for n, row in enumerate(ROWS, 1)]),
        ROWS,
    ),
    ("0,1\n1,2.5\n3,4\n", None, "first line 0, 1: heading or row?"),
    (",0,1\n0,1,2.5\n1,3,4\n", None, "first line , 0, 1: heading or row?"),
    ("acc,mic\n1,2.5\n3,NA\n", Frame(AB, [[1, 2.5], [3, np.nan]]), "row 2, column 2 (mic): nan; expected a finite"),
    ("acc,mic\n1,2.5\n3,1e39\n", Frame(AB, [[1, 2.5], [3, 1e39]]), "row 2, column 2 (mic): inf; expected a finite"),
    ("NA,NA\n1,2.5\n", None, "row 1, column 1"),
    ("acc,mic\n1,2.5\n3,x\n", Frame(AB, [[1, 2.5], [3, "x"]]), "row 2, column 2: 'x' is not a number"),
    ("acc,mic\n1,2.5\n3\n", None, "row 2 has 1 columns, expected 2: acc, mic"),
    ("time,acc,mic\n0,1,2.5\n1,3\n", None, "row 2 has 2 columns, expected 3: acc, mic, and column 1 (time)"),
    ("acc;mic\n1;2,5\n3;4.5\n", None, "row 2: decimal commas and decimal points"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "frame", "expected"), FILES)
def test_a_file_means_the_same_to_whoever_reads_it(
    tmp_path: Path, text: str, frame: Frame | None, expected: Any
) -> None:
    for label in ("ok", "worn"):
        (tmp_path / "own" / label).mkdir(parents=True)
        (tmp_path / "own" / label / "1.csv").write_text(text, newline="")
    ways = {
        "http": told(by_http, text.encode()),
        "command": told(by_command, tmp_path / "own" / "ok" / "1.csv"),
        "training": told(by_training, tmp_path / "own"),
    }
    if frame is not None:
        ways["client"] = told(by_client, frame)
    for way, found in ways.items():
        assert (expected in found) if isinstance(expected, str) else (found == expected), (way, found)


# --- the client --------------------------------------------------------------------------------------------------


def test_numbers_of_columns_are_no_names() -> None:
    assert body_of(Frame([0, 1], ROWS))[1] == "application/octet-stream"
    with pytest.raises(EntryError, match="heading 1, 0: expected 2: acc, mic"):
        by_client(Frame([1, 0], ROWS))


def test_names_are_sent_whatever_is_in_them() -> None:
    assert body_of(Frame(['a "b", c'], [[1.0]])) == (b'"a ""b"", c"\n1.0\n', "text/csv; header=present")


def test_what_the_server_leaves_out_is_told() -> None:
    call = post_samples("belt-1", Frame(["time", *AB], [[n, *row] for n, row in enumerate(ROWS)]))
    answer = {"id": "1-0", "stream": "belt-1", "model": "pumps"}
    with pytest.warns(UserWarning, match=r"left out, as no signal: column 1 \(time\)"):
        call.read(httpx.Response(202, json=answer, headers={"Rollcast-Left-Out": "column 1 (time)"}))


def test_an_entry_has_no_names_and_says_so() -> None:
    with pytest.raises(ValueError, match="an entry has no names"):
        entries.samples("belt-1", Frame(AB, ROWS))
    assert entries.samples("belt-1", Frame([0, 1], ROWS)).shape == (3, 2)


# --- training ----------------------------------------------------------------------------------------------------


def folder(path: Path, *texts: str) -> Path:
    """Two labels, in each a file of each text."""
    for label in ("ok", "worn"):
        (path / label).mkdir(parents=True)
        for number, text in enumerate(texts):
            (path / label / f"{number}.csv").write_text(text)
    return path


def wave(heading: str, first: str, rows: int = 20) -> str:
    """Two signals, and before them `first` as an expression of n."""
    lines = [f"{eval(first)},{np.sin(n):.3f},{np.cos(n):.3f}" for n in range(rows)]
    return "\n".join([heading, *lines] if heading else lines) + "\n"


@pytest.mark.parametrize(
    ("heading", "first", "left_out"),
    [
        (",acc,mic", "n", ["column 1 (no name)"]),
        ("timestamp,acc,mic", "1.7e9 + n", ["column 1 (timestamp)"]),
        ("frame,acc,mic", "n + 500", ["frame (rises by one)"]),
        ("ts,acc,mic", "1.7e12 + n ** 1.5", ["ts (counts since 1970)"]),
        ("", "n", ["column 1 (rises by one)"]),
        ("", "n * 0.02", ["column 1 (rises evenly)"]),
        ("", "1.7e9 + n ** 1.5", ["column 1 (counts since 1970)"]),
    ],
)
def test_columns_that_are_no_signal_are_never_learnt_and_said(
    tmp_path: Path, heading: str, first: str, left_out: list[str]
) -> None:
    found = read_rows(folder(tmp_path / "own", wave(heading, first), wave(heading, first, 15)))
    assert found.x[0].shape == (20, 2)
    assert found.features == (AB if heading else ["x0", "x1"])
    assert found.left_out == left_out


@pytest.mark.parametrize(("heading", "first"), [("load,acc,mic", "n * 0.1"), ("load,acc,mic", "n % 7")])
def test_a_signal_with_a_name_is_learnt(tmp_path: Path, heading: str, first: str) -> None:
    found = read_rows(folder(tmp_path / "own", wave(heading, first)))
    assert (found.features, found.left_out) == (["load", *AB], [])


def test_what_counts_in_one_file_and_not_in_another_is_a_signal(tmp_path: Path) -> None:
    found = read_rows(folder(tmp_path / "own", wave("load,acc,mic", "n"), wave("load,acc,mic", "n % 7")))
    assert found.features == ["load", *AB]


def test_a_folder_without_a_signal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column is a signal: rises by one"):
        read_rows(folder(tmp_path / "own", "load\n1\n2\n3\n"))


def test_columns_of_other_forms_are_left_out_as_well(tmp_path: Path) -> None:
    x = np.stack([np.arange(10.0), np.sin(np.arange(10.0))], -1)
    np.savez(tmp_path / "a.npz", x=np.stack([x, x]), label=["a", "b"], features=["index", "acc"])
    found = read_rows(tmp_path / "a.npz")
    assert (found.features, found.left_out, found.x[0].shape) == (["acc"], ["index (index)"], (10, 1))


@pytest.mark.parametrize(
    ("first", "hz"),
    [
        ("n / 50", 50),
        ("1.7e9 + n / 50", 50),
        ("1700000000000 + n * 20", 50),
        ("f'2024-01-01 00:00:{n:02d}'", 1),
        ("1700000000 + n // 4", 4.75),  # whole seconds, four rows in each: the mean
    ],
)
def test_a_column_of_times_gives_the_rate(tmp_path: Path, first: str, hz: float) -> None:
    found = read_rows(folder(tmp_path / "own", wave("time,acc,mic", first)))
    assert found.hz == pytest.approx(hz, rel=1e-4)


def test_a_rate_that_contradicts_the_times_is_refused() -> None:
    assert (agreed_hz(None, 50.0), agreed_hz(50.5, 50.0), agreed_hz(50.0, None)) == (50.0, 50.5, 50.0)
    with pytest.raises(DataError, match="--hz 100, but the column of times has 50 rows a second"):
        agreed_hz(100.0, 50.0)


def test_recordings_of_two_rates_are_refused(tmp_path: Path) -> None:
    own = folder(tmp_path / "own", wave("time,acc,mic", "n / 50"))
    fast = folder(tmp_path / "fast", wave("time,acc,mic", "n / 100"))
    with pytest.raises(DataError, match=r"fast: 100 rows a second by its times, .*own has 50: expected one rate"):
        read_own("own", own, fast, None)
    some = next(own.rglob("*.csv"))
    some.write_text(next(fast.rglob("*.csv")).read_text())
    with pytest.raises(DataError, match=r"\.csv: (50|100) rows a second by its times, .* has (50|100): expected one"):
        read_rows(own)


def test_times_that_run_backwards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.csv: time runs backwards at row 11"):
        read_rows(folder(tmp_path / "own", wave("time,acc,mic", "n % 10")))


def test_two_columns_that_may_be_one_with_decimal_commas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="or one with decimal commas"):
        read_rows(folder(tmp_path / "one", "0,52\n-0,04\n0,61\n"))
    assert read_rows(folder(tmp_path / "two", "0,52\n-0,04\n0,61\n", "0.5,52\n")).x[0].shape == (3, 2)


def test_files_whose_columns_stand_in_another_order_are_matched(tmp_path: Path) -> None:
    found = read_rows(folder(tmp_path / "own", "acc,mic\n1,2\n3,5\n", "Mic, acc\n2,1\n5,3\n"))
    assert found.features == AB
    assert all(x.tolist() == [[1, 2], [3, 5]] for x in found.x)


def test_test_data_have_the_columns_that_were_learnt(tmp_path: Path) -> None:
    texts = [wave("acc,mic,load", "np.tan(n)", rows) for rows in range(10, 30)]
    learnt, held = folder(tmp_path / "own", *texts), folder(tmp_path / "test", wave("load,acc,mic", "n * 0.5"))
    data = read_own("pumps", learnt, held, None)
    assert data.test is not None
    assert data.test.x[0][3].tolist() == pytest.approx([np.sin(3), np.cos(3), 1.5], abs=1e-3)
    with pytest.raises(DataError, match=r"columns other, acc, mic; "):
        read_own("pumps", learnt, folder(tmp_path / "odd", wave("other,acc,mic", "n * 0.5")), None)


def test_the_package_says_what_was_left_out(tmp_path: Path) -> None:
    texts = [wave(",acc,mic", "n", rows) for rows in range(10, 30)]
    data = read_own("pumps", folder(tmp_path / "own", *texts), None, None)
    task = own_task("pumps", data, data.hz, Candidate("gru", 16))
    assert task.description == "Own sequences of rows. Left out, as no signal: column 1 (no name)."
    assert isinstance(read_rows(tmp_path / "own"), Examples)
