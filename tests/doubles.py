"""Stand-ins for the ports: a log in memory that keeps the broker's rules, and a small recurrent engine in numpy."""

from __future__ import annotations

import hashlib
import select
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.codec import Head, id_number, number_id, parse_head
from service.contracts import FrameInput, GapPolicy, Manifest, RollingSettings, RowInput, StateTensor
from service.errors import BrokerAway, Fenced
from service.keys import shard_of
from service.ports import Commit, Committed, Loaded

Fields = list[bytes]


@dataclass
class MemoryShard:
    """One shard's keys."""

    log: dict[int, Fields] = field(default_factory=dict)  # ascending
    last: int = 0  # last generated id
    owner: str = ""
    head: bytes = b""
    out: dict[str, dict[int, tuple[bytes, bytes, bytes]]] = field(default_factory=dict)  # type, body, prev
    states: dict[str, bytes] = field(default_factory=dict)
    pos: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, bytes] = field(default_factory=dict)
    feed: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    dead: list[tuple[str, str, bytes]] = field(default_factory=list)


class MemoryBroker:
    """Outlives the logs that look at it, as a broker outlives its workers."""

    def __init__(self, shards: int = 4) -> None:
        self.shards = [MemoryShard() for _ in range(shards)]
        self.clock_ms = 1_763_860_000_000
        self.acquisitions = 0
        self.away = False

    def append(self, stream: str, fields: Mapping[str, bytes], shard: int | None = None) -> str:
        """XADD. Every entry gets its own millisecond, unless the caller keeps `clock_ms` still."""
        where = self.shards[shard_of(stream, len(self.shards)) if shard is None else shard]
        number = max(self.clock_ms << 64, where.last + 1)
        where.last = number
        where.log[number] = [part for name, value in fields.items() for part in (name.encode(), value)]
        self.clock_ms += 1
        return number_id(number).decode()

    def records(self, stream: str, shard: int | None = None) -> list[tuple[str, str, bytes, str]]:
        """(id, type, body, prev), ascending."""
        where = self.shards[shard_of(stream, len(self.shards)) if shard is None else shard]
        return [
            (number_id(n).decode(), kind.decode(), body, prev.decode())
            for n, (kind, body, prev) in where.out.get(stream, {}).items()
        ]


class MemoryLog:
    """ports.Log on a MemoryBroker. `fail_send` makes commits of that many sends get lost before they are applied,
    `fail_reply` after they are."""

    def __init__(self, broker: MemoryBroker, worker: str = "w") -> None:
        self.broker = broker
        self.worker = worker
        self.fail_send = 0
        self.fail_reply = 0
        self._asked: tuple[dict[int, int], int] | None = None
        self._fences: dict[int, bytes] = {}
        self._sent: dict[int, Commit] = {}

    @property
    def shards(self) -> int:
        return len(self.broker.shards)

    def _check(self) -> None:
        if self.broker.away:
            raise BrokerAway("the broker is away")

    def acquire(self, shard: int) -> bytes | None:
        self._check()
        it = self.broker.shards[shard]
        if it.owner not in ("", self.worker):
            return None
        it.owner = self.worker
        self.broker.acquisitions += 1
        old = parse_head(it.head) if it.head else Head("life", "", 0, 0, 0, 0)
        for number in [n for n in it.log if n <= old.low]:
            del it.log[number]
        it.head = Head(old.life, f"{self.broker.acquisitions:04x}", old.n, old.low, 0, old.tries + 1).encode()
        self._fences[shard] = it.head
        return it.head

    def renew(self, shards: Sequence[int], about: bytes) -> list[int]:
        self._check()
        return [shard for shard in shards if self.broker.shards[shard].owner != self.worker]

    def release(self, shard: int) -> None:
        if self.broker.shards[shard].owner == self.worker:
            self.broker.shards[shard].owner = ""

    def leave(self) -> None: ...

    def abandon(self, shard: int) -> None:
        self._fences.pop(shard, None)
        self._sent.pop(shard, None)

    def ask(self, cursors: Mapping[int, int], count: int, block_s: float) -> None:
        self._asked = dict(cursors), count

    def poll(self, wait_s: float, wake: int | None) -> list[tuple[int, list[tuple[bytes, list[bytes]]]]] | None:
        self._check()
        found = []
        if self._asked is not None:
            cursors, count = self._asked
            for shard, cursor in cursors.items():
                log = self.broker.shards[shard].log
                if entries := [(number_id(n), fields) for n, fields in log.items() if n > cursor][:count]:
                    found.append((shard, entries))
        if not found:
            if wake is not None:
                select.select([wake], [], [], min(wait_s, 0.005))
            return None
        self._asked = None
        return found

    def load(self, wanted: Mapping[int, Sequence[str]]) -> dict[int, list[Loaded]]:
        self._check()
        shards = self.broker.shards
        return {
            p: [Loaded(shards[p].pos.get(s), shards[p].states.get(s), shards[p].settings.get(s)) for s in streams]
            for p, streams in wanted.items()
        }

    def send(self, commit: Commit) -> None:
        if commit.shard not in self._fences:
            raise Fenced("no fenced connection")
        assert commit.shard not in self._sent
        self._sent[commit.shard] = commit
        if self.fail_send:
            self.fail_send -= 1
            self.abandon(commit.shard)
            raise Fenced("connection lost while sending")
        it = self.broker.shards[commit.shard]
        if it.head != self._fences[commit.shard] or it.head != commit.before:
            return
        it.head = self._fences[commit.shard] = commit.after
        for record in commit.records:
            out = it.out.setdefault(record.stream, {})
            number = id_number(record.id)
            assert not out or number > max(out), "XADD: the id is equal or smaller"
            out[number] = (record.type, record.body, record.prev)
        it.dead += [(d.reason, d.stream, d.data) for d in commit.dead]
        it.states |= commit.states
        for stream in commit.forgotten:
            it.states.pop(stream, None)
        it.pos |= commit.positions
        it.settings |= commit.settings
        it.feed[commit.n] = [(r.stream, r.id.decode()) for r in commit.records]

    def result(self, shard: int) -> Committed:
        commit = self._sent.pop(shard)
        it = self.broker.shards[shard]
        if self.fail_reply:
            self.fail_reply -= 1
            self.abandon(shard)
            raise Fenced("the reply was lost")
        if it.head != commit.after:
            self.abandon(shard)
            raise Fenced("head is another's")
        trimmed = 0
        if commit.trim_below is not None:
            gone = [n for n in it.log if n < id_number(commit.trim_below)]
            trimmed = len(gone)
            for number in gone:
                del it.log[number]
        return Committed(trimmed, [])

    def make_room(self, commit: Commit) -> None: ...

    def close(self) -> None: ...


