"""Data sets in their public formats, checked by checksum, and split so that nothing of the test is seen before its end.

A data folder has one folder a data set (`mnist/`, `arem/`); docs/models.md says where each comes from.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.contracts import TrainingData


class DataError(Exception):
    """Data is missing or damaged. The text names the file, what was expected, and where to get it."""


@dataclass(frozen=True)
class Split:
    """N examples. Frames: x (N, H, W, C) uint8. Sequences: x a list of N arrays whose T may differ: rows (T, F)
    float32, video (T, H, W, C) uint8, texts (T,) int64."""

    x: np.ndarray | list[np.ndarray]
    y: np.ndarray  # (N,) int64, index into the labels
    names: list[str]  # of each example, as the data set calls it
    group: np.ndarray  # (N,) int64: examples of one group (a person, copies of a recording) stay on one side of a cut

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Sequence[int] | np.ndarray) -> Split:
        chosen = np.asarray(index, np.int64)
        x = [self.x[i] for i in chosen] if isinstance(self.x, list) else self.x[chosen]
        return Split(x, self.y[chosen], [self.names[i] for i in chosen], self.group[chosen])


@dataclass(frozen=True)
class Data:
    """A data set, split. `about` goes into the manifest; `sha256` binds a run's checkpoints to what it was fed."""

    train: Split
    validation: Split | None  # none: few examples, validated in folds of `train`
    test: Split | None  # none: measured by the nets of the folds, each on what it never saw
    labels: list[str]
    about: TrainingData
    sha256: str
    features: list[str] = field(default_factory=list)  # of rows
    copies: frozenset[str] = frozenset()  # test examples that also stand in the training data under another name
    tokenizer: str = ""  # of texts: tokenizer.json
    hz: float | None = None  # rows or frames a second, where the files say: a column of times, a film
    left_out: list[str] = field(default_factory=list)  # columns of own rows that are no signal, in words


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """(rest, held out): of every label `share` of its groups, at least one, drawn at random."""
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    for label in np.unique(split.y):
        groups = np.unique(split.group[split.y == label])
        held.update(rng.permutation(groups)[: max(1, round(share * len(groups)))].tolist())
    inside = np.isin(split.group, list(held))
    return split.take(np.flatnonzero(~inside)), split.take(np.flatnonzero(inside))


def folds(split: Split, count: int, seed: int) -> list[tuple[Split, Split]]:
    """(rest, held out) `count` times: every group is held out once, every label spread over the folds."""
    rng = np.random.default_rng(seed)
    place: dict[int, int] = {}
    for label in np.unique(split.y):
        for group in rng.permutation(np.unique(split.group[split.y == label])).tolist():
            place.setdefault(group, len(place) % count)
    fold = np.array([place[group] for group in split.group.tolist()])
    return [(split.take(np.flatnonzero(fold != k)), split.take(np.flatnonzero(fold == k))) for k in range(count)]


