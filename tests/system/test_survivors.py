"""Subscribers that come back with their cursor outlive a worker, the api, the broker: every record once, in order."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rollcast import AsyncClient, Client, Gap, Prediction, Record
from tests.deployment import Up, await_true

STREAMS = ("live-1", "live-2", "live-3")
ROW = [40.0, 1.0, 20.0, 1.0, 20.0, 1.0]
VICTIMS = {"worker": b"\0worker\0", "api": b"\0api\0", "broker": b"valkey"}


class Subscriber:
    """What one subscriber got."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: dict[str, list[int]] = defaultdict(list)
        self.gaps: list[Gap] = []
        self.ids: list[tuple[str, str]] = []
        self.done = threading.Event()

    def take(self, record: Record) -> bool:
        """Whether it goes on."""
        if isinstance(record, Gap):
            self.gaps.append(record)
        else:
            self.ids.append((record.stream, record.id))
        if isinstance(record, Prediction):
            self.steps[record.stream].append(record.step)
        return not self.done.is_set()

    def has(self, steps: int) -> bool:
        return all(len(found) >= steps for found in self.steps.values()) and bool(self.steps)


def blocking(subscriber: Subscriber, url: str, wanted: str) -> None:
    with Client(url) as client:
        for record in client.records(wanted, "0"):
            if not subscriber.take(record):
                return


def awaited(subscriber: Subscriber, url: str, wanted: str) -> None:
    async def follow() -> None:
        async with AsyncClient(url) as client:
            async for record in client.records(wanted, "0"):
                if not subscriber.take(record):
                    return

    asyncio.run(follow())


def through_a_gateway(subscriber: Subscriber, url: str, wanted: str) -> None:
    with Client(url) as client, client.gateway(wanted, after="0") as gateway:
        for record in gateway.records():
            if not subscriber.take(record):
                return


@pytest.fixture
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("h"), "--appendfsync", "always")  # what was acknowledged outlives SIGKILL
    try:
        yield up.ready()
    finally:
        up.stop()


def test_a_workers_the_apis_and_the_brokers_death_are_survived(up: Up) -> None:
    url, stop, counts = up.url, threading.Event(), dict.fromkeys(STREAMS, 0)
    kinds: list[tuple[Callable[[Subscriber, str, str], None], str]] = [
        (blocking, "live-1"), (blocking, "live-*"), (awaited, "live-?"), (through_a_gateway, "live-*"),
    ]  # fmt: skip
    subscribers = [Subscriber(f"{follow.__name__} {wanted}") for follow, wanted in kinds]

    def post() -> None:
        with Client(url, numbered=True, retry_s=60.0) as client:
            while not stop.is_set():
                for stream in STREAMS:
                    client.post_samples(stream, [ROW], model="activity-lstm")
                    counts[stream] += 1

    threads = [
        threading.Thread(target=follow, args=(subscriber, url, wanted), daemon=True)
        for subscriber, (follow, wanted) in zip(subscribers, kinds, strict=True)
    ]
    threads.append(threading.Thread(target=post, daemon=True))
    for thread in threads:
        thread.start()
    reached = 10
    for name, mark in VICTIMS.items():
        await_all(subscribers, reached, f"before the {name} dies")
        (victim,) = [pid for pid in up.family() if mark in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(victim, signal.SIGKILL)
        reached = max(counts.values()) + 10
        await_all(subscribers, reached, f"after the {name} died")
    stop.set()
    threads[-1].join(60)
    for subscriber in subscribers:
        await_true(
            lambda s=subscriber: all(len(steps) == counts[name] for name, steps in s.steps.items()),  # type: ignore[misc]
            f"{subscriber.name} has all of {counts}, not {dict(subscriber.steps)}",
        )
        subscriber.done.set()
    with Client(url) as client:
        for stream in STREAMS:
            client.post_samples(stream, [ROW])  # what ends the subscriptions
    for thread, subscriber in zip(threads, subscribers, strict=False):
        thread.join(60)
        assert not thread.is_alive(), subscriber.name
        assert not subscriber.gaps, subscriber.name
        assert len(set(subscriber.ids)) == len(subscriber.ids), subscriber.name
        for stream, steps in subscriber.steps.items():
            assert steps[: counts[stream]] == list(range(1, counts[stream] + 1)), subscriber.name


def await_all(subscribers: list[Subscriber], steps: int, when: str) -> None:
    for subscriber in subscribers:
        await_true(lambda s=subscriber: s.has(steps), f"{when}: {subscriber.name} has {steps} of each", 120)  # type: ignore[misc]
