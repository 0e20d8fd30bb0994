"""A run on disk: what decides it, its checkpoints, what it left behind."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from export.data import Data, folds
from export.tasks import Task

CHECKPOINT = "checkpoint.pt"

History = list[dict[str, float]]  # an epoch each: loss, validation (accuracy), seconds


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or belongs to another run."""


@dataclass(frozen=True)
class Settings:
    """What decides a run's result, together with the data: a checkpoint of other settings is not gone on with."""

    task: str
    seed: int
    epochs: int
    device: str  # cpu, cuda
    precision: str  # float32; bfloat16: matrix products in 16 bits, twice as fast where the processor has them


@dataclass
class Trained:
    """What training leaves behind: the kept weights and how it went."""

    net: nn.Module  # in eval mode, on the CPU
    settings: Settings
    history: History
    best: int  # the epoch whose weights are kept, from 1
    judges: list[nn.Module] = field(default_factory=list)  # of the folds in their order, each after its last epoch


def save(path: Path, values: dict[str, Any], parts: dict[str, Any]) -> None:
    """Whole or not at all: a kill leaves the previous checkpoint. `parts` have a state_dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        torch.save(values | {name: part.state_dict() for name, part in parts.items()}, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def restore(path: Path, fingerprint: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Loads `parts` and returns the values saved beside them. Raises CheckpointError."""
    advice = "give another --out, or --no-resume to begin anew"
    stored = _read(path)
    found = stored["fingerprint"]
    differ = [f"{k} {found.get(k)!r}, now {wanted!r}" for k, wanted in fingerprint.items() if found.get(k) != wanted]
    if differ:
        raise CheckpointError(f"{path}: of another run ({'; '.join(differ)}); {advice}")
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    return stored


def load_trained(folder: Path, task: Task, data: Data) -> Trained:
    """A run that has at least one epoch behind it, from its folder. Raises CheckpointError."""
    stored = _read(folder / CHECKPOINT)
    fingerprint = stored["fingerprint"]
    if fingerprint["task"] != task.name or fingerprint["data"] != data.sha256:
        raise CheckpointError(f"{folder}: the run trained {fingerprint['task']} on other data")
    settings = Settings(**{name: fingerprint[name] for name in Settings.__dataclass_fields__})
    tried, judges = [], []
    if data.validation is None:
        for number, (rest, _) in enumerate(folds(data.train, task.folds, settings.seed), 1):
            fold = _read(folder / fold_name(number))
            tried.append(fold["history"])
            judges.append(_average(task.net.build(task.shape(rest, len(data.labels))), fold["average"]))
    net = task.net.build(task.shape(data.train, len(data.labels)))
    net.load_state_dict(stored["kept"]["weights"])
    return Trained(net.eval(), settings, with_folds(stored["history"], tried), stored["kept"]["epoch"], judges)


def _average(net: nn.Module, stored: dict[str, Any]) -> nn.Module:
    """The net with the averaged weights of a checkpoint."""
    average = AveragedModel(net, use_buffers=True)
    average.load_state_dict(stored)
    return average.module.eval()


def fold_name(number: int) -> str:
    """Checkpoint of the net that never saw fold `number`, from 1."""
    return f"fold{number}.pt"


def with_folds(history: History, tried: list[History]) -> History:
    """An epoch's validation is the mean of its folds'; without folds the history is as it was measured. A fold that
    ended sooner or later is taken at the same share of its way, so that the last is the mean of the last."""
    if not tried:
        return history

    def mean(way: float) -> float:
        return float(np.mean([each[max(1, round(way * len(each))) - 1]["validation"] for each in tried]))

    return [entry | {"validation": mean(epoch / len(history))} for epoch, entry in enumerate(history, 1)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        stored: dict[str, Any] = torch.load(path, weights_only=True)
        if stored.keys() >= {"fingerprint", "history", "kept"}:
            return stored
        reason = f"it holds {sorted(stored)}"
    except Exception as error:  # torch's readers raise whatever the damage leads to
        reason = str(error).splitlines()[0]
    raise CheckpointError(f"{path}: damaged checkpoint ({reason}); --no-resume begins anew")
