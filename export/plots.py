"""Learning curves, confusion matrix, accuracy while a stream runs, and comparisons, as small PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

mpl.use("Agg")
_PNG = {"dpi": 80, "metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}


def learning_curves(history: Sequence[dict[str, float]], best: int, path: Path) -> None:
    """Loss of training and accuracy of validation, an epoch each; a line at the epoch whose weights are kept."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    epochs = np.arange(1, len(history) + 1)
    for place, (name, title) in enumerate((("loss", "training loss"), ("validation", "validation accuracy"))):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.plot(epochs, [row[name] for row in history])
        axes.axvline(best, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    figure.savefig(path, **_PNG)


def confusion_matrix(counts: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """(K, K) counts with the true label a row, coloured by its share of the row."""
    side = 1.6 + 0.42 * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    turned = 90 if max(map(len, labels)) > 2 else 0
    axes.set_xticks(range(len(labels)), labels, rotation=turned, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="said", ylabel="true")
    figure.savefig(path, **_PNG)


def seen_so_far(streaming: dict[str, Any], path: Path) -> None:
    """Accuracy by how much of a sequence has been seen, of the net's own label and of the rolling one."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    share, last, rolling = np.array(streaming["seen"]).T
    axes.plot(share * 100, last, label="the last step's label")
    axes.plot(share * 100, rolling, label="the rolling label", linestyle="--")
    axes.set(xlabel="% of the sequence seen", ylabel="accuracy", xlim=(0, 100), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, **_PNG)


def compared(sets: dict[str, Sequence[Any]], path: Path) -> None:
    """A panel a data set, in it a bar a net: accuracy with its 95 % interval. Rows as export.compared has them."""
    columns = 4
    lines = -(-len(sets) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines), layout="constrained")
    for place, (title, nets) in enumerate(sets.items()):
        axes = figure.add_subplot(lines, columns, place + 1)
        heights = [net.accuracy for net in nets]
        axes.bar(range(len(nets)), heights, yerr=[net.half for net in nets], color="#7aa6c2", ecolor="black", capsize=3)
        axes.set_xticks(range(len(nets)), [net.family for net in nets], rotation=40, fontsize=8)
        axes.set(title=title, ylim=(max(0.0, min(heights) - 0.15), 1.0))
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, **_PNG)


def shifted(nets: dict[str, Sequence[float]], path: Path) -> None:
    """Accuracy on images shifted by 0, 1, … pixels, a line a net."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, accuracies in sorted(nets.items()):
        axes.plot(range(len(accuracies)), accuracies, marker="o", markersize=3, label=name)
    axes.set(xlabel="shift, pixels", ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, **_PNG)
