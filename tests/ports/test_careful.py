"""Careful mode: an entry whose end is not the first thing that its owner does, one that takes longer than a lease, and
one that takes for ever."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.contracts import FrameInput
from service.keys import ShardKeys, shard_of
from service.metrics import WorkerMetrics
from service.unpacking import DecoderProcess
from service.worker.inbox import STREAM_ENTRIES
from tests.doubles import BrightnessEngine, TinyEngine, rows_fields, tiny_manifest
from tests.pictures import png
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, wait_until, working

POISON = np.frombuffer(b"AntiLife" * 3, "<f4").reshape(2, 3)  # every value finite
SHARD = shard_of("a", SHARDS)
NEIGHBOUR = next(name for name in map(str, range(100)) if shard_of(name, SHARDS) == SHARD)
STRANGER = next(name for name in map(str, range(100)) if shard_of(name, SHARDS) != SHARD)
ROW = np.ones((1, 3), np.float32)


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
            if threading.current_thread().name in ("worker", "trial") or suspect(self._world):
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


# --- what takes long, or for ever -----------------------------------------------------------------------------------


def suspect(world: World) -> tuple[str, int] | None:
    """The entry under trial in SHARD, and how often it was tried."""
    if isinstance(world, MemoryWorld):
        return next(((entry.decode(), tried) for entry, tried in world.shards[SHARD].suspect.items()), None)
    assert isinstance(world, BrokerWorld)
    found: Any = world.client.get(ShardKeys(world.prefix, SHARD).suspect)
    entry, _, tried = (found or b"").decode().partition(" ")
    return (entry, int(tried)) if found else None


def put_in_doubt(world: World) -> None:
    """As three workers that die on what waits there."""
    for _ in range(3):
        log = world.new_log()
        assert log.acquire(SHARD) is not None
        log.close()


def frame(mark: bytes = POISON.tobytes()) -> bytes:
    """A JPEG with a comment."""
    _, jpeg = cv2.imencode(".jpg", np.full((8, 8), 90, np.uint8))
    good = jpeg.tobytes()
    return good[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + good[2:]


def poisonous(kind: str) -> dict[str, bytes]:
    if kind == "frame":
        return {"stream": b"a", "kind": b"frame", "data": frame()}
    return rows_fields("a", POISON)


def engines() -> tuple[TinyEngine, BrightnessEngine]:
    return TinyEngine(tiny_manifest()), BrightnessEngine()


class Poison:
    """Holds whoever works on it, for a time or until it is let go."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.tasted, self.over = seconds, 0, threading.Event()

    def __call__(self, data: bytes) -> None:
        if POISON.tobytes() in data:
            self.tasted += 1
            self.over.wait(self.seconds)


def bodies(world: World, stream: str) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, body, _ in world.records(stream)]


def short_leases(world: World, lease_s: float) -> float:
    if isinstance(world, BrokerWorld):
        world.lease_s = lease_s
    return lease_s


@pytest.mark.parametrize("kind", ["frame", "samples"])
def test_an_entry_that_takes_longer_than_a_lease_is_stepped_and_no_shard_is_lost(world: World, kind: str) -> None:
    lease_s = short_leases(world, 0.3)
    world.append("a", poisonous(kind))
    world.append(NEIGHBOUR, rows_fields(NEIGHBOUR, ROW))
    world.append(STRANGER, rows_fields(STRANGER, ROW))
    put_in_doubt(world)
    poison, metrics = Poison(1.5), WorkerMetrics(CollectorRegistry())
    with working(world.new_log(), *engines(), poison=poison, lease_s=lease_s, metrics=metrics):
        wait_until(lambda: bool(world.records("a") and world.records(NEIGHBOUR) and world.records(STRANGER)), 60)
    assert [body["type"] for body in bodies(world, "a")] == ["prediction"]
    assert poison.tasted == 1
    assert not any(child.value for child in metrics.shards_lost.children.values())


@pytest.mark.parametrize("kind", ["frame", "samples"])
def test_an_entry_that_never_ends_is_refused_after_two_tries_and_what_lies_behind_it_is_answered(
    world: World, kind: str
) -> None:
    entry_id = world.append("a", poisonous(kind))
    world.append(NEIGHBOUR, rows_fields(NEIGHBOUR, ROW))
    put_in_doubt(world)
    poison = Poison(3600)
    try:
        for tried in (1, 2):
            with working(world.new_log(), *engines(), poison=poison, hung_s=0.5) as worker:
                wait_until(lambda: worker.stuck != "", what="it ends by itself")
            assert (suspect(world), poison.tasted) == ((entry_id, tried), tried)
        with working(world.new_log(), *engines(), poison=poison):
            wait_until(lambda: bool(world.records("a") and world.records(NEIGHBOUR)))
    finally:
        poison.over.set()
    assert [(body["type"], body["reason"]) for body in bodies(world, "a")] == [("refused", "crash")]
    assert [body["type"] for body in bodies(world, NEIGHBOUR)] == ["prediction"]
    assert poison.tasted == 2
    assert suspect(world) is None


