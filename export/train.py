"""Trains a net of the catalogue and packages it: `python -m export.train NAME --data-dir DIR`; `--all` remakes the zoo.

Reads like a lab protocol: what is trained on what (tasks.py), how one net learns (learner.py), folds, the package.
A run lies in `runs/NAME/`: `checkpoint.pt` after every epoch, from which the same command goes on after Ctrl-C or a
kill and ends with the same weights, since every epoch draws its random numbers from (seed, epoch) alone.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
import torch
import typer
from torch import nn

from export import package
from export.checks import check_rate
from export.data import Data, DataError, Split, folds
from export.deadline import Deadline
from export.keep import TooLarge, best, keep, validation
from export.learner import Learner, console, torch_run
from export.own import parse_form, read_own
from export.plan import CHOICE, FAMILIES, Found, choose
from export.runs import (
    CHECKPOINT,
    CheckpointError,
    History,
    Settings,
    Trained,
    fold_name,
    with_folds,
)
from export.sequences import in_turn, surprise
from export.tables import agreed_hz
from export.tasks import Task
from export.zoo import TASKS, ZOO
from service.errors import PackageRefused
from service.packages import NAME

MOST_JUDGED = 200  # examples, by which a trial is judged
JUDGED_ROWS = 50_000  # and their rows or frames, about: judging is not broken off
LIKED_THREADS = torch.get_num_threads()
OWN = "Your own data"  # panel of --help


def train(
    task: Task, data: Data, settings: Settings, folder: Path, *, resume: bool = True, until: Deadline | None = None
) -> Trained:
    """Trains until the last epoch, or until validation has not improved for `task.patience` epochs, or until time is
    up: then what was learnt so far is kept.

    Data without a validation split is validated in folds, a training each; then the net learns from all of it, and the
    weights of the last epoch are kept. Raises CheckpointError when `folder` holds another run's checkpoint and `resume`
    is set.
    """
    tried, judges = [], []
    if data.validation is None:
        tried, judges = train_in_folds(task, data, settings, folder, resume, until)
    epochs = max(map(len, tried), default=settings.epochs)  # no more than the folds took
    net, history, best = train_on_all(task, data, settings, folder, resume, until, epochs)
    return Trained(net, settings, with_folds(history, tried), best, judges)


def train_in_folds(
    task: Task, data: Data, settings: Settings, folder: Path, resume: bool, until: Deadline | None = None
) -> tuple[list[History], list[nn.Module]]:
    """Of each fold how it went, and the net, after its last epoch, that never saw it. Each has the same share of the
    time, and so has the training on all that follows."""
    tried, judges = [], []
    until = until or Deadline()
    for number, (rest, held) in enumerate(folds(data.train, task.folds, settings.seed), 1):
        console.print(f"fold {number} of {task.folds}: {len(rest)} examples to train, {len(held)} to validate")
        path = folder / fold_name(number)
        learner = Learner(task, rest, len(data.labels), settings, path, _fingerprint(settings, data))
        tried.append(learner.learn(held, settings.epochs, resume, until.share(task.folds - number + 2)))
        judges.append(learner.last())
    return tried, judges


def train_on_all(
    task: Task,
    data: Data,
    settings: Settings,
    folder: Path,
    resume: bool,
    until: Deadline | None = None,
    epochs: int | None = None,
) -> tuple[nn.Module, History, int]:
    """The net of the kept weights, in eval mode, on the CPU; how it went; and the epoch kept. `epochs`: so many of the
    settings' and no more."""
    console.print(f"all {len(data.train)} examples")
    fingerprint = _fingerprint(settings, data)
    learner = Learner(task, data.train, len(data.labels), settings, folder / CHECKPOINT, fingerprint)
    history = learner.learn(data.validation, task.patience, resume, until, epochs)
    net = task.net.build(task.shape(data.train, len(data.labels)))
    net.load_state_dict(learner.kept["weights"])
    return net.eval(), history, learner.kept["epoch"]


def _fingerprint(settings: Settings, data: Data) -> dict[str, Any]:
    return asdict(settings) | {"data": data.sha256}


# --- command line ------------------------------------------------------------------------------------------------


