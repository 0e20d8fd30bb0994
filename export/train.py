"""Trains a net of the catalogue and packages it: `python -m export.train NAME --data-dir DIR`; `--all` remakes the zoo.

Reads like a lab protocol: what is trained on what (tasks.py), one epoch, what is kept, when it ends, the package.
A run lies in `runs/NAME/`: `checkpoint.pt` after every epoch, from which the same command goes on after Ctrl-C or a
kill and ends with the same weights, since every epoch draws its random numbers from (seed, epoch) alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from export import package
from export.checks import check_rate
from export.data import Data, DataError, Split, folds
from export.deadline import Deadline
from export.keep import TooLarge, best, keep, validation
from export.metrics import accuracy
from export.own import parse_form, read_own
from export.plan import CHOICE, FAMILIES, Found, choose
from export.runs import (
    CHECKPOINT,
    CheckpointError,
    History,
    Settings,
    Trained,
    fold_name,
    restore,
    save,
    with_folds,
)
from export.sequences import SequenceTask, in_turn, surprise
from export.tables import agreed_hz
from export.tasks import Batch, Run, Task
from export.zoo import TASKS, ZOO
from models.rocket import Rocket
from service.errors import PackageRefused
from service.packages import NAME

console = Console(stderr=True)
PERFECT = 5  # epochs with every validation example right are enough
MOST_JUDGED = 200  # examples, by which a trial is judged
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
        learner = _Learner(task, rest, len(data.labels), settings, path, _fingerprint(settings, data))
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
    learner = _Learner(task, data.train, len(data.labels), settings, folder / CHECKPOINT, fingerprint)
    history = learner.learn(data.validation, task.patience, resume, until, epochs)
    net = task.net.build(task.shape(data.train, len(data.labels)))
    net.load_state_dict(learner.kept["weights"])
    return net.eval(), history, learner.kept["epoch"]


def _fingerprint(settings: Settings, data: Data) -> dict[str, Any]:
    return asdict(settings) | {"data": data.sha256}


class _Learner:
    """One net that learns from one split: everything a checkpoint holds."""

    def __init__(
        self, task: Task, split: Split, labels: int, settings: Settings, path: Path, fingerprint: dict[str, Any]
    ) -> None:
        torch.manual_seed(settings.seed)
        self.task, self.split, self.settings, self.path = task, split, settings, path
        self.shape = task.shape(split, labels)
        self.net = task.net.build(self.shape).to(settings.device)
        self.average = AveragedModel(self.net, multi_avg_fn=_averaging(task), use_buffers=True)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), task.learning_rate, weight_decay=task.weight_decay)
        steps = settings.epochs * task.steps(split)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, task.learning_rate, total_steps=steps)
        self.fingerprint = fingerprint | {"parameters": sum(p.numel() for p in self.net.parameters())}
        self.history: History = []
        self.kept: dict[str, Any] = {"epoch": 0, "score": (-1.0, 0.0), "weights": {}}

    @property
    def parts(self) -> dict[str, Any]:
        return {"net": self.net, "average": self.average, "optimiser": self.optimiser, "schedule": self.schedule}

    def learn(
        self,
        validation: Split | None,
        patience: int,
        resume: bool,
        until: Deadline | None = None,
        epochs: int | None = None,
    ) -> History:
        """Keeps the averaged weights of the best validation; without one, those of the last epoch.

        Where time is up in the middle of an epoch, that epoch ends there, and counts. It is in no checkpoint: who goes
        on later goes on after the last whole one.
        """
        until = until or Deadline()
        if resume and self.path.is_file():
            stored = restore(self.path, self.fingerprint, self.parts)
            self.history, self.kept = stored["history"], stored["kept"]
            console.print(f"going on after epoch {len(self.history)} of {self.path}")
        with _progress() as bar:
            for epoch in range(len(self.history), epochs or self.settings.epochs):
                if reason := self._reason_to_stop(patience, until):
                    console.print(reason)
                    break
                began, busy = time.monotonic(), time.process_time()
                row = bar.add_task(f"epoch {epoch + 1}/{self.settings.epochs}", total=self._steps(), note="")
                loss, whole = self._epoch(epoch, bar, row, until)
                entry = {"loss": loss}
                score = (float(epoch), 0.0)
                if validation is not None:
                    run = torch_run(self.average.module, self.settings.device)
                    entry["validation"] = accuracy(self.task.judge(self.average.module, run, validation))
                    score = (entry["validation"], -entry["loss"])
                entry |= {"seconds": round(time.monotonic() - began, 2), "cpu_s": round(time.process_time() - busy, 2)}
                self.history.append(entry)
                if score > tuple(self.kept["score"]):
                    weights = {name: value.cpu().clone() for name, value in self.average.module.state_dict().items()}
                    self.kept = {"epoch": epoch + 1, "score": score, "weights": weights}
                if whole:
                    values = {"fingerprint": self.fingerprint, "history": self.history, "kept": self.kept}
                    save(self.path, values, self.parts)
                notes = [f"{name} {entry[name]:.4f}" for name in ("loss", "validation") if name in entry]
                notes += [note for note in (until.told(), "" if whole else "broken off: time is up") if note]
                bar.remove_task(row)
                text = f"epoch {epoch + 1}/{self.settings.epochs}  {'  '.join(notes)}"
                console.print(text, highlight=False, soft_wrap=True)
        return self.history

    def last(self) -> nn.Module:
        """The net as it stands after the last epoch, on the CPU, in eval mode."""
        net = self.task.net.build(self.shape)
        net.load_state_dict(self.average.module.state_dict())
        return net.eval()

    def _reason_to_stop(self, patience: int, until: Deadline) -> str:
        """Before another epoch; empty: there is none."""
        done = len(self.history)
        if done - self.kept["epoch"] >= patience:
            return f"stopped early: no better validation for {patience} epochs"
        scores = [entry["validation"] for entry in self.history if "validation" in entry]
        if self.task.early and scores[-PERFECT:] == [1.0] * PERFECT:
            return f"stopped early: every validation example right for {PERFECT} epochs"
        standing = max(2 * PERFECT, self.settings.epochs // 2)
        if self.task.early and scores and done - scores.index(max(scores)) > standing:
            return f"stopped early: not one more validation example right for {standing} epochs"
        return f"time is up after epoch {done}: what was learnt so far is kept" if done and until.over() else ""

    def _epoch(self, epoch: int, bar: Progress, row: TaskID, until: Deadline) -> tuple[float, bool]:
        """All batches once, or the first ones, one at least, where time is up. Returns the mean loss, and whether it
        was all of them."""
        rng = _seed(self.settings.seed, epoch)
        losses: list[float] = []
        for batch in self.task.batches(self.split, self.shape, rng):
            losses.append(_step(self.net, batch, self.task, self.settings, self.optimiser, until))
            self._pace(until)
            self.average.update_parameters(self.net)
            bar.update(row, advance=1, note=f"loss {losses[-1]:.4f}  {until.told()}")
            if until.over():
                break
        return float(np.mean(losses)), len(losses) == self._steps()

    def _pace(self, until: Deadline) -> None:
        """The next rate of learning, or that which belongs to the share of the time that is over: a training that will
        be broken off comes to rest, too."""
        total, done = self.schedule.total_steps, self.schedule.last_epoch
        for _ in range(done, min(total, max(done + 1, int(until.gone() * total)))):
            self.schedule.step()

    def _steps(self) -> int:
        return self.task.steps(self.split)


def _averaging(task: Task) -> Callable[..., None]:
    """Of weights over steps. Where training may be short, the first steps weigh less: else the average would be that of
    the beginning."""
    if not task.early:
        return get_ema_multi_avg_fn(task.average)

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        keep = min(task.average, (1 + float(count)) / (10 + float(count)))
        get_ema_multi_avg_fn(keep)(averaged, current, count)

    return average


def _step(
    net: nn.Module, batch: Batch, task: Task, settings: Settings, optimiser: torch.optim.Optimizer, until: Deadline
) -> float:
    """One batch from fresh states. A net that is solved, not descended to, takes all of it in one."""
    if isinstance(net, Rocket):
        return _solve(net, batch, task, settings, optimiser, until)
    x, y, weight = (part.to(settings.device) for part in batch[:3])
    net.train()
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        logits = task.logits(net, x)  # (B, T, K)
    loss = surprise_of(logits, y, weight, task.smoothing)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _solve(
    net: Rocket, batch: Batch, task: Task, settings: Settings, optimiser: torch.optim.Optimizer, until: Deadline
) -> float:
    """All examples at once, on the CPU, where it is a matter of seconds. Half of the time may go into looking at them,
    the recorded first, then their disturbed copies; what is not looked at by then is left out, and so are penalties
    that were not tried when time is up."""
    assert isinstance(task, SequenceTask)
    assert batch.group is not None
    optimiser.step()  # without gradients: nothing but what its schedule waits for
    loss = net.cpu().fit(
        batch.x, batch.y[:, 0], (batch.weight > 0).sum(1), batch.group, task.thin,
        enough=until.share(2).over, over=until.over,
    )  # fmt: skip
    net.to(settings.device)
    return loss


def surprise_of(logits: Tensor, y: Tensor, weight: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of every step that counts, log(1 / probability of the true label), as a weighted mean.

    y and weight (B, T). An ensemble's members answer behind each other along the batch, (members · B, T, K): each has
    the same loss to make small.
    """
    members = len(logits) // len(y)
    y, weight = y.repeat(members, 1), weight.repeat(members, 1)
    each = F.cross_entropy(
        as_logits(logits).float().flatten(0, 1), y.flatten(), reduction="none", label_smoothing=smoothing
    )  # (members · B · T,)
    return (each * weight.flatten()).sum() / weight.sum()


