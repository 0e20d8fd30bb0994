"""One reader of tables, for HTTP, the command line and training: what a line says, and which column is which.

The first line is a heading if its cells are the model's names, or if none of them is a number; a missing value is a
value, never a name. `;`, tabs and decimal commas are read where every line agrees. Columns that are no signal are left
out and told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from service.cells import (
    CELLS,
    DECIMAL_COMMA,
    LOOKED_AT,
    has_number,
    is_blank,
    is_number,
    is_place,
    is_value,
    mark_of,
    numbers,
    split,
    with_point,
)
from service.codec import MAX_INTERVAL_S
from service.columns import MISSING, MOST_BESIDE, SHOWN, Clock, check_names, clock_of, expected, places_of
from service.errors import EntryError, Malformed, WrongShape

_WHOLE_COMMA_WHOLE: Final = re.compile(r"\s*[-+]?\d+,\d+\s*")


class Span(NamedTuple):
    """Of rows whose table has a column of times: when the last one was, s since 1970, and the mean step, s."""

    time: float | None = None
    interval_s: float | None = None


class Table:
    """One table, read as its lines come: `feed` each, then `end`. Its caller bounds how many there are.

    `names`: the model's features, where they are known. `heading`: what the sender says of the first line; None:
    nothing. `time_column`: which column tells the time, whatever its name, where the sender says it. `known`: the
    features of each model that it may be for, where `names` is not known; a heading of theirs is one.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        heading: bool | None = None,
        time_column: str | None = None,
        known: Sequence[Sequence[str]] = (),
    ) -> None:
        self.rows: list[list[float]] = []  # signals only, in the order of `names`, else as in the table
        self.beside: list[list[str]] = []  # of each row the cells of the columns that are no signal
        self.heading: list[str] | None = None  # names of the signals, where there is a heading
        self.left_out: list[str] = []  # the columns that are no signal, in words
        self.clock: Clock | None = None  # which of `beside` tell the time
        self.dated = False  # whether the first row says when it was, s since 1970
        self.count = 0  # rows so far, those that were taken as well
        self.doubtful = names is None  # every row could be one number with a decimal comma
        self._names, self._said, self._time_column = names, heading, time_column
        self._known = known
        self._first: str | None = None  # a line that may be a heading: the one below it tells the mark
        self._remark = ""
        self._mark = ""  # "": not begun
        self._decimal = ""
        self._width = 0
        self._signals: list[int] | None = None  # where they stand; None: all, in order
        self._others: list[int] = []
        self._latest = 0.0  # time of rows that `span` has seen

    def feed(self, line: str) -> Iterator[None]:
        """One line. Yields within a long one, so that others may run meanwhile. Raises Malformed and WrongShape."""
        line = line.rstrip("\r\n")
        if is_blank(line):
            self._remark = line[:LOOKED_AT].lstrip("# \t") or self._remark
            return
        if self._mark:
            yield from self._row(line)
            return
        if self._first is None and self._said is not False and not has_number(line):
            self._first = line
            return
        first, self._first = self._first, None
        if not self._begin(first or line, line):
            yield from self._row(first or line)
        if first is not None:
            yield from self._row(line)

    def end(self) -> Iterator[None]:
        """After the last line, as `feed`."""
        if self._first is not None:
            first, self._first = self._first, None
            if not self._begin(first, first):
                yield from self._row(first)

    def take(self, size: int) -> tuple[list[list[float]], list[list[str]]]:
        """The first rows, at most `size`, and what stands beside them; they are forgotten here."""
        taken = self.rows[:size], self.beside[:size]
        del self.rows[:size], self.beside[:size]
        return taken

    def span(self, beside: Sequence[Sequence[str]]) -> Span:
        """When rows were, by what stands beside them; those between the first and the last count as evenly spaced.
        Raises Malformed where time runs backwards, also since the rows that were asked for before."""
        if self.clock is None or not beside:
            return Span()
        self.check_dated(beside)
        first, last = self.clock.since_1970(beside[0]), self.clock.since_1970(beside[-1])
        if first is None or last is None:
            return Span(last)
        self.check_order((first, last))
        return Span(last, spacing(first, last, len(beside)))

    def check_dated(self, beside: Sequence[Sequence[str]]) -> None:
        """Of the latest rows. Raises Malformed where the first row has a time and the first or last of these has none:
        they would be of when they come, among others of when they were."""
        if not self.dated or self.clock is None:
            return
        for back, cells in ((len(beside) - 1, beside[0]), (0, beside[-1])):
            if self.clock.since_1970(cells) is None:
                name, cell = self.clock.name or "index", cells[self.clock.at][:40]
                raise Malformed(f"row {self.count - back}: {name} {cell!r} is no time, and those before have one")

    def check_order(self, times: Sequence[float]) -> None:
        """Raises Malformed where these times of rows, s, run backwards, or lie before those of earlier calls."""
        for time in times:
            if time < self._latest:
                name = "index" if self.clock is None else self.clock.name or "index"
                raise Malformed(f"{name} runs backwards, from {self._latest} to {time} s: expected rows in their order")
            self._latest = time

    # --- the first line ------------------------------------------------------------------------------------------

    def _begin(self, first: str, below: str) -> bool:
        """Decides mark and columns. Returns whether the first line is a heading."""
        self._mark = mark_of(first, below)
        cells = [cell.strip() for cell in split(first, self._mark)]
        if self._names is None:
            fit = (names for names in self._known if self._time_column not in names and places_of(cells, names))
            self._names = next(fit, None)
        if self._is_heading(cells):
            self._name(cells)
            return True
        remark = [cell.strip() for cell in self._remark.split(self._mark)] if self._said is None else []
        if len(remark) == len(cells) > 1 and not any(map(is_number, remark[:CELLS])):
            self._name(remark)  # as numpy.savetxt writes a heading
            return False
        if self._time_column is not None:
            raise WrongShape(f"no heading: expected a first line with names, {self._time_column!r} among them")
        self._width = len(cells)
        named = len(self._names) if self._names is not None else len(cells) - 1
        if not cells[-1] and any(map(is_number, cells[:CELLS])) and len(cells) == named + 1:
            self._signals = list(range(named))  # every line ends with a mark
        return False

    def _is_heading(self, cells: list[str]) -> bool:
        if self._said is not None:
            return self._said
        some = cells[:CELLS] if self._mark == "," else [with_point(cell) for cell in cells[:CELLS]]
        rowlike = any(map(is_number, some))
        if self._names and not (rowlike and set(self._names).isdisjoint(cells)) and places_of(cells, self._names):
            return True
        signals = [cell for cell in some if clock_of(cell) is None]
        if signals and all(is_place(cell, place) for place, cell in enumerate(signals)):
            shown = ", ".join(cells[:SHOWN])[:100]
            raise Malformed(
                f"first line {shown}: heading or row? Give names in a first line; over HTTP also "
                "text/csv; header=absent, JSON or float32"
            )
        return not rowlike and not all(cell in MISSING for cell in some)

    def _name(self, cells: list[str]) -> None:
        """Places the columns by their names. Raises WrongShape and Malformed."""
        self._width = len(cells)
        if self._names is not None:
            places = places_of(cells, self._names)
            if places is None:
                raise WrongShape(f"heading {', '.join(cells[:100])[:300]}: expected {expected(self._names)}")
        else:
            places = [place for place, cell in enumerate(cells) if not self._is_beside(cell)]
        here = set(places)
        self._others = [place for place in range(len(cells)) if place not in here]
        if len(self._others) > MOST_BESIDE:
            raise Malformed(f"{len(self._others)} columns without a signal's name: expected at most {MOST_BESIDE}")
        self.heading = list(self._names) if self._names is not None else [cells[place] for place in places]
        check_names(self.heading)
        clocks = [clock_of(cells[place]) or "" for place in self._others]
        self.left_out = [f"column {p + 1} ({c or 'no name'})" for p, c in zip(self._others, clocks, strict=True)]
        beside = [cells[place] for place in self._others]
        self.clock = Clock.of(beside, comma=self._mark != ",")
        if self._time_column is not None:
            if self._time_column not in beside:
                raise WrongShape(f"no column {self._time_column!r} in the heading: {', '.join(cells)[:200]}")
            self.clock = Clock(self._time_column, beside.index(self._time_column), None, comma=self._mark != ",")
        self._signals = None if places == list(range(len(cells))) else places

    def _is_beside(self, cell: str) -> bool:
        return cell == self._time_column or clock_of(cell) is not None

    # --- rows ----------------------------------------------------------------------------------------------------

    def _row(self, line: str) -> Iterator[None]:
        cells = split(line, self._mark)
        self.count += 1
        width = self._width
        if self.heading is None:
            if self._signals is not None and cells[-1].strip():
                raise Malformed(f"row {self.count}: it does not end with a mark, as the rows before")
            if self._signals is None and self._names is not None:
                width = len(self._names)
        if len(cells) != width:
            raise self._wrong_width(len(cells), line)
        if self.doubtful:
            self.doubtful = self.heading is None and _WHOLE_COMMA_WHOLE.fullmatch(line) is not None
        row: list[float] = []
        picked = cells if self._signals is None else [cells[place] for place in self._signals]
        for start in range(0, len(picked), CELLS):
            if start:
                yield
            row += self._numbers(picked[start : start + CELLS], start)
        self.rows.append(row)
        if self._others:
            self.beside.append([cells[place].strip() for place in self._others])
            if self.count == 1 and self.clock is not None and self._time_column is None:
                self.clock = self.clock.settled(self.beside[0])
                self.dated = self.clock is not None and self.clock.since_1970(self.beside[0]) is not None

    def _wrong_width(self, width: int, line: str) -> WrongShape:
        if self.heading is None and self._names is None:
            return WrongShape(f"row {self.count} has {width} columns, the rows before {self._width}")
        names = self._names or self.heading or []
        told = f"row {self.count} has {width} columns, expected {expected(names)}"
        if self._others:
            signals = expected(names).partition(": ")[2]
            told = f"row {self.count} has {width} columns, expected {self._width}: {signals}, and "
            told += ", ".join(self.left_out)
        elif len(names) == 1 and DECIMAL_COMMA.fullmatch(line.strip()):
            told += "; decimal commas of a single column are not read: write points"
        elif self.heading is None and width == len(names) + 1:
            told += "; an index or a time is left out only where a heading names the columns"
        return WrongShape(told)

    def _numbers(self, cells: list[str], start: int) -> list[float]:
        if self._mark != ",":
            text = "".join(cells)
            found = {sign for sign in ".," if sign in text} | ({self._decimal} - {""})
            if len(found) == 2:
                raise Malformed(f"row {self.count}: decimal commas and decimal points in one table")
            self._decimal = next(iter(found), "")
            if self._decimal == ",":
                cells = [with_point(cell) for cell in cells]
        try:
            return numbers(cells)
        except ValueError:
            at = next(n for n, cell in enumerate(cells) if not is_value(cell))
            column = start + at if self._signals is None else self._signals[start + at]
            raise Malformed(
                f"row {self.count}, column {column + 1}: {cells[at].strip()[:40]!r} is not a number"
            ) from None


def spacing(first: float, last: float, count: int) -> float | None:
    """Between so many rows of such times, s, evenly spaced; None where that is no interval an entry may have."""
    step = (last - first) / max(1, count - 1)
    return step if 0 < step <= MAX_INTERVAL_S else None


# --- the first lines ---------------------------------------------------------------------------------------------


def is_table(lines: Sequence[str]) -> bool:
    """Whether the first lines of something look like rows of numbers, with a heading or without."""
    table = Table()
    try:
        for line in (each.rstrip("\r\n") for each in lines):
            cells = split(line, mark_of(line, line))
            if any(map(is_number, cells)) and all(map(is_value, cells)):
                return True
            for _ in table.feed(line):
                pass
    except EntryError:
        return False
    return any(not math.isnan(value) for row in table.rows for value in row)


def signals_in(first: str, below: str) -> int:
    """How many columns of a table may be signals, by its first two lines (twice the same where there is one)."""
    first, below = first.rstrip("\r\n"), below.rstrip("\r\n")
    cells = split(first, mark_of(first, below))
    if len(cells) > CELLS or any(map(is_number, cells)):
        return len(cells)
    return sum(clock_of(cell) is None for cell in cells)
