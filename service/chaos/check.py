"""The judge: every record that survived, against a replay of the log that survived, and the protocol's invariants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import redis

from service.chaos.oracle import Difference
from service.chaos.replay import SILENCE, TIMED, Replay, judge, superseding
from service.chaos.traffic import CASE, copy_key, describe
from service.codec import Head, decode_settings, id_number, number_id, parse_feed, parse_head, parse_position
from service.contracts import StreamSettings
from service.engine import OnnxEngine
from service.keys import ShardKeys
from service.packages import Package
from service.state import StateLayout

STATE_TOLERANCE: Final = 1e-4  # of recurrent tensors: what a hundred steps of another batch's rounding may add up to
TOLD: Final = 20  # faults told in words; all are counted
Entries = list[tuple[bytes, dict[bytes, bytes]]]


@dataclass
class Findings:
    """What the judge saw. Sums over lives."""

    entries: int = 0
    records: Counter[str] = field(default_factory=Counter)  # by type
    restarts: Counter[str] = field(default_factory=Counter)  # predictions, by why they began anew
    controls: Counter[str] = field(default_factory=Counter)  # carried out, by action
    drops: Counter[str] = field(default_factory=Counter)  # by reason
    missed: int = 0  # predictions that tell of a hole in `seq`
    deleted: int = 0  # entries whose records went with their stream: the feed says that each was answered
    events: int = 0
    states: int = 0  # compared
    commits: int = 0
    takeovers: int = 0  # another acquisition's commit after one's
    unfinished: int = 0  # entries that a life cut short had not answered
    suspects: int = 0  # refused as `crash`: a worker died twice on them alone, as the kills of this run make it
    ties: int = 0
    largest: float = 0.0  # difference of a probability
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    differing: int = 0
    broken: int = 0  # invariants of head, low, feed and log
    told: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return self.lost + self.doubled + self.out_of_order + self.differing + self.broken

    def tell(self, counter: str, text: str) -> None:
        setattr(self, counter, getattr(self, counter) + 1)
        if len(self.told) < TOLD:
            self.told.append(f"{counter.replace('_', ' ')}: {text}")


class Judge:
    """Reads one broker's life and compares. Written into `findings`, one life after the other."""

    def __init__(
        self, package: Package, *, shards: int, state_ttl_s: float, prefix: str = "rollcast", turn: Callable[[], None]
    ) -> None:
        """`turn` is called now and then: a long comparison shows that it lives."""
        self.findings = Findings()
        self._engine = OnnxEngine(package)
        self._layout = StateLayout(package.manifest, package.schema)
        self._keys = [ShardKeys(prefix, shard) for shard in range(shards)]
        self._ttl_s, self._turn = state_ttl_s, turn

    def life(self, client: redis.Redis, *, complete: bool) -> set[tuple[int, bytes]]:
        """Judges what `client` holds. `complete`: every entry must be answered. Returns (shard, id) of its entries."""
        found: set[tuple[int, bytes]] = set()
        for keys in self._keys:
            by_stream: dict[str, Entries] = {}
            for entry_id, fields in _pages(client, copy_key(keys.shard)):
                found.add((keys.shard, entry_id))
                name = fields[b"stream"].decode()
                by_stream.setdefault(name if fields[CASE.encode()] != b"stream" else "?", []).append((entry_id, fields))
            value: Any = client.get(keys.head)
            if value is None:
                if by_stream and complete:
                    self.findings.tell("broken", f"shard {keys.shard} has entries and no head")
                continue
            positions: Any = client.hgetall(keys.pos)
            finished = {name.decode(): parse_position(text).last for name, text in positions.items()}
            answered = self._shard(client, keys, parse_head(value), by_stream, finished)
            for stream, entries in by_stream.items():
                done = finished.get(stream, 0)
                self._stream(client, keys, stream, entries, done, complete, answered.get(stream, set()))
            for key in client.scan_iter(keys.out_prefix + b"*", count=1000):
                if (stream := key.removeprefix(keys.out_prefix).decode()) not in by_stream:
                    self.findings.tell("doubled", f"records of {stream} in shard {keys.shard}, which has no entries")
        self.findings.entries += len(found)
        return found

    def _shard(
        self, client: redis.Redis, keys: ShardKeys, head: Head, by_stream: dict[str, Entries], finished: dict[str, int]
    ) -> dict[str, set[int]]:
        """Invariants of head, low, feed and log. Returns what the feed says was answered of each stream."""
        tell, where = self.findings.tell, f"shard {keys.shard}"
        logged = {entry_id for entry_id, _ in _pages(client, keys.inbox)}
        for stream, entries in by_stream.items():
            for entry_id, _ in entries:
                number = id_number(entry_id)
                if number <= head.low and number > finished.get(stream, 0):
                    tell("broken", f"{where}: low has passed {entry_id.decode()} of {stream}, which is not finished")
                if number > head.low and entry_id not in logged:
                    tell("broken", f"{where}: {entry_id.decode()} of {stream} is above low and was trimmed")
        previous, token, n = None, None, 0
        all_of: dict[str, set[int]] = {}
        last: dict[str, int] = {}
        for commit_id, fields in _pages(client, keys.feed):
            n = id_number(commit_id) >> 64
            if previous is not None and n != previous + 1:
                tell("broken", f"{where}: commit {n} follows commit {previous} in the feed")
            self.findings.takeovers += token is not None and token != fields[b"token"]
            previous, token = n, fields[b"token"]
            self.findings.commits += 1
            for stream, answered in parse_feed(fields[b"records"]):
                number = id_number(answered)
                if number == last.get(stream):
                    tell("doubled", f"{where}: commit {n} answers {stream} {answered} again")
                elif number < last.get(stream, 0):
                    tell("out_of_order", f"{where}: commit {n} answers {stream} {answered} after a later one")
                last[stream] = number
                all_of.setdefault(stream, set()).add(number)
        if n != head.n:
            tell("broken", f"{where}: head says that {head.n} commits were made, the feed ends with {n}")
        return all_of

    def _stream(
        self, client: redis.Redis, keys: ShardKeys, stream: str, entries: Entries, finished: int, complete: bool,
        answered: set[int],
    ) -> None:  # fmt: skip
        self._turn()
        tell, where = self.findings.tell, f"{stream} in shard {keys.shard}"
        records = dict(_pages(client, keys.out(stream)))
        replay = Replay(self._engine, self._ttl_s)
        entries = _with_silences(entries, records, answered)
        newer = superseding(entries)
        previous = b"0-0"
        begins = _last_deletion(entries, records)
        for place, (entry_id, fields) in enumerate(entries):
            name = f"{where} {entry_id.decode()}"
            if place < begins:
                self.findings.deleted += 1
                previous = entry_id
                if id_number(entry_id) not in answered:
                    tell("lost", f"{name} was deleted before it was answered: {describe_entry(fields)}")
                if records.pop(entry_id, None) is not None:
                    tell("doubled", f"{name} has a record, and its stream was deleted after it")
                continue
            if id_number(entry_id) > finished:
                self.findings.unfinished += 1
                if complete:
                    tell("lost", f"{name} was never answered: {describe_entry(fields)}")
                if records.pop(entry_id, None) is not None:
                    tell("doubled", f"{name} has a record, and its stream's position lies before it")
                continue
            record = records.pop(entry_id, None)
            if record is None:
                replay.expect(entry_id.decode(), fields)
                tell("lost", f"{name} has no record: {describe_entry(fields)}")
                continue
            if record[b"prev"] != previous:
                tell("out_of_order", f"{name} follows {record[b'prev'].decode()}, expected {previous.decode()}")
            previous = entry_id
            self._record(name, record, entry_id, fields, replay, newer[place], deletion=place == begins > 0)
        for entry_id in records:
            tell("doubled", f"{where} has a record {entry_id.decode()} of no entry")
        if finished and stream != "?":
            self._state(client, keys, stream, replay)
            self._settings(client, keys, stream, replay)

    def _record(
        self, name: str, record: dict[bytes, bytes], entry_id: bytes, fields: dict[bytes, bytes], replay: Replay,
        newer: bool, *, deletion: bool,
    ) -> None:  # fmt: skip
        """`deletion`: what it ended is not known any more."""
        try:
            body = msgspec.json.decode(record[b"body"])
        except msgspec.DecodeError as error:
            return self.findings.tell("differing", f"{name}: {error}")
        self.findings.records[body["type"]] += 1
        if body["type"] == "refused" and body["reason"] == "crash":
            self.findings.suspects += 1
            return None
        if body["type"] == "prediction" and body["restarted"]:
            self.findings.restarts[body["restarted"]] += 1
        elif body["type"] == "done":
            self.findings.controls[body["action"]] += body["action"] != SILENCE or "events" in body
        elif body["type"] == "dropped":
            self.findings.drops[body["reason"]] += 1
        self.findings.missed += "missed" in body
        self.findings.events += len(body.get("events", ()))
        dropped = body["reason"] if body["type"] == "dropped" and body["reason"] in TIMED else None
        expected = replay.expect(entry_id.decode(), fields, dropped=dropped, newer=newer)
        found: Difference = judge(body | {"events": []} if deletion else body, expected)
        self.findings.largest = max(self.findings.largest, found.largest)
        self.findings.ties += found.ties
        if body["id"] != entry_id.decode():
            found.what.append(f"its id is {body['id']}")
        if body["type"].encode() != record[b"type"]:
            found.what.append(f"its type is {record[b'type'].decode()}")
        if found.what:
            self.findings.tell("differing", f"{name}: {'; '.join(found.what)}")
        return None

    def _state(self, client: redis.Redis, keys: ShardKeys, stream: str, replay: Replay) -> None:
        value: Any = client.get(keys.state(stream))
        where = f"state of {stream} in shard {keys.shard}"
        row = None if value is None else self._layout.decode(value)
        if (row is not None) != replay.alive:
            return self.findings.tell("differing", f"{where}: there is {'one' if row is not None else 'none'}")
        if row is None:
            return None
        self.findings.states += 1
        if int(row["step"]) != replay.oracle.steps:
            self.findings.tell("differing", f"{where}: step {row['step']}, expected {replay.oracle.steps}")
        for name, tensor in replay.oracle.state.items():
            largest = float(np.abs(row[f"state:{name}"] - tensor[0]).max(initial=0))
            if not largest <= STATE_TOLERANCE:
                self.findings.tell("differing", f"{where}: {name} differs by {largest:.1e}")
        return None

    def _settings(self, client: redis.Redis, keys: ShardKeys, stream: str, replay: Replay) -> None:
        value: Any = client.hget(keys.settings, stream)
        stored = StreamSettings() if value is None else decode_settings(value)
        if stored != replay.settings:
            where = f"settings of {stream} in shard {keys.shard}"
            self.findings.tell("differing", f"{where}: {stored}, expected {replay.settings}")


