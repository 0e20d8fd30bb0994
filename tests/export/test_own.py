"""A user's own data: every form is read, spoilt files are named, nothing leaks, and the road ends in a package."""

from __future__ import annotations

import dataclasses
import gzip
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from export.checks import check_rate, oddities
from export.data import DataError
from export.deadline import Deadline
from export.own import FOLDS, Examples, parse_form, read_frames, read_own, read_rows, split_own
from export.plan import FAMILIES, MEMBERS, Candidate, Choice, Found, choose, own_task
from service.contracts import FrameInput

TS = """# a comment
@problemName Pumps
@timeStamps false
@dimensions 2
@equalLength false
@classLabel true ok worn
@data
1,2,3:4,5,6:ok
1.5,2:0,-1e-3:worn
"""


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_ts_files_are_read_with_their_lengths(tmp_path: Path, packed: bool) -> None:
    path = written(tmp_path / "a.ts", TS)
    if packed:
        path = tmp_path / "a.ts.gz"
        path.write_bytes(gzip.compress(TS.encode()))
    found = read_rows(path)
    assert [x.tolist() for x in found.x] == [[[1, 4], [2, 5], [3, 6]], [[1.5, 0], [2, np.float32(-1e-3)]]]
    assert found.label == ["ok", "worn"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1,2,3:4,5,6:ok", "1,2,3:4,5:ok", "line 8: dimensions of [3, 2]"),
        ("1,2,3:4,5,6:ok", "1,x,3:4,5,6:ok", "line 8"),
        ("1,2,3:4,5,6:ok", "1,?,3:4,5,6:ok", "row 2, column 1"),
        ("1,2,3:4,5,6:ok", "1,2,3:4,5,6:new", "label 'new'"),
        ("1,2,3:4,5,6:ok", "1,2,3:ok", "columns"),
        ("@timeStamps false", "@timeStamps true", "line 3: series with time stamps"),
        ("@classLabel true ok worn", "@classLabel false", "no @classLabel"),
        ("@problemName Pumps", "hello", "line 2"),
    ],
)
def test_a_spoilt_ts_file_is_named_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path / "pumps.ts", TS.replace(old, new))
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert "pumps.ts" in str(caught.value)
    assert said in str(caught.value)


def test_half_a_packed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ts.gz").write_bytes(gzip.compress(TS.encode())[:40])
    with pytest.raises(DataError, match=r"damaged file .*a\.ts\.gz"):
        read_rows(tmp_path / "a.ts.gz")


def test_npz_files_are_read_in_both_forms(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(2, 6, 2)
    np.savez(tmp_path / "a.npz", x=x, label=["a", "b"])
    np.savez(tmp_path / "b.npz", x=x.reshape(12, 2), length=[6, 6], label=[3, 4], group=["p", "q"], features=["u", "v"])
    one, other = read_rows(tmp_path / "a.npz"), read_rows(tmp_path / "b.npz")
    assert all((a == b).all() for a, b in zip(one.x, other.x, strict=True))
    assert (other.label, other.group, other.features) == (["3", "4"], ["p", "q"], ["u", "v"])


X, L = np.zeros((4, 5, 2)), [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"x": X}, "it holds ['x']"),
        ({"x": X, "label": [1, 2]}, "label of shape (2,) for 4"),
        ({"x": X, "label": [1, 2, 1, 2], "group": [1]}, "group of shape (1,)"),
        ({"x": X[0], "label": [1], "length": [4]}, "add up to 4"),
        ({"x": X * np.nan, "label": [1, 2, 1, 2]}, "example 0, row 1, column 1 (x0): nan"),
        ({"x": np.array([["a"]]), "label": [1]}, "type <U1"),
        ({"x": np.float32(1), "label": [1]}, "x of shape ()"),
        ({"x": X, "label": L, "features": ["a"] * 5}, "'a' stands there twice"),
        ({"x": X, "label": L, "features": ["a", " "]}, "features number 2 is empty"),
        ({"x": X, "label": L, "features": ["a", "b", "c"]}, "3 features are named, the rows have 2 columns"),
        ({"x": X, "label": L, "features": list("abcde")}, "are its channels first? expected (N, T, F)"),
        ({"x": X[..., 0], "label": L, "features": list("abcde")}, "one row an example is no series"),
        ({"x": X[:, :1], "label": L}, "one row an example: expected series"),
        ({"x": X[0], "label": [1, 2], "length": [2.5, 2.5]}, "expected whole numbers"),
        ({"x": X[0], "label": [1, 2], "length": [np.nan, 5]}, "expected whole numbers"),
        ({"x": X[0], "label": [1, 2], "length": ["2", "3"]}, "expected whole numbers"),
        ({"x": X[0], "label": [1, 2], "length": [-1, 6]}, "the least of them -1"),
        ({"x": X[0], "label": [], "length": []}, "add up to 0"),
        ({"x": X, "label": L, "length": [5, 5, 5, 5]}, "without padding"),
        ({"x": X, "label": [0.25, 1, 0.25, 1]}, "label 0.25: expected names or whole numbers"),
        ({"x": X, "label": [np.nan, 1, 1, 1]}, "label nan"),
        ({"x": X, "label": [np.inf, 1, 1, 1]}, "label inf"),
        ({"x": X, "label": ["a", "", "a", "b"]}, "label number 2 is empty"),
        ({"x": X, "label": np.eye(4)}, "label of shape (4, 4) for 4"),
        ({"x": X, "label": L}, "all 4 examples are the same"),
        ({"x": X + np.float64(1e30), "label": L}, "row 1, column 1: 1e+30; expected at most 1e+18"),
    ],
)
def test_a_spoilt_npz_says_what_was_expected(tmp_path: Path, values: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "mine.npz", **values)
    with pytest.raises(DataError) as caught:
        read_own("mine", tmp_path / "mine.npz", None, None)
    assert "mine.npz" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("at", [0.3, 0.6])
