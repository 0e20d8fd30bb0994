"""What the worker and the api need of the world, as protocols. Tests fake them; broker and engine implement them.

`Log` is the worker's side of the broker (plain calls), `Predictions` the api's side (coroutines), `Engine` a model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec
import numpy as np

from service.contracts import Entry, Manifest
from service.cursors import Place
from service.errors import AppendUnknown, BrokerAway, BrokerFull, NoFsync


class Engine(Protocol):
    """One model. Holds weights only: state travels as a value."""

    @property
    def manifest(self) -> Manifest: ...

    def run(
        self,
        x: np.ndarray,  # (B, T, F) float32, (B, T, H, W, C) uint8 or (B, T) int64
        states: Mapping[str, np.ndarray],  # name -> (B, *shape)
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # probabilities (B, T, K) float32, next states by name
        """One step of T times for B streams. Raises StepFailed."""
        ...


# --- the worker's side -------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """What the broker holds of a stream when a worker first touches it; None where absent."""

    position: bytes | None
    state: bytes | None
    settings: bytes | None


class Idle(NamedTuple):
    """A stream that has been silent, as the broker knows it."""

    stream: str
    last_ms: int  # of its last entry's id
    position: bytes | None
    young: bool = False  # its last record is not older than records are kept: a control's, which is no sign of life
    inside: bool = False  # labels are: their exits are still to be told


class Overdue(NamedTuple):
    """Streams with labels inside that are to be looked at now."""

    read_ms: int  # the worker has read all entries up to here
    now_ms: int  # the broker's clock
    streams: list[tuple[str, bytes | None, bytes | None]]  # with position and settings


class Look(NamedTuple):
    """What becomes of such a stream."""

    stream: str
    next_ms: int | None  # when to look again; None: nothing is inside
    position: bytes = b""  # with it, as long as it stands, a control is appended
    data: bytes = b""  # the control


class OutWrite(NamedTuple):
    """One record to write. `cut` is the id below which the stream's older records are trimmed, if it is time."""

    stream: str
    id: bytes
    type: bytes
    body: bytes
    prev: bytes
    cut: bytes | None


class DeadWrite(NamedTuple):
    """One refused entry for the quarantine, with its bytes."""

    id: bytes
    stream: str
    kind: str
    reason: str
    detail: str
    data: bytes
    more: tuple[tuple[bytes, bytes], ...] = ()  # the entry's other fields


class Behind(NamedTuple):
    """Where a shard's log is left behind by a commit."""

    entries: int  # answered by then, or known to have left the log unread, of all that were ever added
    read: int  # its worker had read up to here (as id_number): no entry above it was answered


class Commit(NamedTuple):
    """Everything one transaction of one shard writes. `before` is the head it demands, `after` the one it sets."""

    shard: int
    before: bytes
    after: bytes
    n: int  # number of the commit
    token: bytes  # of the acquisition
    low: bytes  # every entry up to this id is finished
    records: list[OutWrite]
    dead: list[DeadWrite]
    states: dict[str, bytes]  # stream -> state record, the last one only
    forgotten: list[str]  # streams whose state is dropped
    positions: dict[str, bytes]
    settings: dict[str, bytes]
    touched: dict[str, int]  # stream -> ms of its last entry
    trim_below: bytes | None  # housekeeping is due: finished entries below this id may go
    deleted: Sequence[str] = ()  # streams of which nothing may stay but position and the record written here
    configured: Mapping[str, int] = MappingProxyType({})  # stream -> ms of the control that set its settings
    drops: Mapping[str, int] = MappingProxyType({})  # stream -> entries dropped here
    restarts: Mapping[str, int] = MappingProxyType({})  # stream -> how often its state began anew here
    behind: Behind | None = None  # entries of the log that are answered or gone; None: not known
    openings: Mapping[str, int | None] = MappingProxyType({})  # stream -> ms since when it is open; None: no label is


class Committed(NamedTuple):
    """What a commit's reply says beside success."""

    trimmed: int  # entries that left the log
    errors: list[str]  # elements that failed inside EXEC: foreign writes to our keys
    dead_overflow: int = 0  # refused entries that left the quarantine: it is bounded
    unwritten: Sequence[int] = ()  # places in the commit's records of those among the failed elements
    repaired: bool = True  # what failed in the commit before was done by this one


