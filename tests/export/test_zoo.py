"""The shipped packages are sound, small, described, and compute what their cards say, however streams are run.

Guarantee G8 at the level of the engine: any interleaving, batching and cutting into blocks = each stream alone = torch.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.keep import LIMIT_BYTES
from export.metrics import accuracy
from export.package import learnt, stream_run
from export.samples import right_of_shipped
from export.zoo import TASKS, ZOO
from service.decode import decode_frame
from service.engine import OnnxEngine
from service.packages import Package, load_package, load_packages, samples, zoo_folder
from service.parity import check

PACKAGES = {place.parent.name: load_package(place) for place in sorted(zoo_folder().glob("*/*"))}
NAMES = tuple(PACKAGES)
WITH_SAMPLES = ("activity-lstm", "digits-cnn")  # what may be passed on


@cache
def engine_of(name: str) -> OnnxEngine:
    return OnnxEngine(PACKAGES[name])


@cache
def streams_of(name: str) -> list[np.ndarray]:
    return shipped_input(PACKAGES[name])


@cache
def all_alone(name: str) -> list[np.ndarray]:
    return [alone(name, x) for x in streams_of(name)]


def shipped_input(package: Package) -> list[np.ndarray]:
    """Real streams (T, …) from the samples beside the package, rows, or the frames of one digit after another; where
    none are shipped, the certificate's."""
    if not samples(package):
        return list(np.load(package.folder / "golden.npz")["x"])
    if package.manifest.frames is not None:
        spec = package.manifest.frames
        frames = [decode_frame(s.path.read_bytes(), spec, max_pixels=10_000) for s in samples(package)]
        return [np.stack(frames[at : at + 8]) for at in range(0, len(frames), 8)]
    return [read_rows(sample.path)[1][:200] for sample in samples(package)]


def read_rows(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, np.float32)


def alone(name: str, x: np.ndarray) -> np.ndarray:
    """One stream, step by step: probabilities (T, K)."""
    engine = engine_of(name)
    states, parts = engine.initial(1), []
    for t in range(len(x)):
        y, states = engine.run(x[None, t : t + 1], states)
        parts.append(y[0])
    return np.concatenate(parts)


def test_the_zoo_has_one_package_of_each_task_and_nothing_is_refused() -> None:
    packages, refused = load_packages()
    assert refused == []
    assert sorted(packages) == sorted(NAMES)
    kept = {task: [name for name in candidates if name in packages] for task, candidates in ZOO.items()}
    assert {len(names) for names in kept.values()} == {1}, kept
    assert len(packages) == len(ZOO)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_package_is_proven_quickly(name: str) -> None:
    began = time.process_time()
    report = check(PACKAGES[name])
    assert report.passed, [each for each in report.checks if not each.passed]
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_package_is_small_and_whole(name: str) -> None:
    folder = PACKAGES[name].folder
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES
    manifest = PACKAGES[name].manifest
    assert manifest.data is not None
    card = (folder / "card.md").read_text()
    for said in (manifest.data.licence, manifest.weights_terms, f"{manifest.metrics['accuracy']:.4f}", "learning.png"):
        assert said in card
    assert {"learning.png", "confusion.png", "training.json"} <= {path.name for path in files}
    assert manifest.family == TASKS[name].net.family
    assert manifest.weights_terms == TASKS[name].weights_terms


def test_the_shipped_models_are_as_good_as_promised_or_say_by_how_much_they_are_not() -> None:
    figures = {name: package.manifest.metrics for name, package in PACKAGES.items()}
    for name, metrics in figures.items():
        missed = f"missed by {TASKS[name].goal - metrics['accuracy']:.4f}. {TASKS[name].tried}"
        if metrics["accuracy"] < TASKS[name].goal:
            assert TASKS[name].tried, "what was tried"
            assert missed in (PACKAGES[name].folder / "card.md").read_text()
    assert [name for name in NAMES if figures[name]["accuracy"] < TASKS[name].goal] == ["activity-lstm"]
    assert figures["digits-cnn"]["units"] == 10_000
    assert figures["activity-lstm"]["units"] == 380
    assert figures["activity-lstm"]["without_copies"]["copies"] == ["cycling-1", "lying-1", "lying-3"]
    assert all(len(figures[name]["folds"]) == 4 for name in NAMES if name.startswith(("gesture", "action")))


@pytest.mark.parametrize("name", [name for name in NAMES if PACKAGES[name].manifest.states])
def test_a_package_with_a_memory_says_what_it_is_worth_while_a_stream_runs(name: str) -> None:
    package = PACKAGES[name]
    figures = package.manifest.metrics["streaming"]
    share, last, rolling = np.array(figures["seen"]).T
    assert share.tolist() == sorted(share)
    assert share[-1] == 1
    assert last[-1] == 1 or last[-1] > last[0], "what was seen of a sequence helps"
    assert rolling[-1] == 1 or rolling[-1] > rolling[0]
    events = figures["events"]
    assert events["found"] + events["missed"] == figures["examples"]
    card = (package.folder / "card.md").read_text()
    for said in (
        "## While a stream runs",
        "streaming.png",
        f"{events['found']}, {events['missed']}, {events['false']}",
    ):
        assert said in card
    assert (package.folder / "streaming.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", WITH_SAMPLES)
