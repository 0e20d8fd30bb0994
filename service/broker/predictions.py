"""The api's side of the broker: append, read records, follow commits, measure shards. One event loop.

Nothing is ever sent twice by itself: a repeated XADD would be a second entry. Calls take a connection from a pool and
give it back only after its whole reply was read; `follow` and `heard` block on connections of their own.

There are three pools, so that what is needed at once never waits for what is dear: QUICK for appends, waits, following
and health, REPLAYS for subscribers that read what they missed, LOOKS for lists, states, quarantine and logged entries.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import redis
from redis.asyncio import BlockingConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.broker import looks
from service.broker.quarantine import Quarantine
from service.codec import (
    MAX_MS,
    Head,
    id_number,
    last_honest,
    number_id,
    parse_entry,
    parse_feed,
    read_head,
    read_position,
)
from service.contracts import NO_STREAM, STREAM_ID, Entry
from service.errors import AppendUnknown, BadCursor, BrokerAway, BrokerFull, Disagreement, NoFsync, RollcastError
from service.keys import FORMAT, ShardKeys, meta_key, shard_of, worker_key, workers_key
from service.ports import (
    Appended,
    BrokerStatus,
    Counted,
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
from service.turns import Turn
from service.urls import safe_url, without_password

_worker_decoder = msgspec.json.Decoder(WorkerInfo)
Command = tuple[bytes | str | int, ...]

QUICK: Final = 16  # connections of each pool
REPLAYS: Final = 8
LOOKS: Final = 2  # a look may keep the broker busy for long: the others wait here, not there
_CHECK_S: Final = 1.0  # how often `follow` makes sure that the logs are still the same ones
_GRACE_S: Final = 0.1  # for a reply that came while the event loop was held up
_ENTRIES: Final = 16  # read at once, of whatever size
_RECORDS: Final = 4096  # of commits that are handed on at once
MANY_STREAMS: Final = 10_000  # with more of them their names are read once a second
_LISTED_S: Final = 1.0
_RUN: Final = 4096  # names that are sorted at once
_REPLIES: Final = 64  # read before others have their turn
_LISTEN_MS: Final = 250
_COMMITS: Final = 200  # of one shard, read at once
_WORKERS: Final = 1000  # live ones, those heard of last
_WORKER_BYTES: Final = 1 << 20  # of what one says of itself; longer is cut, and then cannot be read
_TROUBLE: Final = 500  # characters
_REFUSED: Final = (redis.ResponseError, redis.exceptions.BusyLoadingError, redis.exceptions.MasterDownError)
# A server configured so has written and synced its log before it answers.
_ON_DISK: Final = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
# What the broker says to an id that it cannot use.
_NO_ID: Final = ("Invalid stream ID", "invalid start ID", "invalid end ID")
_LOST: Final = (redis.ConnectionError, redis.TimeoutError, OSError)


class RedisPredictions(Quarantine):
    """ports.Predictions on a server that speaks Redis ≥ 6.2."""

    def __init__(
        self,
        url: str,
        prefix: str = "rollcast",
        shards: int = 32,
        *,
        timeout_s: float = 5.0,
    ) -> None:
        self._where = safe_url(url)
        self._url = url
        self._prefix, self._shards, self._timeout_s = prefix, shards, timeout_s
        self._keys = [ShardKeys(prefix, shard) for shard in range(shards)]
        self._ahead_ms = 0  # how far the broker's clock is ahead of this machine's
        self._listed: tuple[float, list[list[str]]] | None = None  # when, and the names
        self.pool = self._new_pool(url, QUICK)
        self._replays = self._new_pool(url, REPLAYS)
        self._looks = self._new_pool(url, LOOKS)

    def _new_pool(self, url: str, connections: int) -> Any:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            retry_on_error=[],
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            protocol=2,
        )

    @property
    def shards(self) -> int:
        return self._shards

    async def check_deployment(self) -> None:
        key = meta_key(self._prefix)
        *_, said = await self._ask(
            ("HSETNX", key, "format", FORMAT),
            ("HSETNX", key, "shards", self._shards),
            ("HMGET", key, "format", "shards"),
        )
        if said != [b"%d" % FORMAT, b"%d" % self._shards]:
            raise Disagreement(
                f"this deployment (prefix {self._prefix!r}) has format {said[0].decode()} and {said[1].decode()} "
                f"shards, this process format {FORMAT} and {self._shards} shards; "
                "shards are fixed for the life of a deployment"
            )

    # --- appending -----------------------------------------------------------------------------------------------

    async def append(self, stream: str, fields: Mapping[str, bytes], fsync: bool = False) -> str:
        (found,) = await self.append_many([(stream, fields)], fsync)
        if isinstance(found, RollcastError):
            raise found
        return found

    async def append_many(
        self, entries: Sequence[tuple[str, Mapping[str, bytes]]], fsync: bool = False
    ) -> list[Appended]:
        if not entries:
            return []
        commands = [
            ("XADD", self._of(stream).inbox, "*", *(part for field in fields.items() for part in field))
            for stream, fields in entries
        ]
        try:
            if fsync:
                await self._check_fsync()
            connection = await self._connect(self.pool)
        except NoFsync as error:
            return [error] * len(entries)
        except BrokerAway as error:
            return [BrokerAway(f"nothing was appended: {error.detail}")] * len(entries)
        found: list[Appended] = []
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in entries:
                try:
                    found.append((await connection.read_response()).decode())
                except redis.exceptions.OutOfMemoryError as error:
                    found.append(BrokerFull(f"nothing was appended: {error}", retry_after_s=5.0))
                except _REFUSED as error:
                    found.append(BrokerAway(f"nothing was appended: the broker answered {error}"))
        except _LOST as error:
            lost = AppendUnknown(
                "the connection to the broker was lost before it answered: the entry may be in the log or not; "
                f"repeat it with the same seq ({error})"
            )
            found += [lost] * (len(entries) - len(found))
        except BaseException:
            await connection.disconnect(nowait=True)  # an unread reply must not become the next caller's
            raise
        finally:
            await self.pool.release(connection)
        return await self._believed([stream for stream, _ in entries], found)

    async def _believed(self, streams: Sequence[str], found: list[Appended]) -> list[Appended]:
        """Behind an id that a producer made up the broker counts on from there: such an id is no entry's for long. The
        worker moves what came under it, or puts it into quarantine."""
        limit_ms = last_honest(time.time_ns() // 1_000_000 + self._ahead_ms, 0) >> 64
        strange = [at for at, said in enumerate(found) if isinstance(said, str) and _ms(said) > limit_ms]
        if not strange:
            return found
        heads = [("GET", self._of(streams[at]).head) for at in strange]
        try:
            (seconds, micros), *said = await self._ask(("TIME",), *heads, foreign=True)
            now_ms = self._set_clock(seconds, micros)
        except BrokerAway:
            said, now_ms = [None] * len(strange), 0
        for at, value in zip(strange, said, strict=True):
            head, given = read_head(value), str(found[at])
            low = head.low if head is not None and head.low >> 64 <= MAX_MS else 0
            if id_number(given) > last_honest(now_ms, low):
                found[at] = AppendUnknown(
                    f"the broker's log gives ids that its clock does not, {given}: the entry is moved to one of now, "
                    "or refused; repeat it with the same seq"
                )
        return found

    def _set_clock(self, seconds: bytes, micros: bytes) -> int:
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        self._ahead_ms = now_ms - time.time_ns() // 1_000_000
        return now_ms

    async def _check_fsync(self) -> None:
        """Raises NoFsync unless a write is on disk before it is answered. Only one configuration promises that, and
        WAITAOF proves nothing: docs/decisions/0006-fsync-only-by-configuration.md. Asked each time, since somebody may
        change it while we run."""
        for name, wanted in _ON_DISK.items():
            (reply,) = await self._ask_any(("CONFIG", "GET", name))
            if isinstance(reply, redis.ResponseError):
                raise NoFsync(f"the broker does not tell its {name} ({reply}): expected {wanted}")
            said = reply[1].decode() if reply else "no such setting"
            if said != wanted:
                raise NoFsync(f"the broker's {name} is {said!r}: ack=fsync needs {wanted!r} (docs/operations.md)")

    async def heard(self, shard: int) -> AsyncGenerator[list[Entry]]:
        connection, inbox = self._looks.make_connection(), self._keys[shard].inbox
        try:
            await connection.connect()
            await connection.send_command("EVAL", looks.LAST_GENERATED, 1, inbox)
            after = await connection.read_response()
            found: list[Entry] = []
            while True:
                await connection.send_command("XREAD", "COUNT", _ENTRIES, "BLOCK", _LISTEN_MS, "STREAMS", inbox, after)
                yield found  # while the next read is under way: an entry may be finished and gone at once
                reply = await _next_reply(connection, _LISTEN_MS / 1000 + self._timeout_s)
                items = reply[0][1] if reply else []
                found = [parse_entry(*item) for item in items]
                after = items[-1][0] if items else after
        except (redis.RedisError, OSError, ValueError) as error:
            raise self._away(error) from None
        finally:
            await connection.disconnect(nowait=True)

    async def logged(self, stream: str, after: str) -> tuple[list[Entry], str | None]:
        command = ("EVAL", looks.LOGGED, 1, self._of(stream).inbox, stream, after, looks.LOOK_ENTRIES, looks.LOOK_BYTES)
        ((following, items),) = await self._ask(command, pool=self._looks)
        found = [parse_entry(*item) for item in items]
        return [entry for entry in found if entry.stream == stream], following.decode() or None

    # --- records -------------------------------------------------------------------------------------------------

    async def records(self, stream: str, after: str, limit: int) -> list[OutRecord]:
        if (first := id_number(after) + 1) >> 128:
            return []  # nothing is above the last possible id
        (found,) = await self._ask(
            ("XRANGE", self._of(stream).out(stream), number_id(first), "+", "COUNT", limit), pool=self._replays
        )
        return [_record(entry_id, fields) for entry_id, fields in found]

    async def newest(self, stream: str, limit: int, before: str = "+") -> list[OutRecord]:
        end = before if before in ("+", "0-0") else f"({before}"  # nothing is below the first, and nothing has it
        (found,) = await self._ask(
            ("XREVRANGE", self._of(stream).out(stream), end, "-", "COUNT", limit), pool=self._replays
        )
        return [_record(entry_id, fields) for entry_id, fields in reversed(found)]

    async def fetch(self, wanted: Sequence[tuple[str, str]], replay: bool = False) -> list[OutRecord | None]:
        if not wanted:
            return []
        commands = [("XRANGE", self._of(stream).out(stream), wanted_id, wanted_id) for stream, wanted_id in wanted]
        pool = self._replays if replay else self.pool
        return [_record(*found[0]) if found else None for found in await self._ask(*commands, pool=pool)]

    async def follow(self) -> AsyncGenerator[list[FeedItem]]:
        await self.check_deployment()
        connection = self.pool.make_connection()
        shard_of_feed = {keys.feed: keys.shard for keys in self._keys}
        try:
            await connection.connect()
            heads = await self._heads(connection)
            newest = await self.last_commits()
            cursors = {keys.feed: b"0-0" for keys in self._keys}
            cursors |= {self._keys[item.shard].feed: b"%d-0" % item.n for item in newest}
            yield newest
            checked = time.monotonic()
            while True:
                block_ms = int(_CHECK_S * 1000)
                await connection.send_command(
                    "XREAD", "COUNT", _COMMITS, "BLOCK", block_ms, "STREAMS", *cursors, *cursors.values()
                )
                reply = await _next_reply(connection, _CHECK_S + self._timeout_s)
                items, records = [], 0
                for feed, commits in reply or ():
                    cursors[feed] = commits[-1][0]
                    for commit in commits:
                        items.append(_commit(shard_of_feed[feed], *commit))
                        records += len(items[-1].records)
                        if records >= _RECORDS:
                            yield items
                            items, records = [], 0
                if items:
                    yield items
                if time.monotonic() - checked >= _CHECK_S:
                    now = await self._heads(connection)
                    self._check_same(heads, now, cursors)
                    heads, checked = now, time.monotonic()
        except (redis.RedisError, OSError, ValueError) as error:
            raise self._away(error) from None
        finally:
            await connection.disconnect(nowait=True)

    async def _heads(self, connection: Any) -> dict[int, Head | None]:
        """By shard, without those that cannot be read: of such a shard nothing is known, and all others go on."""
        await connection.send_packed_command(connection.pack_commands([("GET", keys.head) for keys in self._keys]))
        heads: dict[int, Head | None] = {}
        for keys in self._keys:
            with suppress(redis.ResponseError):
                reply = await _next_reply(connection, self._timeout_s)
                if reply is None or (head := read_head(reply)) is not None:
                    heads[keys.shard] = None if reply is None else head
        return heads

    def _check_same(
        self, was: Mapping[int, Head | None], now: Mapping[int, Head | None], cursors: Mapping[bytes, bytes]
    ) -> None:
        """A feed that began anew counts from 1 again: following it from the old number would wait for ever."""
        for keys in [keys for keys in self._keys if keys.shard in was and keys.shard in now]:
            old, new = was[keys.shard], now[keys.shard]
            n = id_number(cursors[keys.feed]) >> 64
            if (new is None and n > 0) or (new and n > new.n) or (old and new and old.life != new.life):
                raise BrokerAway(f"broker {self._where}: the log of shard {keys.shard} began anew")

    async def feeds(self, since: Mapping[int, int], limit: int) -> list[list[FeedItem]]:
        if not since:
            return []
        found = await self._ask(
            *(("XRANGE", self._keys[shard].feed, b"%d-0" % n, "+", "COUNT", limit) for shard, n in since.items()),
            pool=self._replays,
        )
        turn, feeds = Turn(), []
        for shard, commits in zip(since, found, strict=True):
            feeds.append([_commit(shard, *commit) for commit in commits])
            if turn.due():
                await turn.over()
        return feeds

    async def last_commits(self) -> list[FeedItem]:
        found = await self._ask(*(("XREVRANGE", keys.feed, "+", "-", "COUNT", 1) for keys in self._keys))
        return [_commit(keys.shard, *commits[0]) for keys, commits in zip(self._keys, found, strict=True) if commits]

    # --- positions, settings, streams ----------------------------------------------------------------------------

    async def last_generated(self, stream: str) -> str:
        (reply,) = await self._ask(("EVAL", looks.LAST_GENERATED, 1, self._of(stream).inbox))
        last: str = reply.decode()
        return last

    async def position(self, stream: str) -> bytes | None:
        (reply,) = await self._ask(("HGET", self._of(stream).pos, stream))
        found: bytes | None = reply
        return found

    async def settings(self, stream: str) -> bytes | None:
        (reply,) = await self._ask(("HGET", self._of(stream).settings, stream))
        found: bytes | None = reply
        return found

    async def stream(self, stream: str) -> StreamRow | None:
        rows = await self._rows([stream], self.pool)
        return rows[0] if rows and (rows[0].position, rows[0].settings) != (None, None) else None

    async def rows(self, streams: Iterable[str]) -> list[StreamRow]:
        return await self._rows(list(streams), self._looks)

    async def _rows(self, streams: Sequence[str], pool: Any) -> list[StreamRow]:
        of_shard: dict[int, list[str]] = {}
        for stream in streams:
            of_shard.setdefault(shard_of(stream, self._shards), []).append(stream)
        commands: list[Command] = []
        for shard, names in of_shard.items():
            keys = self._keys[shard]
            commands.append(
                ("EVAL", looks.ROWS, 5, keys.streams, keys.pos, keys.settings, keys.drops, keys.restarts, *names)
            )
        found: dict[str, StreamRow] = {}
        (seconds, micros), *answers = await self._ask(("TIME",), *commands, pool=pool)
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        for (shard, names), replies in zip(of_shard.items(), answers, strict=True):
            for stream, (ms, position, settings, drops, restarts) in zip(names, replies, strict=True):
                if not _is_deleted(position):
                    found[stream] = StreamRow(
                        stream, shard, _whole(ms), position, settings, _whole(drops), _whole(restarts), now_ms
                    )
        return [found[stream] for stream in streams if stream in found]

    async def streams(self, after: str, limit: int, but: Container[str] = frozenset()) -> list[StreamRow]:
        turn = Turn()
        names = heapq.merge(*(run[bisect_right(run, after) :] for run in await self._names()))
        rows: list[StreamRow] = []
        page: list[str] = []
        for name in names:
            if name not in but:
                page.append(name)
            if len(rows) + len(page) == limit:  # more than one page only where streams were deleted
                rows += await self.rows(page)
                page.clear()
                if len(rows) == limit:
                    return rows
            if turn.due():
                await turn.over()
        return rows + await self.rows(page)

    async def _names(self) -> list[list[str]]:
        """Of all streams, in sorted runs: what is sorted at once is little. Read anew for each call, but where they are
        very many only once a second."""
        kept = self._listed
        if kept is not None and time.monotonic() - kept[0] < _LISTED_S:
            return kept[1]
        turn, runs, count, begun = Turn(), [], 0, time.monotonic()
        for keys in self._keys:
            (reply,) = await self._ask(("ZRANGE", keys.streams, 0, -1), foreign=True, pool=self._looks)
            for start in range(0, len(reply or ()), _RUN):
                names = (one.decode() for one in reply[start : start + _RUN])
                runs.append(sorted(name for name in names if self._is_home(name, keys)))
                count += len(runs[-1])
                if turn.due():
                    await turn.over()
        self._listed = (begun, runs) if count > MANY_STREAMS else None
        return runs

    async def lags(self) -> dict[str, Lag]:
        asked = [
            ("EVAL", looks.LAGS, 3, keys.inbox, keys.head, keys.pos, looks.LAG_ENTRIES, looks.LAG_BYTES)
            for keys in self._keys
        ]
        (seconds, micros), *found = await self._ask(("TIME",), *asked, pool=self._looks)
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        turn = Turn()
        lags: dict[str, Lag] = {}
        for keys, reply in zip(self._keys, found, strict=True):
            for name, entry_id in zip(reply[::2], reply[1::2], strict=True):
                stream = name.decode(errors="replace")  # whatever a producer called it
                if STREAM_ID.fullmatch(stream) and self._is_home(stream, keys):
                    ms = int(entry_id.partition(b"-")[0])
                    lags[stream] = Lag(ms, max(0, now_ms - ms) / 1000)
            if turn.due():
                await turn.over()
        return lags

    async def counted(self, what: Counted) -> dict[str, int]:
        turn, counts = Turn(), dict[str, int]()
        for keys in self._keys:
            key = keys.drops if what == "drops" else keys.restarts
            (reply,) = await self._ask(("ZRANGE", key, 0, -1, "WITHSCORES"), foreign=True, pool=self._looks)
            found = reply or ()
            for start in range(0, len(found), 2 * _RUN):
                part = found[start : start + 2 * _RUN]
                counts.update((name.decode(), _whole(n)) for name, n in zip(part[::2], part[1::2], strict=True))
                if turn.due():
                    await turn.over()
        return counts

    async def state(self, stream: str) -> StateRow:
        keys = self._of(stream)
        commands: list[Command] = [
            ("MULTI",), ("GET", keys.state(stream)), ("HGET", keys.pos, stream), ("HGET", keys.settings, stream),
            ("TIME",), ("EXEC",),
        ]  # fmt: skip
        *_, (state, position, settings, (seconds, micros)) = await self._ask(*commands, pool=self._looks)
        return StateRow(state, position, settings, int(seconds) * 1000 + int(micros) // 1000)

    async def waiting(self, stream: str) -> Waiting:
        keys, position = self._of(stream), read_position(await self.position(stream))
        last = number_id(position.last) if position else b"0-0"
        command = ("EVAL", looks.WAITING, 2, keys.inbox, keys.head, stream, last, looks.LOOK_ENTRIES, looks.LOOK_BYTES)
        ((entries, complete),) = await self._ask(command, pool=self._looks)
        return Waiting(entries, complete == 1)

    # --- shards and workers --------------------------------------------------------------------------------------

    async def shard_status(self) -> list[ShardStatus]:
        commands: list[Command] = [
            ("EVAL", looks.SHARD_STATUS, 3, keys.owner, keys.head, keys.inbox) for keys in self._keys
        ]
        (seconds, micros), *replies = await self._ask(("TIME",), *commands)
        now_ms = self._set_clock(seconds, micros)
        status = []
        for keys, (owned, said, length, first) in zip(self._keys, replies, strict=True):
            head = read_head(said)
            kept = head.kept if head is not None else 0
            lag_s = max(0, now_ms - _ms(first.decode())) / 1000 if first else 0.0
            status.append(ShardStatus(keys.shard, owned == 1, max(0, length - kept), lag_s, _fault(said, head)))
        return status

    async def pressure(self) -> Pressure:
        commands: list[Command] = [
            ("EVAL", looks.BACKLOG, 5, keys.head, keys.inbox, keys.settings, keys.owner, keys.streams)
            for keys in self._keys
        ]
        info, *replies = await self._ask(("INFO", "memory"), *commands)
        shards = []
        for kept, length, size, revision, token, commits, streams in replies:
            unfinished = max(0, length - kept)
            waiting = size * unfinished // max(1, length)
            shards.append(ShardBacklog(unfinished, waiting, revision.decode(), token.decode(), commits, streams))
        memory = _info(info)
        return Pressure(shards, _used(memory), int(memory.get("maxmemory", 0)))

    async def broker_status(self) -> BrokerStatus:
        (reply,) = await self._ask(("INFO",))
        said = _info(reply)
        writes = ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status")
        return BrokerStatus(
            memory_bytes=_used(said),
            memory_limit=int(said.get("maxmemory", 0)),
            system_memory=int(said.get("total_system_memory", 0)),
            noeviction=said.get("maxmemory_policy", "noeviction") == "noeviction",
            evicted=int(said.get("evicted_keys", 0)),
            aof_enabled=said.get("aof_enabled") == "1",
            disk_ok=all(said.get(write, "ok") == "ok" for write in writes),
            clients=int(said.get("connected_clients", 0)),
            commands=int(said.get("total_commands_processed", 0)),
        )

    async def workers(self) -> list[WorkerInfo]:
        (names,) = await self._ask(("ZRANGE", workers_key(self._prefix), -_WORKERS, -1))
        if not names:
            return []
        keys = [worker_key(self._prefix, "").encode() + name for name in names]
        said = await self._ask(*(("GETRANGE", key, 0, _WORKER_BYTES) for key in keys), foreign=True)
        return [worker for text in said if text and (worker := _read_worker(text)) is not None]

    async def end_script(self) -> str | None:
        (answer,) = await self._ask_any(("PING",))
        if not (isinstance(answer, redis.ResponseError) and str(answer).startswith("BUSY")):
            return None
        (said,) = await self._ask_any(("SCRIPT", "KILL"))
        words = said.decode() if isinstance(said, bytes) else str(said)
        return None if words.startswith("NOTBUSY") else words  # it has just ended by itself

    async def close(self) -> None:
        for pool in (self.pool, self._replays, self._looks):
            await pool.disconnect()

    # --- connections ---------------------------------------------------------------------------------------------

    def _of(self, stream: str) -> ShardKeys:
        return self._keys[shard_of(stream, self._shards)]

    def _is_home(self, stream: str, keys: ShardKeys) -> bool:
        """False where a shard only refused what did not belong to it, or had no legal stream id."""
        return stream != NO_STREAM and self._of(stream) is keys

    async def _connect(self, pool: Any) -> Any:
        try:
            return await pool.get_connection()
        except (redis.RedisError, OSError) as error:
            raise self._away(error) from None

    def _away(self, error: Exception) -> BrokerAway:
        """Whatever the broker's answer repeats of what it was sent, the password is not among it."""
        return BrokerAway(f"broker {self._where}: {without_password(str(error), self._url)}")

    async def _ask(self, *commands: Command, foreign: bool = False, pool: Any = None) -> list[Any]:
        """Several commands in one round trip. Only for commands that may be repeated by the caller. `foreign`: what
        somebody else wrote over a key counts as nothing there; the next commit that needs the key repairs it. `pool`:
        none is QUICK."""
        replies = await self._ask_any(*commands, pool=pool)
        for at, reply in enumerate(replies):
            if isinstance(reply, redis.ResponseError):
                if any(words in str(reply) for words in _NO_ID):
                    raise BadCursor(f"the broker takes no such id: {reply}")
                if not (foreign and str(reply).startswith("WRONGTYPE")):
                    raise BrokerAway(f"broker {self._where} answered {reply}")
                replies[at] = None
        return replies

    async def _ask_any(self, *commands: Command, pool: Any = None) -> list[Any]:
        """The same, with error replies among the replies."""
        if not commands:
            return []
        pool = pool or self.pool
        connection = await self._connect(pool)
        replies: list[Any] = []
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except redis.ResponseError as error:
                    replies.append(error)
                if len(replies) % _REPLIES == 0:
                    await asyncio.sleep(0)
        except _LOST as error:
            raise BrokerAway(f"broker {self._where}: {error}") from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            if len(replies) < len(commands):
                await connection.disconnect(nowait=True)
            await pool.release(connection)
        return replies


