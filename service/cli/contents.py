"""What `rollcast post` takes: images, films, rows of a CSV, lines of a text; from files, folders and pipes.

A pipe (`-`, a FIFO) is live: what comes is an entry when it comes. A named file is a recording, whatever the speed at
which it is posted; a named picture is one entry, whole.
"""

from __future__ import annotations

import re
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import numpy as np
import typer

from rollcast.content import media_type
from service.cells import with_point
from service.cli.films import film_of, pictures
from service.cli.pictures import MOST_BYTES, START, Pictures, images
from service.cli.times import read_time
from service.columns import not_finite
from service.errors import EntryError, Malformed
from service.films import ENDINGS, visible
from service.tables import Table, is_table

__all__ = ["Block", "Content", "Kind", "Source", "contents", "images", "sources"]

Kind = Literal["image", "film", "csv", "text"]
Tell = Callable[[str], None]
_OF_ENDING: Final[dict[str, Kind]] = {
    ".txt": "text", ".csv": "csv", ".jpg": "image", ".jpeg": "image", ".png": "image", ".webp": "image",
    **dict.fromkeys(ENDINGS, "film"),
}  # fmt: skip
_SNIFFED: Final = 4096  # bytes of a pipe that say what comes
_PART: Final = re.compile(rb"^content-type:\s*image/", re.IGNORECASE | re.MULTILINE)  # the head of one, in multipart


class Block:
    """Rows of a CSV; `columns` are their names, where it has a heading: the server then puts them in their places."""

    def __init__(self, rows: list[list[float]], columns: list[str] | None) -> None:
        self.rows, self.columns = rows, columns
        self.times: list[float] | None = None  # of its rows, s, where a column says them: of the first, …, of the last

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.rows, dtype)


class Garbled(NamedTuple):
    """Rows of a pipe that are none, behind others that were: what is wrong with them."""

    said: str


Content = bytes | str | Block


class Source:
    """One file, or one pipe (`live`). `hz`: a film's own frames a second."""

    def __init__(self, name: str, rows: int, kind: Kind | None, column: str | None, tell: Tell) -> None:
        path = Path(name)
        self.name = "standard input" if name == "-" else name
        self.live = name == "-" or not path.is_file()
        self._path = None if name == "-" else path
        self._kind = kind or (_OF_ENDING.get(path.suffix.lower()) if not self.live else None)
        self._rows, self.column, self._tell = rows, column, tell
        self.known: Sequence[Sequence[str]] = ()  # features of each model that a CSV may be for
        self._film = film_of(path) if self._kind == "film" else None
        self.hz = self._film.hz if self._film else None

    def contents(self, hz: float | None = None) -> Iterator[Content | Garbled]:
        """`hz`: so many frames of a film a second; else all."""
        if self._film is not None:
            yield from pictures(self._film, hz or self._film.hz)
            return
        with self._opened() as file:
            yield from _content(file, self, self._rows, self._kind, self._tell)

    def steps(self, hz: float | None = None) -> int:
        """Of a recording: how many rows, pictures or lines. Reads a CSV to its end: its faults come before its rows."""
        if self._film is not None:
            return round(self._film.frames * (hz or self._film.hz) / self._film.hz)
        if self._kind == "image":
            return 1
        return sum(len(one.rows) if isinstance(one, Block) else 1 for one in self.contents())

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self._path is None:
            yield sys.stdin.buffer
            return
        with self._path.open("rb") as file:
            yield file


def sources(
    files: Iterable[str], rows: int, kind: Kind | None, column: str | None = None, tell: Tell = lambda _: None
) -> list[Source]:
    """In the order given, a folder's files by their numbers. `rows`: of a CSV in one entry; `kind`: else by name and
    content; `column`: of a CSV, with the rows' times. Raises BadParameter for what cannot be read."""
    found = []
    for name in files:
        try:
            each = [name] if name == "-" or not stat.S_ISDIR(Path(name).stat().st_mode) else _in_folder(Path(name))
            found += [Source(one, rows, kind, column, tell) for one in each]
        except OSError as error:
            raise typer.BadParameter(f"{error.filename or name}: {error.strerror}") from None
    return found


def contents(files: Iterable[str], rows: int, kind: Kind | None) -> Iterator[Content | Garbled]:
    """Each image as bytes; each line of a text; each CSV as blocks of `rows` rows."""
    for source in sources(files, rows, kind):
        yield from source.contents()


