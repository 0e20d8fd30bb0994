"""What a worker holds of one shard while it owns it: cursor, unfinished entries, streams, head. And of one stream."""

from __future__ import annotations

from collections import deque

import numpy as np

from service.codec import Head, Position, encode_position, number_id, parse_head, predecessor
from service.contracts import Entry, Event, Restart, StreamSettings
from service.errors import EntryError
from service.ports import Commit, DeadWrite, OutWrite
from service.worker.model import ServedModel


class Stream:
    """One stream of an owned shard, as far as it was answered in memory. Written only by Worker.run."""

    __slots__ = (
        "last", "misplaced", "model", "name", "record", "restart", "seq", "seq_id", "settings", "shard", "slot",
        "stepped", "stepped_ms", "trimmed_ms",
    )  # fmt: skip

    def __init__(self, name: str, shard: Shard, position: Position, settings: StreamSettings) -> None:
        self.name = name
        self.shard = shard
        self.misplaced: int | None = None  # the shard it belongs to, when that is not this one
        self.settings = settings
        self.model: ServedModel | None = None  # whose table `slot` is in
        self.slot = -1
        self.restart: Restart | None = "first"
        self.trimmed_ms = 0
        self.last, self.record, self.seq, self.seq_id, self.stepped = position
        self.stepped_ms = 0 if position.stepped in (b"-", b"reset") else int(position.stepped.partition(b"-")[0])

    def position(self) -> bytes:
        """What `pos` is to hold: every finished entry left a record, so that `last` and `record` are one id."""
        return encode_position(self.record, self.record, self.seq, self.seq_id, self.stepped)


class Item:
    """One entry on its way through the worker, and what became of it."""

    __slots__ = (
        "arrived", "body", "dead", "decode_s", "decoding", "done", "entry", "error", "events", "forget", "k", "key",
        "kind", "model", "number", "ready", "reason", "served", "size", "state", "steps", "time_us", "type", "x",
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
        self.x: np.ndarray | None = None  # a decoded frame (H, W, C), or a text's tokens (T,)
        self.model: ServedModel | None = None  # chosen before decoding
        self.time_us = 0
        self.reason: Restart | None = None
        # what is committed
        self.type = b""
        self.body = b""
        self.state: bytes | None = None
        self.forget = False
        self.dead = False
        # what is counted
        self.kind = entry.kind
        self.served = ""  # name of the model
        self.steps = 0
        self.k = -1  # place of the predicted label
        self.events: list[Event] = []


class Shard:
    """An owned shard. A new acquisition is a new object: what an older one left behind is recognised by `lost`."""

    def __init__(self, number: int, head: bytes) -> None:
        self.number = number
        self.head: Head = parse_head(head)
        self.written = head  # what stands in the broker after the last commit
        self.cursor = self.head.low
        self.kept = self.head.kept
        self.streams: dict[str, Stream] = {}
        self.unfinished: deque[Item] = deque()
        self.lost = False
        self.in_flight: Commit | None = None
        self.answered: list[Item] = []  # in it
        self.sent_at = 0.0
        self.next_trim = 0.0
        self.careful = False  # one entry at a time (careful.py)
        self.held: deque[Item] = deque()  # what waits for its trial then
        self.good = 0  # trials that ended well
        self.repair = False  # elements of the last commit failed: the next one does them again

    def low(self) -> int:
        """Every entry up to here is finished (or in the commit being built)."""
        unfinished = self.unfinished
        while unfinished and unfinished[0].done:
            unfinished.popleft()
        return predecessor(unfinished[0].number) if unfinished else self.cursor

    def build(self, items: list[Item], settings: dict[str, bytes], cut_ms: int, trim: int | None) -> Commit:
        """The commit of these items, in log order. `cut_ms`: records older than that may go; `trim`: finished
        entries below that id may leave the log."""
        records: list[OutWrite] = []
        dead: list[DeadWrite] = []
        states: dict[str, bytes] = {}
        forgotten: dict[str, None] = {}
        positions: dict[str, bytes] = {}
        touched: dict[str, int] = {}
        for item in items:
            entry, stream = item.entry, item.key
            name = stream.name
            cut = None
            if entry.ms - stream.trimmed_ms > 60_000:  # a record's age is looked at once a minute
                stream.trimmed_ms = entry.ms
                cut = b"%d-0" % max(0, entry.ms - cut_ms)
            records.append(OutWrite(name, entry.id, item.type, item.body, stream.record, cut))
            stream.last, stream.record = entry.number, entry.id
            if item.state is not None:
                states[name] = item.state
                forgotten.pop(name, None)
            elif item.forget:
                states.pop(name, None)
                forgotten[name] = None
            if item.dead and item.error is not None:
                error = item.error
                dead.append(DeadWrite(entry.id, name, entry.kind, error.reason, error.detail, entry.data))
            positions[name] = stream.position()
            touched[name] = entry.ms
            item.done = True
        self.kept += len(records)
        low = self.low()
        after = Head(self.head.life, self.head.token, self.head.n + 1, low, self.kept, 0)
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
        )
        return self.in_flight