def _read_worker(text: bytes) -> WorkerInfo | None:
    """None: it is of a worker of another version, or of none, and counts as not there."""
    try:
        worker = _worker_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return msgspec.structs.replace(worker, trouble=worker.trouble[:_TROUBLE])


async def _next_reply(connection: Any, within_s: float) -> Any:
    """The next reply; None where it is none. Raises TimeoutError when none came.

    redis-py answers None when its own timeout ends, as to an empty reply, and the reply that is still to come is then
    taken for that of the next command. And where the event loop was held up for longer than `within_s`, a reply may be
    there all the same: the clock alone does not say that the broker is silent.
    """
    reading = asyncio.ensure_future(connection.read_response(timeout=math.inf))
    try:
        for limit_s in (within_s, _GRACE_S):
            await asyncio.wait({reading}, timeout=limit_s)
            if reading.done():
                return reading.result()
        raise redis.TimeoutError(f"no answer within {within_s:g} s")
    finally:
        reading.cancel()


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _fault(said: bytes, head: Head | None) -> str:
    """Why no worker goes on from this head; empty for one that is well, or not there."""
    if said and head is None:
        return "its head cannot be read"
    if head is not None and head.low >> 64 > MAX_MS:
        return f"its head stands at {number_id(head.low).decode()}, an id that no clock gives"
    return ""


def _whole(score: bytes | None) -> int:
    return int(float(score or 0))


def _info(reply: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)


def _used(info: Mapping[str, str]) -> int:
    """Bytes that count for the broker's limit."""
    return int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))


def _is_deleted(position: bytes | None) -> bool:
    found = read_position(position)
    return found is not None and found.stepped == b"deleted"


def _record(entry_id: bytes, fields: Sequence[bytes]) -> OutRecord:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return OutRecord(entry_id.decode(), values[b"type"].decode(), values[b"body"], values[b"prev"].decode())


def _commit(shard: int, commit_id: bytes, fields: Sequence[bytes]) -> FeedItem:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    number = id_number(commit_id) >> 64
    return FeedItem(shard, number, values[b"token"].decode(), parse_feed(values[b"records"]))
