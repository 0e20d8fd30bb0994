"""One face for a log in memory and a log on a real broker, so that the same sentences are asserted of both."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import redis
from prometheus_client import CollectorRegistry

from service.broker.log import RedisLog
from service.keys import ShardKeys, shard_of
from service.metrics import WorkerMetrics
from service.ports import Engine, Log
from service.worker import Worker
from tests.doubles import MemoryBroker, MemoryLog

SHARDS = 4
LEASE_S = 5.0  # where nobody dies a busy machine must not look like a dead worker


class World(Protocol):
    """A broker as producers and subscribers see it."""

    def append(
        self, stream: str, fields: Mapping[str, bytes], shard: int | None = None, entry_id: str = "*"
    ) -> str: ...
    def now_ms(self) -> int: ...
    def head(self, stream: str) -> bytes: ...
    def set_head(self, stream: str, head: bytes) -> None: ...
    def position(self, stream: str) -> bytes: ...
    def records(self, stream: str, shard: int | None = None) -> list[tuple[str, str, bytes, str]]: ...
    def dead(self) -> list[tuple[str, str, bytes]]: ...
    def state(self, stream: str) -> bytes | None: ...
    def forget_state(self, stream: str) -> None: ...
    def logged(self) -> int: ...
    def new_log(self, worker: str = "w", dead_kept: int = 1000, dead_bytes: int = 64 << 20) -> Log: ...


class MemoryWorld(MemoryBroker):
    def now_ms(self) -> int:
        return self.clock_ms

    def head(self, stream: str) -> bytes:
        return self.shards[shard_of(stream, SHARDS)].head

    def set_head(self, stream: str, head: bytes) -> None:
        self.shards[shard_of(stream, SHARDS)].head = head

    def position(self, stream: str) -> bytes:
        return self.shards[shard_of(stream, SHARDS)].pos[stream]

    def dead(self) -> list[tuple[str, str, bytes]]:
        found = [fields for shard in self.shards for fields in shard.dead.values()]
        return [(f["reason"].decode(), f["stream"].decode(), f.get("data", b"")) for f in found]

    def state(self, stream: str) -> bytes | None:
        return self.shards[shard_of(stream, SHARDS)].states.get(stream)

    def forget_state(self, stream: str) -> None:
        del self.shards[shard_of(stream, SHARDS)].states[stream]

    def logged(self) -> int:
        return sum(len(shard.log) for shard in self.shards)

    def new_log(self, worker: str = "w", dead_kept: int = 1000, dead_bytes: int = 64 << 20) -> MemoryLog:
        log = MemoryLog(self, worker)
        log.dead_kept, log.dead_bytes = dead_kept, dead_bytes
        return log


class BrokerWorld:
    """On a real broker, under a prefix of its own."""

    def __init__(self, url: str, prefix: str, lease_s: float = LEASE_S, records_kept: int = 100_000) -> None:
        self.url, self.prefix, self.lease_s, self.records_kept = url, prefix, lease_s, records_kept
        self.client = redis.Redis.from_url(url)
        self.keys = [ShardKeys(prefix, shard) for shard in range(SHARDS)]

    def _of(self, stream: str, shard: int | None = None) -> ShardKeys:
        return self.keys[shard_of(stream, SHARDS) if shard is None else shard]

    def append(self, stream: str, fields: Mapping[str, bytes], shard: int | None = None, entry_id: str = "*") -> str:
        given: Any = self.client.xadd(self._of(stream, shard).inbox, dict(fields), id=entry_id)  # type: ignore[arg-type]
        return str(given.decode())

    def now_ms(self) -> int:
        seconds, micros = self.client.time()  # type: ignore[misc]
        return int(seconds * 1000 + micros // 1000)

    def head(self, stream: str) -> bytes:
        return self.client.get(self._of(stream).head)  # type: ignore[return-value]

    def set_head(self, stream: str, head: bytes) -> None:
        self.client.set(self._of(stream).head, head)

    def position(self, stream: str) -> bytes:
        return self.client.hget(self._of(stream).pos, stream)  # type: ignore[return-value]

    def records(self, stream: str, shard: int | None = None) -> list[tuple[str, str, bytes, str]]:
        found: Any = self.client.xrange(self._of(stream, shard).out(stream))
        return [(i.decode(), f[b"type"].decode(), f[b"body"], f[b"prev"].decode()) for i, f in found]

    def dead(self) -> list[tuple[str, str, bytes]]:
        found: list[Any] = [(keys, f) for keys in self.keys for _, f in self.client.xrange(keys.dead)]  # type: ignore[union-attr]
        data = [self.client.hget(keys.dead_data, f[b"id"].decode()) or b"" for keys, f in found]
        return [(f[b"reason"].decode(), f[b"stream"].decode(), kept) for (_, f), kept in zip(found, data, strict=True)]  # type: ignore[misc]

    def state(self, stream: str) -> bytes | None:
        return self.client.get(self._of(stream).state(stream))  # type: ignore[return-value]

    def forget_state(self, stream: str) -> None:
        assert self.client.delete(self._of(stream).state(stream)) == 1

    def logged(self) -> int:
        return sum(self.client.xlen(keys.inbox) for keys in self.keys)  # type: ignore[misc]

    def new_log(self, worker: str = "w", dead_kept: int = 1000, dead_bytes: int = 64 << 20) -> RedisLog:
        return RedisLog(
            self.url,
            worker=worker,
            prefix=self.prefix,
            shards=SHARDS,
            lease_s=self.lease_s,
            records_kept=self.records_kept,
            dead_kept=dead_kept,
            dead_bytes=dead_bytes,
        )


@contextmanager
def working(log: Log, *engines: Engine, **settings: Any) -> Iterator[Worker]:
    """A worker in a thread of its own, ended with the block; what it raised is raised here."""
    schemas = {engine.manifest.name: (engine, engine.manifest.sha256[:16]) for engine in engines}
    metrics = settings.pop("metrics", None) or WorkerMetrics(CollectorRegistry())
    worker = Worker(log, schemas, metrics, lease_s=settings.pop("lease_s", LEASE_S), **settings)
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            worker.run(stop)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    try:
        yield worker
    finally:
        stop.set()
        worker.wake()
        thread.join(60)
        if raised:
            raise raised[0]
        assert not thread.is_alive(), "the worker did not stop within 60 s"


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0, what: str = "") -> None:
    """Polls a condition; fails past the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what or condition}"
        time.sleep(0.005)


def answered(world: World, streams: Mapping[str, int], limit_s: float = 60.0) -> dict[str, list[dict[str, Any]]]:
    """Waits until each stream has its number of records. Returns their bodies, after checking ids and `prev`."""
    wait_until(
        lambda: all(len(world.records(stream)) >= n for stream, n in streams.items()),
        limit_s,
        "every entry has its record",
    )
    bodies = {}
    for stream, n in streams.items():
        records = world.records(stream)
        assert len(records) == n
        previous = "0-0"
        for entry_id, kind, body, prev in records:
            assert prev == previous
            previous = entry_id
            assert json.loads(body)["id"] == entry_id
            assert json.loads(body)["type"] == kind
        bodies[stream] = [json.loads(body) for _, _, body, _ in records]
    return bodies
