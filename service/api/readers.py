"""Who reads the entries of streams, as they came and as they come. A shard's log is read once, however many read."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Final

from service.api.tasks import end
from service.codec import number_id
from service.contracts import Entry
from service.errors import BrokerAway, Busy, RollcastError
from service.keys import shard_of
from service.ports import Predictions

MOST_READERS: Final = 256  # of an api process
HELD_BYTES: Final = 64 << 20  # of entries that wait for all its readers
BEAT_S: Final = 0.25  # silence after which a reader looks up
log = logging.getLogger("rollcast.api")


class Reader:
    """One reader of one stream, from `Readers.open` to `Readers.close`."""

    def __init__(self, stream: str, ear: _Ear) -> None:
        self.stream, self.ear = stream, ear
        self.behind = True  # what it missed must be read from the log
        self.away = ""  # why nothing comes any more
        self.waiting: deque[Entry] = deque()
        self.held = 0  # bytes of them
        self.wake = asyncio.Event()

    def take(self) -> list[Entry]:
        taken = list(self.waiting)
        self.waiting.clear()
        self.held = 0
        return taken


class _Ear:
    """Hears one shard, for all who read a stream of it."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.readers: dict[str, set[Reader]] = {}  # by stream
        self.listening = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Readers:
    """All readers of this process, on one event loop."""

    def __init__(self, predictions: Predictions, refused: Callable[[], object]) -> None:
        self._predictions, self._refused = predictions, refused
        self._ears: dict[int, _Ear] = {}
        self._count = 0
        self._held = 0

    def open(self, stream: str) -> Reader:
        """Raises Busy."""
        if self._count >= MOST_READERS:
            self._refused()
            raise Busy(f"readers of entries: {MOST_READERS} are open, and no more may be", retry_after_s=5.0)
        shard = shard_of(stream, self._predictions.shards)
        ear = self._ears.get(shard)
        if ear is None:
            ear = self._ears[shard] = _Ear(shard)
            ear.task = asyncio.create_task(self._hear(ear))
        reader = Reader(stream, ear)
        ear.readers.setdefault(stream, set()).add(reader)
        self._count += 1
        return reader

    def close(self, reader: Reader) -> None:
        self._count -= 1
        self._take(reader)
        readers = reader.ear.readers
        readers[reader.stream].discard(reader)
        if not readers[reader.stream]:
            del readers[reader.stream]

    async def end(self) -> None:
        """With the server."""
        await end([ear.task for ear in self._ears.values() if ear.task is not None])

    async def entries(self, reader: Reader, after: int) -> AsyncIterator[list[Entry]]:
        """Those with an id above `after` that the log still holds, and those that come, for ever; empty lists at first,
        when what comes will be heard, and where nothing came for a moment. Raises BrokerAway."""
        await reader.ear.listening.wait()
        yield []
        while not reader.away:
            if reader.behind:
                self._take(reader)  # what waits is read with the rest
                reader.behind = False
                place: str | None = number_id(after).decode()
                while place is not None:
                    found, place = await self._predictions.logged(reader.stream, place)
                    after = max([after, *(entry.number for entry in found)])
                    yield found
            elif found := self._take(reader):
                newer = [entry for entry in found if entry.number > after]
                after = max([after, *(entry.number for entry in newer)])
                yield newer
            else:
                reader.wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await reader.wake.wait()
                if not reader.waiting:
                    yield []
        raise BrokerAway(reader.away)

    async def _hear(self, ear: _Ear) -> None:
        """Until nobody reads any more, or the broker is away."""
        away = "the log is not read any more"
        try:
            async with aclosing(self._predictions.heard(ear.shard)) as heard:
                async for entries in heard:
                    ear.listening.set()
                    if not ear.readers:
                        del self._ears[ear.shard]  # at once: who comes now is heard by another
                        return
                    for entry in entries:
                        for reader in ear.readers.get(entry.stream, ()):
                            self._push(reader, entry)
        except RollcastError as error:
            away = error.detail
        except Exception:
            log.exception("reading a shard's entries failed")
        finally:
            if self._ears.get(ear.shard) is ear:
                del self._ears[ear.shard]
            for readers in ear.readers.values():
                for reader in readers:
                    reader.away = away
                    reader.wake.set()
            ear.listening.set()

    def _push(self, reader: Reader, entry: Entry) -> None:
        """Where too much waits, a slow reader reads the log again."""
        size = len(entry.data)
        reader.wake.set()
        if self._held + size > HELD_BYTES:
            self._take(reader)
            reader.behind = True
        elif not reader.behind:
            reader.waiting.append(entry)
            reader.held += size
            self._held += size

    def _take(self, reader: Reader) -> list[Entry]:
        self._held -= reader.held
        return reader.take()
