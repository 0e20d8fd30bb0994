"""The zoo keeps the best by validation; what is compared is trained once; answers follow from figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import typer

from export import compare, keep, train
from export.compare import BEGIN, END, SETS, Set, measure, write_part
from export.compared import SEQUENCES, Run, answers, rows, table
from export.data import Data
from export.runs import Settings
from export.zoo import TASKS, ZOO
from service.contracts import Manifest

SMALL = TASKS["digits-small"]
TRAIN = typer.Typer()
TRAIN.command()(train.main)


def run(name: str, accuracy: float, seed: int = 0, shifted: tuple[float, ...] = ()) -> Run:
    half = (accuracy - 0.02, accuracy + 0.02)
    family = name.rpartition("-")[2]
    return Run(name, family, seed, 1234, accuracy, half, 500, accuracy, 12.0, (50.0, 400.0), list(shifted))


def package(folder: Path, name: str, accuracy: float, size: int = 10) -> Path:
    place = folder / name / "1"
    place.mkdir(parents=True)
    manifest = Manifest(
        format=1, name=name, version=1, kind="samples", labels=["a", "b"], sha256="",
        metrics={"validation_accuracy": accuracy, "validation_examples": 100},
    )  # fmt: skip
    (place / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    (place / "model.onnx").write_bytes(bytes(size))
    return place


# --- the zoo -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.8, 0.9, 0.7), "x-1"),
        ((0.8, 0.9, 0.9), "x-1"),
        ((0.88, 0.8, 0.9), "x-0"),  # a standard error of 0.9 among 100 examples is 0.03
        ((0.86, 0.88, 0.9), "x-1"),
        ((1.0, 1.0, 1.0), "x-0"),
        ((0.99, 1.0, 1.0), "x-1"),
    ],
)
def test_the_best_by_validation_is_kept_of_those_it_cannot_tell_apart_the_first(
    scores: tuple[float, ...], kept: str, tmp_path: Path
) -> None:
    places = [package(tmp_path, f"x-{number}", score) for number, score in enumerate(scores)]
    assert keep.best(places).parts[-2:] == (kept, "1")


def test_keeping_removes_its_rivals_and_nothing_else(tmp_path: Path) -> None:
    runs, zoo = tmp_path / "runs", tmp_path / "zoo"
    for name in ("x-a", "y-a"):
        package(zoo, name, 0.5)
    kept = keep.keep(package(runs, "x-b", 0.9), ("x-a", "x-b"), zoo)
    assert kept == zoo / "x-b" / "1"
    assert sorted(path.name for path in zoo.iterdir()) == ["x-b", "y-a"]
    assert keep.validation(kept) == 0.9


def test_a_package_that_is_too_large_changes_nothing(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    package(zoo, "x-a", 0.5)
    with pytest.raises(keep.TooLarge, match=r"x-b.1: \d+ bytes, expected at most 4194304"):
        keep.keep(package(tmp_path, "x-b", 0.9, 5 << 20), ("x-a",), zoo)
    assert [path.name for path in zoo.iterdir()] == ["x-a"]


def test_all_remakes_the_zoo_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "ZOO", {"digits": ("digits-small",)})
    words = [
        "--all",
        "--epochs",
        "2",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "runs"),
        "--zoo",
        str(tmp_path / "zoo"),
    ]
    TRAIN(words, standalone_mode=False)
    model = tmp_path / "zoo" / "digits-small" / "1" / "model.onnx"
    assert model.is_file()
    capsys.readouterr()
    monkeypatch.setattr(train, "train", None)  # nothing may be trained again
    TRAIN(words, standalone_mode=False)
    told = "".join(capsys.readouterr().err.split())  # lines are broken wherever the folder's name makes them too long
    assert re.search(r"digits:.*digits-small.1iskept;digits-small0\.\d+", told)


@pytest.mark.parametrize("words", [["--all", "digits-small"], []])
def test_all_or_a_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        TRAIN(words)
    assert end.value.code == 2
    assert "give the name of what to train, or --all" in capsys.readouterr().err.replace("\n", " ")


def test_every_package_of_the_zoo_has_candidates_that_exist() -> None:
    assert list(ZOO) == [
        "digits-cnn", "digits-mlp", "activity", "gesture", "action", "bearing", "sentiment", "question"
    ]  # fmt: skip
    assert {name for names in ZOO.values() for name in names} <= set(TASKS)
    assert all(TASKS[name].goal > 0 for names in ZOO.values() for name in names)


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_and_measured_once(tmp_path: Path, small_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(SMALL, epochs=2)
    settings = Settings(task.name, 1, 2, "cpu", "float32")
    found = measure("small", task, small_data, settings, tmp_path)
    assert (found.seed, found.family, found.units) == (1, "cnn2d", len(small_data.test))
    assert (tmp_path / "small-s1" / "result.json").is_file()
    low, high = found.interval95
    assert low < found.accuracy < high
    assert len(found.shifted) == compare.SHIFTED_PIXELS + 1
    assert found.shifted[0] == pytest.approx(found.accuracy, abs=1e-4)
    assert found.shifted[4] < found.shifted[0], "half of the picture is gone"
    monkeypatch.setattr(train, "train_on_all", None)
    assert measure("small", task, small_data, settings, tmp_path) == found
    other = dataclasses.replace(task, rotation=1)
    with pytest.raises(TypeError):  # another recipe is another run
        measure("small", other, small_data, settings, tmp_path)


def test_every_family_that_applies_is_compared() -> None:
    for key in SEQUENCES:
        assert {task.net.family for task in SETS[key].tasks.values()} >= {"rnn", "gru", "lstm", "cnn1d"}
    assert {task.net.family for task in SETS["digits"].tasks.values()} == {"mlp", "cnn2d"}
    assert {task.net.family for task in SETS["action"].tasks.values()} >= {"cnn2d", "cnn-rnn", "cnn-gru", "cnn-lstm"}
    assert {each.seeds for key, each in SETS.items() if key not in ("action", "plain")} == {3}


# --- tables and answers ------------------------------------------------------------------------------------------


def test_a_row_is_the_mean_of_its_seeds_with_their_range() -> None:
    seeds = [run("x-rnn", 0.8), run("x-rnn", 0.9, seed=1)]
    (row,) = rows(seeds)
    assert (row.accuracy, row.lowest, row.highest, row.seeds) == (pytest.approx(0.85), 0.8, 0.9, 2)
    assert row.half == pytest.approx(0.02)
    assert "| x-rnn | rnn | 1,234 | 0.8500 ± 0.0200 | 0.8000 to 0.9000 | 12 | 50 | 400 |" in table("X", seeds)


def figures(**changed: float) -> dict[str, list[Run]]:
    found = {key: [run(f"{key}-{family}", 0.8) for family in ("rnn", "gru", "lstm", "cnn1d")] for key in SEQUENCES}
    found["action"] = [run(f"action-{each}", 0.5) for each in ("frame", "cnn-rnn", "cnn-gru", "cnn-lstm", "motion")]
    dense, cnn = tuple(np.linspace(0.97, 0.1, 9)), tuple(np.linspace(0.98, 0.4, 9))
    found["digits"] = [run("short-mlp", 0.98, shifted=dense), run("short-cnn", 0.99, shifted=cnn)]
    found["plain"] = [run("plain-mlp", 0.97, shifted=dense), run("plain-cnn", 0.98, shifted=cnn)]
    names = {
        each.name: changed.get(each.name.replace("-", "_"), each.accuracy) for runs in found.values() for each in runs
    }
    return {
        key: [msgspec.structs.replace(run(each.name, names[each.name]), shifted=each.shifted) for each in runs]
        for key, runs in found.items()
    }


def test_answers_say_what_the_figures_say() -> None:
    alike = "\n".join(answers(figures()))
    assert "per-frame nets on video?** Not measurably." in alike
    assert "Nowhere measurably" in alike
    assert "not borne out by these sets" in alike
    assert "Worse: nowhere." in alike
    assert "falls below one half at a shift of 5 pixels, the CNN at 7" in alike
    assert "CNN over dense net on digits?** Not measurably: 0.9900 against 0.9800" in alike

    clear = "\n".join(answers(figures(action_cnn_gru=0.7, gesture_rnn=0.5, activity_cnn1d=0.9, load_cnn1d=0.6)))
    assert "per-frame nets on video?** Yes." in clear
    assert "Worse on 1 of 6: gesture 0.500 against 0.800" in clear
    assert "Better: activity 0.900 against 0.800" in clear
    assert "Worse: load 0.600 against 0.800" in clear
    assert "The gestures contradict that" in clear
    assert "contradict that" not in "\n".join(answers(figures(gesture_cnn1d=0.5)))

    against = "\n".join(answers(figures(action_frame=0.7)))
    assert "per-frame nets on video?** No: the lecture is contradicted here." in against


def test_only_the_part_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_part(page, ["one", "two"])
    write_part(page, ["three"])
    assert page.read_text() == f"before\n{BEGIN}\n\nthree\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(typer.Exit):
        write_part(page, ["one"])
    assert page.read_text() == "no marks"


def test_tables_plots_and_answers_are_written_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures()
    monkeypatch.setattr(compare, "SETS", {key: Set(key.title(), {}) for key in found})
    keys = {each.title: key for key, each in compare.SETS.items()}
    monkeypatch.setattr(compare, "_measure_set", lambda each, *_: found[keys[each.title]])
    page = tmp_path / "models.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    compare.main(tmp_path, tmp_path, page, "", 3, 1)
    text = page.read_text()
    assert all(f"#### {key.title()}" in text for key in found)
    for plot in re.findall(r"\]\((plots/[a-z]+\.png)\)", text):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    assert text.count("plots/") == 2
