"""Stand-ins for the ports: a log in memory that keeps the broker's rules, and a small recurrent engine in numpy."""

from __future__ import annotations

import hashlib
import json
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.codec import MAX_MS, Head, id_number, last_honest, number_id, parse_head, read_head, read_position
from service.contracts import FrameInput, GapPolicy, Manifest, RollingSettings, RowInput, StateTensor
from service.errors import BadHead, BrokerAway, Fenced
from service.keys import shard_of
from service.ports import (
    Behind,
    Commit,
    Committed,
    DeadWrite,
    Expelled,
    Idle,
    Loaded,
    Look,
    Looked,
    Overdue,
    Renewed,
    Tidied,
)

Fields = list[bytes]


@dataclass
class MemoryShard:
    """One shard's keys."""

    log: dict[int, Fields] = field(default_factory=dict)  # ascending
    last: int = 0  # last generated id
    gone: int = 0  # entries that left the log
    behind: Behind | None = None  # what the last commit said of the log
    owner: str = ""
    head: bytes = b""
    out: dict[str, dict[int, tuple[bytes, bytes, bytes]]] = field(default_factory=dict)  # type, body, prev
    states: dict[str, bytes] = field(default_factory=dict)
    pos: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, bytes] = field(default_factory=dict)
    configured: dict[str, int] = field(default_factory=dict)  # ms since when nobody knows of the stream, about
    streams: dict[str, int] = field(default_factory=dict)  # ms of the last entry
    open: dict[str, int] = field(default_factory=dict)  # streams with labels inside: ms of the next look
    drops: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    feed: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    dead: dict[int, dict[str, bytes]] = field(default_factory=dict)  # by place: fields
    suspect: dict[bytes, int] = field(default_factory=dict)  # at most one: id, how often it was tried

    def remove(self, numbers: Sequence[int]) -> None:
        """Entries from the log."""
        for number in numbers:
            del self.log[number]
        self.gone += len(numbers)


