"""card.md: what a reader must know before trusting a package."""

from __future__ import annotations

from typing import Any

from export.data import Data
from export.tasks import Task
from service.contracts import Manifest
from service.parity import ParityReport


def card(task: Task, data: Data, manifest: Manifest, best: int, epochs: int, parity: ParityReport) -> str:
    metrics, about = manifest.metrics, data.about
    parts = [
        f"# {manifest.name}, version {manifest.version}",
        task.description,
        _facts(task, manifest),
        "## Accuracy",
        _how_measured(metrics),
        _accuracy_table(metrics),
        *_copies(metrics),
        _by_whom(metrics),
        *_goal(task, metrics),
        _validation(task, metrics, best, epochs),
        "![learning curves](learning.png)",
        "![confusion matrix](confusion.png)",
        *_streaming(manifest),
        "## Data",
        f"- {about.name}: {about.source}\n- licence: {about.licence}\n- split: {about.split}\n"
        f"- examples: {len(data.train)} to train, {len(data.validation or [])} to validate, "
        f"{len(data.test or [])} to test",
        "## Use and limits",
        f"{task.limits} Trained for demonstration and teaching; check it on your own data before you rely on it.",
        f"Terms of the weights: {manifest.weights_terms}.",
        "## Parity certificate",
        "Measured when the package was written; the server measures again before it serves.",
        _parity_table(parity),
        f"Made by `python -m export.train {task.name}`; settings and history are in training.json.",
    ]
    return "\n\n".join(parts) + "\n"


