"""Writes model packages, and refuses to write one that does not pass its own parity certificate.

`python -m export.package runs/NAME --data-dir DIR` makes the package of a finished run anew; with `--module` it
packages any torch module.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import msgspec
import numpy as np
import typer
from torch import nn

from export.card import card, own_card
from export.causes import ForeignError, remedies, suspects
from export.checks import check_rate
from export.data import Data, DataError, Split, folds
from export.foreign import adapt, foreign_manifest, read_example, read_module
from export.metrics import accuracy, confusion, interval95
from export.plots import confusion_matrix, learning_curves, seen_so_far
from export.runs import CheckpointError, Trained, load_trained
from export.samples import right_of_shipped, write_samples
from export.states import first_states
from export.streaming import choose_rolling, describe
from export.tasks import Decisions, Run, Task, Trace
from export.to_onnx import Output, decided_once, run_torch, to_onnx
from export.zoo import TASKS
from service.contracts import Manifest, RollingSettings, TextInput
from service.engine import OnnxEngine
from service.errors import PackageRefused
from service.packages import NAME, Package, load_package
from service.parity import verify

OWN = "Your own network"  # panel of --help
MAX_VERSION = 999_999_999  # of nine digits, as the server looks for
OFFSET = 1_000_000  # more than a part has examples


def write_run(task: Task, data: Data, trained: Trained, into: Path, *, version: int | None = None) -> Path:
    """The package of a trained task in `into/NAME/VERSION`: proven, measured on the test split, described.

    Without `version` the task's own.

    The accuracy is that of the package in ONNX Runtime, every test example a stream from a fresh state. Raises
    PackageRefused when a parity check fails.
    """
    version = version or task.version
    manifest = describe_task(task, data, version)
    with _Draft(into / task.name / str(version)) as folder:
        if data.tokenizer:
            manifest = write_tokenizer(data.tokenizer, manifest, folder)
        manifest = write_model(trained.net, manifest, task.golden(data), folder, task.output(len(data.labels)))
        parity = verify(load_package(folder))  # as a server would, before anything is said of it
        run = stream_run(Package(manifest, folder))
        in_folds = []
        if data.validation is None:
            in_folds = judge_folds(task, data, trained.judges, trained.settings.seed, manifest)
        tested = in_folds if data.test is None else [Seen(data.test, task.trace(run, data.test))]
        decisions = decisions_of(task, tested)
        measured = _metrics(task, data, trained, decisions)
        if data.test is None:
            measured["on_learnt"] = round(accuracy(task.decide(run, learnt(data))), 5)
        if manifest.states:
            validation = in_folds or [Seen(data.validation, task.trace(run, data.validation))]
            rolling, streaming = _as_streams(task, validation, tested)
            measured["streaming"] = streaming
            manifest = msgspec.structs.replace(manifest, rolling=rolling)
            seen_so_far(streaming, folder / "streaming.png")
        if task.samples and data.test is not None:
            write_samples(task, data, folder / "samples")
            measured["on_samples"] = right_of_shipped(task, Package(manifest, folder), run)
        manifest = msgspec.structs.replace(manifest, metrics=measured)
        _write_manifest(manifest, folder)
        learning_curves(trained.history, trained.best, folder / "learning.png")
        confusion_matrix(confusion(decisions, len(data.labels)), data.labels, folder / "confusion.png")
        (folder / "card.md").write_text(card(task, data, manifest, trained.best, len(trained.history), parity))
        history = {"settings": asdict(trained.settings), "kept_epoch": trained.best, "history": trained.history}
        _write_json(history | {"task": recipe(task)}, folder / "training.json")
    return into / task.name / str(version)


def describe_task(task: Task, data: Data, version: int) -> Manifest:
    """The manifest, but for what the graph decides."""
    return Manifest(
        format=1,
        name=task.name,
        version=version,
        kind=task.kind,
        labels=data.labels,
        sha256="",
        family=task.net.family,
        rolling=task.rolling,
        gap=task.gap,
        data=data.about,
        weights_terms=task.weights_terms,
        description=task.description,
        **task.describe_input(data),
    )


def write_tokenizer(tokenizer: str, manifest: Manifest, folder: Path) -> Manifest:
    """tokenizer.json. Returns the manifest with its checksum."""
    content = tokenizer.encode()
    text = TextInput(sha256=hashlib.sha256(content).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / text.tokenizer).write_bytes(content)
    return msgspec.structs.replace(manifest, text=text)


def write_model(
    net: nn.Module, manifest: Manifest, golden: np.ndarray, folder: Path, output: Output = "logits"
) -> Manifest:
    """model.onnx, golden.npz, manifest.json of a net in eval mode. Returns the manifest with what the graph decides.

    `golden` (B, T, …) is real input for the parity certificate.
    """
    model = to_onnx(net, golden, output)
    probabilities, states = run_torch(net, golden, output)
    manifest = msgspec.structs.replace(
        manifest,
        sha256=hashlib.sha256(model).hexdigest(),
        states=first_states(net),
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    stored = {f"state:{name}": value for name, value in states.items()}
    np.savez_compressed(folder / "golden.npz", x=golden, probabilities=probabilities, **stored)
    _write_manifest(manifest, folder)
    return manifest


class Seen(NamedTuple):
    """Examples, and what a net that had not seen them said at every step."""

    split: Split
    said: Trace


def judge_folds(task: Task, data: Data, judges: Sequence[nn.Module], seed: int, manifest: Manifest) -> list[Seen]:
    """Every training example judged by the net of the fold that never saw it, exported and run as a stream."""
    parts = []
    with tempfile.TemporaryDirectory() as place:
        pairs = zip(folds(data.train, task.folds, seed), judges, strict=True)
        for number, ((_, held), net) in enumerate(pairs):
            folder = Path(place) / str(number)
            judge = write_model(net, manifest, task.golden(data), folder, task.output(len(data.labels)))
            parts.append(Seen(held, task.trace(stream_run(Package(judge, folder)), held)))
    return parts


def learnt(data: Data) -> Split:
    """Some of the examples that the package's net learnt from: by them a package can be measured again."""
    return data.train.take(range(0, len(data.train), 8))


