"""Small packages made in seconds: a recurrent net on synthetic rows, and digits-small trained for two epochs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from export import package
from export.data import Data
from export.runs import Settings
from export.tasks import Task
from export.train import train
from export.zoo import TASKS
from models.rnn import Cell, Recurrent
from service.contracts import Manifest, RowInput
from service.packages import Package

FEATURES = ["a", "b", "c"]
LABELS = ["left", "right"]

torch.set_num_threads(1)


def row_manifest(name: str, labels: list[str] | None = None) -> Manifest:
    """A manifest for rows of three, before the graph has filled in its part."""
    rows = RowInput(FEATURES, 10.0, [0.5] * 3, [2.0] * 3, [-5.0] * 3, [5.0] * 3)
    return Manifest(format=1, name=name, version=1, kind="samples", labels=labels or LABELS, sha256="", rows=rows)


def some_rows(batch: int = 4, steps: int = 24, seed: int = 0) -> np.ndarray:  # (B, T, 3) float32
    return np.random.default_rng(seed).normal(0.5, 2.0, (batch, steps, 3)).astype(np.float32)


def recurrent(cell: Cell = "lstm", layers: int = 1, windows: Sequence[int] = ()) -> Recurrent:
    """Random weights, large enough that the state matters."""
    torch.manual_seed(7)
    net = Recurrent(cell, len(LABELS), mean=[0.5] * 3, std=[2.0] * 3, width=8, layers=layers, windows=windows)
    for parameter in net.parameters():
        parameter.data *= 2
    return net.eval()


def write(net: torch.nn.Module, folder: Path, name: str = "tiny") -> Package:
    manifest = package.write_model(net, row_manifest(name), some_rows(), folder / name / "1")
    return Package(manifest, folder / name / "1")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME/VERSION of a sound package with an LSTM; copied before anything is done to it."""
    return write(recurrent(), tmp_path_factory.mktemp("sound")).folder


@pytest.fixture(scope="session")
def small_task() -> Task:
    """digits-small for two epochs."""
    return dataclasses.replace(TASKS["digits-small"], epochs=2)


@pytest.fixture(scope="session")
def small_data(small_task: Task) -> Data:
    return small_task.load(Path())


@pytest.fixture(scope="session")
def small_run(small_task: Task, small_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended with its package."""
    folder = tmp_path_factory.mktemp("digits-small")
    settings = Settings("digits-small", 0, small_task.epochs, "cpu", "float32")
    trained = train(small_task, small_data, settings, folder)
    package.write_run(small_task, small_data, trained, folder / "package")
    return folder


# --- the public data sets ----------------------------------------------------------------------------------------

_GIVEN = os.environ.get("ROLLCAST_DATA", "")
_LEFT_OUT = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data sets. Tests that ask for it are left out where there are none."""
    return Path(_GIVEN or "data")


@pytest.hookimpl(trylast=True)  # of what -k leaves
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Data that may not be shipped is no part that a machine lacks: what needs it is not skipped but left out, and the
    report says so. A folder that was named must hold it, else these tests fail."""
    if _GIVEN or Path("data").is_dir():
        return
    without = [item for item in items if "data_folder" in getattr(item, "fixturenames", ())]
    if without:
        config.hook.pytest_deselected(items=without)
        config.stash[_LEFT_OUT] = len(without)
        items[:] = [item for item in items if item not in without]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(
            f"left out for want of the public data sets: {count} (set ROLLCAST_DATA; docs/models.md says what is in it)"
        )