def test_a_packed_npz_with_a_wrong_byte_is_named(tmp_path: Path, at: float) -> None:
    x = np.random.default_rng(0).normal(size=(8, 50, 2))
    np.savez_compressed(tmp_path / "mine.npz", x=x, label=L * 2)
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    content[int(at * len(content))] ^= 0xFF
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged file .*mine\.npz"):
        read_rows(tmp_path / "mine.npz")


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ([0.0, 1.0], ["0", "1"]),
        ([b"ok", b"worn"], ["ok", "worn"]),
        (["ok ", "worn"], ["ok", "worn"]),
        ([True, False], ["True", "False"]),
    ],
    ids=["floats", "bytes", "blanks", "truth"],
)
def test_labels_are_names_without_what_a_file_adds(tmp_path: Path, label: list[object], found: list[str]) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(20.0).reshape(2, 5, 2), label=label)
    assert read_rows(tmp_path / "a.npz").label == found


@pytest.mark.parametrize(
    ("width", "features", "said"),
    [
        (3, ["a", "b", "c"], "3 columns, "),
        (2, ["b", "a"], None),
        (2, ["a", "c"], "columns a, c; "),
        (2, [], None),
    ],
)
def test_test_data_has_the_columns_of_what_is_learnt(
    tmp_path: Path, width: int, features: list[str], said: str | None
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.normal(size=(16, 6, 2)), label=L * 4, features=["a", "b"])
    np.savez(tmp_path / "t.npz", x=rng.normal(size=(4, 6, width)), label=L, features=features)
    if said is None:
        assert read_own("own", tmp_path / "a.npz", tmp_path / "t.npz", None).features == ["a", "b"]
        return
    with pytest.raises(DataError) as caught:
        read_own("own", tmp_path / "a.npz", tmp_path / "t.npz", None)
    assert f"t.npz: {said}" in str(caught.value)


def test_a_certificate_that_cannot_be_made_is_told_before_anything_is_learnt(tmp_path: Path) -> None:
    rows = [np.random.default_rng(i).normal(size=(9 if i < 2 else 1, 2)) for i in range(40)]
    np.savez(tmp_path / "a.npz", x=np.concatenate(rows), length=[len(x) for x in rows], label=L * 10)
    with pytest.raises(DataError, match="at least two rows"):
        read_own("own", tmp_path / "a.npz", None, None)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.random.default_rng(0).normal(size=(40, 6, 2)) * [1, 0], "the same in every row: x1"),
        (np.random.default_rng(0).normal(size=(40, 2, 90)), "every example has 2 rows of 90 columns"),
        (np.random.default_rng(0).normal(size=(40, 6, 2)), ""),
    ],
    ids=["constant", "channels first", "nothing"],
)
def test_what_is_odd_is_said_and_read(
    tmp_path: Path, x: np.ndarray, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", x=x, label=L * 10)
    read_own("own", tmp_path / "a.npz", None, None)
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) == bool(said)


