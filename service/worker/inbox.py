"""What waits in memory of each stream: bounded, and fresh where only the latest entry counts.

One hot stream does not stop its shard: of what is read beyond its bound only ids are kept, and the entries are fetched
again when its queue has become short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from service.batching import Scheduler
from service.codec import predecessor
from service.contracts import Entry, Freshness
from service.errors import EntryError
from service.ports import Log
from service.worker.shard import Held, Item, Shard, Stream

STREAM_ENTRIES: Final = 64  # of one stream in memory
STREAM_BYTES: Final = 8 << 20
SHARD_ENTRIES: Final = 65_536  # unfinished ones of one shard, in memory or as ids only; beyond it reading stops


class Inbox:
    """Bounds what waits. Written only by Worker.run."""

    def __init__(self, scheduler: Scheduler[Item], choose: Callable[[Item], object]) -> None:
        self.bytes = 0  # of the entries that wait in memory
        self._scheduler = scheduler
        self._choose = choose  # the model of an item; raises EntryError
        self._holders: dict[Stream, Held] = {}

    # --- hot streams -----------------------------------------------------------------------------------------------

    def offer(self, item: Item) -> None:
        """Queues an item. When its stream's share is used up, what comes next is kept by id only."""
        self.bytes += item.size
        length = self._scheduler.offer(item)
        if (length >= STREAM_ENTRIES or item.size * length >= STREAM_BYTES) and item.key.held is None:
            if item.fresh_until_ms or item.key.newest is item:
                return  # only the latest counts: those before it are without their bytes, and answered at once
            stream = item.key
            stream.held = self._holders[stream] = stream.shard.holding[stream] = Held()

    def hold(self, held: Held, stream: Stream, entry: Entry) -> bool:
        """Keeps the id of an entry of a stream that has no room, and says so."""
        size = len(entry.data)
        waiting = len(self._scheduler.waiting(stream))
        if not held.ids and waiting < STREAM_ENTRIES and size * waiting < STREAM_BYTES:
            return False
        held.ids.append(entry.number)
        held.sizes.append(size)
        stream.shard.held += 1
        return True

    def fetch(self, broker: Log) -> list[tuple[Stream, list[tuple[bytes, list[bytes]]], int, int]]:
        """Entries of streams whose queues have become short, in log order, by one round trip; how many of them were
        not there any more, and the id that these lie behind."""
        wanted: dict[int, list[int]] = {}
        asked: list[tuple[Stream, list[int]]] = []
        for stream, held in list(self._holders.items()):
            if stream.held is not held or stream.shard.lost:
                del self._holders[stream]
            elif held.ids and (waiting := len(self._scheduler.waiting(stream))) <= STREAM_ENTRIES // 2:
                ids = held.take(STREAM_ENTRIES - waiting, STREAM_BYTES)
                stream.shard.held -= len(ids)
                wanted.setdefault(stream.shard.number, []).extend(ids)
                asked.append((stream, ids))
        if not asked:
            return []
        found = {number: iter(entries) for number, entries in broker.fetch(wanted).items()}
        answer = []
        for stream, ids in asked:
            entries = [entry for _, entry in zip(ids, found[stream.shard.number], strict=False) if entry]
            answer.append((stream, entries, len(ids) - len(entries), predecessor(ids[0])))
        return answer

    # --- fresh streams ---------------------------------------------------------------------------------------------

    def freshen(self, item: Item, freshness: Freshness) -> None:
        """Where only the latest entry counts: the one that waited as the newest is superseded by this one.

        Only what can be stepped supersedes, and nothing passes a control: until that is carried out, it is not known
        what holds behind it.
        """
        entry, stream, before = item.entry, item.key, item.key.newest
        if before is not None and before.type:
            before = None  # answered
        if entry.kind == "control":
            stream.newest = item
            return
        if item.error is not None or stream.misplaced is not None or (before and before.entry.kind == "control"):
            return
        if freshness.max_age_s is not None:
            item.fresh_until_ms = entry.ms + freshness.max_age_s * 1000
        waiting = before.highest if before is not None else None
        if entry.seq is not None and any(last is not None and entry.seq <= last for last in (stream.seq, waiting)):
            return
        item.highest = waiting if entry.seq is None else entry.seq
        try:
            self._choose(item)
        except EntryError:
            return
        if before is not None:
            self._supersede(before)
        stream.newest = item

    def _supersede(self, item: Item) -> None:
        item.drop = "superseded"
        self.bytes -= item.size
        item.size, item.x = 0, None
        item.entry = msgspec.structs.replace(item.entry, data=b"")
        if not item.ready:
            item.ready = True
            self._scheduler.wake(item)

    # --- bounds ------------------------------------------------------------------------------------------------------

    def drop_lost(self) -> None:
        """Forgets what waits of shards that were lost."""
        self._scheduler.drop(lambda item: item.key.shard.lost)
        self.bytes = sum(item.size for item in self._scheduler)
        for stream in [stream for stream in self._holders if stream.shard.lost]:
            del self._holders[stream]


def room_in(shard: Shard) -> bool:
    """Whether more of a shard may be read. One that was full is read on when half of it is answered."""
    unfinished = len(shard.unfinished) + shard.held
    shard.full = unfinished >= (SHARD_ENTRIES // 2 if shard.full else SHARD_ENTRIES)
    return not shard.full and not shard.beyond