@pytest.mark.parametrize("kind", ["frame", "samples"])
def test_a_worker_ends_during_a_trial_when_it_is_told_to_and_that_is_no_failed_try(world: World, kind: str) -> None:
    entry_id = world.append("a", poisonous(kind))
    put_in_doubt(world)
    poison = Poison(3600)
    try:
        for tasted in (1, 2, 3):
            with working(world.new_log(), *engines(), poison=poison, hung_s=3600) as worker:
                wait_until(lambda: poison.tasted == tasted, what="it is on trial")  # noqa: B023
            assert worker.stuck
            assert suspect(world) == (entry_id, 0)
            next_one = world.new_log("next")
            assert next_one.acquire(SHARD) is not None, "its lease was given back"
            next_one.release(SHARD)
            next_one.close()
    finally:
        poison.over.set()
    with working(world.new_log("next"), *engines(), poison=poison):
        wait_until(lambda: bool(world.records("a")))
    assert [body["type"] for body in bodies(world, "a")] == ["prediction"]


def test_a_trial_during_which_the_lease_goes_to_another_counts(world: World) -> None:
    """Else an entry that keeps its worker from renewing leases would be tried for ever, by one worker after another."""
    lease_s = short_leases(world, 0.5)
    world.append("a", poisonous("frame"))
    put_in_doubt(world)
    poison = Poison(1.5)
    with working(world.new_log(), *engines(), poison=poison, lease_s=lease_s):
        for tasted in (1, 2):
            wait_until(lambda: poison.tasted == tasted, what="it is on trial")  # noqa: B023
            rob(world)
        wait_until(lambda: bool(world.records("a")))
    assert poison.tasted == 2
    assert [(body["type"], body["reason"]) for body in bodies(world, "a")] == [("refused", "crash")]


def rob(world: World, ending_on: dict[str, bytes] | None = None) -> None:
    """Another worker takes the shard, ends on an entry three times, and gives it back."""
    thief = world.new_log("thief")
    head = None
    while head is None:
        if isinstance(world, MemoryWorld):
            world.shards[SHARD].owner = ""
        else:
            assert isinstance(world, BrokerWorld)
            world.client.delete(ShardKeys(world.prefix, SHARD).owner)
        head = thief.acquire(SHARD)
    if ending_on is not None:
        world.append("a", ending_on)
        for _ in range(3):
            thief.close()
            thief = world.new_log("thief")
            assert thief.acquire(SHARD) is not None
    thief.release(SHARD)
    thief.close()


def test_while_a_trial_takes_long_another_worker_has_the_other_shards(world: World) -> None:
    world.append("a", poisonous("frame"))
    put_in_doubt(world)
    poison = Poison(3600)
    try:
        with working(world.new_log(), *engines(), poison=poison, hung_s=3600) as tries:
            wait_until(lambda: poison.tasted == 1, what="it is on trial")
            for n in range(1, 4):
                world.append(STRANGER, rows_fields(STRANGER, ROW))
                with working(world.new_log("other"), *engines()):
                    wait_until(lambda: len(world.records(STRANGER)) == n, what="it is answered")  # noqa: B023
            assert not world.records("a")
            beat_at = tries.beat_at
            wait_until(lambda: tries.beat_at > beat_at, what="who waits for a trial lives")
            poison.over.set()
            wait_until(lambda: bool(world.records("a")) and tries.owned == SHARDS, what="it joins again")
            world.append(STRANGER, rows_fields(STRANGER, ROW))
            wait_until(lambda: len(world.records(STRANGER)) == 4)
    finally:
        poison.over.set()
    assert [body["step"] for body in bodies(world, STRANGER)] == [1, 2, 3, 4]
    assert [body["type"] for body in bodies(world, "a")] == ["prediction"]


def test_a_frame_that_never_ends_is_refused_after_two_tries_though_it_was_not_on_trial_at_first(world: World) -> None:
    """Its worker goes on beside the thread that decodes it."""
    world.append("a", poisonous("frame"))
    world.append(NEIGHBOUR, rows_fields(NEIGHBOUR, ROW))
    poison, lives = Poison(3600), 0
    try:
        while not world.records("a"):
            assert (lives := lives + 1) <= 3
            with working(world.new_log(), *engines(), poison=poison, hung_s=0.5) as worker:
                wait_until(lambda: worker.stuck != "" or bool(world.records("a")), what="it ends by itself")
    finally:
        poison.over.set()
    assert [(body["type"], body["reason"]) for body in bodies(world, "a")] == [("refused", "crash")]
    assert [body["type"] for body in bodies(world, NEIGHBOUR)] == ["prediction"]
    assert poison.tasted == 2