def decisions_of(task: Task, parts: Sequence[Seen]) -> Decisions:
    """Of all parts; the examples of part n are numbered from n · OFFSET."""
    found = [task.decisions(part.said, part.split) for part in parts]
    example = np.concatenate([each.example + number * OFFSET for number, each in enumerate(found)])
    truth, guess = (np.concatenate([getattr(each, name) for each in found]) for name in ("truth", "guess"))
    return Decisions(truth, guess, example)


def _as_streams(
    task: Task, validation: Sequence[Seen], tested: Sequence[Seen]
) -> tuple[RollingSettings, dict[str, Any]]:
    """Rolling as validation chooses it, and the streaming figures under it. Where folds are all there is, each is
    measured under what the others chose."""
    rate = task.rate_hz()
    interval_s = 1 / rate if rate else 0.0
    truth = [part.split.y for part in validation]
    chosen, of_others = choose_rolling([part.said for part in validation], truth, interval_s, task.rolling, task.gap)
    settings = of_others if tested is validation else [chosen] * len(tested)
    truth = [part.split.y for part in tested]
    return chosen, describe([part.said for part in tested], truth, interval_s, settings, task.gap)


def stream_run(package: Package) -> Run:
    """The package in ONNX Runtime as a function of whole sequences, each from a fresh state."""
    engine = OnnxEngine(package)

    def run(x: np.ndarray) -> np.ndarray:
        return engine.run(np.ascontiguousarray(x), engine.initial(len(x)))[0]

    return run


def _metrics(task: Task, data: Data, trained: Trained, decisions: Decisions) -> dict[str, Any]:
    low, high = interval95(decisions)
    metrics: dict[str, Any] = {
        "accuracy": round(accuracy(decisions), 5),
        "interval95": [round(low, 5), round(high, 5)],
        "unit": task.unit,
        "units": len(decisions.truth),
        "examples": len(data.test or data.train),
        "validation_accuracy": round(trained.history[trained.best - 1]["validation"], 5),
        "validation_examples": len(data.validation or data.train),
    }
    if data.test is None:
        fold = decisions.example // OFFSET
        hit = decisions.truth == decisions.guess
        metrics["folds"] = [round(float(hit[fold == number].mean()), 5) for number in range(task.folds)]
    elif data.copies:
        kept = np.isin(decisions.example, [i for i, name in enumerate(data.test.names) if name not in data.copies])
        without = Decisions(decisions.truth[kept], decisions.guess[kept], decisions.example[kept])
        low, high = interval95(without)
        metrics["without_copies"] = {
            "accuracy": round(accuracy(without), 5),
            "interval95": [round(low, 5), round(high, 5)],
            "units": len(without.truth),
            "copies": sorted(data.copies),
        }
    return metrics


def recipe(task: Task) -> dict[str, Any]:
    """The task's plain numbers: epochs, batch, augmentation …"""
    fields = {name: getattr(task, name) for name in task.__dataclass_fields__}
    return {name: value for name, value in fields.items() if isinstance(value, (int, float))}


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    _write_json(msgspec.to_builtins(manifest), folder / "manifest.json")


