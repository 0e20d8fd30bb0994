"""A user's own data: labelled sequences of rows, images or clips, read from files as people have them.

| what | form |
| --- | --- |
| rows | `.ts`, `.ts.gz`: the text format of the UEA archive and sktime, lengths may differ |
|      | `.npz`: `x` (N, T, F), or concatenated (rows, F) with `length` (N,); `label` (N,), optionally `group` (N,) |
|      | a folder with a folder of CSV files a label: tables, read as what is posted (docs/http.md) |
| frames | a folder with a folder a label, in it images, or clips: films, or folders of images by their numbers |

Examples of one group (a person, a machine) stay on one side of every cut.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.checks import (
    check_alike,
    check_certificate,
    check_differ,
    check_rows,
    oddities,
    read_npz,
    series,
    texts,
    wrong_names,
)
from export.clips import one_rate, read_clip, read_image
from export.data import Data, DataError, Split, hold_out
from export.tables import Tables, check_one_rate, in_order, signals
from service.cells import number as value_of
from service.columns import not_finite, places_of
from service.contracts import FrameInput, TrainingData
from service.films import ENDINGS, visible

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
CLIPS = ENDINGS
FEW = 500  # examples to learn from, below which validation is done in folds, so that all are learnt from
FOLDS = 4


@dataclass
class Examples:
    """What lies in the files, in their order."""

    x: list[np.ndarray]  # rows (T, F) float32, clips (T, H, W, C) uint8, images (H, W, C) uint8
    label: list[str]
    name: list[str]
    group: list[str] = field(default_factory=list)  # empty: every example by itself
    features: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # columns that are no signal, in words
    hz: float | None = None  # rows or frames a second, where the files say: a column of times, a film


def read_own(name: str, path: Path, test: Path | None, form: FrameInput | None, seed: int = 0) -> Data:
    """Reads and splits; with `form` as frames. What is odd in it is said on standard error. Raises DataError."""

    def read(each: Path) -> Examples:
        return read_rows(each) if form is None else read_frames(each, form)

    found, held = read(path), None if test is None else read(test)
    if test is not None and held is not None and found.hz is not None and held.hz is not None:
        if form is None:
            check_one_rate(test, held.hz, path, found.hz)
        else:
            one_rate(test, found.hz, held.hz)
    if form is None:
        check_differ(path, found.x)
        if test is not None and held is not None:
            if held.features != found.features and places_of(held.features, found.features) is not None:
                held.x = [in_order(test, x, held.features, found.features) for x in held.x]
                held.features = found.features
            check_alike(path, found.features, found.x[0].shape[1], (test, held.features, held.x[0].shape[1]))
        for oddity in oddities(found.x, found.features):
            print(f"{path}: {oddity}", file=sys.stderr)
    return split_own(name, path, found, held, seed)


def parse_form(size: str, gray: bool, hz: float | None) -> FrameInput:
    """HEIGHTxWIDTH. Raises DataError."""
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and 8 <= int(height) <= 512 and 8 <= int(width) <= 512):
        raise DataError(f"size {size!r}: expected HEIGHTxWIDTH, each 8 to 512, such as 64x64")
    colour, channels = ("gray", 1) if gray else ("rgb", 3)
    return FrameInput(int(height), int(width), channels, colour, rate_hz=hz)  # type: ignore[arg-type]


def read_rows(path: Path) -> Examples:
    """Raises DataError that names file and line or example, what was wrong and what was expected."""
    if path.is_dir():
        tables = Tables()
        found = _read_folder(path, (".csv",), tables.read)
        tables.check(path)
        found.left_out, found.hz = tables.left_out, tables.hz()
    elif path.suffixes[-2:] == [".ts", ".gz"] or path.suffix == ".ts":
        found = _read_ts(path)
    elif path.suffix == ".npz":
        found = _read_npz(path)
    elif not path.exists():
        raise DataError(f"missing {path}")
    else:
        raise DataError(f"{path}: expected .ts, .ts.gz, .npz, or a folder with a folder of CSV files a label")
    found.x, found.features, gone = signals(path, found.x, found.features)
    found.left_out += gone
    if wrong := wrong_names(found.features, found.x[0].shape):
        raise DataError(f"{path}: {wrong}")
    found.features = found.features or [f"x{i}" for i in range(found.x[0].shape[1])]
    _check(path, found)
    check_rows(path, found.x, found.name)
    return found


def read_frames(path: Path, form: FrameInput) -> Examples:
    """Images, or clips: whichever the folder holds. Decoded and resized as the server will do it."""
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder with a folder of images or clips a label")
    below = [entry for label in _folders(path) for entry in visible(label)]
    if any(entry.is_dir() or entry.suffix.lower() in CLIPS for entry in below):
        return _read_clips(path, form)
    return _read_folder(path, IMAGES, lambda each: (read_image(each, form), []))


def _read_clips(path: Path, form: FrameInput) -> Examples:
    rate: float | None = None

    def read(each: Path) -> tuple[np.ndarray, list[str]]:
        nonlocal rate
        clip, hz = read_clip(each, form)
        rate = one_rate(each, rate, hz)
        return clip, []

    found = _read_folder(path, (*CLIPS, ""), read)
    found.hz = rate
    return found


# --- splitting ---------------------------------------------------------------------------------------------------


def split_own(name: str, path: Path, found: Examples, test: Examples | None = None, seed: int = 0) -> Data:
    """A fifth of the examples to test (or `test`, given apart), of the rest a fifth to validate, or folds where they
    are few. By group where there is one, else so that every label has its share."""
    labels = sorted(set(found.label))
    if len(labels) < 2:
        raise DataError(f"{path}: expected at least two labels, found {labels}")
    everything = _to_split(found, labels)
    held = _to_split(test, labels) if test is not None else None
    grouped = bool(found.group)
    rest = everything
    if held is None:
        rest, held = _apart(path, everything, 0.2, seed, grouped, labels)
    how = "by group" if grouped else "drawn per label"
    if len(rest) < FEW:
        _enough(path, rest, FOLDS, grouped, labels)
        train, validation, how = rest, None, f"{how}; validated in {FOLDS} folds"
    else:
        train, validation = _apart(path, rest, 0.2, seed, grouped, labels)
    if rest.x[0].ndim == 2:  # rows
        check_certificate(path, train if validation is None else validation)
    about = TrainingData(
        name=name,
        source=f"own data: {path.name}",
        licence="the owner's",
        split=f"{'given' if test is not None else 'a fifth'} to test, {how}",
    )
    digest = _digest(found, test)
    return Data(train, validation, held, labels, about, digest, found.features, hz=found.hz, left_out=found.left_out)


def _to_split(found: Examples, labels: list[str]) -> Split:
    for name, label in zip(found.name, found.label, strict=True):
        if label not in labels:
            raise DataError(f"{name}: label {label!r} is not among those learnt: {', '.join(labels)}")
    y = np.array([labels.index(label) for label in found.label], np.int64)
    places = {name: i for i, name in enumerate(dict.fromkeys(found.group))}
    group = np.array([places[name] for name in found.group]) if found.group else np.arange(len(y))
    images = found.x[0].ndim == 3
    return Split(np.stack(found.x) if images else list(found.x), y, found.name, group)


def _apart(path: Path, split: Split, share: float, seed: int, grouped: bool, labels: list[str]) -> tuple[Split, Split]:
    """(rest, held out)."""
    _enough(path, split, 2, grouped, labels)
    rest, held = _hold_out_groups(split, share, seed) if grouped else hold_out(split, share, seed)
    for label in np.setdiff1d(held.y, rest.y)[:1]:
        raise DataError(
            f"{path}: label {labels[label]!r} stands in too few groups: expected some on each side of a cut"
        )
    return rest, held


def _hold_out_groups(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Whole groups, of any labels: of many random choices the one with most labels on both sides, near `share`."""
    rng = np.random.default_rng(seed)
    groups, sizes = np.unique(split.group, return_counts=True)
    best: tuple[float, np.ndarray] | None = None
    for _ in range(200):
        order = rng.permutation(len(groups))
        before = np.cumsum(sizes[order]) - sizes[order]
        count = min(len(groups) - 1, max(1, int((before < share * len(split)).sum())))
        inside = np.isin(split.group, groups[order[:count]])
        missing = sum(len(np.unique(split.y)) - len(np.unique(split.y[side])) for side in (inside, ~inside))
        unlearnt = len(np.setdiff1d(split.y[inside], split.y[~inside]))
        cost = 100 * unlearnt + missing + abs(inside.mean() - share)
        if best is None or cost < best[0]:
            best = cost, inside
    assert best is not None
    return split.take(np.flatnonzero(~best[1])), split.take(np.flatnonzero(best[1]))


