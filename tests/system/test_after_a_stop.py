"""The only worker dies under load and stays away until producers are refused: when it works again, so do they."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.deployment import Up, await_true

BACKLOG_S = 2.0
ROWS = np.random.default_rng(3).normal(size=(512, 6)).astype("<f4").tobytes()
RAW = {"content-type": "application/octet-stream"}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path, "--shards", "1", "--backlog-s", str(BACKLOG_S))
    try:
        yield up.ready()
    finally:
        up.process.send_signal(signal.SIGCONT)
        up.stop()


class Producer:
    """Posts, whatever the answer is."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=60)
        self.taken: list[str] = []
        self.refused: list[int] = []  # Retry-After, s

    def post(self) -> bool:
        """Whether it was taken."""
        query = {"model": "activity-lstm"}
        answer = self.http.post("/v1/streams/pump-1/samples", params=query, content=ROWS, headers=RAW)
        if answer.status_code == 202:
            self.taken.append(answer.json()["id"])
            return True
        assert answer.status_code == 429, answer.text
        self.refused.append(int(answer.headers["retry-after"]))
        return False

    def answered(self) -> list[str]:
        page = self.http.get("/v1/streams/pump-1/predictions", params={"after": "0", "limit": "1000"}).json()
        return [record["id"] for record in page["predictions"]]

    def last(self) -> str:
        next_: str = self.http.get("/v1/streams/pump-1/predictions", params={"limit": "1"}).json()["next"]
        return next_


def test_producers_are_taken_again_when_the_worker_works_again(up: Up) -> None:
    producer = Producer(up.url)
    await_true(lambda: producer.post() and len(producer.taken) >= 30, "a worker that works")
    await_true(lambda: producer.last() == producer.taken[-1], "what was posted is answered")

    (worker,) = [pid for pid in up.family() if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    up.process.send_signal(signal.SIGSTOP)  # nobody starts it again
    os.kill(worker, signal.SIGKILL)
    dead = time.monotonic()
    await_true(lambda: not producer.post() and time.monotonic() > dead + BACKLOG_S, "producers are refused")
    before = producer.last()
    assert before != producer.taken[-1]

    up.process.send_signal(signal.SIGCONT)
    await_true(lambda: producer.last() != before, "the worker commits again")
    await_true(producer.post, "a producer is taken again", 5 * BACKLOG_S)  # a second or two where nothing else runs
    assert all(1 <= retry_s <= BACKLOG_S for retry_s in producer.refused)
    await_true(lambda: producer.answered() == producer.taken, "each once, in order")
    producer.http.close()
