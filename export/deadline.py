"""How long a training may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Deadline:
    """A moment that is `left_s` seconds away, by a clock that never goes back; infinitely far: there is none."""

    def __init__(
        self, left_s: float = math.inf, clock: Callable[[], float] = time.monotonic, whole: Deadline | None = None
    ) -> None:
        self._clock, self._whole = clock, whole or self
        self._begin = clock()
        self._end = self._begin + left_s

    def left_s(self) -> float:
        return max(0.0, self._end - self._clock())

    def gone(self) -> float:
        """What share of the time is over, 0 to 1."""
        return 1.0 if self.over() else (self._clock() - self._begin) / (self._end - self._begin)

    def now(self) -> float:
        """By the same clock, s."""
        return self._clock()

    def over(self, spare_s: float = 0.0) -> bool:
        """Whether no more is left than `spare_s`, which what must follow will take."""
        return self._clock() + spare_s >= self._end

    def share(self, parts: float) -> Deadline:
        """That of the first of `parts` of equal length, into which the time left is cut. Asked again after each part,
        it gives what that one left over, or took too much, to those that follow."""
        return Deadline(self.left_s() / parts, self._clock, self._whole)

    def told(self) -> str:
        """For a line of progress; empty where there is none."""
        return "" if math.isinf(self._end) else f"{self.left_s():.0f} s left, {self._whole.left_s():.0f} s in all"