@pytest.mark.parametrize("hz", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_rate_that_is_none_is_refused(hz: float) -> None:
    check_rate(50.0)
    check_rate(None)
    with pytest.raises(DataError, match=r"--hz .*rows or frames a second"):
        check_rate(hz)


def test_lengths_far_apart_are_said() -> None:
    x = [np.random.default_rng(i).normal(size=(900 if i == 0 else 9, 2)) for i in range(5)]
    assert list(oddities(x, ["a", "b"])) == ["examples of 9 to 900 rows, half of them of at most 9"]


def test_folders_of_csvs_are_labels(tmp_path: Path) -> None:
    written(tmp_path / "ok" / "1.csv", "a,b\n1,2\n3,4\n")
    written(tmp_path / "worn" / "1.csv", "a,b\n5,6\n")
    found = read_rows(tmp_path)
    assert (found.label, found.features, found.x[0].shape) == (["ok", "worn"], ["a", "b"], (2, 2))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("2.csv", "a,b\n1,2\n3\n", "row 2 has 1 columns, expected 2: a, b"),
        ("2.csv", "a,b\n1,x\n", "row 1, column 2: 'x' is not a number"),
        ("2.csv", "a,c\n1,2\n", "columns ['a', 'c']"),
        ("2.csv", "a,b\n", "no rows"),
        ("2.txt", "1,2\n", "expected .csv"),
    ],
)
def test_a_spoilt_csv_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    written(tmp_path / "ok" / "1.csv", "a,b\n1,2\n")
    written(tmp_path / "worn" / name, text)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path)
    assert f"worn/{name}" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("made", "said"), [("gone", "missing"), ("a.xls", "expected .ts"), ("", "a folder a label")])
def test_what_is_no_data_says_what_is(tmp_path: Path, made: str, said: str) -> None:
    path = tmp_path / made
    if made == "a.xls":
        path.write_text("x")
    with pytest.raises(DataError, match=said):
        read_rows(path)


# --- frames ------------------------------------------------------------------------------------------------------

FORM = FrameInput(16, 16, 1, "gray")


def picture(value: int) -> np.ndarray:
    return np.full((20, 30, 3), value, np.uint8)


def test_images_and_clips_are_read_as_the_server_will(tmp_path: Path) -> None:
    for label, value in (("dark", 10), ("light", 200)):
        (tmp_path / "images" / label).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / label / "1.png"), picture(value))
        clip = tmp_path / "clips" / label / "one"
        clip.mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(clip / f"{i}.jpg"), picture(value + i))
    images, clips = read_frames(tmp_path / "images", FORM), read_frames(tmp_path / "clips", FORM)
    assert [x.shape for x in images.x] == [(16, 16, 1)] * 2
    assert [x.shape for x in clips.x] == [(3, 16, 16, 1)] * 2
    assert [int(x.mean().round()) for x in images.x] == [10, 200]
    assert clips.label == ["dark", "light"]


def film(path: Path, values: Sequence[int], hz: float = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), hz, (30, 20))
    for value in values:
        writer.write(picture(value))
    writer.release()
    return path


def shades(clip: np.ndarray) -> list[int]:
    """To tens."""
    return [round(value, -1) for value in clip.mean((1, 2, 3)).round().astype(int).tolist()]


def test_frames_in_a_folder_are_read_by_their_numbers(tmp_path: Path) -> None:
    clip = tmp_path / "a" / "clip"
    clip.mkdir(parents=True)
    for i in range(12):
        cv2.imwrite(str(clip / f"frame{i}.png"), picture(20 * i))
    (clip / ".DS_Store").write_bytes(b"notes of the system")
    (tmp_path / "a" / "._clip").write_bytes(b"others")
    (read,) = read_frames(tmp_path, FORM).x
    assert shades(read) == [20 * i for i in range(12)]


@pytest.mark.parametrize(
    ("hz", "expected"),
    [
        (None, [0, 50, 100, 150, 200]),
        (10.0, [0, 50, 100, 150, 200]),
        (5.0, [0, 100, 200]),
        (20.0, [0, 50, 50, 100, 100, 150, 150, 200, 200, 200]),
    ],
)
def test_of_a_film_the_frames_nearest_to_the_rate_are_read(
    tmp_path: Path, hz: float | None, expected: list[int]
) -> None:
    film(tmp_path / "a" / "1.avi", [0, 50, 100, 150, 200])
    found = read_frames(tmp_path, replace(FORM, rate_hz=hz))
    assert [shades(clip) for clip in found.x] == [expected]
    assert found.hz == (hz or 10.0)


def test_films_of_two_rates_want_one(tmp_path: Path) -> None:
    film(tmp_path / "a" / "1.avi", [0, 50], 10)
    film(tmp_path / "b" / "1.avi", [0, 50], 25)
    with pytest.raises(DataError, match=r"b/1\.avi: 25 frames a second, the first film has 10; say --hz"):
        read_frames(tmp_path, FORM)
    assert [len(clip) for clip in read_frames(tmp_path, replace(FORM, rate_hz=10)).x] == [2, 1]