def own_card(manifest: Manifest, module: str, parity: ParityReport) -> str:
    """Of a module that was trained elsewhere: what was proven of it, and what was not."""
    parts = [
        f"# {manifest.name}, version {manifest.version}",
        f"Made of `{module}`. Its accuracy was not measured here.",
        f"Says {', '.join(manifest.labels)}.",
        "## Parity certificate",
        "Measured when the package was written; the server measures again before it serves.",
        _parity_table(parity),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(task: Task, manifest: Manifest) -> str:
    if manifest.frames is not None:
        frames = manifest.frames
        takes = f"frames, resized to {frames.height}×{frames.width}, {frames.colour}"
    elif manifest.rows is not None:
        features = manifest.rows.features
        takes = f"rows of {len(features)} ({', '.join(features)}) at {manifest.rows.rate_hz:g} Hz"
    else:
        takes = "texts, word by word"
    size = sum(4 * _count(state.shape) for state in manifest.states)
    rolling = manifest.rolling
    return "\n".join(
        (
            f"- takes {takes}",
            f"- says {', '.join(manifest.labels)}",
            f"- {manifest.family}, {manifest.parameters:,} parameters, state {size} bytes a stream",
            f"- rolling by default: half-life {rolling.half_life_s:g} s, enters at {rolling.enter:g} after "
            f"{rolling.dwell_s:g} s, exits below {rolling.exit:g}",
        )
    )


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _how_measured(metrics: dict[str, Any]) -> str:
    stream = f"a stream of its own from a fresh state; one decision is {metrics['unit']}."
    if "folds" not in metrics:
        return f"Of the package in ONNX Runtime, every test example {stream}"
    each = ", ".join(f"{accuracy:.4f}" for accuracy in metrics["folds"])
    return (
        f"Of {len(metrics['folds'])} nets in ONNX Runtime, made as the package's, each on the fold of the examples it "
        f"never saw, every example {stream} Fold by fold: {each}. The package's net learnt from all examples; on every "
        f"eighth of them it comes to {metrics['on_learnt']:.4f}, which tells that the file is whole, not how good it "
        "is."
    )


def _accuracy_table(metrics: dict[str, Any]) -> str:
    rows = [("folds, together" if "folds" in metrics else "as the data set is split", metrics)]
    if "without_copies" in metrics:
        rows.append(("without the copies", metrics["without_copies"]))
    lines = ["| test | decisions | accuracy | 95 % interval |", "| --- | --- | --- | --- |"]
    for name, figures in rows:
        low, high = figures["interval95"]
        lines.append(f"| {name} | {figures['units']:,} | {figures['accuracy']:.4f} | {low:.4f} to {high:.4f} |")
    return "\n".join(lines)


def _copies(metrics: dict[str, Any]) -> list[str]:
    if "without_copies" not in metrics:
        return []
    copies = ", ".join(metrics["without_copies"]["copies"])
    return [
        f"The data set holds some recordings twice: the test's {copies} also stand among the training recordings under "
        "another number, byte for byte. The second row leaves them out; it is the one to believe."
    ]


def _by_whom(metrics: dict[str, Any]) -> str:
    """Which figures can be measured again by whoever has the package, and which only with the data."""
    once = (
        "measured once, when this package was written, from data that does not ship with it: to measure again needs "
        "the data."
    )
    found = metrics.get("on_samples")
    if found is None:
        return f"Every accuracy in this card was {once}"
    return (
        f"Of the samples that ship beside it, {found['right']} of {found['units']} decisions are right "
        f"({found['right'] / found['units']:.4f}); the tests measure this again from those files. Every other accuracy "
        f"in this card was {once}"
    )


def _goal(task: Task, metrics: dict[str, Any]) -> list[str]:
    if not task.goal:
        return []
    short = task.goal - metrics["accuracy"]
    if short <= 0:
        return [f"Goal: {task.goal:g}, reached."]
    return [f"Goal: {task.goal:g}, missed by {short:.4f}. {task.tried}".rstrip()]


def _streaming(manifest: Manifest) -> list[str]:
    if "streaming" not in manifest.metrics:
        return []
    found, rolling = manifest.metrics["streaming"], manifest.rolling
    unit, events, first, stays = found["unit"], found["events"], found["first_correct"], found["correct_from"]
    examples = found["examples"]
    kept = "on the folds" if "folds" in manifest.metrics else "on validation examples"
    settings = (
        f"Rolling defaults were chosen {kept}, by the events found and falsely said (F1), then by how early, then by "
        f"how calm: half-life {rolling.half_life_s:g} s, enter at {rolling.enter:g} after {rolling.dwell_s:g} s, exit "
        f"below {rolling.exit:g}."
    )
    if "folds" in manifest.metrics:
        settings += " Below, each fold is measured under what the other folds chose."
    per = "a minute" if unit == "s" else "in 100 words"
    rows = [
        ("length", _times(found["length"], unit)),
        ("first correct decision after", f"{_times(first, unit)}; never in {first['never']} of {examples}"),
        (
            "the rolling label is right, and stays so, from",
            f"{_times(stays, unit)}; wrong at the end in {stays['wrong_at_the_end']} of {examples}",
        ),
        (f"flips of the rolling label {per}", f"{found['flips']:g}"),
        ("events found, missed, falsely said", f"{events['found']}, {events['missed']}, {events['false']}"),
        ("an event is told after", _times(events["delay"], unit)),
    ]
    lines = ["| | median; 90 % within |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    what = "Every example is a stream of its own from a fresh state, and holds one event: its label."
    return [
        "## While a stream runs",
        what,
        settings,
        "\n".join(lines),
        "![accuracy by how much was seen](streaming.png)",
    ]


def _times(quantiles: dict[str, float | None], unit: str) -> str:
    median, late = quantiles["median"], quantiles["p90"]
    return "–" if median is None else f"{median:.4g} {unit}; {late:.4g} {unit}"


def _validation(task: Task, metrics: dict[str, Any], best: int, epochs: int) -> str:
    found = f"{metrics['validation_accuracy']:.4f}"
    if task.folds:
        return (
            f"Validation: {found}, the mean of {task.folds} folds of the training examples, each a net that never saw "
            "the fold. The net here then learnt from all training examples."
        )
    return f"Validation: {found} at epoch {best} of {epochs}, whose weights are kept."


def _parity_table(parity: ParityReport) -> str:
    lines = ["| check | found | limit |", "| --- | --- | --- |"]
    lines += [f"| {check.name}: {check.detail} | {check.figure:.1e} | {check.limit:.0e} |" for check in parity.checks]
    return "\n".join(lines)
