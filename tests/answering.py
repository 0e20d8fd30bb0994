"""A worker's part, played by hand: records, positions and feeds are written as docs/formats.md says, when a test
says so. The same words for a broker in memory and for a real one."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import redis

from service.api import Bounds
from service.broker.predictions import RedisPredictions
from service.codec import (
    NOWHERE,
    Head,
    Position,
    encode_feed,
    encode_record,
    encode_settings,
    id_number,
    parse_head,
    parse_position,
)
from service.contracts import (
    Done,
    Dropped,
    Duplicate,
    Event,
    Prediction,
    Record,
    Refused,
    Rolling,
    StreamSettings,
)
from service.keys import ShardKeys, shard_of, worker_key, workers_key
from service.ports import Predictions, WorkerInfo
from tests.doubles import MemoryBroker
from tests.ports.fake_predictions import FakePredictions

PATIENT = Bounds(seconds=1e9)  # who answers for a worker leaves entries waiting: that looks slow, and is no matter here


class Answering(Protocol):
    """What a test may do on a worker's side."""

    predictions: Predictions

    def answer(self, stream: str, entry_id: str, kind: str = "prediction", **more: Any) -> str:
        """Commits one record; returns its body."""
        ...

    def serve(self, *models: str, metrics: str = "") -> None:
        """A live worker that has these models."""
        ...

    def trim(self, stream: str) -> None:
        """Removes all records of a stream, as their age would."""
        ...

    def begin_anew(self) -> None:
        """The broker comes back empty."""
        ...


class InMemory:
    """On a MemoryBroker."""

    def __init__(self, shards: int = 4) -> None:
        self.broker = MemoryBroker(shards)
        self.predictions = FakePredictions(self.broker)
        self._lives = 0

    def answer(self, stream: str, entry_id: str, kind: str = "prediction", **more: Any) -> str:
        it = self.broker.shards[shard_of(stream, len(self.broker.shards))]
        was = parse_position(it.pos[stream]) if stream in it.pos else NOWHERE
        record = make_record(kind, stream, entry_id, **more)
        head, position = _after(it.head, was, entry_id, kind, self._lives)
        body = encode_record(record)
        it.out.setdefault(stream, {})[id_number(entry_id)] = (kind.encode(), body, was.record)
        it.pos[stream], it.head = position.encode(), head.encode()
        it.settings[stream] = encode_settings(StreamSettings(model=more.get("model", "tiny")))
        if kind == "dropped":
            it.drops[stream] = it.drops.get(stream, 0) + 1
        it.feed[head.n] = [(stream, entry_id)]
        return body.decode()

    def serve(self, *models: str, metrics: str = "") -> None:
        self.predictions.live = [WorkerInfo("w", dict.fromkeys(models, 1), "worker-0", metrics)]
        for it in self.broker.shards:
            it.owner = "w"

    def trim(self, stream: str) -> None:
        self.broker.shards[shard_of(stream, len(self.broker.shards))].out.pop(stream, None)

    def begin_anew(self) -> None:
        self._lives += 1
        empty = MemoryBroker(len(self.broker.shards))
        self.broker.shards = empty.shards


class OnBroker:
    """On a real broker, under a prefix of the test's own."""

    def __init__(self, url: str, prefix: str, shards: int = 4) -> None:
        self.predictions = RedisPredictions(url, prefix, shards)
        self.redis = redis.Redis.from_url(url)
        self.url, self.prefix, self.shards = url, prefix, shards
        self._lives = 0

    def answer(self, stream: str, entry_id: str, kind: str = "prediction", **more: Any) -> str:
        keys = self.keys(stream)
        found = self.redis.hget(keys.pos, stream)
        was = parse_position(found) if found else NOWHERE
        head, position = _after(self.redis.get(keys.head), was, entry_id, kind, self._lives)
        body = encode_record(make_record(kind, stream, entry_id, **more))
        commit = self.redis.pipeline(transaction=True)
        commit.set(keys.head, head.encode())
        commit.xadd(keys.out(stream), {"type": kind, "body": body, "prev": was.record}, id=entry_id)
        commit.hset(keys.pos, stream, position.encode())
        commit.hsetnx(keys.settings, stream, encode_settings(StreamSettings(model=more.get("model", "tiny"))))
        commit.zadd(keys.streams, {stream: int(entry_id.partition("-")[0])})
        if kind == "dropped":
            commit.zincrby(keys.drops, 1, stream)
        answered = encode_feed([stream.encode(), entry_id.encode()])
        commit.xadd(keys.feed, {"token": head.token, "records": answered}, id=f"{head.n}-0")
        commit.execute()
        return body.decode()

    def serve(self, *models: str, metrics: str = "") -> None:
        about = WorkerInfo("w", dict.fromkeys(models, 1), "worker-0", metrics)
        self.redis.zadd(workers_key(self.prefix), {"w": 1})
        self.redis.set(worker_key(self.prefix, "w"), msgspec.json.encode(about))
        for shard in range(self.shards):
            self.redis.set(ShardKeys(self.prefix, shard).owner, b"w token")

    def trim(self, stream: str) -> None:
        self.redis.xtrim(self.keys(stream).out(stream), maxlen=0, approximate=False)

    def begin_anew(self) -> None:
        self._lives += 1
        for key in self.redis.scan_iter(f"{self.prefix}:*", count=1000):
            self.redis.delete(key)

    def close(self) -> None:
        self.redis.close()

    def keys(self, stream: str) -> ShardKeys:
        return ShardKeys(self.prefix, shard_of(stream, self.shards))


def make_record(kind: str, stream: str, entry_id: str, *, model: str = "tiny", step: int = 1, of: str = "") -> Record:
    if kind == "prediction":
        rolling = Rolling("label0", 0.7, [0.7, 0.3])
        event = Event("enter", "label0", entry_id, step, 1.0, 1.0, 0.7, 0.7)
        return Prediction(entry_id, stream, model, 1, 1.0, step, "label0", 0.9, [0.9, 0.1], rolling, [event], "first")
    if kind == "refused":
        return Refused(entry_id, stream, "bad_image", "it cannot be decoded", model)
    if kind == "dropped":
        return Dropped(entry_id, stream, "late", "seq 3 is below the stream's last, 7", model)
    if kind == "duplicate":
        return Duplicate(entry_id, stream, of, 7, model)
    return Done(entry_id, stream, "reset")


def _after(head: bytes | None, was: Position, entry_id: str, kind: str, life: int) -> tuple[Head, Position]:
    old = parse_head(head) if head else Head(f"life{life}", f"{life:04x}", 0, 0, 0, 0)
    number = id_number(entry_id)
    stepped = entry_id.encode() if kind == "prediction" else was.stepped
    return old._replace(n=old.n + 1, low=max(old.low, number)), Position(
        number, entry_id.encode(), was.seq, was.seq_id, stepped
    )
