"""Columns of tables: where the model's are, which are no signal but an index or a time, and what a time says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np

from service.errors import Malformed, NonFinite

MISSING: Final = frozenset(
    (
        *("", "?", "-", "--", "NA", "na", "N/A", "n/a", "#N/A", "#NA", "<NA>"),
        *("NaN", "nan", "NAN", "NaT", "NULL", "Null", "null", "NONE", "None", "none"),
    )
)  # `Na` is a name: sodium
MOST_BESIDE: Final = 16  # columns that are no signal
SHOWN: Final = 12  # names in a message
_NAMED: Final = re.compile(
    r"(time ?stamp|date ?time|time|date|index)(?: (s|ms|us|ns)| ?[(\[] ?(s|ms|us|ns) ?[)\]])?|unnamed: ?\d+|level 0|"
)
_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_BY_SIZE: Final = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))  # numbers since 1970 from such a size on are in such units
_SINCE_1970_S: Final = 1e8  # below, a number counts from a beginning of its own
_DAYS: Final = ("date", "index", "")
_ORDER: Final = ("timestamp", "datetime", "time", "date", "index", "")


# --- names -------------------------------------------------------------------------------------------------------


def places_of(cells: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Where each name stands in a heading, in any order: as it is, else whatever its case, spaces and quotes. None
    where one is missing or there twice, or something else is there that may be a signal."""
    if not len(names) <= len(cells) <= len(names) + MOST_BESIDE:
        return None
    for key in (str.strip, _folded):
        where: dict[str, list[int]] = {}
        for place, cell in enumerate(cells):
            where.setdefault(key(cell), []).append(place)
        found = [where.get(key(name), []) for name in names]
        if any(len(places) != 1 for places in found):
            continue
        places = [place for (place,) in found]
        others = set(range(len(cells))) - set(places)
        if len(set(places)) == len(names) and all(clock_of(cells[place]) is not None for place in others):
            return places
    return None


def check_names(names: Sequence[str]) -> None:
    """Of a heading's signals. Raises Malformed."""
    if not names:
        raise Malformed("no column of the heading is a signal: expected at least one name beside time and index")
    for name in names:
        if name in MISSING:
            raise Malformed(f"the heading calls a column {name!r}: that is a missing value, no name")
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise Malformed(f"the heading calls two columns {twice[:40]!r}")


def expected(names: Sequence[str]) -> str:
    """How many columns, and which, for a message."""
    more = "" if len(names) <= SHOWN else ", …"
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}"


def not_finite(rows: np.ndarray, names: Sequence[str], before: int = 0) -> NonFinite | None:
    """What is wrong with rows (T, F), counted from 1 and after those `before`: in the same words whichever way they
    came."""
    finite = np.isfinite(rows)
    if finite.all():
        return None
    row, column = (int(at) for at in np.argwhere(~finite)[0])
    name = f" ({names[column]})" if column < len(names) else ""
    return NonFinite(
        f"row {before + row + 1}, column {column + 1}{name}: {rows[row, column]}; "
        "expected a finite number of float32's range"
    )


def _folded(name: str) -> str:
    return " ".join(name.strip(" \t\"'").split()).casefold()


# --- what is no signal -------------------------------------------------------------------------------------------


def clock_of(name: str) -> str | None:
    """What a column without a signal's name is: `time`, `timestamp`, `datetime`, `date`, `index`, or `` without a name.
    None of any other name.

    >>> clock_of("Time [ms]"), clock_of("acc"), clock_of("Unnamed: 0")
    ('time', None, '')
    """
    if len(name) > 40:
        return None
    found = _NAMED.fullmatch(_plain(name))
    return None if found is None else (found[1] or "").replace(" ", "")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("µ", "u").replace("μ", "u").strip(" \t\"'").split()).casefold()


class Clock(NamedTuple):
    """Which cell of those beside a row tells its time; with `day` that of the day only."""

    name: str
    at: int
    unit: float | None
    day: int | None = None
    comma: bool = False  # numbers have decimal commas

    @classmethod
    def of(cls, names: Sequence[str], *, comma: bool = False) -> Clock | None:
        """By the names of the columns beside; None without any."""
        found = [(clock_of(name) or "", at) for at, name in enumerate(names)]
        if not found:
            return None
        name, at = min(found, key=lambda each: _ORDER.index(each[0]))
        day = next((place for other, place in found if other == "date"), None) if name == "time" else None
        said = _NAMED.fullmatch(_plain(names[at]))
        unit = (said[2] or said[3]) if said else None
        return cls(name, at, _UNITS[unit] if unit else None, day, comma)

    def settled(self, cells: Sequence[str]) -> Clock | None:
        """By the first row's cells: itself, or None where they tell no time."""
        return self if self.seconds(cells) is not None else None

    def seconds(self, cells: Sequence[str]) -> float | None:
        """Since 1970 or, of a small number, since a beginning of its own. A date without a zone is UTC; what is only
        called so says when a row was if it has a time of day."""
        cell = cells[self.at]
        if self.name in _DAYS and ":" not in cell:
            return None
        try:
            found = float(cell.replace(",", ".") if self.comma else cell)
        except ValueError:
            return _date(cell if self.day is None else f"{cells[self.day]} {cell}")
        if not abs(found) < 1e20:
            return None
        if self.unit is not None:
            return found * self.unit
        return found * next((unit for least, unit in _BY_SIZE if abs(found) >= least), 1.0)

    def since_1970(self, cells: Sequence[str]) -> float | None:
        found = self.seconds(cells)
        return found if found is not None and found >= _SINCE_1970_S else None


def _date(cell: str) -> float | None:
    try:
        found = datetime.fromisoformat(cell.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
