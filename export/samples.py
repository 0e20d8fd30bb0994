"""Held-out examples that ship beside a package: written with it, and read again to measure it by what anybody has."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np

from export.data import Data, Split
from export.tasks import Run, Task
from service.decode import decode_frame, decode_text
from service.packages import Package, samples


def write_samples(task: Task, data: Data, folder: Path, seed: int = 0) -> None:
    """Held-out test examples, `task.samples` of each label, drawn at random: not by what the model makes of them.

    An example that also stands in the training data is not held out and is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = []
    for label in range(len(data.labels)):
        candidates = [i for i in np.flatnonzero(data.test.y == label) if data.test.names[i] not in data.copies]
        for i in sorted(rng.permutation(candidates)[: task.samples].tolist()):
            files.append({"file": task.write_sample(folder, data.test, i), "label": data.labels[label]})
    index = {"source": f"{data.about.name}, test split: {data.about.source}", "licence": data.about.licence}
    index |= {"rate_hz": task.rate_hz(), "files": files}
    (folder / "samples.json").write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")


def shipped(package: Package) -> Split | None:
    """The samples beside a package as a producer would post them; none where none ship."""
    files, labels = samples(package), package.manifest.labels
    if not files:
        return None
    x = [_read(sample.path, package) for sample in files]
    y = np.array([labels.index(sample.label) for sample in files], np.int64)
    images = package.manifest.frames is not None
    return Split(np.stack(x) if images else x, y, [sample.path.stem for sample in files], np.arange(len(y)))


def right_of_shipped(task: Task, package: Package, run: Run) -> dict[str, int] | None:
    """How many decisions on the samples beside a package are right, and of how many."""
    split = shipped(package)
    if split is None:
        return None
    decisions = task.decide(run, split)
    return {"right": int((decisions.truth == decisions.guess).sum()), "units": len(decisions.truth)}


def _read(path: Path, package: Package) -> np.ndarray:
    """One step of a frame, (H, W, C); rows (T, F); tokens (T,)."""
    manifest = package.manifest
    if manifest.frames is not None:
        return decode_frame(path.read_bytes(), manifest.frames, max_pixels=1 << 20)
    if manifest.text is not None:
        assert package.tokenizer is not None
        return decode_text(path.read_bytes(), package.tokenizer, manifest.text)
    with path.open(newline="") as file:
        return np.array([*csv.reader(file)][1:], np.float32)