def torch_run(net: nn.Module, device: str = "cpu") -> Run:
    """The net as a function of whole sequences, each from a fresh state."""

    def run(x: np.ndarray) -> np.ndarray:
        net.eval()
        state = {name: value.to(device) for name, value in net.initial_state(len(x)).items()}
        with torch.no_grad():
            logits, _ = net(torch.from_numpy(x).to(device), state)
        return as_logits(logits).float().softmax(-1).cpu().numpy()

    return run


def as_logits(y: Tensor) -> Tensor:
    """(B, T, K) logits as they are; one neuron's as two: the softmax of (0, y) is (1 − sigmoid(y), sigmoid(y))."""
    return y if y.shape[-1] > 1 else torch.cat([torch.zeros_like(y), y], -1)


def _seed(seed: int, epoch: int) -> np.random.Generator:
    """Every epoch draws from generators of its own: torch's, for dropout and augmentation, and the one returned."""
    torch.manual_seed(random.Random(f"{seed}:{epoch}").getrandbits(63))
    return np.random.default_rng((seed, epoch))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


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
        held = held.take(in_turn(held.y, np.random.default_rng(settings.seed))[:MOST_JUDGED])
        learner = _Learner(task, rest, len(data.labels), tried, path, _fingerprint(tried, data))
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
