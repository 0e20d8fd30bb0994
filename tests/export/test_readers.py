"""Every reader refuses missing, damaged and wrong files by name, and cuts so that nothing of the test leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import signals, texts
from export.data import Data, DataError, folds

WRONG = ("missing", "not an npz", "truncated", "key", "other values", "lengths")


# --- npz ---------------------------------------------------------------------------------------------------------


def utd(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the real file, in miniature frames' worth: its checksum is taken for the official one."""
    rng = np.random.default_rng(0)
    count, length = signals.UTD_CLIPS, np.full(signals.UTD_CLIPS, 2, np.int32)
    place = np.arange(count)
    x = rng.integers(0, 256, (2 * count, 60, 80), np.uint8) if "depth" in name else rng.normal(size=(2 * count, 6))
    x = x if "depth" in name else x.astype(np.float32)
    monkeypatch.setitem(signals.UTD_SHA256, name, signals._digest(x))
    path = folder / "utd_mhad" / name
    path.parent.mkdir(parents=True)
    np.savez(
        path,
        x=x,
        length=length,
        action=(place // 16 % 27 + 1).astype(np.int16),
        subject=(1 + 2 * (place // 4 % 4)).astype(np.int16),
        trial=(place % 4 + 1).astype(np.int16),
        action_names=np.array([f"action{i}" for i in range(27)]),
    )
    return path


def bearings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    x = np.random.default_rng(0).normal(size=(19 * 120_000, 1)).astype(np.float32)
    monkeypatch.setattr(signals, "CWRU_SHA256", signals._digest(x))
    path = folder / "cwru_bearing" / "cwru_12k_DE.npz"
    path.parent.mkdir(parents=True)
    fault = [name for name in signals.CWRU_FAULTS[1:] for _ in (0, 1)] + ["normal"]
    load = [0, 1] * 9 + [0]
    np.savez(path, x=x, length=np.full(19, 120_000), fault=fault, load_hp=load, file_id=np.arange(100, 119))
    return path


def spoil(path: Path, way: str) -> None:
    if way == "missing":
        path.unlink()
    elif way == "not an npz":
        path.write_bytes(b"hello")
    elif way == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        with np.load(path) as stored:
            values = {key: stored[key] for key in stored.files}
        if way == "key":
            del values["length"]
        elif way == "other values":
            values["x"] = values["x"][::-1]
        else:
            values["length"] = values["length"] + 1
        np.savez(path, **values)


@pytest.mark.parametrize("way", WRONG)
@pytest.mark.parametrize("which", ["inertial_train.npz", "cwru_12k_DE.npz"])
def test_a_spoilt_npz_is_refused_with_its_name_and_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, way: str
) -> None:
    read: Callable[[Path], Data]
    if which.startswith("cwru"):
        path, read = bearings(tmp_path, monkeypatch), signals.cwru
    else:
        path, read = utd(tmp_path, which, monkeypatch), signals.utd_inertial
    spoil(path, way)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert which in str(caught.value)
    assert "https://" in str(caught.value)


def test_another_data_set_is_refused_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utd(tmp_path, "inertial_train.npz", monkeypatch)
    monkeypatch.undo()
    with pytest.raises(DataError, match="expected f413458f"):
        signals.utd_inertial(tmp_path)


@pytest.mark.parametrize(
    ("name", "read", "step"),
    [
        ("depth_train.npz", signals.utd_depth, (60, 80, 1)),
        ("inertial_train.npz", signals.utd_inertial, (6,)),
    ],
)
def test_people_are_left_out_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Path], Data], step: tuple[int, ...]
) -> None:
    utd(tmp_path, name, monkeypatch)
    found = read(tmp_path)
    assert found.validation is None
    assert found.test is None
    assert found.train.x[0].shape == (2, *step)
    assert len(found.labels) == 27
    held = [set(part.group.tolist()) for _, part in folds(found.train, 4, seed=0)]
    assert sorted(held, key=min) == [{1}, {3}, {5}, {7}]


