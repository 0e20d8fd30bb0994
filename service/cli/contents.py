"""What `rollcast post` takes: images, rows of a CSV, lines of a text; from files or, as they come, standard input."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import typer

from rollcast.content import media_type
from service.cli.pictures import Pictures, images

__all__ = ["Block", "Content", "Kind", "contents", "images"]

PIPE: Final = "standard input"
Kind = Literal["image", "csv", "text"]
_OF_ENDING: Final[dict[str, Kind]] = {".txt": "text", ".csv": "csv"}


class Block:
    """Rows of a CSV; `columns` are their names, where it has a heading: the server then puts them in their places."""

    def __init__(self, rows: list[list[float]], columns: list[str] | None) -> None:
        self.rows, self.columns = rows, columns

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.rows, dtype)


Content = bytes | str | Block


def contents(files: Iterable[str], rows: int, kind: Kind | None) -> Iterator[Content]:
    """Each image as bytes; each line of a text; each CSV as blocks of `rows` rows. `kind`: else by name and content."""
    for name in files:
        if name == "-":
            yield from _content(sys.stdin.buffer, PIPE, rows, kind)
            continue
        try:
            with Path(name).open("rb") as file:
                yield from _content(file, name, rows, kind or _OF_ENDING.get(Path(name).suffix.lower()))
        except OSError as error:
            raise typer.BadParameter(f"{name}: {error.strerror}") from None


def _content(file: BinaryIO, name: str, rows: int, kind: Kind | None) -> Iterator[Content]:
    head = file.peek(16)[:16] if hasattr(file, "peek") else b""
    if kind == "image" or (kind is None and (media_type(head) != "application/octet-stream" or b"\0" in head)):
        found = Pictures(file, lambda said: print(f"{name}: {said}", file=sys.stderr))
        yield from found if name == PIPE else [file.read()]  # a named file is one entry, whole
        return
    wrapper = TextIOWrapper(file, encoding="utf-8-sig", newline="" if kind == "csv" else None)
    lines: Iterable[str] = wrapper
    try:
        if kind is None:
            first = list(islice(lines, 2))  # rows may have a heading
            kind = "csv" if any(_numbers(row) for row in csv.reader(first)) else "text"
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
    columns: list[str] | None = None
    block: list[list[float]] = []
    begun = False
    for number, cells in enumerate(csv.reader(lines), start=1):
        if not cells or cells[0].startswith("#"):
            continue
        row = _numbers(cells)
        if row is not None:
            block.append(row)
        elif not begun and not any(_numbers([cell]) for cell in cells):
            columns = [cell.strip() for cell in cells]
        else:
            shown = ",".join(cells)[:60]
            raise typer.BadParameter(f"{name}, line {number}: {shown!r} is not a row of numbers")
        begun = True
        if len(block) == size:
            yield Block(block, columns)
            block = []
    if block:
        yield Block(block, columns)


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells] or None
    except ValueError:
        return None
