"""What `rollcast post` takes: images, rows of a CSV, lines of a text; from files or, as they come, standard input."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import typer

from rollcast.content import media_type
from service.columns import not_finite
from service.errors import EntryError
from service.tables import Table, is_table

Kind = Literal["image", "csv", "text"]
_OF_ENDING: Final[dict[str, Kind]] = {".txt": "text", ".csv": "csv"}


class Block:
    """Rows of a CSV; `columns` are their names, where it has a heading: the server then puts them in their places."""

    def __init__(self, rows: list[list[float]], columns: list[str] | None) -> None:
        self.rows, self.columns = rows, columns
        self.times: list[float] | None = None  # of each row, s, where a column says it

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.rows, dtype)


Content = bytes | str | Block


def contents(files: Iterable[str], rows: int, kind: Kind | None) -> Iterator[Content]:
    """Each image as bytes; each line of a text; each CSV as blocks of `rows` rows. `kind`: else by name and content."""
    for name in files:
        if name == "-":
            yield from _content(sys.stdin.buffer, "standard input", rows, kind)
            continue
        try:
            with Path(name).open("rb") as file:
                yield from _content(file, name, rows, kind or _OF_ENDING.get(Path(name).suffix.lower()))
        except OSError as error:
            raise typer.BadParameter(f"{name}: {error.strerror}") from None


def _content(file: BinaryIO, name: str, rows: int, kind: Kind | None) -> Iterator[Content]:
    head = file.peek(16)[:16] if hasattr(file, "peek") else b""
    if kind == "image" or (kind is None and (media_type(head) != "application/octet-stream" or b"\0" in head)):
        yield from images(file)
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
            yield from _blocks(lines, name, rows)
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name}: byte {error.start} is no UTF-8: expected an image, CSV or text") from None
    finally:
        wrapper.detach()  # the file is its opener's to close


# --- rows --------------------------------------------------------------------------------------------------------


def _blocks(lines: Iterable[str], name: str, size: int) -> Iterator[Block]:
    """Raises BadParameter for what is no table, and for a value that is not finite."""
    table = Table()
    try:
        for line in lines:
            deque(table.feed(line), 0)
            while len(table.rows) >= size:
                yield _block(table, name, size)
        deque(table.end(), 0)
        while table.rows:
            yield _block(table, name, size)
    except EntryError as error:
        raise typer.BadParameter(f"{name}: {error.detail}") from None


def _block(table: Table, name: str, size: int) -> Block:
    if table.left_out:
        _say_once(f"{name}: left out, as no signal: {', '.join(table.left_out)}")
    before = table.count - len(table.rows)
    rows, beside = table.take(size)
    with np.errstate(over="ignore"):
        values = np.array(rows, np.float64).astype(np.float32)
    if (error := not_finite(values, table.heading or (), before)) is not None:
        raise error
    block = Block(rows, table.heading)
    table.span(beside)
    times = [table.clock.since_1970(cells) for cells in beside] if table.clock else []
    known = [time for time in times if time is not None]
    block.times = known if len(known) == len(rows) else None
    return block


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


# --- images, one behind the other --------------------------------------------------------------------------------


def images(file: BinaryIO) -> Iterator[bytes]:
    """JPEG, PNG and WebP as a camera's pipe gives them; what is none of these comes whole, for the server to judge."""
    while head := file.read(3):
        if head == b"\xff\xd8\xff":
            yield head + _rest_of_jpeg(file)
        elif head == b"\x89PN":
            yield head + _rest_of_png(file)
        elif head == b"RIF":
            size = file.read(5)
            yield head + size + file.read(int.from_bytes(size[1:], "little"))
        else:
            yield head + file.read()


def _rest_of_png(file: BinaryIO) -> bytes:
    """Chunks up to IEND: length, type, data, checksum."""
    parts = [file.read(5)]
    while len(head := file.read(8)) == 8:
        parts += [head, file.read(int.from_bytes(head[:4], "big") + 4)]
        if head[4:] == b"IEND":
            return b"".join(parts)
    return b"".join([*parts, head])


def _rest_of_jpeg(file: BinaryIO) -> bytes:
    """Marks and their segments up to the end mark. `found` always ends before a mark's second byte."""
    found = bytearray()
    mark = file.read(1)
    while mark not in (b"", b"\xd9"):
        found += mark
        if mark != b"\xff":  # else it only fills
            size = file.read(2)
            found += size + file.read(max(0, int.from_bytes(size, "big") - 2))
            mark = _behind_scan(file, found) if mark == b"\xda" else _second(file, found)
        else:
            mark = file.read(1)
    return bytes(found + mark)


def _second(file: BinaryIO, found: bytearray) -> bytes:
    found += file.read(1)
    return file.read(1)


def _behind_scan(file: BinaryIO, found: bytearray) -> bytes:
    """Reads a scan's data, in which 0xFF stands before 0x00 and before restart marks, up to the mark behind it."""
    while byte := file.read(1):
        if found[-1] == 0xFF and byte[0] not in (0x00, 0xFF) and not 0xD0 <= byte[0] <= 0xD7:
            return byte
        found += byte
    return b""
