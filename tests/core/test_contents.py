"""What `rollcast post` makes of files and of standard input."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer

from service.cli.contents import Block, Kind, _blocks, contents, images, sources
from service.cli.posting import order_said

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
    backwards = b"timestamp,acc\n1700000001,1\n1700000000,2\n"
    (tmp_path / "back.csv").write_bytes(backwards)
    with pytest.raises(typer.BadParameter, match=r"timestamp runs backwards, from 1700000001\.0 to 1700000000\.0"):
        list(contents([str(tmp_path / "back.csv")], 1, None))
    assert len(read(monkeypatch, backwards, 1, "csv")) == 2, "of a pipe, whose clock may be put back, the stream judges"


def test_a_row_among_times_that_has_none_is_not_of_when_it_comes(tmp_path: Path) -> None:
    path, lines = tmp_path / "rows.csv", ["timestamp,a\n", "1700000000,1\n", ",2\n", "1700000001,3\n"]
    path.write_text("".join(lines))
    with pytest.raises(typer.BadParameter, match="row 2: timestamp '' is no time"):
        list(contents([str(path)], 1, None))
    (block,) = contents([str(path)], 3, None)
    assert isinstance(block, Block)
    assert block.times == [1700000000.0, 1700000001.0]
    found = list(_blocks(lines, "a pipe", 1, live=True))
    assert [one.times if isinstance(one, Block) else one.said for one in found] == [
        [1700000000.0],
        "row 2: timestamp '' is no time, and those before have one",
        [1700000001.0],
    ]


def test_a_row_is_given_as_soon_as_it_is_there() -> None:
    table = _blocks(iter(["1,2\n", "x\n"]), "a file", 1)
    first = next(table)
    assert isinstance(first, Block)
    assert first.rows == [[1, 2]]
    with pytest.raises(typer.BadParameter, match="row 2 has 1 columns"):
        next(table)


def test_rows_of_a_pipe_that_are_none_are_told_and_the_next_ones_read() -> None:
    lines = ["1,2\n", "x,y\n", "3\n", "3,NA\n", "4,5\n"]
    found = list(_blocks(lines, "a pipe", 1, live=True))
    assert [one.rows if isinstance(one, Block) else one.said for one in found] == [
        [[1, 2]],
        "row 2, column 1: 'x' is not a number",
        "row 3 has 1 columns, the rows before 2",
        "row 4, column 2: nan; expected a finite number of float32's range",
        [[4, 5]],
    ]


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
        (b"a,b\nc,d\n", "csv", "row 1, column 1: 'c' is not a number"),
        (b"1,x\n", "csv", "row 1, column 2: 'x' is not a number"),
        (b"3,NA\n1,2\n", None, r"standard input: row 1, column 2: nan; expected a finite number"),
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


def test_a_named_picture_is_one_entry_with_all_that_stands_behind_it(tmp_path: Path) -> None:
    """A trailer, a second picture, a film: the server takes the first one of it."""
    whole = PICTURES[0] + b"\0\0\0" + PICTURES[1] + b"dhav"
    for name in ("whole.jpg", "whole"):
        (tmp_path / name).write_bytes(whole)
        assert list(contents([str(tmp_path / name)], 1, None)) == [whole]


def test_a_named_pipe_is_read_as_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "camera.jpg")
    with os.fdopen(os.open(tmp_path / "camera.jpg", os.O_RDWR), "wb", buffering=0) as into:
        into.write(b"\0".join(PICTURES[:2]))
        (source,) = sources([str(tmp_path / "camera.jpg")], 1, "image")
        given = source.contents()
        assert [next(given), next(given)] == PICTURES[:2]
        assert source.live


@pytest.mark.parametrize(
    "head", [b"\n", b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
)
def test_a_head_of_text_does_not_make_text_of_a_pipe_of_pictures(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, head + head.join(PICTURES)) == PICTURES


def test_a_pipe_without_a_picture_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(typer.BadParameter, match="standard input: no JPEG, PNG or WebP in its 40 bytes"):
        read(monkeypatch, b"GIF89a\0\0" * 5)


def test_a_folder_is_read_by_its_numbers_and_without_hidden_files(tmp_path: Path) -> None:
    for n in (0, 1, 2, 10, 11, 100):
        (tmp_path / f"frame{n}.png").write_bytes(PICTURES[3] + b"%d" % n)
    for hidden in (".DS_Store", "._frame1.png"):
        (tmp_path / hidden).write_bytes(b"Mac OS X")
    found = [int(one.removeprefix(PICTURES[3])) for one in contents([str(tmp_path)], 1, None)]  # type: ignore[arg-type]
    assert found == [0, 1, 2, 10, 11, 100]
    (tmp_path / "notes.docx").write_bytes(b"x")
    with pytest.raises(typer.BadParameter, match=r"notes.docx: expected in a folder are files ending with \.txt"):
        list(contents([str(tmp_path)], 1, None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(typer.BadParameter, match="empty: no file in it"):
        list(contents([str(tmp_path / "empty")], 1, None))


def test_an_order_that_a_shell_made_of_numbers_is_said() -> None:
    assert order_said(["f1.png", "f10.png", "f2.png"]) == (
        "posted as given, f10.png before f2.png; name the folder to have them by their numbers"
    )
    for as_meant in (
        ["f1.png", "f2.png", "f10.png"],
        ["f2.png", "f10.png", "f1.png"],
        ["f01.png", "f02.png", "f10.png"],
    ):
        assert order_said(as_meant) is None


def film(path: Path, frames: int, hz: float) -> None:
    """Frame n is grey of level 4 n."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), hz, (64, 48))  # type: ignore[attr-defined]
    for n in range(frames):
        writer.write(np.full((48, 64, 3), 4 * n, np.uint8))
    writer.release()


