"""What parts the cells of a table's line, and which number a cell is."""

from __future__ import annotations

import csv
import math
import re
from typing import Final

from service.codec import decimal_number
from service.columns import MISSING
from service.errors import Malformed

CELLS: Final = 1024  # read in one go; and looked at, to know a heading
LOOKED_AT: Final = 65_536  # characters of a line, to know its marks
_LONGEST: Final = 1024  # characters of a number
DECIMAL_COMMA: Final = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_MARKS: Final = (";", "\t", ",")
_QUOTED: Final = re.compile(r'"[^"]*"')


def split(line: str, mark: str) -> list[str]:
    """Raises Malformed."""
    if '"' not in line:
        return line.split(mark)
    try:
        (cells,) = csv.reader([line], strict=True, delimiter=mark)
    except csv.Error as error:
        raise Malformed(f"{error}; expected one row a line, commas between numbers") from None
    return cells


def number(cell: str) -> float:
    """NaN of a missing value. Raises ValueError."""
    return math.nan if cell.strip() in MISSING else decimal_number(cell)


def numbers(cells: list[str]) -> list[float]:
    """As `number` of each, and faster. Raises ValueError."""
    text = "".join(cells)
    if text.isascii() and text.isprintable() and "_" not in text and max(map(len, cells)) <= _LONGEST:
        try:
            return list(map(float, cells))
        except ValueError:
            pass
    return [number(cell) for cell in cells]


def is_blank(line: str) -> bool:
    """Whether it has neither a row nor names: nothing, or a comment."""
    return not line or line.isspace() or line[:LOOKED_AT].lstrip().startswith("#")


def mark_of(first: str, below: str) -> str:
    """What parts the cells: of the marks in the first line the one that fits best; of equals the first."""
    bare = _bare(first)
    there = [mark for mark in _MARKS if mark in bare]
    if len(there) < 2:
        return there[0] if there else ","
    return max(there, key=lambda mark: _fits(mark, first, below))


def _fits(mark: str, first: str, below: str) -> tuple[bool, float]:
    """How well a mark parts two lines: whether into equally many cells; and the share of values among those below."""
    counts = [_bare(line).count(mark) for line in (first, below)]
    cells = below[:LOOKED_AT].split(mark)[:CELLS]
    if mark != ",":
        cells = [with_point(cell) for cell in cells]
    values = sum(is_value(cell.strip(' \t"')) for cell in cells)
    return counts[0] == counts[1], values / len(cells)


def _bare(line: str) -> str:
    """Without what is quoted."""
    return _QUOTED.sub("", line) if '"' in line and len(line) <= LOOKED_AT else line


def has_number(line: str) -> bool:
    """Whether any cell is one, however cells are parted."""
    cells = re.split(r"[;\t,]", line[:LOOKED_AT])[:CELLS]
    return any(is_number(cell.strip(' "')) for cell in cells)


def is_number(cell: str) -> bool:
    return is_value(cell) and cell.strip() not in MISSING


def is_value(cell: str) -> bool:
    try:
        number(cell)
    except ValueError:
        return False
    return True


def is_place(cell: str, place: int) -> bool:
    return is_number(cell) and decimal_number(cell) == place


def with_point(cell: str) -> str:
    return cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell.strip()) else cell
