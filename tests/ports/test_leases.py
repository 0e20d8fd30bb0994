"""Work that takes longer than a lease: it is cut so that leases are renewed between, and comes to its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.errors import CommitRefused
from service.metrics import WorkerMetrics
from service.ports import Commit, Committed
from service.worker import loop
from tests.doubles import MemoryLog, TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, answered, wait_until, working

ROW = np.ones((1, 3), np.float32)


def test_shards_that_are_slow_to_acquire_are_acquired_while_those_before_are_renewed() -> None:
    """All of them together take longer than a lease."""
    world = MemoryWorld(SHARDS)
    log = world.new_log()
    acquire = log.acquire

    def slowly(shard: int) -> bytes | None:
        time.sleep(0.55)
        return acquire(shard)

    log.acquire = slowly  # type: ignore[method-assign]
    with working(log, TinyEngine(tiny_manifest()), lease_s=2.0) as worker:
        wait_until(lambda: worker.owned == SHARDS, 60, "it owns every shard")
        for n in range(4 * SHARDS):
            world.append(f"s{n}", rows_fields(f"s{n}", ROW))
        answered(world, {f"s{n}": 1 for n in range(4 * SHARDS)})
    assert world.acquisitions == SHARDS, "each once"


def test_a_worker_for_whom_no_shard_is_left_says_that_it_is_idle() -> None:
    world, engine = MemoryWorld(1), TinyEngine(tiny_manifest())
    with working(world.new_log("w1"), engine) as first, working(world.new_log("w2"), engine) as second:
        wait_until(lambda: first.owned == 1 and second.idle, 60, "the first has the only shard")
        assert (first.idle, second.owned) == (False, 0)


class Slow(TinyEngine):
    """Takes 10 ms an entry."""

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        time.sleep(0.01 * len(x))
        return super().run(x, states)


def test_a_batch_of_a_slow_model_is_no_larger_than_its_lease_allows(broker_url: str, prefix: str) -> None:
    world, engine = BrokerWorld(broker_url, prefix, lease_s=0.3), Slow(tiny_manifest())
    streams = [f"s{n}" for n in range(50)]  # one entry of each: half a second

    def post(rounds: int) -> None:
        for _ in range(rounds):
            for stream in streams:
                world.append(stream, rows_fields(stream, ROW))

    post(1)
    with working(world.new_log(), engine, lease_s=0.3):
        answered(world, dict.fromkeys(streams, 1))
        measured = len(engine.calls)
        post(2)
        bodies = answered(world, dict.fromkeys(streams, 3))
    assert [body["step"] for body in bodies["s0"]] == [1, 2, 3]
    largest = max(entries for entries, _ in engine.calls[measured:])
    assert largest <= 20, "a third of the lease at 5 ms an entry, in runs of two, once that is measured"


class Slower(TinyEngine):
    """Takes a second a call."""

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        time.sleep(1.0)
        return super().run(x, states)


def test_what_was_stepped_for_longer_than_a_lease_is_committed_when_nobody_took_its_shard(
    broker_url: str, prefix: str
) -> None:
    world, engine = BrokerWorld(broker_url, prefix, lease_s=0.3), Slower(tiny_manifest())
    metrics = WorkerMetrics(CollectorRegistry())
    world.append("a", rows_fields("a", ROW))
    with working(world.new_log(), engine, lease_s=0.3, metrics=metrics):
        answered(world, {"a": 1})
        world.append("a", rows_fields("a", ROW))
        bodies = answered(world, {"a": 2})
    assert [body["step"] for body in bodies["a"]] == [1, 2]
    assert len(engine.calls) == 2, "each once"
    assert not any(child.value for child in metrics.shards_lost.children.values())


class Refusing(MemoryLog):
    """Its broker takes no commits for a while, by the clock of the worker."""

    refused_until = 0.0

    def result(self, shard: int) -> Committed:
        if loop.time.monotonic() < self.refused_until:
            raise CommitRefused("OOM command not allowed when used memory > 'maxmemory'.")
        return super().result(shard)

    def send_again(self, shard: int) -> None: ...

    def make_room(self, commit: Commit) -> int:
        return 0


@pytest.mark.parametrize("lease_s", [3.0, 0.3])
def test_no_shard_is_lost_while_the_broker_refuses_commits_for_ten_leases(
    monkeypatch: pytest.MonkeyPatch, lease_s: float
) -> None:
    slept = [1000.0]  # only pauses before a commit is sent again move the worker's clock, and they cost no time

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    clock = SimpleNamespace(**{name: getattr(time, name) for name in ("perf_counter", "time")}, sleep=sleep)
    clock.monotonic = lambda: slept[0]
    monkeypatch.setattr(loop, "time", clock)
    world, metrics = MemoryWorld(SHARDS), WorkerMetrics(CollectorRegistry())
    log = Refusing(world)
    signs: list[int] = []
    log.refused_until = clock.monotonic() + 10 * lease_s
    world.append("a", rows_fields("a", ROW))
    with working(log, TinyEngine(tiny_manifest()), lease_s=lease_s, metrics=metrics, alive=lambda: signs.append(1)):
        wait_until(lambda: clock.monotonic() > log.refused_until, 60, "ten leases are over")
        world.append("a", rows_fields("a", ROW))
        bodies = answered(world, {"a": 2})
    assert [body["step"] for body in bodies["a"]] == [1, 2]
    assert len(signs) >= metrics.commit_errors.value >= 20, "it was refused all the time, and gave signs of life"
    assert world.acquisitions == SHARDS, "each once"
    assert not any(child.value for child in metrics.shards_lost.children.values())