def _enough(path: Path, split: Split, parts: int, grouped: bool, labels: list[str]) -> None:
    """Each side of a cut needs something."""
    if grouped and len(np.unique(split.group)) < parts + 1:
        raise DataError(f"{path}: {len(np.unique(split.group))} groups are left: expected at least {parts + 1}")
    if not grouped and (least := int(np.bincount(split.y).min())) < parts:
        label = labels[int(np.bincount(split.y).argmin())]
        raise DataError(
            f"{path}: of label {label!r} {least} examples are left to learn from: expected at least {parts}; give more"
        )


def _digest(*parts: Examples | None) -> str:
    total = hashlib.sha256()
    for part in parts:
        for x, label in zip(part.x, part.label, strict=True) if part else ():
            total.update(np.ascontiguousarray(x).tobytes() + label.encode() + b"\0")
    return total.hexdigest()


def _check(path: Path, found: Examples) -> None:
    widths = {x.shape[1] for x in found.x}
    if len(widths) != 1:
        wrong = next(i for i, x in enumerate(found.x) if x.shape[1] != found.x[0].shape[1])
        raise DataError(
            f"{path}: example {found.name[wrong]} has {found.x[wrong].shape[1]} columns, the first has "
            f"{found.x[0].shape[1]}"
        )
    for name, x in zip(found.name, found.x, strict=True):
        if not len(x):
            raise DataError(f"{path}: example {name} has no rows")
        if (error := not_finite(x, found.features)) is not None:
            raise DataError(f"{path}: example {name}, {error.detail}; fill missing values first")