def tiny_manifest(name: str = "tiny", features: int = 3, count: int = 4, **changes: object) -> Manifest:
    values: dict[str, object] = {
        "format": 1,
        "name": name,
        "version": 1,
        "kind": "samples",
        "labels": [f"label{k}" for k in range(count)],
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "states": [StateTensor("h", [features * 2]), StateTensor("n", [1], "int64")],
        "rows": RowInput([f"x{f}" for f in range(features)], 10.0, *[[0.0] * features] * 4),
        "rolling": RollingSettings(0.3, 0.4, 0.3, 0.1, 0.2, 0.5),
        "gap": GapPolicy("carry", 5.0),
    }
    return Manifest(**(values | changes))  # type: ignore[arg-type]


class TinyEngine:
    """A recurrent net in numpy, one step after the other; satisfies ports.Engine. `calls` counts (B, T)."""

    def __init__(self, manifest: Manifest, seed: int = 0) -> None:
        self.manifest = manifest
        features = len(manifest.rows.features) if manifest.rows else 1
        width = manifest.states[0].shape[0]
        rng = np.random.default_rng(seed)
        self._in = rng.normal(size=(features, width)).astype(np.float32)
        self._back = (rng.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
        self._out = (3 * rng.normal(size=(width, len(manifest.labels)))).astype(np.float32)
        self.calls: list[tuple[int, int]] = []

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.calls.append(x.shape[:2])
        h, n = states["h"], states["n"]
        scores = []
        with np.errstate(over="ignore", invalid="ignore"):
            for t in range(x.shape[1]):
                # a huge input overflows to infinity, as a real net's would
                # (matmul row by row, so that a batch of any size gives the same bits)
                drive = np.stack([row @ self._in for row in x[:, t]]) + np.stack([row @ self._back for row in h])
                h = np.where(np.abs(drive) > 1e30, np.float32(np.inf), np.tanh(drive)).astype(np.float32)
                n = n + 1
                logits = np.stack([row @ self._out for row in h])
                e = np.exp(logits - logits.max(axis=1, keepdims=True))
                scores.append((e / e.sum(axis=1, keepdims=True)).astype(np.float32))
        return np.stack(scores, axis=1), {"h": h, "n": n}


class BrightnessEngine:
    """Classifies a frame as dark or bright, without state; satisfies ports.Engine."""

    def __init__(self) -> None:
        self.manifest = tiny_manifest(
            "brightness", kind="frame", labels=["dark", "bright"], states=[], rows=None,
            frames=FrameInput(8, 8, 1, "gray"),
        )  # fmt: skip

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        bright = x.reshape(*x.shape[:2], -1).mean(axis=2) / 255
        return np.stack([1 - bright, bright], axis=2).astype(np.float32), {}


def rows_fields(stream: str, rows: np.ndarray, **more: bytes) -> dict[str, bytes]:
    """The fields of a block of rows (T, F), as a Redis-native producer writes them."""
    data = np.ascontiguousarray(rows, "<f4")
    return {
        "stream": stream.encode(), "kind": b"samples", "shape": b"%d,%d" % rows.shape, "data": data.tobytes(), **more,
    }  # fmt: skip
