"""What `rollcast post` makes of files and of standard input."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer

from service.cli.contents import Block, Kind, _blocks, contents, images

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
PICTURES = [
    cv2.imencode(extension, PIXELS, options)[1].tobytes()
    for extension, options in [
        (".jpg", []), (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        (".png", []), (".webp", []),
    ]
]  # fmt: skip


def read(monkeypatch: pytest.MonkeyPatch, data: bytes, rows: int = 1, kind: Kind | None = None) -> list[object]:
    """From standard input; blocks as their rows and columns."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))  # type: ignore[arg-type]
    found = contents(["-"], rows, kind)
    return [(one.rows, one.columns) if isinstance(one, Block) else one for one in found]


def test_a_pipe_of_images_is_cut_where_each_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, b"".join(PICTURES * 2)) == PICTURES * 2


@pytest.mark.parametrize("picture", PICTURES)
def test_an_image_cut_anywhere_is_given_as_it_is(picture: bytes) -> None:
    for cut in range(3, len(picture), 97):
        assert b"".join(images(io.BytesIO(picture[:cut]))) == picture[:cut]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2\n3,4\n5,6\n", [([[1.0, 2.0], [3.0, 4.0]], None), ([[5.0, 6.0]], None)]),
        ("a, b\n1,2\n", [([[1.0, 2.0]], ["a", "b"])]),
        ("# from the lab\n\na,b\n1e3,-2\n", [([[1000.0, -2.0]], ["a", "b"])]),
        ("\ufeff1,2\r\n", [([[1.0, 2.0]], None)]),
    ],
)
def test_a_csv_is_cut_into_blocks_and_keeps_its_heading(
    text: str, expected: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(monkeypatch, text.encode(), 2, "csv") == expected


def test_columns_that_are_no_signal_are_left_out_once_said_and_give_the_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("timestamp;acc\n1700000000,5;0,5\n1700000001;1\n1700000002,5;2,5\n")
    found = [one for one in contents([str(tmp_path / "rows.csv")], 2, None) if isinstance(one, Block)]
    assert [(one.rows, one.columns, one.times) for one in found] == [
        ([[0.5], [1.0]], ["acc"], [1700000000.5, 1700000001.0]),
        ([[2.5]], ["acc"], [1700000002.5]),
    ]
    assert capsys.readouterr().err == f"{tmp_path}/rows.csv: left out, as no signal: column 1 (timestamp)\n"
    with pytest.raises(typer.BadParameter, match=r"timestamp runs backwards, from 1700000001\.0 to 1700000000\.0"):
        read(monkeypatch, b"timestamp,acc\n1700000001,1\n1700000000,2\n", 1, "csv")


def test_a_row_is_given_as_soon_as_it_is_there() -> None:
    table = _blocks(iter(["1,2\n", "x\n"]), "a pipe", 1)
    assert next(table).rows == [[1, 2]]
    with pytest.raises(typer.BadParameter, match="row 2 has 1 columns"):
        next(table)


def test_lines_are_rows_or_words_by_what_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, b"a,b\n1,2\n") == [([[1.0, 2.0]], ["a", "b"])]
    assert read(monkeypatch, b"time;a\n2024-01-01;0,5\n") == [([[0.5]], ["a"])]
    assert read(monkeypatch, b"7\n") == [([[7.0]], None)]
    assert read(monkeypatch, b"a stirring, funny film\n\nand more\n") == ["a stirring, funny film\n", "and more\n"]
    assert read(monkeypatch, b"12\n", kind="text") == ["12\n"]
    assert read(monkeypatch, b"") == []


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [
        (b"1,2\nx,y\n", "csv", "row 2, column 1: 'x' is not a number"),
        (b"a,b\nc,d\n", "csv", "row 1, column 1: 'c' is not a number"),
        (b"1,x\n", "csv", "row 1, column 2: 'x' is not a number"),
        (b"1,2\n3,NA\n", None, r"standard input: row 2, column 2: nan; expected a finite number"),
        (b"0,1\n3,4\n", None, r"first line 0, 1: heading or row\?"),
        (b"\xff\xfe1,2\n", None, "byte 0 is no UTF-8: expected an image, CSV or text"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(
    data: bytes, kind: Kind | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        read(monkeypatch, data, kind=kind)


def test_files_are_taken_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("1\n2\n")
    (tmp_path / "rows.CSV").write_text("1\n2\n")
    (tmp_path / "seen").write_bytes(PICTURES[0])
    found = list(contents([str(tmp_path / name) for name in ("talk.txt", "rows.CSV", "seen")], 2, None))
    assert found[:2] == ["1\n", "2\n"]
    assert isinstance(found[2], Block)
    assert (found[2].rows, found[3]) == ([[1.0], [2.0]], PICTURES[0])