def mean_and_spread(rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Of each column of rows (T, F) float32: mean and standard deviation, as near to the truth as float32 can say.

    Added up in 64 bits: in 32 the mean of a million values lies beside them. Lowest ≤ mean ≤ highest and 0 < deviation
    hold after rounding, too; that of a column that never changed is 1: it says nothing, and if it does one day, it must
    not shout.
    """
    mean = rows.mean(0, dtype=np.float64).clip(rows.min(0), rows.max(0))
    spread = rows.std(0, dtype=np.float64)
    spread[(rows == rows[:1]).all(0) | (spread < np.finfo(np.float32).tiny)] = 1.0
    return mean.astype(np.float32).tolist(), spread.astype(np.float32).tolist()


def _digest(*arrays: np.ndarray) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


# --- MNIST: IDX files --------------------------------------------------------------------------------------------

MNIST_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/ (a mirror of the original files, which were at LeCun's)"
MNIST_MD5 = {  # of the unpacked files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(folder: Path) -> Data:
    """60,000 + 10,000 handwritten digits, 28×28 grey, white on black; 6,000 of the first are for validation."""
    content = {name: _mnist_file(folder / "mnist", name, md5) for name, md5 in MNIST_MD5.items()}
    train = _images(*list(content.values())[:2])
    test = _images(*list(content.values())[2:])
    rest, validation = hold_out(train, 0.1, seed=0)
    about = TrainingData(
        name="MNIST",
        source="Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits",
        licence="CC BY-SA 3.0, as usually given",
        split="official test; of the official training images a tenth of each digit to validate, the rest to train on",
    )
    digits = [str(digit) for digit in range(10)]
    return Data(rest, validation, test, digits, about, _digest(train.x, train.y, test.x, test.y))


def _mnist_file(folder: Path, name: str, md5: str) -> np.ndarray:
    """One IDX file, gzip or not: two zero bytes, type 08 (uint8), number of dimensions, big-endian sizes, data."""
    packed, plain = folder / f"{name}.gz", folder / name
    path = packed if packed.is_file() else plain
    wanted = f"MNIST: get the four files {', '.join(f'{n}.gz' for n in MNIST_MD5)} from {MNIST_ADDRESS} into {folder}/"
    if not path.is_file():
        raise DataError(f"missing file {packed} (MD5 of its unpacked content: {md5})\n{wanted}")
    try:
        data = gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"damaged file {path}: {error}\n{wanted}") from None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"damaged file {path}: MD5 of its unpacked content is {found}, expected {md5}\n{wanted}")
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes.tolist())


def _images(images: np.ndarray, labels: np.ndarray) -> Split:
    names = [f"{i:05d}" for i in range(len(labels))]
    return Split(images[..., None], labels.astype(np.int64), names, np.arange(len(labels)))


# --- scikit-learn's digits: real, small, installed with it -------------------------------------------------------


def small_digits(folder: Path) -> Data:
    """1,797 handwritten digits, 8×8 grey, 0 to 16: needs no data folder."""
    from sklearn.datasets import load_digits  # a second of import that only this data set needs

    bunch = load_digits()
    images = (bunch.images * 255 / 16).round().astype(np.uint8)[..., None]
    names = [f"{i:04d}" for i in range(len(images))]
    everything = Split(images, bunch.target.astype(np.int64), names, np.arange(len(images)))
    rest, test = hold_out(everything, 0.25, seed=0)
    train, validation = hold_out(rest, 0.15, seed=0)
    about = TrainingData(
        name="scikit-learn digits",
        source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (UCI), as in scikit-learn",
        licence="CC BY 4.0",
        split="a quarter to test; of the rest 15 % to validate (drawn per digit)",
    )
    digits = [str(digit) for digit in range(10)]
    return Data(train, validation, test, digits, about, _digest(images, everything.y))


# --- AReM: activities by radio signal strength -------------------------------------------------------------------

AREM_ADDRESS = (
    "https://archive.ics.uci.edu/dataset/366/activity+recognition+system+based+on+multisensor+data+fusion+arem"
)
AREM_FEATURES = ["avg_rss12", "var_rss12", "avg_rss13", "var_rss13", "avg_rss23", "var_rss23"]
AREM_RECORDINGS = {
    "bending1": 7, "bending2": 6, "cycling": 15, "lying": 15, "sitting": 15, "standing": 15, "walking": 15,
}  # fmt: skip
AREM_ROWS = 480  # a recording: 120 s, a row every 250 ms
AREM_SHA256 = "b00924d40a578529f14271781ef649406bfe1fb4e83f12765e562dbf27c64f92"  # all rows, float32, in this order


def arem(folder: Path) -> Data:
    """88 recordings of 480 rows, 6 channels; bending1 and bending2 are one label. Split by recording, never by window.

    Reads the official `AReM.zip`, its unpacked folder, or `arem.npz` (`x` concatenated, `activity`, `dataset`).
    """
    rows, activity, number = _arem_rows(folder / "arem")
    found = _digest(rows)
    if found != AREM_SHA256:
        where = f"damaged data in {folder / 'arem'}"
        raise DataError(f"{where}: the rows have SHA-256 {found}, expected {AREM_SHA256}\n{_arem_wanted(folder)}")
    label = ["bending" if name.startswith("bending") else name for name in activity]
    labels = sorted(set(label))
    y = np.array([labels.index(name) for name in label], np.int64)
    names = [f"{name}-{n}" for name, n in zip(activity, number, strict=True)]
    everything = Split(list(rows), y, names, _same_recording(rows))
    last_of_test = [2 if name.startswith("bending") else 3 for name in activity]
    tested = np.array([n <= last for n, last in zip(number, last_of_test, strict=True)])
    train, test = everything.take(np.flatnonzero(~tested)), everything.take(np.flatnonzero(tested))
    copies = frozenset(name for name, group in zip(test.names, test.group, strict=True) if group in train.group)
    about = TrainingData(
        name="AReM",
        source="F. Palumbo, C. Gallicchio, R. Pucci, A. Micheli: AReM, UCI Machine Learning Repository, 2016",
        licence="CC BY 4.0",
        split="by recording. Test: datasets 1–2 of bending1 and bending2, 1–3 of the others",
    )
    return Data(train, None, test, labels, about, found, AREM_FEATURES, copies)


def _arem_wanted(folder: Path) -> str:
    return (
        f"AReM: get AReM.zip from {AREM_ADDRESS} into {folder / 'arem'}/ (unpacked or not; "
        f"SHA-256 of its rows as float32: {AREM_SHA256})"
    )


def _arem_rows(folder: Path) -> tuple[np.ndarray, list[str], list[int]]:
    """Rows (88, 480, 6) float32, and of each recording its activity and its number."""
    activity = [name for name, count in AREM_RECORDINGS.items() for _ in range(count)]
    number = [n for count in AREM_RECORDINGS.values() for n in range(1, count + 1)]
    if (folder / "arem.npz").is_file():
        return _arem_npz(folder / "arem.npz", activity, number), activity, number
    root: Path | zipfile.Path | None = None
    if (folder / "AReM.zip").is_file():
        try:
            root = zipfile.Path(folder / "AReM.zip")
        except zipfile.BadZipFile as error:
            raise DataError(f"damaged file {folder / 'AReM.zip'}: {error}\n{_arem_wanted(folder.parent)}") from None
    elif folder.is_dir():
        root = folder
    if root is not None and not (root / "bending1").is_dir():
        root = root / "AReM"
    if root is None or not root.is_dir():
        raise DataError(f"missing {folder / 'AReM.zip'}\n{_arem_wanted(folder.parent)}")
    rows = [_arem_csv(root / name / f"dataset{n}.csv") for name, n in zip(activity, number, strict=True)]
    return np.stack(rows), activity, number


def _arem_npz(path: Path, activity: list[str], number: list[int]) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            x, names, numbers = stored["x"], stored["activity"].tolist(), stored["dataset"].tolist()
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"damaged file {path}: {error}\n{_arem_wanted(path.parent.parent)}") from None
    if names != activity or numbers != number or x.shape != (len(activity) * AREM_ROWS, len(AREM_FEATURES)):
        raise DataError(f"damaged file {path}: expected 88 recordings of {AREM_ROWS} rows in the order of the archive")
    return np.asarray(x, np.float32).reshape(len(activity), AREM_ROWS, len(AREM_FEATURES))


def _arem_csv(path: Path | zipfile.Path) -> np.ndarray:
    """`time,avg_rss12,…`; comment lines begin with #. One file of the archive separates by spaces."""
    try:
        lines = [line for line in path.read_text("ascii").splitlines() if line.strip() and not line.startswith("#")]
        rows = np.array([re.split(r"[,\s]+", line.strip(", \t")) for line in lines], np.float64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"missing or damaged file {path}: {error}") from None
    if rows.shape != (AREM_ROWS, 1 + len(AREM_FEATURES)):
        raise DataError(f"damaged file {path}: expected {AREM_ROWS} rows of 7 columns, found {rows.shape}")
    return rows[:, 1:].astype(np.float32)


def _same_recording(rows: np.ndarray) -> np.ndarray:
    """A group a recording (88,); recordings most of whose rows are equal, place by place, are copies and share one."""
    groups = np.arange(len(rows))
    for i, x in enumerate(rows):
        alike = (rows[:i] == x).all(-1).mean(-1) > 0.5
        if alike.any():
            groups[i] = groups[int(alike.argmax())]
    return groups
