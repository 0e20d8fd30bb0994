"""The demo: real input that the models were not trained on, posted over HTTP, watched over SSE, counted.

Digit streams show different images of one digit for 3 s, then of another. Sensor streams replay recordings at 5×
real time; their entries' times are the recording's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from service.demo.feeds import Producer, Watcher, digit_feed, sensor_feed
from service.demo.screen import Screen
from service.demo.tally import Tally
from service.errors import StartError
from service.packages import Package, load_packages, samples

DIGITS: Final = "digits-cnn"
ACTIVITY: Final = "activity-lstm"
LEAST_ACCURACY: Final = {DIGITS: 0.95, ACTIVITY: 0.85}
DIGIT_STREAMS: Final = 4
SENSOR_STREAMS: Final = 12  # they begin spread over the recordings, which are sorted by activity
LAST_ANSWERS_S: Final = 5.0  # how long the end waits for what was posted


class Demo:
    """`start`, then `draw` again and again, then `finish`. Producers and watchers are threads of this process."""

    def __init__(self, url: str, models: Path | None) -> None:
        packages, _ = load_packages(models)
        missing = sorted(LEAST_ACCURACY.keys() - packages.keys())
        if missing:
            raise StartError(f"the demo needs the model packages {', '.join(LEAST_ACCURACY)}: {missing} are not there")
        self._tally = Tally(LEAST_ACCURACY)
        self._screen = Screen(url, self._tally)
        images, recordings = _samples(packages[DIGITS]), _samples(packages[ACTIVITY])
        feeds = [digit_feed(f"digit-{n + 1}", DIGITS, images, seed=n) for n in range(DIGIT_STREAMS)]
        feeds += [
            sensor_feed(f"sensor-{n + 1:02}", ACTIVITY, recordings, first=n * len(recordings) // SENSOR_STREAMS)
            for n in range(SENSOR_STREAMS)
        ]
        self._watchers = [Watcher(url, feed.stream, self._tally) for feed in feeds]
        self._producers = [Producer(url, feed, self._tally) for feed in feeds]

    def start(self) -> None:
        """The watchers first: what is posted is what is counted, and nothing of an earlier run."""
        self._screen.open()
        for watcher in self._watchers:
            watcher.start()
        for producer in self._producers:
            producer.start()

    def draw(self) -> None:
        self._screen.draw()

    def finish(self, hurry: Callable[[], bool]) -> int:
        """Stops posting, waits for the last answers unless `hurry()`, prints the summary.

        Returns 1 when an accuracy is below what is expected or an answer is missing, else 0.
        """
        for producer in self._producers:
            producer.stop()
        for producer in self._producers:
            producer.join(LAST_ANSWERS_S)
        deadline = time.monotonic() + LAST_ANSWERS_S
        while self._tally.unanswered and not hurry() and time.monotonic() < deadline:
            time.sleep(0.02)
        for watcher in self._watchers:
            watcher.stop()
        return self._screen.close()


def _samples(package: Package) -> list[tuple[str, Path, float | None]]:
    """(label, file, rows a second)."""
    found = [(sample.label, sample.path, sample.rate_hz) for sample in samples(package)]
    if not found:
        raise StartError(f"{package.folder}: no samples/ beside the model, which the demo would show")
    return found
