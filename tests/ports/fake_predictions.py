"""ports.Predictions on the MemoryBroker of tests/doubles.py: what a worker commits there, an api reads here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Container, Iterable, Mapping, Sequence

from service.codec import Head, id_number, number_id, parse_entry, parse_head, read_position
from service.contracts import Entry
from service.errors import AppendUnknown, BrokerAway, BrokerFull, NoFsync
from service.keys import shard_of
from service.ports import (
    Appended,
    BrokerStatus,
    Counted,
    DeadEntry,
    DeadPage,
    DeadRow,
    FeedItem,
    Lag,
    OutRecord,
    Pressure,
    ShardBacklog,
    ShardStatus,
    StateRow,
    StreamRow,
    Waiting,
    WorkerInfo,
)
from tests.doubles import MemoryBroker, MemoryShard

LOOK_S = 0.002  # how often `follow` looks for commits


class FakePredictions:
    """Read on one thread while a test writes on another. `broker.away` makes every call fail; `lose_reply` and `full`
    make appends fail, after and before the entry is in the log."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.live: list[WorkerInfo] = []
        self.lose_reply = False
        self.full = False
        self.memory = 0, 0  # used, limit

    @property
    def shards(self) -> int:
        return len(self.broker.shards)

    async def check_deployment(self) -> None:
        self._check()

    async def append(self, stream: str, fields: Mapping[str, bytes], fsync: bool = False) -> str:
        self._check()
        if fsync:
            raise NoFsync("memory is no disk")
        if self.full:
            raise BrokerFull("nothing was appended")
        entry_id = self.broker.append(stream, fields)
        if self.lose_reply:
            raise AppendUnknown("the reply was lost")
        return entry_id

    async def append_many(
        self, entries: Sequence[tuple[str, Mapping[str, bytes]]], fsync: bool = False
    ) -> list[Appended]:
        found: list[Appended] = []
        for stream, fields in entries:
            try:
                found.append(await self.append(stream, fields, fsync))
            except (BrokerFull, BrokerAway, AppendUnknown, NoFsync) as error:
                found.append(error)
        return found

    async def heard(self, shard: int) -> AsyncGenerator[list[Entry]]:
        self._check()
        last = self.broker.shards[shard].last
        yield []
        while True:
            self._check()
            log = [(n, fields) for n, fields in list(self.broker.shards[shard].log.items()) if n > last]
            last = max([last, *(number for number, _ in log)])
            yield [parse_entry(number_id(number), fields) for number, fields in log]
            await asyncio.sleep(LOOK_S)

    async def logged(self, stream: str, after: str) -> tuple[list[Entry], str | None]:
        self._check()
        log = list(self._shard(stream).log.items())
        found = [parse_entry(number_id(number), fields) for number, fields in log if number > id_number(after)]
        return [entry for entry in found if entry.stream == stream], None

    async def records(self, stream: str, after: str, limit: int) -> list[OutRecord]:
        return [record for record in self._out(stream) if id_number(record.id) > id_number(after)][:limit]

    async def newest(self, stream: str, limit: int, before: str = "+") -> list[OutRecord]:
        end = id_number(before) if before != "+" else 1 << 200
        return [record for record in self._out(stream) if id_number(record.id) < end][-limit:]

    async def fetch(self, wanted: Sequence[tuple[str, str]], replay: bool = False) -> list[OutRecord | None]:
        return [
            _record(id_number(wanted_id), found) if found else None
            for stream, wanted_id in wanted
            for found in [self._shard(stream).out.get(stream, {}).get(id_number(wanted_id))]
        ]

    async def follow(self) -> AsyncGenerator[list[FeedItem]]:
        self._check()
        lives = self._lives()
        newest = await self.last_commits()
        cursors = [0] * self.shards
        for item in newest:
            cursors[item.shard] = item.n
        yield newest
        while True:
            self._check()
            now = self._lives()
            if any(old and old != new for old, new in zip(lives, now, strict=True)):
                raise BrokerAway("a log began anew")
            lives = now
            items = []
            for shard in range(self.shards):
                items += [item for item in self._feed(shard) if item.n > cursors[shard]]
                cursors[shard] = max([cursors[shard], *(item.n for item in items if item.shard == shard)])
            if items:
                yield items
            await asyncio.sleep(LOOK_S)

    async def feeds(self, since: Mapping[int, int], limit: int) -> list[list[FeedItem]]:
        self._check()
        return [[item for item in self._feed(shard) if item.n >= n][:limit] for shard, n in since.items()]

    async def last_commits(self) -> list[FeedItem]:
        self._check()
        return [feed[-1] for shard in range(self.shards) if (feed := self._feed(shard))]

    async def last_generated(self, stream: str) -> str:
        return number_id(self._shard(stream).last).decode()

    async def position(self, stream: str) -> bytes | None:
        return self._shard(stream).pos.get(stream)

    async def settings(self, stream: str) -> bytes | None:
        return self._shard(stream).settings.get(stream)

    async def stream(self, stream: str) -> StreamRow | None:
        it = self._shard(stream)
        position = read_position(it.pos.get(stream))
        if stream not in it.pos or (position is not None and position.stepped == b"deleted"):
            return None
        return self._row(stream, it)

    async def streams(self, after: str, limit: int, but: Container[str] = frozenset()) -> list[StreamRow]:
        shards = enumerate(self.broker.shards)
        known = (name for p, it in shards for name in list(it.pos) if name != "?" and shard_of(name, self.shards) == p)
        names = sorted(name for name in known if name > after and name not in but)
        rows = [await self.stream(name) for name in names]
        return [row for row in rows if row is not None][:limit]

    async def rows(self, streams: Iterable[str]) -> list[StreamRow]:
        rows = [self._row(stream, self._shard(stream)) for stream in streams]
        return [row for row in rows if not (position := read_position(row.position)) or position.stepped != b"deleted"]

    async def lags(self) -> dict[str, Lag]:
        found: dict[str, Lag] = {}
        for p, it in enumerate(self.broker.shards):
            low = parse_head(it.head).low if it.head else 0
            for number, fields in list(it.log.items()):
                stream = fields[fields.index(b"stream") + 1].decode()
                position = read_position(it.pos.get(stream))
                if shard_of(stream, self.shards) == p and number > max(low, position.last if position else 0):
                    age_s = (self.broker.clock_ms - (number >> 64)) / 1000
                    found.setdefault(stream, Lag(number >> 64, age_s))
        return found

    async def counted(self, what: Counted) -> dict[str, int]:
        return {stream: n for it in self.broker.shards for stream, n in list(getattr(it, what).items())}

    async def state(self, stream: str) -> StateRow:
        it = self._shard(stream)
        return StateRow(it.states.get(stream), it.pos.get(stream), it.settings.get(stream), self.broker.clock_ms)

    async def waiting(self, stream: str) -> Waiting:
        it = self._shard(stream)
        position = read_position(it.pos.get(stream))
        last = position.last if position else 0
        mine = [
            n
            for n, fields in list(it.log.items())
            if n > last and fields[fields.index(b"stream") + 1] == stream.encode()
        ]
        return Waiting(len(mine), True)

    async def pressure(self) -> Pressure:
        self._check()
        shards = []
        for it in self.broker.shards:
            head = parse_head(it.head) if it.head else Head("", "", 0, 0, 0, 0)
            waiting = [fields for number, fields in list(it.log.items()) if number > head.low]
            size = sum(len(part) for fields in waiting for part in fields)
            known = len((set(it.streams) | set(it.settings)) - {"?"})
            revision = it.settings.get("?", b"").decode()
            shards.append(ShardBacklog(len(waiting), size, revision, head.token if it.owner else "", head.n, known))
        return Pressure(shards, *self.memory)

    async def dead(
        self, shard: int, after: str, limit: int, stream: str | None = None, reason: str | None = None
    ) -> DeadPage:
        self._check()
        found = [(at, fields) for at, fields in sorted(self.broker.shards[shard].dead.items()) if at > id_number(after)]
        looked = [_dead_row(shard, at, fields) for at, fields in found[:256]]
        rows = [row for row in looked if stream in (None, row.stream) and reason in (None, row.reason)]
        if len(rows) >= limit:
            return DeadPage(rows[:limit], rows[limit - 1].at, looked.index(rows[limit - 1]) + 1)
        return DeadPage(rows, looked[-1].at if len(found) > len(looked) else None, len(looked))

    async def dead_entry(self, stream: str, entry_id: str) -> DeadEntry | None:
        self._check()
        for shard, it in enumerate(self.broker.shards):
            for at, fields in list(it.dead.items()):
                row = _dead_row(shard, at, fields)
                if (row.stream, row.id) == (stream, entry_id):
                    return DeadEntry(row, fields)
        return None

    async def drop_dead(self, rows: Sequence[DeadRow]) -> int:
        self._check()
        return sum(self.broker.shards[row.shard].dead.pop(id_number(row.at), None) is not None for row in rows)

    async def shard_status(self) -> list[ShardStatus]:
        self._check()
        status = []
        for shard, it in enumerate(self.broker.shards):
            low = parse_head(it.head).low if it.head else 0
            waiting = [number for number in list(it.log) if number > low]
            lag_s = (self.broker.clock_ms - (waiting[0] >> 64)) / 1000 if waiting else 0.0
            status.append(ShardStatus(shard, it.owner != "", len(waiting), lag_s))
        return status

    async def broker_status(self) -> BrokerStatus:
        self._check()
        return BrokerStatus(*self.memory, 0, True, 0, False, True, 1, 0)

    async def workers(self) -> list[WorkerInfo]:
        self._check()
        return self.live

    async def end_script(self) -> str | None:
        self._check()
        return None

    async def close(self) -> None: ...

    def _check(self) -> None:
        if self.broker.away:
            raise BrokerAway("the broker is away")

    def _feed(self, shard: int) -> list[FeedItem]:
        it = self.broker.shards[shard]
        token = parse_head(it.head).token if it.head else ""
        return [FeedItem(shard, n, token, pairs) for n, pairs in list(it.feed.items())]

    def _lives(self) -> list[bytes]:
        return [it.head.split(b" ")[0] for it in self.broker.shards]

    def _row(self, stream: str, it: MemoryShard) -> StreamRow:
        kept = it.pos.get(stream), it.settings.get(stream), it.drops.get(stream, 0), it.restarts.get(stream, 0)
        return StreamRow(
            stream, shard_of(stream, self.shards), it.streams.get(stream, 0), *kept, now_ms=self.broker.clock_ms
        )

    def _shard(self, stream: str) -> MemoryShard:
        self._check()
        return self.broker.shards[shard_of(stream, self.shards)]

    def _out(self, stream: str) -> list[OutRecord]:
        self._check()
        return [_record(n, found) for n, found in sorted(self._shard(stream).out.get(stream, {}).items())]


def _dead_row(shard: int, at: int, fields: dict[str, bytes]) -> DeadRow:
    entry_id, stream, kind, reason, detail = (
        fields[name].decode() for name in ("id", "stream", "kind", "reason", "detail")
    )
    return DeadRow(shard, number_id(at).decode(), entry_id, stream, kind, reason, detail, int(fields["bytes"]))


def _record(number: int, found: tuple[bytes, bytes, bytes]) -> OutRecord:
    kind, body, prev = found
    return OutRecord(number_id(number).decode(), kind.decode(), body, prev.decode())
