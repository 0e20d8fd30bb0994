"""Figures of a trained net: accuracy with its interval, confusion."""

from __future__ import annotations

import math

import numpy as np

from export.tasks import Decisions


def accuracy(decisions: Decisions) -> float:
    return float((decisions.truth == decisions.guess).mean())


def interval95(decisions: Decisions) -> tuple[float, float]:
    """95 % interval of the accuracy.

    Wilson's where every unit is an example of its own. Units of one example resemble each other, so that there whole
    examples are drawn again (bootstrap, 4,000 draws); Wilson's over the examples where none of them had an error.
    """
    hit = decisions.truth == decisions.guess
    examples, place = np.unique(decisions.example, return_inverse=True)
    if len(examples) == len(hit) or hit.all():
        return wilson95(round(hit.mean() * len(examples)), len(examples))
    right = np.bincount(place, hit)
    units = np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(examples), size=(4000, len(examples)))
    low, high = np.quantile(right[drawn].sum(1) / units[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)


def wilson95(right: int, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927).

    >>> [round(edge, 3) for edge in wilson95(95, 100)]
    [0.888, 0.978]
    """
    z = 1.959964
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion(decisions: Decisions, labels: int) -> np.ndarray:
    """(K, K) counts: rows are the true labels."""
    counts = np.zeros((labels, labels), np.int64)
    np.add.at(counts, (decisions.truth, decisions.guess), 1)
    return counts