def test_a_film_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    short = film(tmp_path / "a" / "1.avi", list(range(0, 200, 10)))
    data = bytearray(short.read_bytes())
    length = data.find(b"strh") + 40  # of the stream, in frames
    data[length : length + 4] = (30).to_bytes(4, "little")
    short.write_bytes(data)
    with pytest.raises(DataError, match=r"a/1\.avi: 20 of the 30 frames that it announces can be read"):
        read_frames(tmp_path, FORM)


@pytest.mark.parametrize("name", ["1.png", "1.avi"])
def test_a_spoilt_picture_or_film_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"hello")
    with pytest.raises(DataError, match=f"a/{name}"):
        read_frames(tmp_path, FORM)


@pytest.mark.parametrize("size", ["64", "x", "4x64", "64x9999"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(DataError, match="HEIGHTxWIDTH"):
        parse_form(size, False, None)


# --- splitting ---------------------------------------------------------------------------------------------------


def examples(count: int, labels: int = 2, groups: int = 0) -> Examples:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(6, 2)).astype(np.float32) for _ in range(count)]
    group = [f"g{i % groups}" for i in range(count)] if groups else []
    return Examples(
        x,
        [f"l{i // groups % labels if groups else i % labels}" for i in range(count)],
        list(map(str, range(count))),
        group,
        ["a", "b"],
    )


def test_every_label_has_its_share_of_every_part(tmp_path: Path) -> None:
    data = split_own("own", tmp_path, examples(800, labels=4))
    assert data.validation is not None
    assert data.test is not None
    parts = (data.train, data.validation, data.test)
    assert [np.bincount(part.y).tolist() for part in parts] == [[128] * 4, [32] * 4, [40] * 4]
    assert len({name for part in parts for name in part.names}) == 800


def test_a_group_stands_on_one_side_even_if_it_has_every_label(tmp_path: Path) -> None:
    data = split_own("own", tmp_path, examples(800, groups=10))
    assert data.validation is not None
    assert data.test is not None
    sides = [set(part.group.tolist()) for part in (data.train, data.validation, data.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10
    assert all(len(np.unique(part.y)) == 2 for part in (data.train, data.validation, data.test))


def test_few_examples_are_validated_in_folds_and_test_data_may_come_apart(tmp_path: Path) -> None:
    data = split_own("own", tmp_path, examples(40), examples(10))
    assert data.validation is None
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (40, 10)
    assert own_task("own", data, 10.0, Candidate("gru", 32)).folds == FOLDS


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (examples(30, labels=1), "at least two labels"),
        (examples(30, labels=30), "of label .l0. 1 examples are left"),
        (examples(30, groups=2), "groups are left"),
        (
            dataclasses.replace(examples(30, labels=6), group=[f"g{i % 6}" for i in range(30)]),
            "stands in too few groups",
        ),
    ],
)
def test_too_few_to_split_says_so(tmp_path: Path, found: Examples, said: str) -> None:
    with pytest.raises(DataError, match=said):
        split_own("own", tmp_path, found)


# --- choosing ----------------------------------------------------------------------------------------------------


def test_of_equally_right_candidates_the_least_surprised_is_chosen_and_remembered(tmp_path: Path) -> None:
    data = split_own("own", tmp_path, examples(800))
    tried: list[str] = []

    def trial(task, rest, held, until, path) -> Found:
        tried.append(path.stem)
        assert not set(rest.names) & set(held.names)
        assert data.test is not None
        assert not set(data.test.names) & set(held.names)
        return Found(0.9, -0.2 if path.stem == "try-lstm-64" else -0.3, task.epochs)

    task, choice = choose("own", data, 10.0, "auto", Deadline(3600), tmp_path, trial)
    assert (choice.family, choice.width, task.net.family) == ("lstm", 64, "lstm")
    assert {name.split("-")[1] for name in tried} == set(FAMILIES) - {"auto"}
    again, same = choose("own", data, 10.0, "auto", Deadline(3600), tmp_path, trial)
    assert (same, again.epochs, len(tried)) == (choice, task.epochs, 9), "nothing was tried again"