def test_samples_are_real_input_of_every_label_with_source_and_licence(name: str) -> None:
    package, shipped = PACKAGES[name], samples(PACKAGES[name])
    assert {sample.label for sample in shipped} == set(package.manifest.labels)
    assert len(shipped) <= 40
    for sample in shipped:
        assert sample.licence.startswith("CC BY")
        assert "test split" in sample.source
        if package.manifest.rows is not None:
            header, rows = read_rows(sample.path)
            assert header == package.manifest.rows.features
            assert rows.shape == (480, 6)
            assert sample.rate_hz == package.manifest.rows.rate_hz


# --- G8 ----------------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, list[tuple[list[int], int]]]:
    """A package and a sequence of calls: which streams go together, and how many steps they go."""
    name = draw(st.sampled_from(NAMES))
    everyone = range(len(streams_of(name)))
    calls = st.tuples(
        st.lists(st.sampled_from(everyone), min_size=1, unique=True), st.sampled_from((1, 1, 2, 3, 7, 32))
    )
    return name, draw(st.lists(calls, min_size=1, max_size=40))


@settings(max_examples=60, deadline=None)
@given(runs())
def test_any_interleaving_batching_and_cutting_equals_each_stream_alone(
    run: tuple[str, list[tuple[list[int], int]]],
) -> None:
    name, calls = run
    engine, streams = engine_of(name), streams_of(name)
    at = [0] * len(streams)
    states = [engine.initial(1) for _ in streams]
    for together, steps in calls:
        ready = [s for s in together if at[s] + steps <= len(streams[s])]
        if not ready:
            continue
        x = np.stack([streams[s][at[s] : at[s] + steps] for s in ready])
        gathered = {key: np.concatenate([states[s][key] for s in ready]) for key in states[0]}
        y, after = engine.run(x, gathered)
        for b, s in enumerate(ready):
            expected = all_alone(name)[s][at[s] : at[s] + steps]
            assert np.abs(y[b] - expected).max() < 1e-5
            at[s] += steps
            states[s] = {key: value[b : b + 1] for key, value in after.items()}


@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_is_what_torch_stored(name: str) -> None:
    golden = np.load(PACKAGES[name].folder / "golden.npz")
    for x, expected in zip(golden["x"], golden["probabilities"], strict=True):
        assert np.abs(alone(name, x) - expected).max() < 1e-4


# --- without torch, and with the data ----------------------------------------------------------------------------


def test_serving_a_package_never_imports_torch_or_models() -> None:
    program = (
        "import sys; from service.packages import load_packages; from service.parity import verify; "
        "packages, refused = load_packages(); [verify(p) for p in packages.values()]; assert packages and not refused; "
        "print([m for m in ('torch', 'onnx', 'models', 'export', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("name", WITH_SAMPLES)
def test_what_a_card_states_of_the_shipped_samples_is_measured_again(name: str) -> None:
    found = right_of_shipped(TASKS[name], PACKAGES[name], stream_run(PACKAGES[name]))
    assert found == PACKAGES[name].manifest.metrics["on_samples"]
    said = f"{found['right']} of {found['units']} decisions are right ({found['right'] / found['units']:.4f})"
    assert f"{said}; the tests measure this again" in (PACKAGES[name].folder / "card.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_which_accuracy_anybody_can_measure_again(name: str) -> None:
    card = (PACKAGES[name].folder / "card.md").read_text()
    accuracy_part = card.partition("## Accuracy")[2].partition("\n## ")[0]
    who = "Every other accuracy" if name in WITH_SAMPLES else "Every accuracy"
    assert f"{who} in this card was measured once" in accuracy_part
    assert ("samples that ship beside it" in card) == bool(samples(PACKAGES[name]))


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_accuracy_is_measured_again(name: str, data_folder: Path) -> None:
    data, stated = TASKS[name].load(data_folder), PACKAGES[name].manifest.metrics
    examples, key = (learnt(data), "on_learnt") if data.test is None else (data.test, "accuracy")
    found = accuracy(TASKS[name].decide(stream_run(PACKAGES[name]), examples))
    assert found == pytest.approx(stated[key], abs=3e-3)
    assert f"{stated[key]:.4f}" in (PACKAGES[name].folder / "card.md").read_text()
    training = msgspec.json.decode((PACKAGES[name].folder / "training.json").read_bytes())
    assert training["settings"]["task"] == name