# --- .ts ---------------------------------------------------------------------------------------------------------


def _read_ts(path: Path) -> Examples:
    if not path.is_file():
        raise DataError(f"missing file {path}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"damaged file {path}: {error}") from None
    labels: list[str] | None = None
    found = Examples([], [], [])
    body = False
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not body:
            words = line.split()
            tag, said = words[0].lower(), words[1:2] == ["true"]
            if tag == "@timestamps" and said:
                raise DataError(f"{path}, line {number}: series with time stamps; expected evenly spaced ones")
            if tag == "@classlabel":
                labels = words[2:] if said else None
            body = tag == "@data"
            if not tag.startswith("@"):
                raise DataError(f"damaged file {path}, line {number}: expected a line @… before @data")
            if body and not labels:
                raise DataError(f"{path}: no @classLabel true …: expected labelled series")
            continue
        *dimensions, label = line.split(":")
        if label.strip() not in (labels or []):
            raise DataError(f"damaged file {path}, line {number}: label {label[:40]!r}, expected one of {labels}")
        found.x.append(_series(path, number, dimensions))
        found.label.append(label.strip())
        found.name.append(f"line {number}")
    if not found.x:
        raise DataError(f"damaged file {path}: no series after @data")
    return found


def _series(path: Path, number: int, dimensions: list[str]) -> np.ndarray:
    """(T, F) float32."""
    try:
        columns = [np.array([value_of(v) for v in d.split(",")]) for d in dimensions]
    except ValueError as error:
        raise DataError(f"damaged file {path}, line {number}: {error}") from None
    if len({len(column) for column in columns}) != 1:
        raise DataError(
            f"damaged file {path}, line {number}: dimensions of {[len(column) for column in columns]} values; "
            "expected equally many"
        )
    return np.stack(columns, -1).astype(np.float32)


# --- .npz --------------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> Examples:
    wanted = "expected `x` (N, T, F) or (rows, F) with `length` (N,); `label` (N,); optionally `group` (N,), `features`"
    values = read_npz(path)
    if not values.keys() >= {"x", "label"}:
        raise DataError(f"{path}: it holds {sorted(values)}; {wanted}")
    label, group = values["label"], values.get("group")
    sequences = series(path, values["x"], values.get("length"), wanted)
    for name, each in (("label", label), ("group", group)):
        if each is not None and each.shape != (len(sequences),):
            raise DataError(f"{path}: {name} of shape {each.shape} for {len(sequences)} sequences; {wanted}")
    features = texts(path, "features", values.get("features", np.array([], str)).reshape(-1))
    return Examples(
        [np.asarray(each, np.float32) for each in sequences],
        texts(path, "label", label),
        [str(i) for i in range(len(sequences))],
        [] if group is None else texts(path, "group", group),
        features,
    )


# --- folders -----------------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[Path]:
    found = [entry for entry in visible(path) if entry.is_dir()]
    if not found:
        raise DataError(f"{path}: expected a folder a label in it, found none")
    return found


def _read_folder(
    path: Path, endings: Sequence[str], read: Callable[[Path], tuple[np.ndarray, list[str]]]
) -> Examples:  # fmt: skip
    """A folder a label, an example an entry in it. What ends otherwise is refused: it would be missed in silence."""
    found = Examples([], [], [])
    for folder in _folders(path):
        entries = visible(folder)
        if not entries:
            raise DataError(f"{folder}: expected examples of label {folder.name!r}, found none")
        for entry in entries:
            if ("" if entry.is_dir() else entry.suffix.lower()) not in endings:
                raise DataError(f"{entry}: expected {', '.join(e or 'a folder of images' for e in endings)}")
            x, features = read(entry)
            if found.x and features != found.features:
                x, features = in_order(entry, x, features, found.features), found.features
            found.features = features
            found.x.append(x)
            found.label.append(folder.name)
            found.name.append(f"{folder.name}/{entry.name}")
    return found