def test_of_few_examples_the_better_half_is_tried_on_the_next_fold(tmp_path: Path) -> None:
    data = split_own("own", tmp_path, examples(40))
    tried: dict[str, list[frozenset[str]]] = {}

    def trial(task, rest, held, until, path) -> Found:
        tried.setdefault("-".join(path.stem.split("-")[1:3]), []).append(frozenset(held.names))
        family = task.net.family
        return Found(0.9 if family in ("cnn1d", "rocket") else 0.8, -0.1 * (family == "rocket"), task.epochs)

    task, choice = choose("own", data, 10.0, "auto", Deadline(3600), tmp_path, trial)
    rounds = {name: len(folds) for name, folds in tried.items()}
    assert sorted(rounds.values()) == [1, 1, 1, 1, 2, 2, 3, 4, 4]
    assert {name for name, count in rounds.items() if count > 1} >= {"cnn1d-32", "cnn1d-64", "rocket-32", "rocket-64"}
    assert all(len(set(folds)) == len(folds) for folds in tried.values())
    assert (choice.family, choice.members) == ("cnn1d", MEMBERS)
    assert len(task.net.build(task.shape(data.train, 2)).members) == MEMBERS


def test_a_short_time_tries_fewer_and_learns_shorter(tmp_path: Path) -> None:
    data = split_own("own", tmp_path, examples(800))
    tried: list[str] = []
    task, choice = choose(
        "own", data, 10.0, "gru", Deadline(1e-9), tmp_path, lambda *given: tried.append("one") or Found(0.5, 0.0, 9)
    )
    assert isinstance(choice, Choice)
    assert tried == ["one"]
    assert task.epochs == 5


@pytest.mark.parametrize("family", ["lstm", "gru", "rnn", "cnn1d", "rocket"])
def test_a_family_that_is_asked_for_is_taken(tmp_path: Path, family: str) -> None:
    data = split_own("own", tmp_path, examples(800))
    assert (
        choose("own", data, 10.0, family, Deadline(3600), tmp_path, lambda *given: Found(0.5, 0.0, 9))[1].family
        == family
    )


# --- the command -------------------------------------------------------------------------------------------------


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    full = [sys.executable, "-m", "export.train", *words, "--threads", "1"]
    return subprocess.run(full, capture_output=True, text=True, timeout=100, check=False)


def test_faults_end_the_command_with_one_message(tmp_path: Path) -> None:
    bad = written(tmp_path / "bad.ts", TS.replace("4,5,6", "4,5"))
    done = command("pumps", "--data", str(bad), "--out", str(tmp_path / "run"), folder=tmp_path)
    assert done.returncode == 2
    assert "bad.ts, line 8" in done.stderr
    assert "Traceback" not in done.stderr


def test_images_of_ones_own_end_as_a_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, value in (("dark", 20), ("light", 180)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(12):
            image = rng.integers(value, value + 60, (24, 24, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / label / f"{i}.png"), image)
    out = tmp_path / "run"
    done = command(
        "shades", "--data", str(tmp_path / "data"), "--frames", "--size", "16x16", "--epochs", "6",
        "--minutes", "0.05", "--out", str(out), folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from service.packages import load_package
    from service.parity import verify

    package = load_package(out / "package" / "shades" / "1")
    assert verify(package).passed
    assert package.manifest.labels == ["dark", "light"]
    assert package.manifest.frames is not None
    assert (package.manifest.frames.height, package.manifest.frames.colour) == (16, "rgb")


def test_clips_of_ones_own_become_a_task(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for i in range(6):
            clip = tmp_path / label / str(i)
            clip.mkdir(parents=True)
            for t in range(3 + i % 2):
                cv2.imwrite(str(clip / f"{t}.png"), rng.integers(0, 255, (16, 16, 3), np.uint8))
    data = read_own("clips", tmp_path, None, parse_form("16x16", True, 10.0))
    task = own_task("clips", data, 10.0, Candidate("gru", 16))
    shape = task.shape(data.train, 2)
    batch = next(iter(task.batches(data.train, shape, np.random.default_rng(0))))
    y, _ = task.net.build(shape)(batch.x, task.net.build(shape).initial_state(len(batch.x)))
    assert y.shape == (*batch.y.shape, 2)
    assert batch.weight.sum(1).numpy() == pytest.approx(1)


def test_a_label_of_too_few_examples_is_called_by_its_name(tmp_path: Path) -> None:
    for label, count in (("ok", 9), ("worn", 2)):
        (tmp_path / label).mkdir()
        for n in range(count):
            (tmp_path / label / f"{n}.csv").write_text(f"a,b\n{n},2.5\n3,{n}\n")
    with pytest.raises(DataError, match="of label 'worn' 1 examples are left to learn from: expected at least 4"):
        read_own("own", tmp_path, None, None)
