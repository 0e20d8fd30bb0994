"""Learning curves and confusion matrix as small PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
