"""Event times of what `rollcast post` posts: a recording has its own, however fast it is posted."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

LATEST_S: Final = 253_402_300_800.0  # the end of the year 9999
_SCALES: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # from so much on: nano-, micro-, milliseconds


def read_time(text: str) -> float:
    """Seconds since 1970, of a number (s, ms, µs or ns, by its size) or of ISO 8601 (UTC, unless it says another zone).

    >>> read_time("1763860000.5"), read_time("1763860000500"), read_time("2025-11-23T01:06:40.5")
    (1763860000.5, 1763860000.5, 1763860000.5)
    """
    try:
        seconds = float(text)
        seconds /= next((scale for least, scale in _SCALES if abs(seconds) >= least), 1.0)
    except ValueError:
        try:
            said = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError(
                f"{text[:40]!r} is no time: expected seconds since 1970, or as 2025-11-23T01:06:40"
            ) from None
        seconds = (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    if not (math.isfinite(seconds) and 0.0 <= seconds <= LATEST_S):
        raise ValueError(f"{text[:40]!r} is no time from 1970 to 9999")
    return seconds


class Times:
    """Of the steps of recordings, one behind the other: `begin` is the first one's. Counted, not added up: however they
    are cut into entries, they are the same."""

    def __init__(self, begin: float) -> None:
        self._begin, self._steps = round(begin, 6), 0  # whole microseconds, as the service counts
        self._interval_s: float | None = None

    def after(self, steps: int, interval_s: float) -> float:
        """Of the last of so many more steps, s."""
        if self._interval_s not in (None, interval_s):
            self._begin, self._steps = self._begin + (self._steps - 1) * self._interval_s + interval_s, 0
        self._interval_s = interval_s
        self._steps += steps
        return round(self._begin + (self._steps - 1) * interval_s, 6)