class Tidied(NamedTuple):
    """Refused entries that left quarantine."""

    aged: int  # they had been there for too long
    overflow: int  # there was no room
    more: bool  # there may be more to do at once


class Renewed(NamedTuple):
    """What a heartbeat told: shards that are another's now, and this worker's place among the live ones, by id."""

    lost: list[int]
    place: int
    workers: int
    now_ms: int  # the broker's clock


class Expelled(NamedTuple):
    """What became of the entries whose ids no clock gives."""

    now_ms: int  # the broker's clock
    refused: int  # in quarantine now
    moved: int  # of honest producers: in the log again, under ids of now
    first: str  # id of the first; empty: there were none, or what came before them is not finished yet
    more: bool  # there are more
    overflow: int = 0  # refused entries that left the quarantine, which is bounded


class Looked(NamedTuple):
    """A log, as it was before a read. Ids as id_number; 0 where there is no entry."""

    added: int | None  # entries ever added; None: this broker does not count them
    length: int
    first: int
    last: int
    ahead: int | None  # entries above the cursor; None: too many to count them


class Log(Protocol):
    """The worker's side of the broker. Plain calls; one thread.

    A doubt about a shard raises Fenced, about the broker BrokerAway; a broker that answers but takes nothing at
    present (out of memory, a disk that is full, …) CommitRefused: the same call may be made again.
    """

    @property
    def shards(self) -> int: ...

    def acquire(self, shard: int) -> bytes | None:
        """Takes the lease and arms the fence. Returns the head; None when another owner lives. Raises BadHead, and
        takes nothing then."""
        ...

    def behind(self, shard: int) -> Behind | None:
        """What the last commit before this worker acquired the shard said of its log."""
        ...

    def suspected(self, shard: int) -> bool:
        """Whether an entry was under careful trial when this worker acquired the shard."""
        ...

    def renew(self, shards: Sequence[int], about: bytes) -> Renewed:
        """Prolongs the leases and says that this worker lives (`about`: JSON). A lease that ran out is this worker's
        again when nobody took it."""
        ...

    def extend(self, shards: Sequence[int]) -> list[int]:
        """Prolongs the leases, without a word that this worker lives. Returns the shards that are another's now."""
        ...

    def free(self, shards: Sequence[int]) -> tuple[list[int], float]:
        """Those that nobody else holds at present, and the seconds until the first lease on another one ends."""
        ...

    def release(self, shard: int) -> None:
        """Gives the lease back, if it is still this worker's."""
        ...

    def abandon(self, shard: int) -> None:
        """Closes the shard's connection: what is unread on it is never believed."""
        ...

    def ask(self, cursors: Mapping[int, int], count: int, block_s: float, look: Sequence[int] = ()) -> None:
        """Sends one read of at most `count` entries a shard above its cursor. One read at a time is under way. The logs
        of the shards in `look` are looked at just before."""
        ...

    def poll(self, wait_s: float, wake: int | None) -> list[tuple[int, list[tuple[bytes, list[bytes]]]]] | None:
        """The answer to `ask`: (shard, [(id, fields)]); None when none came within `wait_s` or `wake` is readable."""
        ...

    def looked(self) -> dict[int, Looked]:
        """What was seen before the read that was answered last, told once; of shards that are this worker's."""
        ...

    def load(self, wanted: Mapping[int, Sequence[str]]) -> dict[int, list[Loaded]]:
        """Positions, states and settings of streams, by shard, in one round trip."""
        ...

    def fetch(self, wanted: Mapping[int, Sequence[int]]) -> dict[int, list[tuple[bytes, list[bytes]] | None]]:
        """Entries of the log by number, by shard, in one round trip: (id, fields); None for one that is not there."""
        ...

    def idle(
        self, shard: int, after_ms: int, silent_ms: int, limit: int, skip: int = 0, *, kept_ms: int = 0
    ) -> list[Idle]:
        """Streams silent for longer than `silent_ms` (the broker's clock) whose last entry is from `after_ms` or later.

        The longest silent first, at most `limit`, without the first `skip`. `kept_ms`: how long records are kept.
        """
        ...

    def overdue(self, cursors: Mapping[int, int], limit: int) -> dict[int, Overdue]:
        """Of each shard, read up to its cursor, at most `limit` streams with labels inside that are to be looked at,
        by one round trip; shards without any are left out."""
        ...

    def silence(self, looks: Mapping[int, tuple[bytes, Sequence[Look]]]) -> None:
        """Appends controls to the logs of shards, and notes when to look again, where the shard's head still stands: by
        one round trip."""
        ...

    def remove(self, shard: int, head: bytes, records: Sequence[str], streams: Sequence[str]) -> bool:
        """Removes records of some streams, and all of others but the settings that somebody set, if `head` still
        stands."""
        ...

    def unsettled(self, shard: int, silent_ms: int, limit: int) -> list[str]:
        """Streams that are gone and whose settings are kept, silent for longer than `silent_ms`; at most `limit`."""
        ...

    def unsettle(self, shard: int, head: bytes, streams: Sequence[str]) -> bool:
        """Removes the settings of these streams, but not of one that is there again, if `head` still stands."""
        ...

    def adopt(self, shard: int, head: bytes, cursor: bytes) -> bytes | None:
        """Dates some settings that belong to no stream, as earlier versions left them: `unsettled` finds them in time.
        Returns where to go on, b"0" after the last; None where `head` does not stand any more."""
        ...

    def tidy_dead(self, shard: int, head: bytes, older_ms: int) -> Tidied:
        """Keeps quarantine within its bounds, and what is older than `older_ms` out of it, if `head` still stands."""
        ...

    def look_at_memory(self) -> None:
        """Asks how much memory the broker may use: quarantine is a share of it."""
        ...

    def expel(self, shard: int, head: bytes) -> Expelled:
        """Takes entries out of the log whose ids no clock gives, once all before them are finished by `head`; ids of
        now are given again then. What came behind them by `*` is moved, the rest put into quarantine. Raises Fenced."""
        ...

    def known(self, shards: Sequence[int]) -> int:
        """How many streams the broker knows in these shards."""
        ...

    def send(self, commit: Commit) -> None:
        """Sends a commit. The one before it on this shard was answered."""
        ...

    def result(self, shard: int) -> Committed:
        """Waits for the reply. Raises Fenced, or CommitRefused when nothing was applied."""
        ...

    def send_again(self, shard: int) -> None:
        """Sends the same bytes of a commit that was refused, after making sure that the fence still stands."""
        ...

    def make_room(self, commit: Commit) -> int:
        """Trims what is finished, after a commit was refused. Returns how many entries left the log."""
        ...

    def attempt(self, shard: int, head: bytes, entry_id: bytes) -> bool:
        """Notes, before an entry is looked at in careful mode, that it is tried. False when it was tried twice before
        and is still not finished; a try that this process made and survived does not count. Raises Fenced."""
        ...

    def blame(self, shard: int) -> None:
        """The shard's lease went to another worker during the last attempt: that counts as a try after all."""
        ...

    def forgive(self, shard: int, head: bytes, entry_id: bytes) -> None:
        """Takes the last attempt back: this process ends in order before the entry did."""
        ...

    def acquit(self, shard: int, head: bytes) -> None:
        """Ends careful mode: nothing is suspected any more. Raises Fenced."""
        ...

    def leave(self) -> None:
        """Says that this worker is gone."""
        ...

    def close(self) -> None: ...


