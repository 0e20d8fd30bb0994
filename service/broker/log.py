"""The worker's side of the broker: leases, reading, loading, committing. docs/protocol.md, on real connections.

Connections: one for scripts and loads, one whose reads block, and one a shard for commits, which always has
`WATCH head` outstanding. None of them retries.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import hiredis

from service.broker import scripts
from service.broker.idle import Housekeeping
from service.broker.wire import Argument, Wire, pack
from service.codec import encode_feed, number_id
from service.errors import BrokerAway, CommitRefused, Disagreement, Fenced
from service.keys import FORMAT, GROUP, ShardKeys, meta_key, worker_key, workers_key
from service.ports import Commit, Committed, Loaded

# Nothing of the transaction was applied; it may be sent again.
_REFUSALS: Final = ("OOM", "MISCONF", "LOADING", "NOREPLICAS", "BUSY", "EXECABORT", "MASTERDOWN")
_GROUP_GONE: Final = ("NOGROUP", "ERR The XGROUP subcommand requires the key to exist")
# The two commands an entry costs, packed by one formatting each: half of what the general packer takes (bench.drain).
_XADD_RECORD: Final = (
    b"*12\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n%b\r\n$1\r\n~\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
    b"$4\r\ntype\r\n$%d\r\n%b\r\n$4\r\nbody\r\n$%d\r\n%b\r\n$4\r\nprev\r\n$%d\r\n%b\r\n"
)
_SET_STATE: Final = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n"
STATE_GRACE_S: Final = 7 * 86_400  # states outlive their TTL by this; the TTL itself is decided by entry ids


class RedisLog(Housekeeping):
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
        feed_commits: int = 10_000,
        trim_finished: bool = True,
    ) -> None:
        self._url, self._prefix, self._shards = url, prefix, shards
        self._worker = worker
        self._lease_ms = int(lease_s * 1000)
        self._timeout_s = max(1.0, lease_s)
        self._state_px = b"%d" % int((state_ttl_s + STATE_GRACE_S) * 1000)
        self._records_kept = b"%d" % records_kept
        self._dead_kept, self._dead_bytes = b"%d" % dead_kept, b"%d" % dead_bytes
        self._feed_commits = b"%d" % feed_commits
        self._trim_finished = b"1" if trim_finished else b"0"
        self._keys = [ShardKeys(prefix, shard) for shard in range(shards)]
        self._control: Wire | None = None
        self._reading: Wire | None = None
        self._asked: list[bytes] | None = None  # the logs of the read under way
        self._commits: dict[int, Wire] = {}
        self._owner: dict[int, bytes] = {}  # what stands in the shard's `owner` while it is ours
        self._sent: dict[int, tuple[Commit, int]] = {}  # in flight, and how many replies it gets
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
            (owner, self._lease_ms, secrets.token_hex(4), token, self._trim_finished),
        )
        if head is None:
            return None
        wire = Wire(self._url, self._timeout_s)
        wire.send(pack(("WATCH", keys.head)) + pack(("GET", keys.head)))
        if wire.reply() != b"OK" or wire.reply() != head:
            wire.close()
            return None
        self._commits[shard], self._owner[shard] = wire, owner
        return head

    def renew(self, shards: Sequence[int], about: bytes) -> list[int]:
        control = self._controlling()
        commands = [
            pack(("EVAL", scripts.RENEW, 1, self._keys[p].owner, self._owner[p], self._lease_ms)) for p in shards
        ]
        life_ms = self._lease_ms * 2
        commands += [
            pack(("EVAL", scripts.HEARTBEAT, 1, workers_key(self._prefix), self._worker, life_ms)),
            pack(("SET", worker_key(self._prefix, self._worker), about, "PX", life_ms)),
        ]
        try:
            control.send(b"".join(commands))
            replies = [control.reply() for _ in commands]  # the last two only show: a full broker may refuse them
        except BrokerAway:
            self._drop_control()
            raise
        return [p for p, reply in zip(shards, replies, strict=False) if reply != 1]

    def release(self, shard: int) -> None:
        owner = self._owner.pop(shard, None)
        self.abandon(shard)
        if owner is not None:
            self._script(scripts.RELEASE, (self._keys[shard].owner,), (owner,))

    def leave(self) -> None:
        """Says that this worker is gone."""
        control = self._controlling()
        control.call("ZREM", workers_key(self._prefix), self._worker)
        control.call("DEL", worker_key(self._prefix, self._worker))

    def abandon(self, shard: int) -> None:
        wire = self._commits.pop(shard, None)
        self._sent.pop(shard, None)
        if wire is not None:
            wire.close()

    # --- reading -------------------------------------------------------------------------------------------------

    def ask(self, cursors: Mapping[int, int], count: int, block_s: float) -> None:
        logs = [self._keys[shard].inbox for shard in cursors]
        if self._asked is not None:
            self._stop_reading()
        try:
            if self._reading is None:
                self._reading = Wire(self._url, self._timeout_s)
            ids = map(number_id, cursors.values())
            block = max(1, int(block_s * 1000))
            self._reading.send(pack(("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *logs, *ids)))
        except BrokerAway:
            self._stop_reading()
            raise
        self._asked = logs

    def poll(self, wait_s: float, wake: int | None) -> list[tuple[int, list[tuple[bytes, list[bytes]]]]] | None:
        wire = self._reading
        if wire is None or self._asked is None:
            if wake is not None:
                select.select([wake], [], [], wait_s)
            return None
        deadline = time.monotonic() + wait_s
        watched = [wire.fileno()] if wake is None else [wire.fileno(), wake]
        try:
            while (reply := wire.parsed()) is False:
                readable = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))[0]
                if wire.fileno() not in readable:
                    return None
                wire.feed(self._timeout_s)
        except (BrokerAway, OSError, hiredis.HiredisError) as error:
            self._stop_reading()
            raise BrokerAway(f"reading the log: {error}") from error
        self._asked = None
        if isinstance(reply, hiredis.ReplyError):
            self._stop_reading()
            raise BrokerAway(f"reading the log: {reply}")
        if reply is None:
            return []
        return [(self._shard_of_inbox[log], entries) for log, entries in reply]

    def load(self, wanted: Mapping[int, Sequence[str]]) -> dict[int, list[Loaded]]:
        control = self._controlling()
        commands = []
        for shard, streams in wanted.items():
            keys = self._keys[shard]
            commands.append(pack(("HMGET", keys.pos, *streams)))
            commands.append(pack(("MGET", *(keys.state(stream) for stream in streams))))
            commands.append(pack(("HMGET", keys.settings, *streams)))
        try:
            control.send(b"".join(commands))
            replies = [control.reply() for _ in commands]
        except BrokerAway:
            self._drop_control()
            raise
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise BrokerAway(f"loading states: {reply}")
        found = iter(replies)
        return {
            shard: [Loaded(*columns) for columns in zip(next(found), next(found), next(found), strict=True)]
            for shard in wanted
        }

    # --- committing ----------------------------------------------------------------------------------------------

    def send(self, commit: Commit) -> None:
        if commit.shard in self._sent:
            raise RuntimeError(f"shard {commit.shard}: a commit is in flight; its reply must be read first")
        wire = self._commits.get(commit.shard)
        if wire is None:
            raise Fenced(f"shard {commit.shard}: no fenced connection")
        commands = self._commands(commit)
        self._sent[commit.shard] = commit, len(commands)
        try:
            wire.send(b"".join(commands))
        except BrokerAway as error:
            self.abandon(commit.shard)
            raise Fenced(f"shard {commit.shard}: {error.detail}") from error

    def result(self, shard: int) -> Committed:
        (commit, commands), wire = self._sent.pop(shard), self._commits[shard]
        try:
            replies = [wire.reply() for _ in range(commands)]
        except (BrokerAway, hiredis.ProtocolError) as error:
            self.abandon(shard)
            raise Fenced(f"shard {shard}: the commit's reply was lost: {error}") from error
        done, watched, head = replies[-3:]
        if _is_error(done):
            cause = str(next(reply for reply in replies if _is_error(reply)))  # why a command could not be queued
            if cause.startswith(_REFUSALS) and watched == b"OK" and head == commit.before:
                raise CommitRefused(f"shard {shard}: {cause}")
            self.abandon(shard)
            raise Fenced(f"shard {shard}: {cause}")
        if done is None or head != commit.after:
            self.abandon(shard)
            raise Fenced(f"shard {shard}: head is {_text(head)}, not what this worker wrote")
        errors = [str(element) for element in done if _is_error(element)]
        trimmed = 0
        overflow = 0
        if commit.dead:
            bounded = done[-1 if commit.trim_below is None else -3]
            overflow = bounded if isinstance(bounded, int) else 0
        if commit.trim_below is not None:
            trimmed = done[-2] if isinstance(done[-2], int) else 0
            if _is_error(done[-1]) and str(done[-1]).startswith(_GROUP_GONE):
                errors.pop()  # the group is for display only: somebody removed it, and the next acquisition makes it
        return Committed(trimmed, errors, overflow)

    def make_room(self, commit: Commit) -> None:
        """Trims what is finished, when a commit was refused for lack of memory. The fence stays armed."""
        keys = self._keys[commit.shard]
        low = commit.before.split(b" ")[3]
        self._script(scripts.TRIM, (keys.head, keys.inbox), (commit.before, low))

    def _commands(self, commit: Commit) -> list[bytes]:
        """The transaction, packed, a command each: in the order of docs/protocol.md."""
        keys = self._keys[commit.shard]
        out, state = keys.out_prefix, keys.state_prefix
        kept, px = self._records_kept, self._state_px
        commands = [pack((b"MULTI",)), pack((b"SET", keys.head, commit.after))]

        def append(command: tuple[Argument, ...]) -> None:
            commands.append(pack(command))

        if commit.deleted:
            append((b"DEL", *(out + stream.encode() for stream in commit.deleted)))
        for stream, entry_id, kind, body, prev, cut in commit.records:
            key, limit = out + stream.encode(), cut or kept
            commands.append(
                _XADD_RECORD
                % (
                    len(key), key, b"$5\r\nMINID" if cut else b"$6\r\nMAXLEN", len(limit), limit,
                    len(entry_id), entry_id, len(kind), kind, len(body), body, len(prev), prev,
                )
            )  # fmt: skip
        for dead in commit.dead:
            append(
                (
                    b"XADD", keys.dead, b"*", b"id", dead.id, b"stream", dead.stream, b"kind", dead.kind,
                    b"reason", dead.reason, b"detail", dead.detail, b"data", dead.data,
                    *(part for field in dead.more for part in field),
                )
            )  # fmt: skip
        for stream, record in commit.states.items():
            key = state + stream.encode()
            commands.append(_SET_STATE % (len(key), key, len(record), record, len(px), px))
        if commit.forgotten:
            append((b"DEL", *(state + stream.encode() for stream in commit.forgotten)))
        if commit.positions:
            append((b"HSET", keys.pos, *(part for item in commit.positions.items() for part in item)))
        if commit.settings:
            append((b"HSET", keys.settings, *(part for item in commit.settings.items() for part in item)))
        if commit.deleted:
            append((b"HDEL", keys.settings, *commit.deleted))
        if commit.touched:
            append((b"ZADD", keys.streams, *(part for stream, ms in commit.touched.items() for part in (ms, stream))))
        answered = encode_feed([part for record in commit.records for part in (record.stream.encode(), record.id)])
        append(
            (
                b"XADD", keys.feed, b"MAXLEN", b"~", self._feed_commits, b"%d-0" % commit.n,
                b"token", commit.token, b"records", answered,
            )
        )  # fmt: skip
        if commit.dead:
            append((b"EVAL", scripts.BOUND_DEAD, 1, keys.dead, self._dead_kept, self._dead_bytes))
        if commit.trim_below is not None:
            append((b"XTRIM", keys.inbox, b"MINID", commit.trim_below))
            append((b"XGROUP", b"SETID", keys.inbox, GROUP, commit.low))
        commands += [pack((b"EXEC",)), pack((b"WATCH", keys.head)), pack((b"GET", keys.head))]
        return commands

    # --- connections ---------------------------------------------------------------------------------------------

    def _controlling(self) -> Wire:
        if self._control is None:
            control = Wire(self._url, self._timeout_s)
            try:
                self._check_deployment(control)
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

    def _drop_control(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control = None

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
        self._reading, self._asked = None, None

    def _script(self, text: str, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Any:
        try:
            return self._controlling().call("EVAL", text, len(keys), *keys, *arguments)
        except BrokerAway:
            self._drop_control()
            raise
        except hiredis.ReplyError as error:
            raise BrokerAway(f"broker refused a script: {error}") from error

    def close(self) -> None:
        for shard in list(self._commits):
            self.abandon(shard)
        self._stop_reading()
        self._drop_control()


def _is_error(reply: Any) -> bool:
    return isinstance(reply, hiredis.ReplyError)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