def _with_silences(entries: Entries, records: Mapping[bytes, Mapping[bytes, bytes]], answered: set[int]) -> Entries:
    """And what workers appended, which no copy has: known by their records, and by the feed where these are gone."""
    known = {entry_id for entry_id, _ in entries}
    silences = []
    for entry_id in {*records, *map(number_id, answered)} - known:
        body = records[entry_id][b"body"] if entry_id in records else b""
        if not body or b'"action":"silence"' in body or b'"reason":"crash"' in body:
            told = b"1" if b'"events"' in body else b"0"
            silences.append((entry_id, {b"kind": b"control", CASE.encode(): SILENCE.encode(), b"told": told}))
    return sorted([*entries, *silences], key=lambda entry: id_number(entry[0])) if silences else entries


def _last_deletion(entries: Entries, records: Mapping[bytes, Mapping[bytes, bytes]]) -> int:
    """Place of the entry that last deleted the stream, or 0. Only records from there on are left."""
    for place in reversed(range(len(entries))):
        entry_id, fields = entries[place]
        if fields[CASE.encode()] == b"delete" and records.get(entry_id, {}).get(b"type") == b"done":
            return place
    return 0


class HeadWatch:
    """Looks at every shard's head again and again: within a life, between two losses, n and low never fall."""

    def __init__(self, shards: int, prefix: str = "rollcast") -> None:
        self._keys = [ShardKeys(prefix, shard) for shard in range(shards)]
        self._seen: dict[int, Head] = {}
        self.backlog = 0
        self.entries = 0
        self.acquisitions = 0
        self.looks = 0

    def forget(self) -> None:
        """The broker has lost something, or may have."""
        self._seen.clear()

    def look(self, client: redis.Redis, findings: Findings) -> None:
        """Raises redis.RedisError when the broker does not answer."""
        pipeline = client.pipeline(transaction=True)
        for keys in self._keys:
            pipeline.get(keys.head)
            pipeline.xlen(keys.inbox)
            pipeline.xlen(copy_key(keys.shard))
        replies = pipeline.execute()
        self.backlog = self.entries = 0
        self.looks += 1
        for keys, value, length, copied in zip(self._keys, replies[::3], replies[1::3], replies[2::3], strict=True):
            self.entries += copied
            if value is None:
                self.backlog += length
                continue
            head = parse_head(value)
            self.backlog += max(0, length - head.kept)
            before = self._seen.get(keys.shard)
            if before is not None and before.life == head.life and (head.n < before.n or head.low < before.low):
                findings.tell("broken", f"shard {keys.shard}: head went back from {before} to {head}")
            self.acquisitions += before is not None and before.token != head.token
            self._seen[keys.shard] = head

    def drained(self, client: redis.Redis) -> bool:
        """Whether every entry is finished."""
        for keys in self._keys:
            newest: Any = client.xrevrange(copy_key(keys.shard), count=1)
            head: Any = client.get(keys.head)
            if newest and (head is None or parse_head(head).low < id_number(newest[0][0])):
                return False
        return True


def missing(
    acknowledged: list[tuple[int, bytes]], survived: set[tuple[int, bytes]], losses_ms: list[tuple[int, int]]
) -> tuple[int, list[tuple[int, bytes]]]:
    """Acknowledged entries that are nowhere: how many the broker lost when it was robbed or killed (`losses_ms`: from
    when to when its entries may be gone), and those that nothing excuses."""
    gone = [entry for entry in acknowledged if entry not in survived]
    unexcused = []
    for shard, entry_id in gone:
        ms = int(entry_id.partition(b"-")[0])
        if not any(begin <= ms <= end for begin, end in losses_ms):
            unexcused.append((shard, entry_id))
    return len(gone) - len(unexcused), unexcused


def describe_entry(fields: dict[bytes, bytes]) -> str:
    return describe({name.decode(): value for name, value in fields.items()})


def _pages(client: redis.Redis, key: bytes) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Every item of a stream."""
    start = b"-"
    while True:
        page: Any = client.xrange(key, start, count=2000)
        yield from page
        if len(page) < 2000:
            return
        start = b"(" + page[-1][0]
