"""What a worker holds of one shard while it owns it: cursor, unfinished entries, streams, head. And of one stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from service.codec import (
    Head,
    Position,
    encode_position,
    encode_settings,
    kept_fields,
    number_id,
    parse_head,
    predecessor,
)
from service.contracts import NO_STREAM, Entry, Event, Freshness, Restart, StreamSettings
from service.errors import EntryError
from service.ports import Behind, Commit, DeadWrite, Looked, OutWrite
from service.worker.account import Account, Hole
from service.worker.model import ServedModel

HOLES: Final = 64  # that are remembered of a shard


class Stream:
    """One stream of an owned shard, as far as it was answered in memory. Written only by Worker.run."""

    __slots__ = (
        "held", "last", "lost", "lost_after", "misplaced", "model", "name", "newest", "record", "restart", "seen",
        "seq", "seq_id", "settings", "shard", "slot", "stepped", "stepped_ms", "usual",
    )  # fmt: skip

    def __init__(self, name: str, shard: Shard, position: Position, settings: StreamSettings) -> None:
        self.name = name
        self.shard = shard
        self.misplaced: int | None = None  # the shard it belongs to, when that is not this one
        self.settings = settings
        self.model: ServedModel | None = None  # whose table `slot` is in
        self.slot = -1
        self.restart: Restart | None = "first"
        self.usual: Freshness | None = None  # its model's, where the settings do not say
        self.held: Held | None = None  # what waits in the log only
        self.newest: Item | None = None  # where only the latest counts: the last one read, or a control before it
        self.lost = self.lost_after = 0  # at most so many of its entries left the log unread, behind that one
        self.last, self.record, self.seq, self.seq_id, self.stepped = position
        if self.stepped == self.record:
            self.stepped = self.record  # one object for both
        self.stepped_ms = int(self.stepped.partition(b"-")[0]) if self.stepped[:1].isdigit() else 0
        self.seen = self.last  # its last entry when its place among the least recently used was looked at

    def lose(self, entries: int, after: int) -> None:
        """Its next prediction of an entry behind `after` says that so many are missing."""
        if not self.lost:
            self.lost_after = after
        self.lost += entries

    def position(self) -> bytes:
        """What `pos` is to hold: every finished entry left a record, so that `last` and `record` are one id."""
        return encode_position(self.record, self.record, self.seq, self.seq_id, self.stepped)


class Item:
    """One entry on its way through the worker, and what became of it."""

    __slots__ = (
        "arrived", "at", "body", "dead", "decode_s", "decoding", "deleted", "done", "drop", "entry", "error", "events",
        "forget", "fresh_until_ms", "group", "highest", "key", "kind", "missed", "model", "number", "open", "quiet",
        "ready", "reason", "served", "settings", "size", "state", "steps", "time_us", "type", "x",
    )  # fmt: skip

    def __init__(self, entry: Entry, stream: Stream, arrived: float) -> None:
        self.entry = entry
        self.key = stream  # the scheduler's name for it
        self.number = entry.number
        self.size = len(entry.data)
        self.arrived = arrived  # when it was read, s of this process's clock
        self.decode_s = 0.0
        self.ready = True
        self.decoding = False
        self.done = False  # it is in a commit that was sent
        self.error: EntryError | None = entry.fault
        self.drop: str | None = None  # why it is not stepped, though nothing is wrong with it
        self.fresh_until_ms = 0.0  # it is dropped when its turn comes later; 0: it never is
        self.highest: int | None = None  # `seq` of it and of those that it superseded
        self.x: np.ndarray | None = None  # a decoded frame (H, W, C), or a text's tokens (T,)
        self.model: ServedModel | None = None  # chosen before decoding
        self.time_us = 0
        self.reason: Restart | None = None
        self.missed = 0  # numbers between the stream's last `seq` and this one's
        # what is committed
        self.type = b""
        self.body = b""
        self.state: bytes | None = None
        self.forget = False
        self.settings: StreamSettings | None = None  # of the stream, after a control
        self.deleted = False
        self.dead = False
        self.open: bool | None = None  # whether labels are inside after it; None: as before, or none, by its events
        self.quiet = False  # it says nothing of the stream being alive
        # what is counted
        self.kind = entry.kind
        self.served = ""  # name of the model
        self.steps = 0
        self.group: Group | None = None  # of a prediction
        self.at = 0  # its place there
        self.events: list[Event] = []


class Group:
    """Predictions that were made together, by column, as they are counted. Written by `records` only."""

    __slots__ = ("born_ms", "entries", "labels", "model", "scores", "steps", "told")

    def __init__(self, model: ServedModel, items: Sequence[Item], labels: list[int], scores: list[float]) -> None:
        self.model = model
        self.entries = len(items)
        self.steps = items[0].steps  # of each entry
        self.born_ms = [item.entry.ms for item in items]
        self.labels = labels  # places of the predicted ones
        self.scores = scores  # the model's, of those
        self.told: list[Item] = []  # those with events, or whose state began anew


class Sweep:
    """How far the janitor has come in a shard."""

    __slots__ = ("adopting", "next_at", "score_ms", "skip")

    def __init__(self) -> None:
        self.next_at = 0.0  # by this process's clock
        self.score_ms = 0  # records of streams that were silent since before this are gone
        self.skip = 0  # and of so many that are silent since then
        self.adopting: bytes | None = b"0"  # where to go on looking for settings that belong to no stream; None: done


class Held:
    """What one stream has waiting in the log only: ids in log order and sizes; then those that were fetched of them.

    Written only by Worker.run.
    """

    __slots__ = ("fetched", "ids", "sizes")

    def __init__(self) -> None:
        self.ids: deque[int] = deque()
        self.sizes: deque[int] = deque()
        self.fetched: deque[Item] = deque()  # in memory again, not yet finished

    def take(self, entries: int, size: int) -> list[int]:
        """The next ids: at most `entries`, of `size` bytes together, but one at least."""
        taken: list[int] = []
        while self.ids and len(taken) < entries and (not taken or self.sizes[0] <= size):
            taken.append(self.ids.popleft())
            size -= self.sizes.popleft()
        return taken

    def oldest(self) -> int:
        """The oldest unfinished one, or 0 when there is none left."""
        while self.fetched and self.fetched[0].done:
            self.fetched.popleft()
        return self.fetched[0].number if self.fetched else self.ids[0] if self.ids else 0


class Shard:
    """An owned shard. A new acquisition is a new object: what an older one left behind is recognised by `lost`."""

    def __init__(self, number: int, head: bytes, behind: Behind | None = None) -> None:
        self.number = number
        self.holes: deque[Hole] = deque(maxlen=HOLES)  # for streams that are met later
        self.head: Head = parse_head(head)
        self.account = Account(behind, self.head.n > 0)
        self.written = head  # what stands in the broker after the last commit
        self.cursor = self.head.low
        self.kept = self.head.kept
        self.streams: dict[str, Stream] = {}
        self.unfinished: deque[Item] = deque()
        self.holding: dict[Stream, Held] = {}  # streams of which something waits in the log only
        self.held = 0  # how many ids these are
        self.full = False  # too much is unfinished: nothing more is read
        self.beyond = False  # behind its cursor lies an id that no clock gives: nothing more is read
        self.lost = False
        self.in_flight: Commit | None = None
        self.answered: list[Item] = []  # in it
        self.sent_at = 0.0
        self.next_trim = 0.0
        self.sweep = Sweep()
        self.careful = False  # one entry at a time (careful.py)
        self.trials: deque[Item] = deque()  # what waits for its trial then
        self.good = 0  # trials that ended well
        self.repair = False  # elements of the last commit failed: the next one does them again
        self.unwritten: list[Item] = []  # whose records were among them

    def compare(self, log: Looked, now: float) -> int:
        """Finds out whether entries left the log before they were read, and how many. Which streams lost some nobody
        knows: the next prediction of each says it."""
        if missing := self.account.compare(log, self.cursor, now):
            self.holes.append(Hole(self.cursor, log.last, missing))
            for stream in self.streams.values():
                stream.lose(missing, self.cursor)
        return missing

    def meet(self, stream: Stream, number: int) -> None:
        """What left the log unread may have been a stream's that is only met now, with its entry `number`: behind its
        last record; and of a new stream if what came of it was waiting then."""
        for hole in self.holes:
            if stream.last <= hole.after and (stream.last or number <= hole.last):
                stream.lose(hole.entries, hole.after)

    @property
    def idle(self) -> bool:
        """Nothing of it waits, in memory or in the log only."""
        return not self.unfinished and not self.holding

    def low(self) -> int:
        """Every entry up to here is finished (or in the commit being built)."""
        unfinished = self.unfinished
        while unfinished and unfinished[0].done:
            unfinished.popleft()
        low = predecessor(unfinished[0].number) if unfinished else self.cursor
        for stream, held in list(self.holding.items()):
            if oldest := held.oldest():
                low = min(low, predecessor(oldest))
            else:
                del self.holding[stream]
                stream.held = None
        return low

    def build(self, items: list[Item], settings: dict[str, bytes], cut_ms: int, trim: int | None) -> Commit:
        """The commit of these items, in log order. `cut_ms`: records older than that may go; `trim`: finished
        entries below that id may leave the log."""
        records: list[OutWrite] = []
        dead: list[DeadWrite] = []
        states: dict[str, bytes] = {}
        forgotten: dict[str, None] = {}
        positions: dict[str, bytes] = {}
        touched: dict[str, int] = {}
        deleted: list[str] = []
        configured: dict[str, int] = {}
        drops: dict[str, int] = {}
        restarts: dict[str, int] = {}
        openings: dict[str, int | None] = {}
        for item in items:
            entry, stream = item.entry, item.key
            name = stream.name
            cut = None
            if entry.ms // 60_000 != (stream.last >> 64) // 60_000:  # a record's age is looked at once a minute
                cut = b"%d-0" % max(0, entry.ms - cut_ms)
            records.append(OutWrite(name, entry.id, item.type, item.body, stream.record, cut))
            stream.last, stream.record = entry.number, entry.id
            if stream.newest is item:
                stream.newest = None
            if item.state is not None:
                states[name] = item.state
                forgotten.pop(name, None)
            elif item.forget:
                states.pop(name, None)
                forgotten[name] = None
            if item.dead and item.error is not None:
                error = item.error
                kind = entry.kind or (entry.raw or {}).get(b"kind", b"")[:60].decode(errors="replace")
                more = kept_fields(entry)
                dead.append(DeadWrite(entry.id, name, kind, error.reason, error.detail, entry.data, more))
            if item.type == b"dropped":  # what was to be dropped may have been a repeat or refused in its turn
                drops[name] = drops.get(name, 0) + 1
            elif item.reason is not None and item.reason != "first" and item.group is not None:
                restarts[name] = restarts.get(name, 0) + 1
            if item.events or item.open is not None:
                openings[name] = entry.ms if item.open and not item.forget else None
            if item.deleted:
                deleted.append(name)
                openings[name] = None
                for about in (settings, configured, drops, restarts):
                    about.pop(name, None)
            elif item.settings is not None:
                settings[name] = encode_settings(item.settings)
                configured[name] = entry.ms
            if item.deleted or item.settings is not None:
                settings[NO_STREAM] = entry.id  # what api processes remember of this shard's streams is old news
            positions[name] = stream.position()
            if not item.quiet:
                touched[name] = entry.ms
            item.done = True
        self.kept += len(records)
        self.account.answered(len(records))
        low = self.low()
        tries = 0 if low > self.head.low else self.head.tries  # the oldest entry may be what ends workers
        after = Head(self.head.life, self.head.token, self.head.n + 1, low, self.kept, tries)
        self.head = after
        before, self.written = self.written, after.encode()
        self.answered = items
        self.in_flight = Commit(
            shard=self.number,
            before=before,
            after=self.written,
            n=after.n,
            token=after.token.encode(),
            low=number_id(low),
            records=records,
            dead=dead,
            states=states,
            forgotten=list(forgotten),
            positions=positions,
            settings=settings,
            touched=touched,
            trim_below=None if trim is None else number_id(min(trim, low + 1)),
            deleted=deleted,
            configured=configured,
            drops=drops,
            restarts=restarts,
            behind=self.account.behind(self.cursor),
            openings=openings,
        )
        return self.in_flight
