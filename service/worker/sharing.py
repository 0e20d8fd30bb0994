"""How many shards are whose. No coordinator: every worker counts the live ones and does its own part."""

from __future__ import annotations


def share(shards: int, workers: int, place: int) -> int:
    """Shards of the worker at `place` (from 0) among `workers` live ones. The shares differ by one at most, and add up
    to `shards`: with ceil(shards / workers) for everybody, four shards would leave the third of three workers idle.

    >>> [share(4, 3, place) for place in range(3)]
    [2, 1, 1]
    """
    return shards // workers + (place < shards % workers)