class MemoryBroker:
    """Outlives the logs that look at it, as a broker outlives its workers."""

    def __init__(self, shards: int = 4) -> None:
        self.shards = [MemoryShard() for _ in range(shards)]
        self.clock_ms = 1_763_860_000_000
        self.acquisitions = 0
        self.workers: set[str] = set()
        self.away = False

    def append(self, stream: str, fields: Mapping[str, bytes], shard: int | None = None, entry_id: str = "*") -> str:
        """XADD. Every entry gets its own millisecond, unless the caller keeps `clock_ms` still."""
        where = self.shards[shard_of(stream, len(self.shards)) if shard is None else shard]
        number = max(self.clock_ms << 64, where.last + 1) if entry_id == "*" else id_number(entry_id)
        assert where.last < number < 1 << 128, "XADD: the id is equal or smaller, or there is none left"
        where.last = number
        where.log[number] = [part for name, value in fields.items() for part in (name.encode(), value)]
        self.clock_ms += 1
        return number_id(number).decode()

    def records(self, stream: str, shard: int | None = None) -> list[tuple[str, str, bytes, str]]:
        """(id, type, body, prev), ascending."""
        where = self.shards[shard_of(stream, len(self.shards)) if shard is None else shard]
        return [
            (number_id(n).decode(), kind.decode(), body, prev.decode())
            for n, (kind, body, prev) in list(where.out.get(stream, {}).items())
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
        self._until = 0.0  # when the read under way ends without an entry
        self._looked: dict[int, Looked] = {}
        self._fences: dict[int, bytes] = {}
        self._sent: dict[int, Commit] = {}
        self._overflow: dict[int, int] = {}
        self._tried: dict[int, bytes] = {}
        self.dead_kept, self.dead_bytes = 1000, 64 << 20

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
        old = read_head(it.head) if it.head else Head("life", "", 0, 0, 0, 0)
        if old is None or old.low >> 64 > MAX_MS:
            raise BadHead(f"shard {shard}: {it.head!r} is no head that a worker goes on from")
        it.owner = self.worker
        self.broker.acquisitions += 1
        it.remove([n for n in list(it.log) if n <= old.low])
        tries = old.tries + 1 if any(n > old.low for n in list(it.log)) else 1
        it.head = Head(old.life, f"{self.broker.acquisitions:04x}", old.n, old.low, 0, tries).encode()
        self._fences[shard] = it.head
        return it.head

    def behind(self, shard: int) -> Behind | None:
        return self.broker.shards[shard].behind

    def suspected(self, shard: int) -> bool:
        return bool(self.broker.shards[shard].suspect)

    def renew(self, shards: Sequence[int], about: bytes) -> Renewed:
        self._check()
        self.broker.workers.add(self.worker)
        lost = self.extend(shards)
        workers = self.broker.workers
        return Renewed(lost, sorted(workers).index(self.worker), len(workers), self.broker.clock_ms)

    def extend(self, shards: Sequence[int]) -> list[int]:
        self._check()
        lost = []
        for shard in shards:
            it = self.broker.shards[shard]
            if not it.owner and it.head == self._fences.get(shard):  # it ran out, and nobody took it
                it.owner = self.worker
            if it.owner != self.worker:
                lost.append(shard)
        return lost

    def free(self, shards: Sequence[int]) -> tuple[list[int], float]:
        return [shard for shard in shards if self.broker.shards[shard].owner in ("", self.worker)], 0.01

    def release(self, shard: int) -> None:
        it = self.broker.shards[shard]
        if it.owner == self.worker:
            it.owner, head = "", parse_head(it.head)
            it.head = head._replace(tries=0 if head.tries < 3 else head.tries).encode()

    def leave(self) -> None:
        self.broker.workers.discard(self.worker)

    def abandon(self, shard: int) -> None:
        self._fences.pop(shard, None)
        self._sent.pop(shard, None)

    def ask(self, cursors: Mapping[int, int], count: int, block_s: float, look: Sequence[int] = ()) -> None:
        self._asked, self._until = (dict(cursors), count), time.monotonic() + block_s
        self._looked = {}
        for shard in look:
            it = self.broker.shards[shard]
            if it.head.split(b" ")[1] == self._fences.get(shard, b"- -").split(b" ")[1]:
                numbers = list(it.log)
                ahead = sum(number > cursors[shard] for number in numbers) if len(numbers) <= 64 else None
                self._looked[shard] = Looked(
                    it.gone + len(numbers), len(numbers), min(numbers, default=0), max(numbers, default=0), ahead
                )

    def looked(self) -> dict[int, Looked]:
        seen, self._looked = self._looked, {}
        return seen

    def poll(self, wait_s: float, wake: int | None) -> list[tuple[int, list[tuple[bytes, list[bytes]]]]] | None:
        self._check()
        found = []
        if self._asked is not None:
            cursors, count = self._asked
            for shard, cursor in cursors.items():
                log = self.broker.shards[shard].log
                if entries := [(number_id(n), fields) for n, fields in log.copy().items() if n > cursor][:count]:
                    found.append((shard, entries))
        if not found and self._asked is not None and time.monotonic() > self._until:
            self._asked = None
            return []
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

    def fetch(self, wanted: Mapping[int, Sequence[int]]) -> dict[int, list[tuple[bytes, list[bytes]] | None]]:
        self._check()
        logs = {shard: self.broker.shards[shard].log for shard in wanted}
        return {
            shard: [(number_id(n), logs[shard][n]) if n in logs[shard] else None for n in numbers]
            for shard, numbers in wanted.items()
        }

    def idle(
        self, shard: int, after_ms: int, silent_ms: int, limit: int, skip: int = 0, *, kept_ms: int = 0
    ) -> list[Idle]:
        it, now_ms = self.broker.shards[shard], self.broker.clock_ms
        found = sorted((ms, stream) for stream, ms in it.streams.items() if after_ms <= ms <= now_ms - silent_ms)
        return [
            Idle(stream, ms, (pos := it.pos.get(stream)), _young(pos, now_ms - kept_ms), stream in it.open)
            for ms, stream in found[skip : skip + limit]
        ]

    def overdue(self, cursors: Mapping[int, int], limit: int) -> dict[int, Overdue]:
        self._check()
        found, now_ms = {}, self.broker.clock_ms
        for shard, cursor in cursors.items():
            it = self.broker.shards[shard]
            due = [stream for ms, stream in sorted((ms, stream) for stream, ms in it.open.items()) if ms <= now_ms]
            if due:
                unread = min((n >> 64 for n in list(it.log) if n > cursor), default=now_ms)
                rows = [(stream, it.pos.get(stream), it.settings.get(stream)) for stream in due[:limit]]
                found[shard] = Overdue(min(now_ms, unread), now_ms, rows)
        return found

    def silence(self, looks: Mapping[int, tuple[bytes, Sequence[Look]]]) -> None:
        self._check()
        for shard, (head, mine) in looks.items():
            it = self.broker.shards[shard]
            if it.head != head:
                continue
            for look in mine:
                if look.data and it.pos.get(look.stream) == look.position and it.last < (1 << 128) - 1:
                    fields = {"stream": look.stream.encode(), "kind": b"control", "data": look.data}
                    self.broker.append(look.stream, fields, shard)
                if look.next_ms is None:
                    it.open.pop(look.stream, None)
                elif look.stream in it.open:
                    it.open[look.stream] = look.next_ms

    def remove(self, shard: int, head: bytes, records: Sequence[str], streams: Sequence[str]) -> bool:
        it = self.broker.shards[shard]
        if it.head != head:
            return False
        for stream in (*records, *streams):
            it.out.pop(stream, None)
        for stream in streams:
            last_ms = it.streams.get(stream, 0)
            for kept in (it.states, it.pos, it.streams, it.drops, it.restarts):
                kept.pop(stream, None)  # type: ignore[attr-defined]
            if stream in it.settings and stream != "?":
                if stream in it.configured or set(json.loads(it.settings[stream])) != {"model"}:
                    it.configured[stream] = last_ms
                else:
                    self._forget_settings(it, stream)
        return True

    def expel(self, shard: int, head: bytes) -> Expelled:
        it, now_ms = self.broker.shards[shard], self.broker.clock_ms
        if it.head != head:
            raise Fenced("head is another's")
        low = parse_head(head).low
        honest = last_honest(now_ms, low)
        beyond = [n for n in list(it.log) if n > honest]
        if not beyond or any(low < n <= honest for n in list(it.log)):
            return Expelled(now_ms, 0, 0, "", False)
        refused = [n for n in beyond if n - 1 not in beyond]
        for n in refused:
            values = dict(zip(*[iter(it.log[n])] * 2, strict=True))
            more = tuple((name, value) for name, value in values.items() if name not in (b"stream", b"kind", b"data"))
            stream, kind = values.get(b"stream", b"?").decode(), values.get(b"kind", b"").decode()
            it.dead = {place: fields for place, fields in it.dead.items() if fields["id"] != number_id(n)}
            self._bury(it, DeadWrite(number_id(n), stream, kind, "bad_id", "", values.get(b"data", b""), more))
        moved = [it.log[n] for n in beyond if n not in refused]
        it.gone += len(it.log) - len(refused) - len(moved)
        it.log, it.last = {}, low
        for fields in moved:
            it.last = max(self.broker.clock_ms << 64, it.last + 1)
            it.log[it.last] = fields
        return Expelled(now_ms, len(refused), len(moved), number_id(beyond[0]).decode(), False)

    def _forget_settings(self, it: MemoryShard, stream: str) -> None:
        if it.settings.pop(stream, None) is not None:
            it.settings["?"] = b"%d-0" % self.broker.clock_ms

    def unsettled(self, shard: int, silent_ms: int, limit: int) -> list[str]:
        it, until_ms = self.broker.shards[shard], self.broker.clock_ms - silent_ms
        return [stream for ms, stream in sorted((ms, s) for s, ms in it.configured.items()) if ms <= until_ms][:limit]

    def unsettle(self, shard: int, head: bytes, streams: Sequence[str]) -> bool:
        it = self.broker.shards[shard]
        if it.head != head:
            return False
        for stream in streams:
            if stream in it.streams:
                it.configured[stream] = it.streams[stream]
            else:
                it.configured.pop(stream, None)
                self._forget_settings(it, stream)
        return True

    def adopt(self, shard: int, head: bytes, cursor: bytes) -> bytes | None:
        it = self.broker.shards[shard]
        if it.head != head:
            return None
        for stream in set(it.settings) - set(it.streams) - {"?"}:
            it.configured.setdefault(stream, self.broker.clock_ms)
        return b"0"

    def tidy_dead(self, shard: int, head: bytes, older_ms: int) -> Tidied:
        it = self.broker.shards[shard]
        if it.head != head:
            return Tidied(0, 0, False)
        over = self._bound_dead(it)
        old = [place for place in it.dead if place >> 64 <= self.broker.clock_ms - older_ms]
        for place in old:
            del it.dead[place]
        return Tidied(len(old), over, False)

    def look_at_memory(self) -> None: ...

    def known(self, shards: Sequence[int]) -> int:
        return sum(len(self.broker.shards[shard].streams) for shard in shards)

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
        for stream in commit.deleted:
            it.out.pop(stream, None)
        overflow = self._quarantine(it, commit)
        self._overflow[commit.shard] = overflow
        it.states |= commit.states
        for stream in commit.forgotten:
            it.states.pop(stream, None)
        it.pos |= commit.positions
        it.settings |= commit.settings
        for stream in commit.deleted:
            for kept in (it.settings, it.configured, it.drops, it.restarts):
                kept.pop(stream, None)  # type: ignore[attr-defined]
        it.configured |= commit.configured
        it.open |= {stream: ms for stream, ms in commit.configured.items() if stream in it.open}
        for stream, ms in commit.openings.items():
            if ms is None:
                it.open.pop(stream, None)
            else:
                it.open.setdefault(stream, ms)
        for counts, more in ((it.drops, commit.drops), (it.restarts, commit.restarts)):
            for stream, n in more.items():
                counts[stream] = counts.get(stream, 0) + n
        it.streams |= commit.touched
        for record in commit.records:  # they come last: who sees one sees the rest of its commit
            out = it.out.setdefault(record.stream, {})
            number = id_number(record.id)
            assert not out or number > max(out), "XADD: the id is equal or smaller"
            out[number] = (record.type, record.body, record.prev)
        it.behind = commit.behind
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
            gone = [n for n in list(it.log) if n < id_number(commit.trim_below)]
            trimmed = len(gone)
            it.remove(gone)
        return Committed(trimmed, [], self._overflow.pop(shard, 0))

    def _quarantine(self, it: MemoryShard, commit: Commit) -> int:
        for d in commit.dead:
            self._bury(it, d)
        return self._bound_dead(it)

    def _bound_dead(self, it: MemoryShard) -> int:
        gone = 0
        while it.dead and (
            len(it.dead) > self.dead_kept
            or sum(len(value) + 20 for fields in it.dead.values() for value in fields.values()) > self.dead_bytes
        ):
            del it.dead[min(it.dead)]
            gone += 1
        return gone

    def _bury(self, it: MemoryShard, d: DeadWrite) -> None:
        words = {"id": d.id, "stream": d.stream, "kind": d.kind, "reason": d.reason, "detail": d.detail}
        fields = {name: word if isinstance(word, bytes) else word.encode() for name, word in words.items()}
        place = max(self.broker.clock_ms << 64, max(it.dead, default=0) + 1)
        data = {"data": d.data} if len(d.data) <= 0.75 * self.dead_bytes else {}
        more = {name.decode(): value for name, value in d.more}
        it.dead[place] = fields | {"bytes": b"%d" % len(d.data)} | data | more

    def send_again(self, shard: int) -> None:
        raise AssertionError("nothing is ever refused here")

    def make_room(self, commit: Commit) -> int:
        raise AssertionError("nothing is ever refused here")

    def attempt(self, shard: int, head: bytes, entry_id: bytes) -> bool:
        it = self.broker.shards[shard]
        if it.head != head:
            raise Fenced("head is another's")
        before = max(0, it.suspect.get(entry_id, 0) - (self._tried.get(shard) == entry_id))
        self._tried[shard] = entry_id
        if before < 2:
            it.suspect = {entry_id: before + 1}
        return before < 2

    def blame(self, shard: int) -> None:
        self._tried.pop(shard, None)

    def forgive(self, shard: int, head: bytes, entry_id: bytes) -> None:
        suspect = self.broker.shards[shard].suspect
        suspect[entry_id] = max(0, suspect.get(entry_id, 0) - 1)

    def acquit(self, shard: int, head: bytes) -> None:
        self.broker.shards[shard].suspect = {}

    def close(self) -> None: ...


def _young(value: bytes | None, until_ms: int) -> bool:
    position = read_position(value)
    if (
        position is None
        or not position.stepped[:1].isdigit()
        or id_number(position.stepped.strip(b"+")) == position.last
    ):
        return False
    return position.last >> 64 > until_ms


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
