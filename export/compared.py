"""What export.compare found, in tables and answers: every word of it follows from figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np


class Run(msgspec.Struct, frozen=True):
    """One training, measured through its exported package."""

    name: str
    family: str
    seed: int
    parameters: int
    accuracy: float
    interval95: tuple[float, float]  # by the number of test examples
    units: int  # decisions that the accuracy counts
    of_mean: float  # accuracy of the mean of all steps' probabilities, one decision an example
    training_s: float  # CPU seconds of one training
    step_us: tuple[float, float]  # one call of one step in ONNX Runtime: batch 1, batch 64
    shifted: list[float] = []  # images: accuracy at shifts of 0, 1, … pixels


class Row(NamedTuple):
    """All seeds of one net."""

    name: str
    family: str
    seeds: int
    parameters: int
    accuracy: float
    lowest: float
    highest: float
    half: float  # half the 95 % interval, by the number of test examples
    of_mean: float
    training_s: float
    step_us: tuple[float, float]


def rows(runs: Sequence[Run]) -> list[Row]:
    """A row a net, in the order of `runs`."""
    found = []
    for name in dict.fromkeys(run.name for run in runs):
        mine = [run for run in runs if run.name == name]
        accuracies = [run.accuracy for run in mine]
        found.append(
            Row(
                name,
                mine[0].family,
                len(mine),
                mine[0].parameters,
                float(np.mean(accuracies)),
                min(accuracies),
                max(accuracies),
                float(np.mean([run.interval95[1] - run.interval95[0] for run in mine])) / 2,
                float(np.mean([run.of_mean for run in mine])),
                min(run.training_s for run in mine),  # of the seeds the least disturbed by what else ran
                (min(run.step_us[0] for run in mine), min(run.step_us[1] for run in mine)),
            )
        )
    return found


def table(title: str, runs: Sequence[Run]) -> str:
    lines = [
        f"#### {title}",
        "",
        "| net | family | parameters | accuracy | lowest to highest seed | training, CPU s | a step, µs | 64 at once |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows(runs):
        spread = f"{row.lowest:.4f} to {row.highest:.4f}" if row.seeds > 1 else "one seed"
        lines.append(
            f"| {row.name} | {row.family} | {row.parameters:,} | {row.accuracy:.4f} ± {row.half:.4f} | {spread} "
            f"| {row.training_s:.0f} | {row.step_us[0]:.0f} | {row.step_us[1]:.0f} |"
        )
    return "\n".join(lines)


def answers(found: dict[str, list[Run]]) -> list[str]:
    nets = {row.name: row for runs in found.values() for row in rows(runs)}
    shifts = {run.name: run.shifted for runs in found.values() for run in runs if run.seed == 0 and run.shifted}
    return [
        "### Answers",
        "Two nets are told apart where their accuracies differ by more than the root of the sum of their squared half "
        "intervals; else they are called alike.",
        _video(nets),
        _simple(nets),
        _cnn1d(nets),
        _shift(shifts),
        _dense(nets),
    ]


SEQUENCES = ("activity", "gesture", "bearing", "load", "sentiment", "question")


def _video(nets: dict[str, Row]) -> str:
    frame = nets["action-frame"]
    recurrent = [nets[f"action-cnn-{cell}"] for cell in ("rnn", "gru", "lstm")]
    best, motion = max(recurrent, key=lambda row: row.accuracy), nets["action-motion"]
    seen = ", ".join(f"{row.family} {row.accuracy:.3f}" for row in recurrent)
    verdict = {"above": "Yes", "below": "No: the lecture is contradicted here", "alike": "Not measurably"}
    return (
        f"**Does a recurrent net beat per-frame nets on video?** {verdict[_compared(best, frame)]}. The net without "
        f"memory knows {frame.accuracy:.3f} by the last frame and {frame.of_mean:.3f} by the mean over all frames. "
        f"With memory: {seen}. A memory that is not learnt but given, sums weighed by time (action-motion), comes to "
        f"{motion.accuracy:.3f}: {_word(_compared(motion, best))} the best recurrent net on so few clips."
    )


def _simple(nets: dict[str, Row]) -> str:
    told = []
    for key in SEQUENCES:
        simple = nets[f"{key}-rnn"]
        gated = max((nets[f"{key}-gru"], nets[f"{key}-lstm"]), key=lambda row: row.accuracy)
        told.append(
            (_compared(simple, gated), f"{key} {simple.accuracy:.3f} against {gated.accuracy:.3f} ({gated.family})")
        )
    worse = [text for verdict, text in told if verdict == "below"]
    alike = [text for verdict, text in told if verdict == "alike"]
    better = [text for verdict, text in told if verdict == "above"]
    text = "**Is SimpleRNN worse, and where?** "
    text += f"Worse on {len(worse)} of {len(told)}: {'; '.join(worse)}. " if worse else "Nowhere measurably. "
    text += f"Alike: {'; '.join(alike)}. " if alike else ""
    text += f"Better: {'; '.join(better)}. " if better else ""
    if not worse:
        text += "The lecture's advice against it is not borne out by these sets."
    elif alike or better:
        text += (
            "The lecture's advice against it holds where the first are concerned, and is not borne out by the others."
        )
    return text.strip()


def _cnn1d(nets: dict[str, Row]) -> str:
    told: dict[str, list[str]] = {"above": [], "alike": [], "below": []}
    for key in SEQUENCES:
        cnn = nets[f"{key}-cnn1d"]
        best = max((nets[f"{key}-{cell}"] for cell in ("rnn", "gru", "lstm")), key=lambda row: row.accuracy)
        told[_compared(cnn, best)].append(f"{key} {cnn.accuracy:.3f} against {best.accuracy:.3f} ({best.family})")
    text = "**Where is a 1D CNN as good as an RNN?** "
    for verdict, word in (("alike", "As good"), ("above", "Better"), ("below", "Worse")):
        text += f"{word}: {'; '.join(told[verdict])}. " if told[verdict] else f"{word}: nowhere. "
    text += (
        "The lecture expects it to be as good where a series has no global structure, as a vibration or a radio's "
        "signal, and memory to help where there is one, as in a gesture. "
    )
    if not any(each.startswith("gesture") for each in told["below"]):
        text += "The gestures contradict that: there the CNN is no worse. "
    return text + "All of these CNNs also average over what they have seen, which is a memory, too."


def _shift(shifts: dict[str, list[float]]) -> str:
    shown = [0, 1, 2, 3, 4, 6, 8]
    lines = [f"| shift, pixels | {' | '.join(map(str, shown))} |", "| --- |" + " ---: |" * len(shown)]
    lines += [
        f"| {name} | {' | '.join(f'{accuracies[pixels]:.3f}' for pixels in shown)} |"
        for name, accuracies in sorted(shifts.items())
    ]
    dense, cnn = shifts["plain-mlp"], shifts["plain-cnn"]
    half = {
        name: next((str(p) for p, a in enumerate(each) if a < 0.5), f"more than {len(each) - 1}")
        for name, each in (("dense", dense), ("cnn", cnn))
    }
    return (
        "**What does shift invariance look like?** Without augmentation the dense net falls below one half at a shift "
        f"of {half['dense']} pixels, the CNN at {half['cnn']}: at 2 pixels {dense[2]:.3f} against {cnn[2]:.3f}, at 4 "
        f"{dense[4]:.3f} against {cnn[4]:.3f}. Pooling gives the CNN some invariance, and only some: what is far from "
        f"where it was learnt is not known. Learnt with images shifted by up to 1.5 and 2.5 pixels they come to "
        f"{shifts['short-mlp'][4]:.3f} and {shifts['short-cnn'][4]:.3f} at 4."
        "\n\n" + "\n".join(lines) + "\n\n![accuracy under shifts](plots/shifts.png)"
    )


def _dense(nets: dict[str, Row]) -> str:
    dense, cnn = nets["short-mlp"], nets["short-cnn"]
    return (
        f"**CNN over dense net on digits?** {'Yes' if _compared(cnn, dense) == 'above' else 'Not measurably'}: "
        f"{cnn.accuracy:.4f} against {dense.accuracy:.4f}, with {cnn.parameters:,} parameters against "
        f"{dense.parameters:,}."
        "\n\n![accuracy of every family on every data set](plots/families.png)"
    )


def _compared(one: Row, other: Row) -> str:
    apart = math.hypot(one.half, other.half)
    difference = one.accuracy - other.accuracy
    return "alike" if abs(difference) <= apart else "above" if difference > 0 else "below"


def _word(verdict: str) -> str:
    return {"above": "better than", "below": "worse than", "alike": "not measurably apart from"}[verdict]