def _in_folder(folder: Path) -> list[str]:
    found = visible(folder)
    if not found:
        raise typer.BadParameter(f"{folder}: no file in it")
    for one in found:
        if not one.is_file() or one.suffix.lower() not in _OF_ENDING:
            raise typer.BadParameter(f"{one}: expected in a folder are files ending with {', '.join(_OF_ENDING)}")
    return [str(one) for one in found]


def _content(file: BinaryIO, source: Source, rows: int, kind: Kind | None, tell: Tell) -> Iterator[Content | Garbled]:
    name = source.name
    head = file.peek(_SNIFFED)[:_SNIFFED] if hasattr(file, "peek") else b""
    if kind == "image" or (kind is None and _are_pictures(head)):
        yield from _pictures(file, name, tell) if source.live else [_picture(file, name)]
        return
    wrapper = TextIOWrapper(file, encoding="utf-8-sig", newline="" if kind == "csv" else None)
    lines: Iterable[str] = wrapper
    try:
        if kind is None:
            first = list(islice(lines, 2))  # rows may have a heading
            kind = "csv" if is_table(first) else "text"
            lines = chain(first, lines)
        if kind == "text":
            yield from (line for line in lines if line.strip())
        else:
            yield from _blocks(lines, name, rows, source.column, source.live, source.known)
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name}: byte {error.start} is no UTF-8: expected an image, CSV or text") from None
    finally:
        wrapper.detach()  # the file is its opener's to close


# --- pictures ----------------------------------------------------------------------------------------------------


def _are_pictures(head: bytes) -> bool:
    image = media_type(head) != "application/octet-stream" or b"\0" in head[:16]
    return image or START.search(head) is not None or _PART.search(head) is not None


def _picture(file: BinaryIO, name: str) -> bytes:
    """A named file is one entry, whole: what stands behind the end mark is the camera's, and the server's to judge."""
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise typer.BadParameter(f"{name}: more than {MOST_BYTES >> 20} MiB; expected one picture")
    return data


def _pictures(file: BinaryIO, name: str, tell: Tell) -> Iterator[bytes]:
    found = Pictures(file, lambda said: tell(f"{name}: {said}"))
    yield from found
    if not found.given and found.skipped:
        raise typer.BadParameter(f"{name}: no JPEG, PNG or WebP in its {found.skipped:,} bytes")


# --- rows --------------------------------------------------------------------------------------------------------


def _blocks(
    lines: Iterable[str],
    name: str,
    size: int,
    column: str | None = None,
    live: bool = False,
    known: Sequence[Sequence[str]] = (),
) -> Iterator[Block | Garbled]:
    """`column`: with the rows' times. Raises BadParameter for what is no table, and for a value that is not finite; of
    a pipe (`live`) that has had rows the next ones are read."""
    table, given = Table(time_column=column, known=known), False
    for line in chain(lines, (None,)):
        try:
            deque(table.end() if line is None else table.feed(line), 0)
            while len(table.rows) >= (1 if line is None else size):
                yield _block(table, name, size, column, live)
                given = True
        except EntryError as error:
            if not (live and given):
                raise typer.BadParameter(f"{name}: {error.detail}") from None
            yield Garbled(error.detail)


def _block(table: Table, name: str, size: int, column: str | None, live: bool) -> Block:
    """The next rows. Where the clock of a pipe is put back, the stream's gap policy says what that means."""
    if table.left_out:
        _say_once(f"{name}: left out, as no signal: {', '.join(table.left_out)}")
    before = table.count - len(table.rows)
    rows, beside = table.take(size)
    with np.errstate(over="ignore"):
        values = np.array(rows, np.float64).astype(np.float32)
    if (error := not_finite(values, table.heading or (), before)) is not None:
        raise error
    block = Block(rows, table.heading)
    if table.clock is None:
        return block
    if column is not None:
        cells = [row[table.clock.at] for row in beside]
        if table.clock.comma:
            cells = [with_point(cell) for cell in cells]
        times = [_time(cell, before + n, column) for n, cell in enumerate(cells, 1)]
    else:
        table.check_dated(beside)
        times = [time for row in beside if (time := table.clock.since_1970(row)) is not None]
    if not live:
        table.check_order(times)
    block.times = times if len(times) == len(rows) or table.dated else None
    return block


def _time(cell: str, row: int, column: str) -> float:
    try:
        return read_time(cell)
    except ValueError as error:
        raise Malformed(f"row {row}, column {column}: {error}") from None


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