@pytest.mark.parametrize("doubt", [False, True])
def test_a_decoder_that_never_ends_ends_its_worker(world: World, doubt: bool) -> None:
    """Also where an entry on trial waits for it."""
    held = {"stream": STRANGER.encode(), "kind": b"frame", "data": frame()}
    poison = Poison(3600)
    try:
        with working(world.new_log(), *engines(), poison=poison, hung_s=1.0) as worker:
            world.append(STRANGER, held)
            wait_until(lambda: poison.tasted == 1, what="it is being decoded")
            if doubt:
                rob(world, ending_on=rows_fields("a", ROW))
            wait_until(lambda: worker.stuck != "", what="it ends by itself")
    finally:
        poison.over.set()


def test_a_trial_waits_for_heavy_pictures_of_other_streams(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane bounds them by itself: they are no reason for a worker to end."""
    large = {"stream": STRANGER.encode(), "kind": b"frame", "data": png(2100, 2100)}
    begun, over = threading.Event(), threading.Event()

    def decode(self: DecoderProcess, data: bytes, form: FrameInput, **limits: Any) -> np.ndarray:
        begun.set()
        over.wait(60)
        return np.zeros((form.height, form.width, form.channels), np.uint8)

    monkeypatch.setattr(DecoderProcess, "decode", decode)
    metrics = WorkerMetrics(CollectorRegistry())
    try:
        with working(world.new_log(), *engines(), hung_s=0.5, metrics=metrics) as worker:
            world.append(STRANGER, large)
            assert begun.wait(60)
            rob(world, ending_on=rows_fields("a", ROW))
            beats = worker.beat_at + 1.0
            wait_until(lambda: worker.beat_at > beats or worker.stuck != "", what="it waits for longer than hung_s")
            over.set()
            wait_until(lambda: worker.stuck != "" or bool(world.records("a") and world.records(STRANGER)))
            assert not worker.stuck
    finally:
        over.set()


def test_a_trial_does_not_wait_for_what_a_hot_stream_has_in_the_log_only(world: World) -> None:
    """Else one frame after the other would be decoded meanwhile, and the trial would wait for all of them."""
    gates = {mark: threading.Event() for mark in (b"first", b"last in memory", b"in the log")}
    marks = [b"first", *[b""] * 58, b"last in memory", *[b""] * 4, *[b"in the log"] * STREAM_ENTRIES]

    def wait(data: bytes) -> None:
        for mark, gate in gates.items():
            if mark in data:
                gate.wait(3600)

    try:
        with working(world.new_log(), *engines(), poison=wait, hung_s=3600) as worker:
            world.append(STRANGER, {"stream": STRANGER.encode(), "kind": b"frame", "data": frame(b"")})
            wait_until(lambda: bool(world.records(STRANGER)), what="its model is known")
            for mark in marks:
                world.append(STRANGER, {"stream": STRANGER.encode(), "kind": b"frame", "data": frame(mark)})
            hot = worker._shards[shard_of(STRANGER, SHARDS)]
            wait_until(lambda: hot.held == STREAM_ENTRIES, what="the rest lies in the log only")
            rob(world, ending_on=rows_fields("a", ROW))
            wait_until(lambda: len(worker._doubts) == 1, what="an entry waits for its trial")
            gates[b"first"].set()
            wait_until(lambda: len(world.records(STRANGER)) == 60, what="few wait in memory")
            beats = worker.beat_at + 0.5
            wait_until(lambda: worker.beat_at > beats, what="it has had the time to fetch more")
            gates[b"last in memory"].set()
            wait_until(lambda: bool(world.records("a")), 20, "it had its trial")
            gates[b"in the log"].set()
            wait_until(lambda: len(world.records(STRANGER)) == 1 + len(marks))
    finally:
        for gate in gates.values():
            gate.set()


def test_a_worker_that_has_no_other_shard_leaves_the_workers_once_in_a_trial(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.append("a", poisonous("frame"))
    put_in_doubt(world)
    other = world.new_log("other")
    assert all(other.acquire(shard) for shard in range(SHARDS) if shard != SHARD)
    log, left = world.new_log(), []
    leave = log.leave
    monkeypatch.setattr(log, "leave", lambda: (left.append(worker.beat_at), leave()))
    poison = Poison(3600)
    try:
        with working(log, *engines(), poison=poison, hung_s=3600) as worker:
            wait_until(lambda: bool(other.renew([n for n in range(SHARDS) if n != SHARD], b"{}") and left))
            wait_until(lambda: worker.beat_at > left[0] + 1.0, what="it goes on")
            assert len(left) == 1
    finally:
        poison.over.set()
        other.close()
