"""Compares every family on every data set: `python -m export.compare --data-dir DIR` writes a part of docs/models.md.

Runs are those of export.train: `runs/NAME` for seed 0, `runs/NAME-s1` … for the others. A run that is finished is not
run again, and what was measured of it is kept beside it in `result.json`; Ctrl-C and the same command go on.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import torch
import typer

from export import package, train
from export.compared import Run, answers, rows, table
from export.data import Data, DataError
from export.metrics import accuracy, interval95
from export.plots import compared, shifted
from export.runs import CheckpointError, Settings
from export.tasks import FrameTask, Task
from export.zoo import ACTION_NETS, OTHER_LOAD, PLAIN, ROW_FAMILIES, SHORT, TASKS
from service.engine import OnnxEngine
from service.errors import PackageRefused
from service.packages import Package

RESULT = "result.json"
BEGIN, END = "<!-- written by export.compare: begin -->", "<!-- end -->"
CALLS = 60  # of the model; the fastest tenth counts, since machines do other things, too
SHIFTED_PIXELS, SHIFTED_IMAGES = 8, 2000


class Set(NamedTuple):
    """A data set as it is compared: tasks by the name of their run, and seeds of each."""

    title: str
    tasks: dict[str, Task]
    seeds: int = 3
    precision: str = "float32"


def _of(*names: str) -> dict[str, Task]:
    return {name: TASKS[name] for name in names}


def _families(kind: str) -> dict[str, Task]:
    return _of(*(f"{kind}-{family}" for family in ROW_FAMILIES))


SETS = {
    "digits": Set("MNIST: handwritten digits, 6 epochs", SHORT, precision="bfloat16"),
    "plain": Set("MNIST, learnt without augmentation, 3 epochs", PLAIN, seeds=1, precision="bfloat16"),
    "activity": Set("AReM: activities from radio signals", _families("activity")),
    "gesture": Set(
        "UTD-MHAD, inertial: 27 actions of people never seen",
        _families("gesture") | _of("gesture-rocket"),
    ),
    "action": Set("UTD-MHAD, depth video: the same actions", _of(*ACTION_NETS, "action-motion"), seeds=1),
    "bearing": Set(
        "CWRU: a bearing's faults, later in the same recordings", _of(*(f"bearing-{f}" for f in ROW_FAMILIES))
    ),
    "load": Set("CWRU: learnt without load, tested under load", OTHER_LOAD),
    "sentiment": Set("SST-2: sentences of film reviews", _families("sentiment")),
    "question": Set("TREC: what a question asks for", _families("question")),
}


def measure(name: str, task: Task, data: Data, settings: Settings, runs: Path) -> Run:
    """One run, trained where it is not yet, measured through its exported package. What was measured is kept."""
    folder = runs / (f"{name}-s{settings.seed}" if settings.seed else name)
    settings = replace(settings, task=task.name, epochs=task.epochs)
    key = asdict(settings) | {"data": data.sha256, "recipe": package.recipe(task)}
    path = folder / RESULT
    if path.is_file():
        kept = msgspec.json.decode(path.read_bytes())
        if kept["key"] == msgspec.to_builtins(key):
            return msgspec.convert(kept["run"], Run)
    judges, tried = [], []
    if data.test is None:
        tried, judges = train.train_in_folds(task, data, settings, folder, True)
        net, histories = judges[0], tried
    else:
        net, history, _ = train.train_on_all(task, data, settings, folder, True)
        histories = [history]
    with tempfile.TemporaryDirectory() as place:
        manifest, output = package.describe_task(task, data, 1), task.output(len(data.labels))
        manifest = package.write_model(net, manifest, task.golden(data), Path(place), output)
        exported = Package(manifest, Path(place))
        run = package.stream_run(exported)
        if data.test is None:
            parts = package.judge_folds(task, data, judges, settings.seed, manifest)
        else:
            parts = [package.Seen(data.test, task.trace(run, data.test))]
        decisions = package.decisions_of(task, parts)
        low, high = interval95(decisions)
        pairs = [pair for part in parts for pair in zip(part.said, part.split.y, strict=True)]
        found = Run(
            name=name,
            family=task.net.family,
            seed=settings.seed,
            parameters=manifest.parameters or 0,
            accuracy=accuracy(decisions),
            interval95=(low, high),
            units=len(decisions.truth),
            of_mean=float(np.mean([y.mean(0).argmax() == label for y, label in pairs])),
            training_s=float(np.mean([sum(each.get("cpu_s", each["seconds"]) for each in h) for h in histories])),
            step_us=(call_us(exported, 1), call_us(exported, 64)),
            shifted=_shifted(task, data, run) if isinstance(task, FrameTask) and data.test is not None else [],
        )
    path.write_bytes(msgspec.json.encode({"key": key, "run": found}))
    return found


def call_us(exported: Package, batch: int) -> float:
    """Microseconds of one call of one step, on one thread."""
    engine = OnnxEngine(exported)
    x, states = engine.blank(batch), engine.initial(batch)
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        engine.run(x, states)
        took.append((time.perf_counter() - began) * 1e6)
    return float(np.quantile(took, 0.1))


def _shifted(task: FrameTask, data: Data, run: package.Run) -> list[float]:
    """Accuracy on test images shifted by 0, 1, … pixels, the mean of four directions."""
    split = data.test.take(range(min(SHIFTED_IMAGES, len(data.test))))
    found = []
    for pixels in range(SHIFTED_PIXELS + 1):
        hits = []
        for axis, sign in ((1, 1), (1, -1), (2, 1), (2, -1)):
            moved = np.roll(split.x, sign * pixels, axis)
            edge = [slice(None)] * moved.ndim
            edge[axis] = slice(0, pixels) if sign > 0 else slice(moved.shape[axis] - pixels, None)
            moved[tuple(edge)] = 0
            hits.append(accuracy(task.decide(run, replace(split, x=moved))))
        found.append(round(float(np.mean(hits)), 4))
    return found


# --- command line ------------------------------------------------------------------------------------------------


def main(
    data_dir: Annotated[Path, typer.Option(envvar="ROLLCAST_DATA", help="Folder of data sets.")] = Path("data"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    page: Annotated[Path, typer.Option(help="Page whose part between two marks is written.")] = Path("docs/models.md"),
    only: Annotated[str, typer.Option(help=f"Some of {', '.join(SETS)}: a,b. Nothing is written then.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each net at most.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Trains what is not trained yet, measures every net on every data set, and writes tables, plots and answers."""
    torch.set_num_threads(threads)
    chosen = only.split(",") if only else list(SETS)
    if unknown := set(chosen) - set(SETS):
        train.fail(f"no data set {', '.join(sorted(unknown))}; there are: {', '.join(SETS)}")
    found: dict[str, list[Run]] = {}
    try:
        for key in chosen:
            found[key] = _measure_set(SETS[key], data_dir, runs, seeds)
    except (CheckpointError, DataError, PackageRefused) as error:
        train.fail(str(error))
    except KeyboardInterrupt:
        train.console.print("\nstopped; the same command goes on")
        raise typer.Exit(130) from None
    tables = {key: table(SETS[key].title, measured) for key, measured in found.items()}
    if only:
        typer.echo("\n\n".join(tables.values()))
        return
    plots = page.parent / "plots"
    plots.mkdir(exist_ok=True)
    compared({key: rows(measured) for key, measured in found.items() if key != "plain"}, plots / "families.png")
    shifts = {run.name: run.shifted for key in ("digits", "plain") for run in found[key] if run.seed == 0}
    shifted(shifts, plots / "shifts.png")
    write_part(page, [*tables.values(), *answers(found)])
    typer.echo(str(page))


def _measure_set(each: Set, data_dir: Path, runs: Path, seeds: int) -> list[Run]:
    measured, loaded = [], {}
    for name, task in each.tasks.items():
        if task.load not in loaded:
            loaded = {task.load: train.load(task, data_dir)}
        for seed in range(min(seeds, each.seeds)):
            train.console.rule(f"{name}, seed {seed}", align="left")
            settings = Settings(task.name, seed, task.epochs, "cpu", each.precision)
            measured.append(measure(name, task, loaded[task.load], settings, runs))
    return measured


def write_part(page: Path, parts: list[str]) -> None:
    """What stands between the marks is replaced; the rest of the page stays."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        train.fail(f"{page}: expected the marks {BEGIN!r} and {END!r}")
    page.write_text(before + begin + "\n\n" + "\n\n".join(parts) + "\n\n" + end + after)


if __name__ == "__main__":
    typer.run(main)
