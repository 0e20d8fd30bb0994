"""Readers refuse missing and damaged files by name; cuts never tear what belongs together."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from export import data
from export.data import DataError, Split, arem, folds, hold_out, mnist, small_digits


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(size).to_bytes(4) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four files in miniature, whose checksums are taken for the official ones."""
    rng = np.random.default_rng(0)
    sums = {}
    (tmp_path / "mnist").mkdir()
    for name in data.MNIST_MD5:
        count = 100 if name.startswith("train") else 20
        array = rng.integers(0, 256, (count, 28, 28)) if "images" in name else np.arange(count) % 10
        (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        sums[name] = hashlib.md5(idx(array), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(data, "MNIST_MD5", sums)
    return tmp_path


def test_mnist_is_read_packed_or_not(mnist_folder: Path) -> None:
    packed = mnist(mnist_folder)
    for path in (mnist_folder / "mnist").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = mnist(mnist_folder)
    assert packed.sha256 == plain.sha256
    assert plain.validation is not None
    assert (len(plain.train), len(plain.validation), len(plain.test)) == (90, 10, 20)
    assert np.shape(plain.train.x)[1:] == (28, 28, 1)
    assert np.bincount(plain.validation.y).tolist() == [1] * 10


@pytest.mark.parametrize("damage", ["missing", "another", "truncated", "not gzip"])
def test_a_damaged_mnist_file_is_named_with_address_and_checksum(mnist_folder: Path, damage: str) -> None:
    path = mnist_folder / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    if damage == "another":
        path.write_bytes(gzip.compress(idx(np.zeros(20))))
    elif damage == "truncated":
        path.write_bytes(content[:-4])
    elif damage == "not gzip":
        path.write_bytes(b"hello")
    with pytest.raises(DataError) as caught:
        mnist(mnist_folder)
    text = str(caught.value)
    assert "t10k-labels-idx1-ubyte" in text
    assert "https://" in text
    assert damage == "missing" or text.startswith("damaged file")
    assert damage not in ("missing", "another") or data.MNIST_MD5["t10k-labels-idx1-ubyte"] in text


def arem_archive(folder: Path) -> Path:
    """The archive's layout with made-up rows; one activity separates by spaces, as one file of the real one does."""
    rng = np.random.default_rng(0)
    for activity, count in data.AREM_RECORDINGS.items():
        (folder / activity).mkdir(parents=True)
        for number in range(1, count + 1):
            rows = rng.integers(0, 5000, (480, 6)) / 100
            comma = " " if activity == "bending2" else ","
            lines = [comma.join([str(250 * t), *(f"{value:.2f}" for value in row)]) for t, row in enumerate(rows)]
            text = "\n".join(["# Task: made up", "# Columns: time,avg_rss12", *lines])
            (folder / activity / f"dataset{number}.csv").write_text(text + "\n")
    shutil.copy(folder / "lying" / "dataset1.csv", folder / "lying" / "dataset10.csv")  # a copy, as in the real one
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arem_archive(tmp_path_factory.mktemp("archive") / "AReM")


def trusted(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the made-up rows for the official ones."""
    rows, _, _ = data._arem_rows(archive.parent)
    monkeypatch.setattr(data, "AREM_SHA256", data._digest(rows))


def test_arem_is_read_from_the_archive_its_folder_and_an_npz(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(archive, monkeypatch)
    for way in ("unpacked", "zip", "npz"):
        place = tmp_path / way / "arem"
        place.mkdir(parents=True)
        if way == "unpacked":
            shutil.copytree(archive, place / "AReM")
        elif way == "zip":
            with zipfile.ZipFile(place / "AReM.zip", "w") as packed:
                for path in archive.rglob("*.csv"):
                    packed.write(path, path.relative_to(archive))
        else:
            rows, activity, number = data._arem_rows(archive.parent)
            np.savez(place / "arem.npz", x=rows.reshape(-1, 6), activity=activity, dataset=number)
        found = arem(tmp_path / way)
        assert (len(found.train), len(found.test), len(found.labels)) == (69, 19, 6)
        assert found.validation is None
        assert found.copies == {"lying-1"}


def test_another_arem_is_refused_by_its_checksum(archive: Path, tmp_path: Path) -> None:
    shutil.copytree(archive, tmp_path / "arem" / "AReM")
    with pytest.raises(DataError, match="expected b00924d4"):
        arem(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "short", "words", "not a zip", "not an npz"])
def test_a_damaged_arem_file_is_named(archive: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(archive, tmp_path / "arem" / "AReM")
    path = tmp_path / "arem" / "AReM" / "sitting" / "dataset8.csv"
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_text(text[: len(text) // 2])
    elif damage == "words":
        path.write_text(text.replace("250,", "abc,", 1))
    elif damage == "not a zip":
        path = tmp_path / "arem" / "AReM.zip"
        path.write_bytes(b"hello")
    else:
        path = tmp_path / "arem" / "arem.npz"
        path.write_bytes(b"hello")
    with pytest.raises(DataError) as caught:
        arem(tmp_path)
    assert "/".join(path.parts[-2:]) in str(caught.value)


def test_an_empty_folder_says_where_to_get_arem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"AReM.zip from https://archive.ics.uci.edu"):
        arem(tmp_path)


def test_small_digits_need_no_folder() -> None:
    found = small_digits(Path("nowhere"))
    assert found.validation is not None
    assert len(found.train) + len(found.validation) + len(found.test) == 1797
    names = [set(split.names) for split in (found.train, found.validation, found.test)]
    assert len(set.union(*names)) == 1797, "no example stands in two splits"


def grouped() -> Split:
    """24 examples of three labels; every second and its successor are one group."""
    y = np.repeat(np.arange(3), 8)
    return Split(
        [np.full((4, 2), i, np.float32) for i in range(24)], y, [str(i) for i in range(24)], np.arange(24) // 2
    )


def test_a_held_out_group_is_never_torn() -> None:
    rest, held = hold_out(grouped(), 0.25, seed=1)
    assert not set(rest.group) & set(held.group)
    assert np.bincount(held.y).tolist() == [2, 2, 2]


def test_folds_hold_out_every_group_once_and_spread_labels() -> None:
    split = grouped()
    cut = folds(split, 4, seed=1)
    assert sorted(name for _, held in cut for name in held.names) == sorted(split.names)
    for rest, held in cut:
        assert not set(rest.group) & set(held.group)
        assert np.bincount(held.y, minlength=3).tolist() == [2, 2, 2]


def test_people_are_folds_of_their_own() -> None:
    """Four people, each with every label: leave one out."""
    y, person = np.tile(np.arange(3), 4), np.repeat(np.arange(4), 3)
    split = Split([np.zeros((2, 2), np.float32)] * 12, y, [str(i) for i in range(12)], person)
    assert sorted(held.group.tolist() for _, held in folds(split, 4, seed=0)) == [[p] * 3 for p in range(4)]
