"""Careful mode where an entry's end is not the first thing that its owner does: other commits come before it."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from service.keys import shard_of
from tests.doubles import BrightnessEngine, TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, World, working

POISON = np.frombuffer(b"AntiLife" * 3, "<f4").reshape(2, 3)  # every value finite
NEIGHBOUR = next(name for name in map(str, range(100)) if shard_of(name, SHARDS) == shard_of("a", SHARDS))


class DiedError(BaseException):
    """Stands for the end of a process."""


class Life:
    """A worker whose process ends at the poison: at once where it is stepped; where it is decoded, not before others
    of its shard are committed."""

    def __init__(self, world: World) -> None:
        self._world, self._eaten, self._over = world, threading.Event(), threading.Event()
        self._known = len(world.records(NEIGHBOUR))

    def until(self, stream: str, records: int, **settings: Any) -> bool:
        """False when it died first."""
        engines = TinyEngine(tiny_manifest()), BrightnessEngine()
        try:
            with working(self._world.new_log(), *engines, poison=self._eat, fault=self._pass, **settings):
                deadline = time.monotonic() + 20
                while len(self._world.records(stream)) < records and not self._over.is_set():
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
        except DiedError:
            return False
        return True

    def _eat(self, data: bytes) -> None:
        if POISON.tobytes() in data:
            self._eaten.set()
            if threading.current_thread().name == "worker":
                self._die()
            self._over.wait(20)

    def _pass(self, point: str) -> None:
        if self._eaten.is_set() and point == "after-commit" and len(self._world.records(NEIGHBOUR)) > self._known:
            self._die()

    def _die(self) -> None:
        self._over.set()
        raise DiedError


def deaths_until(world: World, stream: str, records: int, **settings: Any) -> int:
    for deaths in range(10):
        world.append(NEIGHBOUR, rows_fields(NEIGHBOUR, np.ones((1, 3), np.float32)))
        if Life(world).until(stream, records, **settings):
            return deaths
    raise AssertionError("the tenth worker has ended")


def test_an_entry_that_kills_slowly_is_found_though_others_of_its_shard_are_committed_meanwhile(world: World) -> None:
    frame = {"stream": b"a", "kind": b"frame", "data": b"\xff\xd8\xff" + POISON.tobytes()}
    poisonous = world.append("a", frame)
    deaths = deaths_until(world, "a", 1)
    ((entry_id, kind, body, _),) = world.records("a")
    assert (entry_id, kind, b'"crash"' in body) == (poisonous, "refused", True)
    assert 3 <= deaths <= 5


@pytest.mark.parametrize("history_s", [0.0, 1e6])
def test_an_entry_is_found_though_its_owners_begin_with_a_commit_without_entries(
    world: World, history_s: float
) -> None:
    """A log that keeps finished entries is trimmed, by their age, as soon as it has an owner."""
    world.append("a", rows_fields("a", np.ones((1, 3), np.float32)))
    assert Life(world).until("a", 1, input_history_s=history_s)
    world.append("a", rows_fields("a", POISON))
    deaths = deaths_until(world, "a", 2, input_history_s=history_s)
    assert b'"crash"' in world.records("a")[1][2]
    assert 3 <= deaths <= 5
