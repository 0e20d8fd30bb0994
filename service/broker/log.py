"""The worker's side of the broker: leases, reading, loading, committing. docs/protocol.md, on real connections.

Connections: one for scripts and loads, one whose reads block, and one a shard for commits, which always has
`WATCH head` outstanding. None of them retries.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import hiredis

from service.broker import scripts
from service.broker.idle import Housekeeping
from service.broker.packing import Keep, pack_commit, repairs_of
from service.broker.silence import Silences
from service.broker.wire import Argument, Wire, pack
from service.codec import MAX_MS, id_number, number_id, read_behind
from service.errors import BadHead, BrokerAway, CommitRefused, Disagreement, Fenced
from service.keys import FORMAT, ShardKeys, meta_key, worker_key, workers_key
from service.ports import Behind, Commit, Committed, Loaded, Looked, Renewed

# Nothing was applied; it may be sent again. Not among them: READONLY, MOVED, CLUSTERDOWN, … (another primary).
_REFUSALS: Final = ("OOM", "MISCONF", "LOADING", "NOREPLICAS", "BUSY", "EXECABORT")
_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?([A-Z]+) ")
_Error: Final = hiredis.ReplyError
_MAXMEMORY: Final = re.compile(rb"^maxmemory:(\d+)", re.MULTILINE)
_GROUP_GONE: Final = ("NOGROUP", "ERR The XGROUP subcommand requires the key to exist")
STATE_GRACE_S: Final = 7 * 86_400  # states outlive their TTL by this; the TTL itself is decided by entry ids
COUNTED: Final = 64  # entries that a look counts
ATTEMPTS: Final = 2  # of an entry in careful mode, before it is refused
log = logging.getLogger("rollcast.worker")


class RedisLog(Housekeeping, Silences):
    """ports.Log on a server that speaks Redis ≥ 6.2. Used by one thread."""

    def __init__(
        self,
        url: str,
        *,
        worker: str,
        prefix: str = "rollcast",
        shards: int = 32,
        lease_s: float = 3.0,
        state_ttl_s: float = 86_400.0,
        records_kept: int = 1000,
        dead_kept: int = 1000,
        dead_bytes: int = 64 << 20,
        dead_share: float = 0.1,
        feed_commits: int = 10_000,
        trim_finished: bool = True,
    ) -> None:
        self._url, self._prefix, self._shards = url, prefix, shards
        self._worker = worker
        self._lease_ms = int(lease_s * 1000)
        self._timeout_s = max(1.0, lease_s)
        self._keep = Keep(
            records=b"%d" % records_kept,
            dead=b"%d" % dead_kept,
            dead_bytes=dead_bytes,
            feed_commits=b"%d" % feed_commits,
            state_ms=b"%d" % int((state_ttl_s + STATE_GRACE_S) * 1000),
        )
        self._dead_bytes, self._dead_share = dead_bytes, dead_share
        self._trim_finished = b"1" if trim_finished else b"0"
        self._keys = [ShardKeys(prefix, shard) for shard in range(shards)]
        self._control: Wire | None = None
        self._reading: Wire | None = None
        self._asked: list[bytes] | None = None  # the logs of the read under way
        self._read_by = 0.0  # when more of its answer must have come, by this process's clock
        self._read_lost = False  # the last read's connection broke
        self._looking: deque[int] = deque()  # shards whose logs are looked at before that read
        self._looked: dict[int, Looked] = {}
        self._commits: dict[int, Wire] = {}
        self._owner: dict[int, bytes] = {}  # what stands in the shard's `owner` while it is ours
        self._suspected: set[int] = set()
        self._behind: dict[int, Behind] = {}
        self._tokens: dict[int, str] = {}  # of this process's last acquisitions
        self._tried: dict[int, bytes] = {}  # entries it tried last, in careful mode
        self._sent: dict[int, tuple[Commit, list[bytes]]] = {}  # in flight, a command each
        self._refused: dict[int, tuple[Commit, list[bytes]]] = {}  # to be sent again
        self._repairs: dict[int, list[bytes]] = {}  # for the next commit
        self._shard_of_inbox = {keys.inbox: keys.shard for keys in self._keys}

    @property
    def shards(self) -> int:
        return self._shards

    # --- leases --------------------------------------------------------------------------------------------------

    def acquire(self, shard: int) -> bytes | None:
        keys, token = self._keys[shard], secrets.token_hex(8)
        owner = f"{self._worker} {token}".encode()
        head: bytes | None = self._script(
            scripts.ACQUIRE,
            (keys.owner, keys.head, keys.inbox, keys.feed),
            (
                owner, self._lease_ms, secrets.token_hex(4), token, self._trim_finished, self._tokens.get(shard, "-"),
                MAX_MS,
            ),
        )  # fmt: skip
        if head is None:
            return None
        if head.startswith(b"! "):
            raise BadHead(f"shard {shard}: {head[2:]!r} is no head that a worker goes on from")
        self._tokens[shard] = token
        wire = Wire(self._url, self._timeout_s)
        try:
            wire.send(pack(("WATCH", keys.head)) + pack(("GET", keys.head)) + pack(("GET", keys.suspect)))
            wire.send(pack(("XREVRANGE", keys.feed, "+", "-", "COUNT", 1)))
            watched, found, suspect, newest = wire.reply(), wire.reply(), wire.reply(), wire.reply()
        except BrokerAway:
            wire.close()
            raise
        if watched != b"OK" or found != head:
            wire.close()
            return None
        self._commits[shard], self._owner[shard] = wire, owner
        self._suspected.discard(shard)
        if suspect is not None:
            self._suspected.add(shard)
        self._behind.pop(shard, None)
        if isinstance(newest, list) and newest and newest[0][0] == b"%b-0" % head.split(b" ")[2]:
            said = dict(zip(newest[0][1][::2], newest[0][1][1::2], strict=True))
            if (behind := read_behind(said.get(b"behind"), said.get(b"records", b""))) is not None:
                self._behind[shard] = behind
        return head

    def behind(self, shard: int) -> Behind | None:
        return self._behind.get(shard)

    def suspected(self, shard: int) -> bool:
        return shard in self._suspected

    def renew(self, shards: Sequence[int], about: bytes) -> Renewed:
        commands = self._renewals(shards)
        listed_ms = self._lease_ms * 2  # the api forgets a worker a little later than the others do
        workers, me = workers_key(self._prefix), self._worker
        commands += [
            pack(("EVAL", scripts.HEARTBEAT, 1, workers, me, self._lease_ms, listed_ms)),
            pack(("EVAL", scripts.ABOUT, 1, worker_key(self._prefix, me), about, listed_ms)),
        ]
        *leases, live, _, (seconds, micros) = self._ask_all([*commands, pack(("TIME",))])
        lost = self._lost(shards, leases)
        names = sorted(live)
        place = names.index(me.encode()) if me.encode() in names else 0
        return Renewed(lost, place, max(1, len(names)), int(seconds) * 1000 + int(micros) // 1000)

    def extend(self, shards: Sequence[int]) -> list[int]:
        return self._lost(shards, self._ask_all(self._renewals(shards))) if shards else []

    def _renewals(self, shards: Sequence[int]) -> list[bytes]:
        return [
            pack(("EVAL", scripts.RENEW, 2, keys.owner, keys.head, owner, self._lease_ms, owner.rpartition(b" ")[2]))
            for keys, owner in ((self._keys[p], self._owner[p]) for p in shards)
        ]

    def _lost(self, shards: Sequence[int], leases: Sequence[Any]) -> list[int]:
        self._mind_a_twin([reply for reply in leases if reply != 1])
        return [p for p, reply in zip(shards, leases, strict=True) if reply != 1]

    def free(self, shards: Sequence[int]) -> tuple[list[int], float]:
        owners = [self._keys[p].owner for p in shards]
        replies = self._ask_all([pack((name, key)) for key in owners for name in ("GET", "PTTL")], foreign=True)
        mine = self._worker.encode() + b" "
        free, soonest_ms = [], math.inf
        for p, owner, left_ms in zip(shards, replies[::2], replies[1::2], strict=True):
            if owner is None or owner.startswith(mine):
                free.append(p)
            elif left_ms >= 0:
                soonest_ms = min(soonest_ms, left_ms)
        return free, soonest_ms / 1000

    def release(self, shard: int) -> None:
        owner = self._owner.pop(shard, None)
        self.abandon(shard)
        if owner is not None:
            keys = self._keys[shard]
            self._script(scripts.RELEASE, (keys.owner, keys.head), (owner, owner.rpartition(b" ")[2]))

    def leave(self) -> None:
        """Says that this worker is gone."""
        workers, about = workers_key(self._prefix), worker_key(self._prefix, self._worker)
        self._ask_all([pack(("ZREM", workers, self._worker)), pack(("DEL", about))])

    def abandon(self, shard: int) -> None:
        wire = self._commits.pop(shard, None)
        for held in (self._sent, self._refused, self._repairs):
            held.pop(shard, None)
        if wire is not None:
            wire.close()

    def _mind_a_twin(self, owners: Sequence[bytes]) -> None:
        """Takes another id when a live process has ours: each would take the other's shards back for ever."""
        if any(isinstance(owner, bytes) and owner.startswith(self._worker.encode() + b" ") for owner in owners):
            twin, self._worker = self._worker, f"{self._worker}~{secrets.token_hex(3)}"
            log.error("another process has this worker's id", extra={"worker": twin, "new_worker": self._worker})

    # --- reading -------------------------------------------------------------------------------------------------

    def ask(self, cursors: Mapping[int, int], count: int, block_s: float, look: Sequence[int] = ()) -> None:
        logs = [self._keys[shard].inbox for shard in cursors]
        if self._asked is not None:
            self._stop_reading()
        try:
            if self._reading is None:
                self._reading = Wire(self._url, self._timeout_s)
            ids = map(number_id, cursors.values())
            block = max(1, int(block_s * 1000))
            looks = [self._look(shard, cursors[shard]) for shard in look]
            read = pack(("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *logs, *ids))
            self._reading.send(b"".join([*looks, read]))
        except BrokerAway:
            self._stop_reading()
            raise
        self._asked, self._read_by = logs, time.monotonic() + block_s + self._timeout_s
        self._looking.extend(look)

    def _look(self, shard: int, cursor: int) -> bytes:
        keys, token = self._keys[shard], self._tokens.get(shard, "")
        return pack(("EVAL", scripts.LOOK, 2, keys.head, keys.inbox, token, number_id(cursor), COUNTED))

    def _read(self, wire: Wire) -> Any:
        """The read's reply, or False as long as it is not there. Those of the looks before it are put aside."""
        while self._looking and (reply := wire.parsed()) is not False:
            shard = self._looking.popleft()
            if isinstance(reply, list):  # else it is lost, or is no log: the next commit finds out
                added, length, first, last, ahead = reply
                known = (None if added < 0 else added), length, id_number(first), id_number(last)
                self._looked[shard] = Looked(*known, None if ahead < 0 else ahead)
        return False if self._looking else wire.parsed()

    def looked(self) -> dict[int, Looked]:
        seen, self._looked = self._looked, {}
        return seen

    def poll(self, wait_s: float, wake: int | None) -> list[tuple[int, list[tuple[bytes, list[bytes]]]]] | None:
        wire = self._reading
        if wire is None or self._asked is None:
            if wake is not None:
                select.select([wake], [], [], wait_s)
            return None
        deadline = time.monotonic() + wait_s
        watched = [wire.fileno()] if wake is None else [wire.fileno(), wake]
        try:
            while (reply := self._read(wire)) is False:
                now = time.monotonic()
                readable = select.select(watched, [], [], max(0.0, deadline - now))[0]
                if wire.fileno() not in readable:
                    if now > self._read_by:  # an answer that came in time may be looked for late
                        raise BrokerAway("no answer in time")
                    return None
                if wire.feed(self._timeout_s):  # what is large may take longer than the time for an answer to begin
                    self._read_by = max(self._read_by, time.monotonic() + self._timeout_s)
        except (BrokerAway, OSError) as error:
            again, self._read_lost = not self._read_lost, True
            self._stop_reading()
            if again:  # reading changes nothing: once more from the last cursor
                log.warning("the reading connection was lost, reading again", extra={"detail": str(error)})
                return []
            raise BrokerAway(f"reading the log: {error}") from error
        self._asked, self._read_lost = None, False
        if isinstance(reply, hiredis.ReplyError):
            self._stop_reading()
            raise BrokerAway(f"reading the log: {reply}")
        if reply is None:
            return []
        return [(self._shard_of_inbox[inbox], entries) for inbox, entries in reply]

    def load(self, wanted: Mapping[int, Sequence[str]]) -> dict[int, list[Loaded]]:
        commands = []
        for shard, streams in wanted.items():
            keys = self._keys[shard]
            commands.append(pack(("HMGET", keys.pos, *streams)))
            commands.append(pack(("MGET", *(keys.state(stream) for stream in streams))))
            commands.append(pack(("HMGET", keys.settings, *streams)))
        found = iter(self._ask_all(commands, foreign=True))
        return {
            shard: [Loaded(*row) for row in zip(*(next(found) or [None] * len(streams) for _ in range(3)), strict=True)]
            for shard, streams in wanted.items()
        }

    # --- committing ----------------------------------------------------------------------------------------------

    def send(self, commit: Commit) -> None:
        if commit.shard in self._sent:
            raise RuntimeError(f"shard {commit.shard}: a commit is in flight; its reply must be read first")
        wire = self._commits.get(commit.shard)
        if wire is None:
            raise Fenced(f"shard {commit.shard}: no fenced connection")
        repairs = self._repairs.get(commit.shard, ())
        self._transmit(commit, wire, pack_commit(commit, self._keys[commit.shard], self._keep, repairs))

    def send_again(self, shard: int) -> None:
        commit, commands = self._refused[shard]
        wire, head = self._commits[shard], self._keys[shard].head
        try:
            wire.send(pack(("WATCH", head)) + pack(("GET", head)))
            watched, found = wire.reply(), wire.reply()
        except BrokerAway as error:
            self.abandon(shard)
            raise Fenced(f"shard {shard}: {error.detail}") from error
        if _is_refusal(watched) or _is_refusal(found):
            raise CommitRefused(f"shard {shard}: {found}")
        if watched != b"OK" or found != commit.before:
            self.abandon(shard)
            raise Fenced(f"shard {shard}: head is {_text(found)}, not what this worker wrote")
        del self._refused[shard]
        self._transmit(commit, wire, commands)

    def _transmit(self, commit: Commit, wire: Wire, commands: list[bytes]) -> None:
        self._sent[commit.shard] = commit, commands
        try:
            wire.send(b"".join(commands))
        except BrokerAway as error:
            self.abandon(commit.shard)
            raise Fenced(f"shard {commit.shard}: {error.detail}") from error

    def result(self, shard: int) -> Committed:
        (commit, commands), wire = self._sent.pop(shard), self._commits[shard]
        try:
            replies = [wire.reply() for _ in commands]
        except BrokerAway as error:
            self.abandon(shard)
            raise Fenced(f"shard {shard}: the commit's reply was lost: {error}") from error
        done, _, head = replies[-3:]
        if _is_error(done):
            cause = next(reply for reply in replies if _is_error(reply))  # why a command could not be queued
            if replies[0] == b"OK" and _is_refusal(cause):  # MULTI was taken: so nothing was applied outside of it
                self._refused[shard] = commit, commands
                raise CommitRefused(f"shard {shard}: {cause}")
            self.abandon(shard)
            raise Fenced(f"shard {shard}: {cause}")
        if done is None or head != commit.after:
            self.abandon(shard)
            raise Fenced(f"shard {shard}: head is {_text(head)}, not what this worker wrote")
        trimmed = 0
        overflow = 0
        if commit.dead:
            bounded = done[-1 if commit.trim_below is None else -3]
            overflow = bounded if isinstance(bounded, int) else 0
        if commit.trim_below is not None:
            trimmed = done[-2] if isinstance(done[-2], int) else 0
            if _is_error(done[-1]) and str(done[-1]).startswith(_GROUP_GONE):
                done[-1] = b"OK"  # the group is for display only: somebody removed it, the next acquisition makes it
        failed = [at for at, element in enumerate(done) if isinstance(element, _Error)]  # one call an element less
        repairs = self._repairs.pop(shard, [])
        if not failed:
            return Committed(trimmed, [], overflow)
        self._repairs[shard] = repairs_of(commands, [1 + at for at in failed], self._keys[shard])
        first = 1 + len(repairs) + bool(commit.deleted)  # of the records among the elements
        unwritten = [at - first for at in failed if 0 <= at - first < len(commit.records)]
        return Committed(trimmed, [str(done[at]) for at in failed], overflow, unwritten, failed[0] > len(repairs))

    def make_room(self, commit: Commit) -> int:
        keys = self._keys[commit.shard]
        low = commit.before.split(b" ")[3]
        return int(self._script(scripts.TRIM, (keys.head, keys.inbox), (commit.before, low)))

    def attempt(self, shard: int, head: bytes, entry_id: bytes) -> bool:
        keys = self._keys[shard]
        survived, self._tried[shard] = int(self._tried.get(shard) == entry_id), entry_id
        tried = int(self._script(scripts.TRY, (keys.head, keys.suspect), (head, entry_id, ATTEMPTS, survived)))
        if tried < 0:
            raise Fenced(f"shard {shard}: head is not what this worker wrote")
        return tried < ATTEMPTS

    def blame(self, shard: int) -> None:
        self._tried.pop(shard, None)

    def forgive(self, shard: int, head: bytes, entry_id: bytes) -> None:
        keys = self._keys[shard]
        self._script(scripts.FORGIVE, (keys.head, keys.suspect), (head, entry_id))

    def acquit(self, shard: int, head: bytes) -> None:
        keys = self._keys[shard]
        if not self._script(scripts.ACQUIT, (keys.head, keys.suspect), (head,)):
            raise Fenced(f"shard {shard}: head is not what this worker wrote")

    # --- connections ---------------------------------------------------------------------------------------------

    def _controlling(self) -> Wire:
        if self._control is None:
            control = Wire(self._url, self._timeout_s)
            try:
                self._check_deployment(control)
                self._learn_memory(control)
            except BaseException:
                control.close()
                raise
            self._control = control
        return self._control

    def _check_deployment(self, control: Wire) -> None:
        """Writes `meta` where it is missing (a new broker); raises Disagreement when it says something else."""
        key, ours = meta_key(self._prefix), [b"%d" % FORMAT, b"%d" % self._shards]
        try:
            said = control.call("HMGET", key, "format", "shards")
            if None in said:
                control.call("HSETNX", key, "format", FORMAT)
                control.call("HSETNX", key, "shards", self._shards)
                said = control.call("HMGET", key, "format", "shards")
        except hiredis.ReplyError as error:
            raise BrokerAway(f"broker does not give {key}: {error}") from error
        if said != ours:
            raise Disagreement(
                f"the deployment {self._prefix!r} has format {said[0].decode()} and {said[1].decode()} shards, "
                f"this process format {FORMAT} and {self._shards} shards; shards are fixed for the life of a deployment"
            )

    def look_at_memory(self) -> None:
        try:
            self._learn_memory(self._controlling())
        except BrokerAway:
            self._disconnect()
            raise

    def _learn_memory(self, control: Wire) -> None:
        """What quarantine may take of a shard. A broker that has no limit, or does not tell it, sets none."""
        try:
            said = _MAXMEMORY.search(control.call("INFO", "memory"))
        except hiredis.ReplyError:
            said = None
        limit = int(said[1]) if said else 0
        share = int(limit * self._dead_share / self._shards) if limit else self._dead_bytes
        self._keep = self._keep._replace(dead_bytes=min(share, self._dead_bytes))

    def _disconnect(self) -> None:
        """Closes what is not a shard's: the next call asks, perhaps, another primary under the same name."""
        if self._control is not None:
            self._control.close()
        self._control = None
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
        self._reading, self._asked = None, None
        self._looking.clear()
        self._looked.clear()

    def _script(self, text: str, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Any:
        return self._ask_all([pack(("EVAL", text, len(keys), *keys, *arguments))])[0]

    def _ask_all(self, commands: Sequence[bytes], foreign: bool = False) -> list[Any]:
        """Replies of packed commands, by one round trip. `foreign`: what somebody else wrote over a key counts as
        nothing there; the next commit repairs the key. Raises BrokerAway, or CommitRefused."""
        control = self._controlling()
        try:
            control.send(b"".join(commands))
            replies = [control.reply() for _ in commands]
        except BrokerAway:
            self._disconnect()
            raise
        if foreign:
            replies = [None if _is_error(reply) and _code(reply) == "WRONGTYPE" else reply for reply in replies]
        error = next((reply for reply in replies if _is_error(reply)), None)
        if error is not None and _is_refusal(error):
            raise CommitRefused(str(error))
        if error is not None:
            self._disconnect()
            raise BrokerAway(f"the broker answered {error}")
        return replies

    def close(self) -> None:
        for shard in list(self._commits):
            self.abandon(shard)
        self._disconnect()


def _is_error(reply: Any) -> bool:
    return isinstance(reply, hiredis.ReplyError)


def _is_refusal(reply: Any) -> bool:
    """Whether the broker answers, but takes nothing at present."""
    return _is_error(reply) and _code(reply) in _REFUSALS


def _code(error: Any) -> str:
    """The word that an error begins with. Redis 6.2 wraps what a command inside a script answered.

    >>> _code("OOM command not allowed when used memory > 'maxmemory'.")
    'OOM'
    >>> _code("ERR Error running script (call to f_6b1b): @user_script:4: @user_script: 4: -MISCONF Errors: disk full")
    'MISCONF'
    >>> _code("ERR Error running script (call to f_6b1b): @user_script:2: WRONGTYPE Operation against a key")
    'WRONGTYPE'
    """
    text = str(error)
    inside = _IN_SCRIPT.search(text) if text.startswith("ERR Error running script") else None
    return inside[1] if inside else text.partition(" ")[0]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