def test_bearings_are_cut_in_time_or_by_load_never_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bearings(tmp_path, monkeypatch)
    found = signals.cwru(tmp_path)
    assert found.validation is not None
    assert found.test is not None
    with np.load(tmp_path / "cwru_bearing" / "cwru_12k_DE.npz") as stored:
        first = stored["x"][:120_000, 0]
    for split, start in ((found.train, 0), (found.validation, 66_000), (found.test, 84_000)):
        rows = split.x[0]
        assert (rows.reshape(-1) == first[start : start + rows.size]).all()
        assert rows.shape[1] == signals.CWRU_BLOCK
    other = signals.cwru_load(tmp_path)
    assert other.test is not None
    assert not set(other.train.names) & set(other.test.names)
    assert (len(other.train), len(other.test)) == (10, 9)


# --- text --------------------------------------------------------------------------------------------------------


def written(folder: Path, sums: dict[str, str], lines: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    place = folder / "text" / "sst2"
    place.mkdir(parents=True)
    for name, content in lines.items():
        (place / name).write_bytes(content)
        monkeypatch.setitem(sums, name, hashlib.sha256(content).hexdigest())
    return place


SST = {
    "stsa.binary.train": b"1 a good film\n0 a bad film\n1 good , good\n0 bad\n",
    "stsa.binary.dev": b"1 a good one\n0 bad bad\n",
    "stsa.binary.test": b"0 a film\n",
}
TREC = {
    "TREC.train.all": b"".join(b"%d what is caf\xe9 %d ?\n" % (i % 6, i // 12) for i in range(120)),
    "TREC.test.all": b"3 who is it ?\n",
}


def test_sentences_are_tokenised_by_the_training_ones_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, texts.SST_SHA256, SST, monkeypatch)
    found = texts.sst2(tmp_path)
    assert found.validation is not None
    assert found.test is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (4, 2, 1)
    assert found.labels == ["negative", "positive"]
    assert found.train.y.tolist() == [1, 0, 1, 0]
    assert found.train.x[0].dtype == np.int64
    assert found.validation.x[0].tolist()[2] == 0, "`one` was never learnt"
    assert '"bad"' in found.tokenizer


def test_questions_are_latin_1_and_equal_ones_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, texts.TREC_SHA256, TREC, monkeypatch)
    found = texts.trec(tmp_path)
    assert found.validation is not None
    assert "café" in found.train.names[0]
    assert not set(found.train.names) & set(found.validation.names)
    assert len(found.train) + len(found.validation) == 120


@pytest.mark.parametrize("way", ["missing", "truncated", "other"])
@pytest.mark.parametrize("name", [*SST, *TREC])
def test_a_spoilt_text_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str) -> None:
    of_sst = name in SST
    place = written(tmp_path, *((texts.SST_SHA256, SST) if of_sst else (texts.TREC_SHA256, TREC)), monkeypatch)
    if way == "missing":
        (place / name).unlink()
    else:
        (place / name).write_bytes((SST | TREC)[name][:-3] if way == "truncated" else b"1 something else\n")
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        (texts.sst2 if of_sst else texts.trec)(tmp_path)
    assert "https://" in str(caught.value)


@pytest.mark.parametrize("line", [b"7 a film\n", b"film\n", b"1 \n"])
def test_a_line_without_label_or_sentence_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    content = SST | {"stsa.binary.dev": b"1 good\n" + line}
    written(tmp_path, texts.SST_SHA256, content, monkeypatch)
    with pytest.raises(DataError, match=r"stsa\.binary\.dev, line 2"):
        texts.sst2(tmp_path)


# --- the real ones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "counts"),
    [
        (signals.utd_depth, (431, 0, 0)),
        (signals.utd_inertial, (431, 0, 0)),
        (signals.cwru, (19, 19, 19)),
        (signals.cwru_load, (10, 10, 9)),
        (texts.sst2, (6920, 872, 1821)),
        (texts.trec, (4909, 543, 500)),
    ],
)
def test_the_real_data_set_is_read(
    data_folder: Path, read: Callable[[Path], Data], counts: tuple[int, int, int]
) -> None:
    found = read(data_folder)
    assert (len(found.train), len(found.validation or []), len(found.test or [])) == counts