# --- the api's side ----------------------------------------------------------------------------------------------


class OutRecord(NamedTuple):
    """One record as it lies in `out`: `body` is JSON, `prev` the id of the stream's previous record or `0-0`."""

    id: str
    type: str
    body: bytes
    prev: str


class FeedItem(NamedTuple):
    """One commit: what it answered, in order."""

    shard: int
    n: int
    token: str
    records: list[tuple[str, str]]  # (stream, id)

    @property
    def mark(self) -> str:
        """What a cursor keeps of the token."""
        return self.token[:4]

    @property
    def end(self) -> Place:
        """The place after it."""
        return Place(self.n, len(self.records), self.mark)


class WorkerInfo(msgspec.Struct, frozen=True):
    """What a live worker says of itself: JSON, in the broker. One that says more than a worker does is none."""

    id: Annotated[str, msgspec.Meta(max_length=300)]
    models: Annotated[dict[Annotated[str, msgspec.Meta(max_length=64)], int], msgspec.Meta(max_length=10_000)]
    process: Annotated[str, msgspec.Meta(max_length=64)] = ""  # a short name that outlives it: worker-0
    metrics: Annotated[str, msgspec.Meta(max_length=300)] = ""  # URL of its /metrics, of which readers take the port
    host: Annotated[str, msgspec.Meta(max_length=255)] = ""  # whose 127.0.0.1 that is
    trouble: str = ""  # why it cannot commit at present
    rollcast: Annotated[str, msgspec.Meta(max_length=64)] = ""  # its version