def _write_json(value: Any, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


class _Draft:
    """A folder that takes its place only when everything in it is written; what stood there goes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.draft = place.with_name(f".{place.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(parents=True)
        return self.draft

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if kind is None:
            shutil.rmtree(self.place, ignore_errors=True)
            self.draft.rename(self.place)
        else:
            shutil.rmtree(self.draft, ignore_errors=True)
            with suppress(OSError):
                self.place.parent.rmdir()  # a name without a version would be refused at every start
        if isinstance(error, PackageRefused):
            raise PackageRefused(error.detail.replace(str(self.draft), str(self.place)), error.check) from error


# --- command line ------------------------------------------------------------------------------------------------


def main(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run, such as runs/digits-cnn.")] = None,
    name: Annotated[str | None, typer.Option(help="The package's name; none: the run's folder's name.")] = None,
    data_dir: Annotated[Path, typer.Option(envvar="ROLLCAST_DATA", help="Folder of data sets.")] = Path("data"),
    into: Annotated[Path | None, typer.Option(help="Folder of packages; none: RUN/package, or packages.")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, max=MAX_VERSION, help="Version of the package; none: the task's, or 1.")
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="PACKAGE.MODULE:FACTORY that makes your torch module.", rich_help_panel=OWN)
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its state_dict.", rich_help_panel=OWN)] = None,
    labels: Annotated[str, typer.Option(help="What its outputs say: a,b,c.", rich_help_panel=OWN)] = "",
    example: Annotated[Path | None, typer.Option(help="npz with real input x.", rich_help_panel=OWN)] = None,
    hz: Annotated[float | None, typer.Option(min=1e-6, help="Rows or frames a second.", rich_help_panel=OWN)] = None,
    output: Annotated[
        str, typer.Option(help="What it gives: auto, logits, logit, probabilities.", rich_help_panel=OWN)
    ] = "auto",
    idle_exit: Annotated[
        float | None, typer.Option(min=1e-3, help="Seconds of silence after which labels exit.", rich_help_panel=OWN)
    ] = None,
) -> None:
    """Writes INTO/NAME/VERSION: of a finished run anew, or of any torch module with forward(x, state) -> (y, state)."""
    try:
        if module is not None:
            place = _package_module(
                module, weights, labels, example, name, into or Path("packages"), version or 1, hz, output, idle_exit
            )
        elif run is not None:
            place = _package_run(run, name, data_dir, into, version)
        else:
            raise ForeignError("give the folder of a run, or --module, --labels and --example")
    except (DataError, CheckpointError, PackageRefused, ForeignError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    typer.echo(str(place))


def _package_run(run: Path, name: str | None, data_dir: Path, into: Path | None, version: int | None) -> Path:
    task = TASKS.get(name or run.name)
    if task is None:
        raise ForeignError(f"no task {name or run.name!r}; give --name, one of: {', '.join(TASKS)}")
    data = task.load(data_dir)
    return write_run(task, data, load_trained(run, task, data), into or run / "package", version=version)


def _package_module(
    module: str,
    weights: Path | None,
    labels: str,
    example: Path | None,
    name: str | None,
    into: Path,
    version: int,
    hz: float | None,
    output: str,
    idle_exit_s: float | None,
) -> Path:
    """The certificate proves that the package computes what the module does; what that is worth its owner knows."""
    if example is None:
        raise ForeignError("give --example: an npz with real input, of which the certificate is made")
    if output not in ("auto", *get_args(Output)):
        raise ForeignError(f"output {output!r}: expected auto, {', '.join(get_args(Output))}")
    said = [label.strip() for label in labels.split(",")] if labels else []
    name = name or module.partition(":")[0].rpartition(".")[2].lower().replace("_", "-")
    if NAME.fullmatch(name) is None:
        raise ForeignError(f"name {name!r}: expected 1 to 64 of a-z 0-9 . _ -; give --name")
    check_rate(hz)
    place = into / name / str(version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: what matters of them is said below
        net, given = read_module(module, weights, _note), read_example(example)
        adapted, gives = adapt(net, given, said, output)
        manifest = foreign_manifest(name, version, said, given, hz, f"Own module {module}.")
        manifest = msgspec.structs.replace(manifest, idle_exit_s=idle_exit_s)
        decided = decided_once(adapted, given.x, gives)
        once = f"{', '.join(decided)}: a value of the example becomes one of Python's there (if, while, int(), len(), "
        once += ".item()), and the package keeps it for every input"
        try:
            with _Draft(place) as folder:
                write_model(adapted, manifest, given.x, folder, gives)
                parity = verify(load_package(folder))
                (folder / "card.md").write_text(own_card(manifest, module, parity))
        except PackageRefused as error:
            helps = [once] * bool(decided) + suspects(net) * (error.check != "graph") or remedies(error.check)
            raise ForeignError("; ".join([error.detail, *helps])) from error
    if decided:
        _note(once)
    return place


def _note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)


if __name__ == "__main__":
    typer.run(main)
