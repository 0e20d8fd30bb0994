"""The oracle of service/chaos, as assertions."""

from __future__ import annotations

from typing import Any

from service.chaos.oracle import Oracle, compare

__all__ = ["Oracle", "same"]


def same(record: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Asserts that a prediction is the oracle's: step, scores, rolling, label where the margin is clear, events."""
    found = compare(record, expected, tolerance)
    assert not found.what, f"{found.what} in {record}"