class StreamRow(NamedTuple):
    """One stream, as listed."""

    stream: str
    shard: int
    last_entry_ms: int
    position: bytes | None  # `pos` of it
    settings: bytes | None  # `settings` of it
    drops: int = 0  # entries dropped
    restarts: int = 0  # how often its state began anew, but for the first time
    now_ms: int = 0  # the broker's clock


class Lag(NamedTuple):
    """What waits of one stream."""

    oldest_ms: int  # of its oldest unfinished entry's id
    age_s: float  # by the broker's clock


Counted = Literal["drops", "restarts"]


class ShardStatus(NamedTuple):
    """What an api process measures of a shard from the broker."""

    shard: int
    owned: bool
    lag_entries: int  # unfinished entries in the log
    lag_s: float  # age of the oldest of them
    fault: str = ""  # why no worker takes it


class StateRow(NamedTuple):
    """A stream's state as one moment of the broker has it, with what belongs to it."""

    state: bytes | None  # state record
    position: bytes | None
    settings: bytes | None
    now_ms: int  # the broker's clock


class Waiting(NamedTuple):
    """Unfinished entries of one stream in its log; `complete` is false where there was too much to look through."""

    entries: int
    complete: bool


class ShardBacklog(NamedTuple):
    """What waits in a shard, and what is news of it."""

    entries: int  # unfinished
    bytes: int  # about what they take in the broker
    revision: str  # changes with the settings of a stream, other than by its first entry; empty: none ever did
    token: str = ""  # under which a worker holds the shard; empty: none does
    commits: int = 0
    streams: int = 0  # known ones: those that have a position, or settings


class Pressure(NamedTuple):
    """How full the broker is. `memory_limit` 0: it has none."""

    shards: list[ShardBacklog]
    memory_bytes: int
    memory_limit: int


class BrokerStatus(NamedTuple):
    """What the broker says of itself. What it does not tell (a managed one) is 0, or assumed to be well."""

    memory_bytes: int  # what counts for the limit
    memory_limit: int  # 0: it has none
    system_memory: int  # of its machine
    noeviction: bool
    evicted: int  # keys, since it started
    aof_enabled: bool
    disk_ok: bool  # its last writes to disk succeeded
    clients: int
    commands: int  # carried out since it started


class DeadRow(NamedTuple):
    """One refused entry in quarantine, without its bytes."""

    shard: int
    at: str  # its place there
    id: str  # the entry's
    stream: str
    kind: str
    reason: str
    detail: str
    bytes: int


class DeadEntry(NamedTuple):
    """A refused entry with its bytes. `fields`: all that quarantine kept of the entry; without `data` where its bytes
    were too many."""

    row: DeadRow
    fields: dict[str, bytes]


class DeadPage(NamedTuple):
    """What one look into a shard's quarantine found. `next`: the place to go on after; None: that was all."""

    rows: list[DeadRow]
    next: str | None
    looked: int  # refused entries that were looked at


# What became of an append: its id, or why there is none.
Appended = str | BrokerFull | BrokerAway | AppendUnknown | NoFsync


