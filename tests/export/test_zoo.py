"""The shipped packages are sound, small, described, and compute what their cards say, however streams are run.

Guarantee G8 at the level of the engine: any interleaving, batching and cutting into blocks = each stream alone = torch.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.metrics import accuracy
from export.package import stream_run
from export.zoo import TASKS
from service.decode import decode_frame
from service.engine import OnnxEngine
from service.packages import Package, load_package, load_packages, samples, zoo_folder
from service.parity import check

NAMES = ("activity-lstm", "digits-cnn")
MAX_BYTES = 2_000_000

PACKAGES = {name: load_package(zoo_folder() / name / "1") for name in NAMES}
ENGINES = {name: OnnxEngine(package) for name, package in PACKAGES.items()}


def shipped_input(package: Package) -> list[np.ndarray]:
    """Real streams (T, …) from the samples beside the package: rows, or the frames of one digit after another."""
    if package.manifest.frames is not None:
        spec = package.manifest.frames
        frames = [decode_frame(s.path.read_bytes(), spec, max_pixels=10_000) for s in samples(package)]
        return [np.stack(frames[at : at + 8]) for at in range(0, len(frames), 8)]
    return [read_rows(sample.path)[1][:200] for sample in samples(package)]


def read_rows(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, np.float32)


STREAMS = {name: shipped_input(package) for name, package in PACKAGES.items()}


def alone(name: str, x: np.ndarray) -> np.ndarray:
    """One stream, step by step: probabilities (T, K)."""
    engine = ENGINES[name]
    states, parts = engine.initial(1), []
    for t in range(len(x)):
        y, states = engine.run(x[None, t : t + 1], states)
        parts.append(y[0])
    return np.concatenate(parts)


ALONE = {name: [alone(name, x) for x in streams] for name, streams in STREAMS.items()}


def test_the_zoo_has_exactly_these_packages_and_nothing_is_refused() -> None:
    packages, refused = load_packages()
    assert refused == []
    assert sorted(packages) == sorted(NAMES)


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
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    manifest = PACKAGES[name].manifest
    assert manifest.data is not None
    card = (folder / "card.md").read_text()
    for said in (manifest.data.licence, manifest.weights_terms, f"{manifest.metrics['accuracy']:.4f}", "learning.png"):
        assert said in card
    assert {"learning.png", "confusion.png", "training.json"} <= {path.name for path in files}
    assert manifest.family == TASKS[name].net.family


def test_the_shipped_models_are_as_good_as_promised() -> None:
    figures = {name: package.manifest.metrics for name, package in PACKAGES.items()}
    assert figures["digits-cnn"]["accuracy"] >= 0.995
    assert figures["digits-cnn"]["units"] == 10_000
    assert figures["activity-lstm"]["units"] == 380
    assert figures["activity-lstm"]["without_copies"]["copies"] == ["cycling-1", "lying-1", "lying-3"]


@pytest.mark.parametrize("name", NAMES)
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
    everyone = range(len(STREAMS[name]))
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
    engine, streams = ENGINES[name], STREAMS[name]
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
            expected = ALONE[name][s][at[s] : at[s] + steps]
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


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_accuracy_is_measured_again(name: str, data_folder: Path) -> None:
    data = TASKS[name].load(data_folder)
    stated = PACKAGES[name].manifest.metrics["accuracy"]
    found = accuracy(TASKS[name].decide(stream_run(PACKAGES[name]), data.test))
    assert found == pytest.approx(stated, abs=3e-3)
    training = msgspec.json.decode((PACKAGES[name].folder / "training.json").read_bytes())
    assert training["settings"]["task"] == name
