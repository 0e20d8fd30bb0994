"""What a user's own data must be, checked when it is read: whatever would fail when the package is written, after all
training, fails here, and what is only odd is said."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from export.data import DataError, Split

LARGEST: Final = 1e18  # of a value: its square, summed over many, is still a float32
SLOWEST_HZ: Final = 1e-6
FASTEST_HZ: Final = 1e9
GOLDEN: Final = 4  # sequences of the parity certificate, the longest of those validated with
UNEVEN: Final = 20  # so many times the usual length is said


# --- npz ---------------------------------------------------------------------------------------------------------


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz by name. Raises DataError."""
    if not path.is_file():
        raise DataError(f"missing file {path}")
    try:
        content = io.BytesIO(path.read_bytes())
        if not zipfile.is_zipfile(content):
            raise ValueError("not an npz archive")
        with np.load(content, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy, zipfile and zlib raise whatever the damage leads to
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"damaged file {path}: {text}") from None


def series(path: Path, x: np.ndarray, length: np.ndarray | None, wanted: str) -> list[np.ndarray]:
    """`x` as sequences (T, F), cut by `length` where rows stand behind each other. Raises DataError."""
    if x.dtype.kind not in "fiu" or x.ndim not in (2, 3) or not x.size:
        raise DataError(f"{path}: x of shape {x.shape} and type {x.dtype}; {wanted}")
    if length is None:
        return list(x[..., None] if x.ndim == 2 else x)
    if length.ndim != 1 or length.dtype.kind not in "fiu" or not (length == np.rint(length)).all():
        raise DataError(
            f"{path}: length of shape {length.shape} and type {length.dtype}: expected whole numbers; {wanted}"
        )
    if x.ndim == 3:
        raise DataError(
            f"{path}: x of shape {x.shape} with `length`: expected rows behind each other, without padding; {wanted}"
        )
    if not len(length) or length.min() < 1 or int(length.sum()) != len(x):
        least = f", the least of them {length.min():g}" if len(length) else ""
        raise DataError(f"{path}: x of shape {x.shape} and lengths that add up to {length.sum():g}{least}; {wanted}")
    return np.split(x, np.cumsum(length)[:-1].astype(int))


def texts(path: Path, what: str, values: np.ndarray) -> list[str]:
    """Labels, groups or names as texts, without blanks around them; whole numbers as such. Raises DataError."""
    if values.dtype.kind == "f":
        if (odd := values[~np.isfinite(values) | (values != np.rint(values))]).size:
            raise DataError(f"{path}: {what} {odd.flat[0]:g}: expected names or whole numbers")
        values = values.astype(np.int64)
    if values.dtype.kind not in "USiub":
        raise DataError(f"{path}: {what} of type {values.dtype}: expected names or whole numbers")
    found = [
        (each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each)).strip() for each in values.tolist()
    ]
    if "" in found:
        raise DataError(f"{path}: {what} number {found.index('') + 1} is empty")
    return found


def wrong_names(names: Sequence[str], shape: tuple[int, ...]) -> str:
    """What is wrong with the columns' names of sequences of shape (T, F); none need be given."""
    if not names:
        return ""
    rows, columns = shape
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return f"features: {twice[0]!r} stands there twice, expected different names"
    if "" in names:
        return f"features: name number {list(names).index('') + 1} is empty"
    if len(names) == columns:
        return ""
    said = f"{len(names)} features are named, the rows have {columns} columns"
    if len(names) != rows:
        return said
    if columns == 1:
        return f"{said}: one row an example is no series; expected x (N, T, F)"
    return f"{said}: are its channels first? expected (N, T, F), such as x.transpose(0, 2, 1)"


def check_rate(hz: float | None) -> None:
    """Of rows or frames a second; none need be given. Raises DataError."""
    if hz is not None and not SLOWEST_HZ <= hz <= FASTEST_HZ:
        raise DataError(f"--hz {hz:g}: expected {SLOWEST_HZ:g} to {FASTEST_HZ:g} rows or frames a second")


# --- examples ----------------------------------------------------------------------------------------------------


def check_rows(path: Path, x: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Of sequences (T, F) of equal width, all finite. Raises DataError."""
    if max(len(each) for each in x) < 2:
        raise DataError(f"{path}: one row an example: expected series of several rows, (N, T, F)")
    for name, each in zip(names, x, strict=True):
        if np.abs(each).max() > LARGEST:
            row, column = np.argwhere(np.abs(each) > LARGEST)[0]
            raise DataError(
                f"{path}: example {name}, row {row + 1}, column {column + 1}: {each[row, column]:g}; expected at most "
                f"{LARGEST:g}"
            )
    if len(x) > 1 and all(np.array_equal(each, x[0]) for each in x):
        raise DataError(f"{path}: all {len(x)} examples are the same: nothing tells their labels apart")


def oddities(x: Sequence[np.ndarray], features: Sequence[str]) -> Iterator[str]:
    """What can be learnt from, but may not be what was meant."""
    low, high = (np.stack([pick(each, 0) for each in x]) for pick in (np.min, np.max))
    constant = [name for name, one in zip(features, low.min(0) == high.max(0), strict=True) if one]
    if constant:
        yield f"the same in every row: {', '.join(constant[:5])}{' …' if len(constant) > 5 else ''}"
    lengths = np.array([len(each) for each in x])
    usual = float(np.median(lengths))
    if lengths.max() > UNEVEN * usual or lengths.min() * UNEVEN < usual:
        yield f"examples of {lengths.min()} to {lengths.max()} rows, half of them of at most {usual:g}"
    if len(set(lengths.tolist())) == 1 and 4 * lengths[0] < x[0].shape[1]:
        yield (
            f"every example has {lengths[0]} rows of {x[0].shape[1]} columns; if these are {lengths[0]} channels, turn "
            "them round: x.transpose(0, 2, 1)"
        )


def check_alike(path: Path, features: Sequence[str], width: int, test: tuple[Path, Sequence[str], int]) -> None:
    """Test data has the columns of what is learnt from. Raises DataError."""
    place, names, its_width = test
    if width != its_width:
        raise DataError(f"{place}: {its_width} columns, {path} has {width}")
    unnamed = [f"x{i}" for i in range(width)]
    if list(features) != list(names) and unnamed not in (list(features), list(names)):
        raise DataError(f"{place}: columns {', '.join(names[:8])}; {path} has {', '.join(features[:8])}")


def check_certificate(path: Path, split: Split) -> None:
    """Of sequences to validate with: the parity certificate is made of the longest. Raises DataError."""
    longest = sorted((len(each) for each in split.x), reverse=True)[:GOLDEN]
    if len(longest) < 2 or longest[-1] < 2:
        raise DataError(
            f"{path}: of the {len(split)} examples to validate with, the longest have {', '.join(map(str, longest))} "
            f"rows: expected at least two examples, and the {GOLDEN} longest of at least two rows"
        )