class Predictions(Protocol):
    """The api's side of the broker. Every call raises BrokerAway when the broker does not answer."""

    @property
    def shards(self) -> int: ...

    async def check_deployment(self) -> None:
        """Raises Disagreement when the deployment has another format or another number of shards."""
        ...

    async def append(self, stream: str, fields: Mapping[str, bytes], fsync: bool = False) -> str:
        """XADD into the stream's shard, once. Returns the id; with `fsync` only when the entry is on disk.

        Raises BrokerAway and BrokerFull when nothing was appended, NoFsync too (the broker cannot promise it),
        AppendUnknown when the reply was lost, or names an id that no clock gives.
        """
        ...

    async def append_many(
        self, entries: Sequence[tuple[str, Mapping[str, bytes]]], fsync: bool = False
    ) -> list[Appended]:
        """One XADD each, (stream, fields), in order and in one round trip; of each its id, or as `append` raises."""
        ...

    def heard(self, shard: int) -> AsyncGenerator[list[Entry]]:
        """What comes into one shard's log from now on, of all streams; empty lists at first, when what comes will be
        heard, and where nothing came for a moment. Ends with BrokerAway."""
        ...

    async def logged(self, stream: str, after: str) -> tuple[list[Entry], str | None]:
        """Entries of one stream with id > after that its log still holds, as far as one look goes; and where the next
        look begins, None at the log's end."""
        ...

    async def records(self, stream: str, after: str, limit: int) -> list[OutRecord]:
        """Records with id > after, ascending, at most `limit`."""
        ...

    async def newest(self, stream: str, limit: int, before: str = "+") -> list[OutRecord]:
        """The newest `limit` records with id < before (`+`: of all), ascending."""
        ...

    async def fetch(self, wanted: Sequence[tuple[str, str]], replay: bool = False) -> list[OutRecord | None]:
        """The records of (stream, id) pairs, in one round trip; None where there is none (yet, or any more). `replay`:
        not for now, so that what is live goes before."""
        ...

    def follow(self) -> AsyncGenerator[list[FeedItem]]:
        """What every shard commits from now on. The first list says where "now" is: the last commit of each shard
        that has one.

        Ends with BrokerAway, also when a log began anew; the caller follows again, and reads what it missed.
        """
        ...

    async def feeds(self, since: Mapping[int, int], limit: int) -> list[list[FeedItem]]:
        """Of each shard named its commits from number `since` on, ascending, at most `limit`, in the order asked."""
        ...

    async def last_commits(self) -> list[FeedItem]:
        """The newest commit of each shard that has one."""
        ...

    async def last_generated(self, stream: str) -> str:
        """Last id the shard's log ever gave (a cursor above it is from a lost tail), `0-0` when empty."""
        ...

    async def position(self, stream: str) -> bytes | None:
        """`pos` of the stream."""
        ...

    async def settings(self, stream: str) -> bytes | None:
        """`settings` of the stream."""
        ...

    async def stream(self, stream: str) -> StreamRow | None:
        """One stream, or None when no entry of it was ever answered."""
        ...

    async def streams(self, after: str, limit: int, but: Container[str] = frozenset()) -> list[StreamRow]:
        """Streams whose name is above `after` and not in `but`, ascending by name, at most `limit`. Where there are
        very many, the names may be as they were a second ago."""
        ...

    async def rows(self, streams: Iterable[str]) -> list[StreamRow]:
        """These streams, in this order; deleted ones are left out."""
        ...

    async def lags(self) -> dict[str, Lag]:
        """The streams of which something waits. Where a shard has too much waiting to be looked through, those that
        wait longest; an entry that was never answered counts as well."""
        ...

    async def counted(self, what: Counted) -> dict[str, int]:
        """Of each stream how many of its entries were dropped, or how often its state began anew; zeros left out."""
        ...

    async def state(self, stream: str) -> StateRow:
        """State, position and settings of one moment."""
        ...

    async def waiting(self, stream: str) -> Waiting:
        """Unfinished entries of one stream, counted as far as that is cheap."""
        ...

    async def pressure(self) -> Pressure:
        """How much waits in every shard, and how full the broker is."""
        ...

    async def dead(
        self, shard: int, after: str, limit: int, stream: str | None = None, reason: str | None = None
    ) -> DeadPage:
        """Refused entries of one shard whose place is above `after`, ascending, at most `limit`. A look is short: it
        may end before it has found any."""
        ...

    async def dead_entry(self, stream: str, entry_id: str) -> DeadEntry | None:
        """One refused entry with its bytes, in whatever shard it was refused."""
        ...

    async def drop_dead(self, rows: Sequence[DeadRow]) -> int:
        """Removes these, all of one shard, from quarantine. Returns how many were still there."""
        ...

    async def shard_status(self) -> list[ShardStatus]: ...

    async def broker_status(self) -> BrokerStatus: ...

    async def workers(self) -> list[WorkerInfo]:
        """What each live worker says of itself."""
        ...

    async def end_script(self) -> str | None:
        """Ends a script that holds the broker for too long. Returns what the broker said to that; None: none does.
        Raises BrokerAway."""
        ...

    async def close(self) -> None: ...
