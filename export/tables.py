"""Recordings as people's programs write them: read by the reader that also reads what is posted, so that a net learns
what a stream will give it. Columns that are no signal are left out and said; one of times gives the rate."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.data import DataError
from service.columns import clock_of, places_of
from service.errors import EntryError
from service.tables import Table

APART = 0.05  # of a rate, by which another may differ and still be the same
UNEVENLY = 0.25  # of a step, by which those of one file may differ and it still has a rate of its own
OTHER = 1.5  # times as fast is another rate
EVENLY = "rises evenly"
_DATES_S = (1e9, 2.2e9)  # of the years 2001 to 2039


class Tables:
    """The CSV files of one folder. What they say together is known when all are read."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._doubtful = True
        self._steps: list[np.ndarray] = []  # of each file, s
        self._steady: tuple[Path, float] | None = None  # the first file of even steps, and its rate

    def read(self, path: Path) -> tuple[np.ndarray, list[str]]:
        """(T, F) float32, NaN where a value is missing; and the columns' names, none without a heading."""
        table = Table()
        try:
            for line in io.StringIO(path.read_text("utf-8-sig"), newline=""):
                deque(table.feed(line), 0)
            deque(table.end(), 0)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"damaged file {path}: {error}") from None
        except EntryError as error:
            raise DataError(f"{path}: {error.detail}") from None
        if not table.rows:
            raise DataError(f"{path}: no rows")
        self._doubtful = self._doubtful and table.doubtful
        self.left_out += [each for each in table.left_out if each not in self.left_out]
        self._time(path, table)
        with np.errstate(over="ignore"):
            return np.array(table.rows, np.float64).astype(np.float32), table.heading or []

    def check(self, path: Path) -> None:
        """After the last file."""
        if self._doubtful:
            raise DataError(
                f"{path}: two columns of whole numbers, or one with decimal commas? Give names in a first line of each "
                "file, or write decimal points"
            )

    def hz(self) -> float | None:
        """By the median step of the files' times; where most are alike, as whole seconds are, by the mean."""
        if not self._steps:
            return None
        steps = np.concatenate(self._steps)
        step = float(np.median(steps)) or float(steps.mean())
        return float(f"{1 / step:.5g}") if step > 0 else None  # of times in seconds since 1970 more is rounding

    def _time(self, path: Path, table: Table) -> None:
        if table.clock is None:
            return
        found = [table.clock.seconds(cells) for cells in table.beside]
        if len(found) < 2 or None in found:
            return
        steps = np.diff(np.array(found, np.float64))
        if (steps < 0).any():
            row = int(np.argmax(steps < 0)) + 2
            raise DataError(
                f"{path}: {table.clock.name or 'index'} runs backwards at row {row}: expected rows in order"
            )
        self._one_rate(path, steps)
        self._steps.append(steps)

    def _one_rate(self, path: Path, steps: np.ndarray) -> None:
        """Raises DataError where two files of even steps have different rates: a mean of them would be neither's."""
        low, step, high = np.quantile(steps, (0.1, 0.5, 0.9))
        if not step > 0 or high - low > UNEVENLY * step:
            return
        self._steady = self._steady or (path, float(1 / step))
        check_one_rate(path, float(1 / step), *self._steady)


def check_one_rate(path: Path, hz: float, before: Path, its_hz: float) -> None:
    """Raises DataError."""
    if not its_hz / OTHER <= hz <= its_hz * OTHER:
        raise DataError(
            f"{path}: {hz:.5g} rows a second by its times, {before} has {its_hz:.5g}: expected one rate; bring them to "
            "the same one first"
        )


def in_order(place: Path | str, x: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The columns of x (T, F) as `wanted` has them. Raises DataError where they are others."""
    places = places_of(names, wanted) if wanted and len(names) == x.shape[1] else None
    if places is None:
        raise DataError(f"{place}: columns {list(names)}, expected {list(wanted)}")
    return np.ascontiguousarray(x[:, places])


def signals(
    path: Path, xs: list[np.ndarray], names: list[str]
) -> tuple[list[np.ndarray], list[str], list[str]]:  # fmt: skip
    """All x (T, F) and the names, without the columns that are no signal; and these, in words. Raises DataError where
    none is left."""
    width = xs[0].shape[1]
    if any(x.shape[1] != width for x in xs) or len(names) not in (0, width):
        return xs, names, []  # whoever checks what was read says it
    gone = no_signals(xs, names)
    kept = [column for column in range(width) if column not in gone]
    if not kept:
        raise DataError(f"{path}: no column is a signal: {', '.join(gone.values())}")
    if not gone:
        return xs, names, []
    said = [f"{names[column] if names else f'column {column + 1}'} ({what})" for column, what in gone.items()]
    return [np.ascontiguousarray(x[:, kept]) for x in xs], [names[column] for column in kept if names], said


def no_signals(xs: Sequence[np.ndarray], names: Sequence[str]) -> dict[int, str]:
    """Columns that tell where in a file a row stands, and what they are: of all x (T, F) those that rise by one, are
    called as an index or a time is, or count since 1970; without names also those that rise evenly."""
    found = {n: clock or "no name" for n, name in enumerate(names) if (clock := clock_of(name)) is not None}
    if not any(len(x) > 2 for x in xs):
        return found  # of so few rows nothing else can be said
    with np.errstate(invalid="ignore"):
        low = np.min([np.diff(x, axis=0).min(0) for x in xs if len(x) > 1], 0)
        high = np.max([np.diff(x, axis=0).max(0) for x in xs if len(x) > 1], 0)
        least = np.min([x.min(0) for x in xs if len(x)], 0)
        most = np.max([x.max(0) for x in xs if len(x)], 0)
        told = {
            "rises by one": (low == 1) & (high == 1),
            EVENLY: (low > 0) & (high - low <= 1e-3 * high) & (not names),
            "counts since 1970": (low >= 0) & _is_date(least) & _is_date(most),
        }
    for what, columns in told.items():
        for column in np.flatnonzero(columns):
            found.setdefault(int(column), what)
    if len(found) == xs[0].shape[1]:  # then what rises evenly is all there is to learn
        found = {column: what for column, what in found.items() if what != EVENLY}
    return dict(sorted(found.items()))


def _is_date(values: np.ndarray) -> np.ndarray:
    """Which values (F,) are times as clocks count them: in seconds since 1970, milli-, micro- or nanoseconds."""
    low, high = _DATES_S
    return np.any([(low * scale <= values) & (values < high * scale) for scale in (1, 1e3, 1e6, 1e9)], 0)


def agreed_hz(asked: float | None, found: float | None) -> float | None:
    """The rate that is asked for, else that of the times. Raises DataError where they contradict each other."""
    if asked is not None and found is not None and abs(asked - found) > APART * found:
        raise DataError(f"--hz {asked:g}, but the column of times has {found:g} rows a second: leave one of them out")
    return asked if asked is not None else found