def main(
    name: Annotated[
        str, typer.Argument(help=f"What to train: {', '.join(TASKS)}; with --data a name of your own.")
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="ROLLCAST_DATA", help="Folder of data sets; docs/models.md says what is in it."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs at most; none: the task's own number.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    everything: Annotated[
        bool, typer.Option("--all", help="Remakes the zoo: all its candidates, of each task the best by validation.")
    ] = False,
    zoo: Annotated[Path, typer.Option(help="With --all: where the best go.")] = Path("models/zoo"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; none: runs/NAME. With --all: of the runs; none: runs.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
    threads: Annotated[
        int | None,
        typer.Option(min=0, help="Threads of torch; 0: as many as it likes; none: 1, for frames as many as it likes."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for matrix products.")] = "float32",
    version: Annotated[int | None, typer.Option(min=1, help="Version of the package; none: the task's.")] = None,
    own: Annotated[
        Path | None,
        typer.Option("--data", help="Your own: .ts, .ts.gz, .npz, or a folder of CSVs a label.", rich_help_panel=OWN),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Test data given apart.", rich_help_panel=OWN)] = None,
    family: Annotated[str, typer.Option(help=", ".join(FAMILIES), rich_help_panel=OWN)] = "auto",
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Time it may take, packaging apart.", rich_help_panel=OWN)
    ] = 10.0,
    hz: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Rows or frames a second; none: by a column of times.", rich_help_panel=OWN),
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="The folder has images or clips a label.", rich_help_panel=OWN)
    ] = False,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of frames for the net.", rich_help_panel=OWN)] = "64x64",
    gray: Annotated[bool, typer.Option("--gray", help="Frames in grey, not in colour.", rich_help_panel=OWN)] = False,
) -> None:
    """Trains NAME, measures it on the test split, and writes its package to RUN/package/NAME/VERSION."""
    for value, allowed in ((device, ("auto", "cpu", "cuda")), (precision, ("float32", "bfloat16")), (family, FAMILIES)):
        if value not in allowed:
            fail(f"{value!r}: expected one of {', '.join(allowed)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if everything == bool(name):
        fail(f"give the name of what to train, or --all; names: {', '.join(TASKS)}")
    if everything and own is not None:
        fail("--all remakes the zoo from the public data sets; --data goes with a name of your own")
    settings = Settings(name, seed, epochs or 0, device, precision)
    try:
        if everything:
            _remake(data_dir, settings, out or Path("runs"), zoo, resume, version, threads)
            return
        check_rate(hz)
        folder = out if out is not None else Path("runs") / name
        until = Deadline()
        if own is not None:
            until = Deadline(minutes * 60)
            use_threads(threads, "frame" if frames else "samples")
            data = read_own(name, own, test, parse_form(size, gray, hz) if frames else None, seed)
            hz = _said_of_columns(data, hz)
            task = _choose(name, data, settings, folder, family, until, hz, resume)
        else:
            task = _known(name)
            use_threads(threads, task.kind)
            data = load(task, data_dir)
        run_task(task, data, settings, folder, resume=resume, version=version, until=until)
    except (CheckpointError, DataError, PackageRefused, TooLarge) as error:
        fail(str(error))
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on after the last whole epoch")
        raise typer.Exit(130) from None


def use_threads(threads: int | None, kind: str) -> None:
    """What the command line says; else one, or, for frames, as many as torch likes: nets for rows and texts are so
    small that a second thread hardly helps, and waits in vain where another process has its processor."""
    if threads is None:
        threads = 0 if kind == "frame" else 1
    torch.set_num_threads(threads or LIKED_THREADS)


def run_task(
    task: Task,
    data: Data,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = True,
    version: int | None = None,
    until: Deadline | None = None,
) -> Path:
    """One run: trains in `folder`, and writes `folder`/package/NAME/VERSION. Without `settings.epochs` the task's own.

    Raises CheckpointError, PackageRefused.
    """
    settings = replace(settings, task=task.name, epochs=settings.epochs or task.epochs)
    trained = train(task, data, settings, folder, resume=resume, until=until)
    console.print("packaging: measured, its rolling settings chosen, proven; of long recordings it takes minutes")
    place = package.write_run(task, data, trained, folder / "package", version=version)
    report = msgspec.json.decode((place / "manifest.json").read_bytes())["metrics"]
    low, high = report["interval95"]
    on = "in folds" if data.test is None else "on the test split"
    console.print(f"{place}: accuracy {report['accuracy']:.4f} ({low:.4f} to {high:.4f}) {on}")
    return place


def _remake(
    data_dir: Path | None,
    settings: Settings,
    runs: Path,
    zoo: Path,
    resume: bool,
    version: int | None,
    threads: int | None,
) -> None:
    """Every candidate of the zoo, each as if asked for by name; runs that are finished are not run again."""
    for kind, names in ZOO.items():
        places = []
        for name in names:
            task = _known(name)
            use_threads(threads, task.kind)
            place = runs / name / "package" / name / str(version or task.version)
            console.rule(f"{kind}: {name}", align="left")
            if not (resume and place.is_dir()):
                run_task(task, load(task, data_dir), settings, runs / name, resume=resume, version=version)
            places.append(place)
        kept = keep(best(places), names, zoo)
        console.print(f"{kind}: {kept} is kept; " + ", ".join(f"{p.parts[-2]} {validation(p):.4f}" for p in places))


def _said_of_columns(data: Data, hz: float | None) -> float | None:
    """Says what is left out. Returns the rate: as asked for, else as a column of times has it."""
    if data.left_out:
        console.print(f"left out, as no signal: {', '.join(data.left_out)}", highlight=False, markup=False)
    if hz is None and data.hz is not None:
        console.print(f"{data.hz:g} rows a second, by the column of times", highlight=False)
    return agreed_hz(hz, data.hz)


def _known(name: str) -> Task:
    if name not in TASKS:
        fail(f"no task {name!r}; there are: {', '.join(TASKS)}; or give your own data by --data")
    return TASKS[name]


def _choose(
    name: str,
    data: Data,
    settings: Settings,
    folder: Path,
    family: str,
    until: Deadline,
    hz: float | None,
    resume: bool,
) -> Task:
    if NAME.fullmatch(name) is None:
        fail(f"{name!r}: a package's name is 1 to 64 of a-z 0-9 . _ - and begins with a letter or a digit")

    def trial(task: Task, rest: Split, held: Split, until: Deadline, path: Path) -> Found:
        console.print(f"trying {path.stem.removeprefix('try-')}: {task.epochs} epochs")
        tried = replace(settings, epochs=task.epochs)
        held = _to_judge(held, settings.seed)
        learner = Learner(task, rest, len(data.labels), tried, path, _fingerprint(tried, data))
        history = learner.learn(held, task.epochs, resume, until)
        late = history[-max(1, len(history) // 3) :]  # their mean: less luck than the best
        run = torch_run(learner.average.module, settings.device)
        return Found(float(np.mean([entry["validation"] for entry in late])), -surprise(run, held), len(history))

    if not resume:
        (folder / CHOICE).unlink(missing_ok=True)
    task, choice = choose(name, data, hz, family, until, folder, trial)
    if family not in ("auto", choice.family) and choice.family != "cnn2d":
        fail(f"{folder / CHOICE} chose {choice.family}, now {family} is asked for: give another --out, or --no-resume")
    console.print(
        f"chosen: {choice.members} × {choice.family} of width {choice.width}, {choice.epochs} epochs; "
        f"tried {choice.tried}"
    )
    return task


def _to_judge(held: Split, seed: int) -> Split:
    """Labels in turn, each once at least."""
    order = in_turn(held.y, np.random.default_rng(seed))[:MOST_JUDGED]
    if isinstance(held.x, list):
        rows = np.cumsum([len(held.x[i]) for i in order])
        order = order[: max(len(np.unique(held.y)), int((rows <= JUDGED_ROWS).sum()))]
    return held.take(order)


def load(task: Task, data_dir: Path | None) -> Data:
    """The task's data, or an end that says what is missing and what can be done without it."""
    offer = "To try everything without a download: python -m export.train digits-small"
    needs_folder = task.load is not TASKS["digits-small"].load
    if data_dir is None and needs_folder:
        data_dir = Path("data")  # so that the message names a place
    try:
        return task.load(data_dir or Path())
    except DataError as error:
        fail(f"{error}\nThen: python -m export.train {task.name} --data-dir {data_dir}\n{offer}")


def fail(text: str) -> NoReturn:
    console.print(text, style="red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
