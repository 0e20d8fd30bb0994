"""What the demo shows, as endless lists of entries, and the threads that post and watch them."""

from __future__ import annotations

import csv
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from rollcast import Client, Gap, Problem, ServerAway
from service.demo.tally import Tally

FRAMES_A_SECOND: Final = 4
SECONDS_A_DIGIT: Final = 3
SPEED: Final = 5  # times real time, of recordings
SECONDS_A_BLOCK: Final = 1.0  # of recording time in one entry
RETRY_S: Final = 0.5

Samples = Sequence[tuple[str, Path, float | None]]  # label, file, rows a second


class Shown(NamedTuple):
    """One entry to post."""

    label: str
    image: bytes | None
    rows: list[list[float]]
    start: bool
    time: float | None  # event time, s


class Feed(NamedTuple):
    """An endless stream of entries, one every `interval_s`."""

    stream: str
    model: str
    interval_s: float
    entries: Iterator[Shown]


def digit_feed(stream: str, model: str, samples: Samples, *, seed: int) -> Feed:
    """Different images of one digit for 3 s, then of another digit."""
    images: dict[str, list[bytes]] = {}
    for label, path, _ in samples:
        images.setdefault(label, []).append(path.read_bytes())

    def entries() -> Iterator[Shown]:
        chance = random.Random(seed)
        first = True
        while True:
            for label in chance.sample(sorted(images), len(images)):
                shuffled = chance.sample(images[label], len(images[label]))
                for n in range(SECONDS_A_DIGIT * FRAMES_A_SECOND):
                    yield Shown(label, shuffled[n % len(shuffled)], [], first, None)
                    first = False

    return Feed(stream, model, 1 / FRAMES_A_SECOND, entries())


def sensor_feed(stream: str, model: str, samples: Samples, *, first: int) -> Feed:
    """One recording after the other, beginning with the `first`, at 5× real time, round and round.

    Entry times are recording time, from the start of the demo on.
    """
    recordings = [(label, rate_hz or 1.0, read_rows(path)) for label, path, rate_hz in samples]

    def entries() -> Iterator[Shown]:
        now = time.time()
        for n in count(first):
            label, rate_hz, rows = recordings[n % len(recordings)]
            size = max(1, round(SECONDS_A_BLOCK * rate_hz))
            for at in range(0, len(rows), size):
                block = rows[at : at + size]
                now += len(block) / rate_hz
                yield Shown(label, None, block, at == 0, now)

    return Feed(stream, model, SECONDS_A_BLOCK / SPEED, entries())


def read_rows(path: Path) -> list[list[float]]:
    """The rows of a CSV file whose first line names the columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]


class Producer(threading.Thread):
    """Posts one feed at its pace. What the server could not take is posted again with the same seq: never twice."""

    def __init__(self, url: str, feed: Feed, tally: Tally) -> None:
        super().__init__(name=f"post {feed.stream}", daemon=True)
        self._url, self._feed, self._tally = url, feed, tally
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        with Client(self._url, retry_s=0.0) as client:
            due = time.monotonic()
            seq = int(time.time() * 1000)  # above all of an earlier run's: those grew slower than the clock
            for shown in self._feed.entries:
                if self._stopped.wait(max(0.0, due - time.monotonic())):
                    return
                due = max(due + self._feed.interval_s, time.monotonic() - 1.0)  # after a hold-up no burst to catch up
                seq += 1
                self._post(client, shown, seq)

    def _post(self, client: Client, shown: Shown, seq: int) -> None:
        stream, model = self._feed.stream, self._feed.model
        while not self._stopped.is_set():
            try:
                if shown.image is not None:
                    answer = client.post_frame(stream, shown.image, model=model, seq=seq, start=shown.start)
                else:
                    answer = client.post_samples(
                        stream, shown.rows, model=model, seq=seq, start=shown.start, time=shown.time
                    )
            except (Problem, ServerAway) as error:
                self._tally.on_trouble()
                self._stopped.wait(getattr(error, "retry_after_s", None) or RETRY_S)
            else:
                self._tally.on_posted(stream, answer.id, shown.label)
                return


class Watcher(threading.Thread):
    """Follows one stream from now on."""

    def __init__(self, url: str, stream: str, tally: Tally) -> None:
        super().__init__(name=f"watch {stream}", daemon=True)
        self._client = Client(url)
        self._stream, self._tally = stream, tally
        self._after = self._client.newest(stream)  # before anything is posted
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        for record in self._client.records(self._stream, after=self._after):
            if self._stopped:
                return
            if not isinstance(record, Gap):
                self._tally.on_record(self._stream, json.loads(record.json))