def levels(path: Path, hz: float | None = None) -> list[int]:
    (source,) = sources([str(path)], 1, None)
    given = list(source.contents(hz))
    assert source.steps(hz) == len(given)
    assert all(isinstance(one, bytes) for one in given)
    return [round(cv2.imdecode(np.frombuffer(one, np.uint8), 0)[0, 0] / 4) for one in given]  # type: ignore[arg-type]


def test_a_film_gives_its_frames_or_those_nearest_to_another_rate(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    film(path, 50, 25.0)
    assert sources([str(path)], 1, None)[0].hz == 25.0
    assert levels(path) == list(range(50))
    assert levels(path, 12.5) == list(range(0, 50, 2))
    assert levels(path, 50.0) == [n // 2 + n % 2 for n in range(99)] + [49]


def test_a_film_that_contradicts_itself_is_said(tmp_path: Path) -> None:
    film(tmp_path / "film.avi", 50, 25.0)
    whole = (tmp_path / "film.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(
        typer.BadParameter, match=r"half.avi: \d+ of the 50 frames that it announces can be read; they were posted"
    ):
        list(contents([str(tmp_path / "half.avi")], 1, None))
    with pytest.raises(typer.BadParameter, match=r"none\.mp4: not a film that can be read"):
        sources([str(tmp_path / "none.mp4")], 1, None)


def test_a_column_of_times_is_taken_out_and_read_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"

    def timed(*times: str) -> list[Block]:
        path.write_text("acc,when,mic\n" + "".join(f"{n},{time},-{n}\n" for n, time in enumerate(times)))
        (source,) = sources([str(path)], 2, None, "when")
        return [one for one in source.contents() if isinstance(one, Block)]

    first, second = timed("1763860000.5", "1763860001", "1763860001.5")
    assert (first.columns, first.rows, first.times) == (["acc", "mic"], [[0, 0], [1, -1]], [1763860000.5, 1763860001.0])
    assert second.times == [1763860001.5]
    for written in (["1763860000500", "1763860001000"], ["2025-11-23T01:06:40.5Z", "2025-11-23 02:06:41+01:00"]):
        assert timed(*written)[0].times == first.times
    path.write_text("acc;when;mic\n0,5;1763860000,5;1\n")
    (block,) = sources([str(path)], 2, None, "when")[0].contents()
    assert isinstance(block, Block)
    assert (block.rows, block.times) == ([[0.5, 1.0]], [1763860000.5])
    for wrong, told in (("soon", "row 2, column when: 'soon' is no time"), ("1763860000", "when runs backwards")):
        with pytest.raises(typer.BadParameter, match=told):
            timed("1763860000.5", wrong)
    with pytest.raises(typer.BadParameter, match="no column 'date' in the heading: acc, when, mic"):
        list(sources([str(path)], 2, None, "date")[0].contents())


class Damaged:
    """A film of three frames, of which the second one says that it is shown in eleven days."""

    def __init__(self, hz: float = 25.0) -> None:
        self.hz = hz
        self.times_ms = [0.0, 1e9, 80.0]
        self.read_ones = 0

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: self.hz, cv2.CAP_PROP_FRAME_COUNT: 3.0}.get(what, self.times_ms[self.read_ones - 1])

    def read(self) -> tuple[bool, np.ndarray]:
        self.read_ones += 1
        return self.read_ones <= 3, np.full((48, 64, 3), 4 * self.read_ones, np.uint8)

    def release(self) -> None:
        pass


def test_a_damaged_time_in_a_film_does_not_repeat_a_frame_for_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.films._opened", lambda _: Damaged())
    (tmp_path / "film.avi").write_bytes(b"x")
    assert levels(tmp_path / "film.avi") == [1, 2, 3]


@pytest.mark.parametrize("hz", [0.0, -1.0, float("nan"), 90_000.0])
def test_a_film_without_a_rate_is_refused(hz: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.films._opened", lambda _: Damaged(hz))
    (tmp_path / "film.avi").write_bytes(b"x")
    with pytest.raises(typer.BadParameter, match="frames a second; expected more than 0"):
        sources([str(tmp_path / "film.avi")], 1, None)


def test_a_head_that_comes_before_its_picture_says_what_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "camera")
    with os.fdopen(os.open(tmp_path / "camera", os.O_RDWR), "wb", buffering=0) as into:
        into.write(b"--frame\r\nContent-Type: image/png\r\n\r\n")
        given = sources([str(tmp_path / "camera")], 1, None)[0].contents()
        threading.Timer(0.2, into.write, (PICTURES[3],)).start()
        assert next(given) == PICTURES[3]
