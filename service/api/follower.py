"""What the shards commit, brought to those who wait for it: once a process, however many subscribers.

One task follows every feed, fetches the records that somebody here wants, encodes each once and hands it on. It never
waits for a subscriber: who reads too slowly is told to read again from the broker (`behind`), where records are kept.
After a doubt (broker away, log begun anew) everybody reads again; nothing is remembered across it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Final, NamedTuple, TypeVar

from fastapi.sse import format_sse_event

from service.codec import id_number
from service.errors import BrokerAway, RollcastError, WaitTimeout
from service.metrics import ApiMetrics
from service.ports import FeedItem, OutRecord, Predictions

CAPACITY: Final = 1024  # records that may wait for one subscriber
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
log = logging.getLogger("rollcast.api")
One = TypeVar("One")


class Delivery(NamedTuple):
    """One record on its way to subscribers."""

    number: int  # its id
    prev: int  # id of the stream's record before it
    event: bytes  # as a server-sent event


def to_delivery(record: OutRecord) -> Delivery:
    """A prediction becomes an unnamed event, so that `EventSource.onmessage` just works; others are named."""
    name = None if record.type == "prediction" else record.type
    event = format_sse_event(data_str=record.body.decode(), event=name, id=record.id)
    return Delivery(id_number(record.id), id_number(record.prev), event)


class Subscription:
    """One subscriber's buffer. Filled by Follower, emptied by the subscriber."""

    def __init__(self, stream: str, capacity: int) -> None:
        self.stream = stream
        self.behind = True  # what it missed must be read from the broker
        self.overflowed = False  # because it read too slowly
        self.closing = False
        self._capacity = capacity
        self._waiting: deque[Delivery] = deque()
        self._wake = asyncio.Event()

    def push(self, delivery: Delivery) -> None:
        if len(self._waiting) >= self._capacity:
            self._waiting.clear()
            self.behind = self.overflowed = True
        self._waiting.append(delivery)
        self._wake.set()

    def read_again(self) -> None:
        self.behind = True
        self._wake.set()

    def close(self) -> None:
        self.closing = True
        self._wake.set()

    def begin_reading(self) -> None:
        """Before reading from the broker: what is pushed from now on is newer than what the read will find."""
        self._waiting.clear()
        self.behind = False

    def caught_up(self) -> None:
        self.overflowed = self.overflowed and self.behind  # it may have happened again meanwhile

    def take(self) -> list[Delivery]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    async def wait(self, limit_s: float) -> bool:
        """Returns False when nothing happened within `limit_s`."""
        if not (self._waiting or self.behind or self.closing):
            self._wake.clear()
            try:
                async with asyncio.timeout(limit_s):
                    await self._wake.wait()
            except TimeoutError:
                return False
        return True

    async def pause(self, limit_s: float) -> None:
        """Sleeps, but wakes when the broker is back and when the server stops."""
        self._wake.clear()
        if not self.closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._wake.wait()


class Waiter:
    """One call that waits for one entry's record. Made before the entry is appended, so that it cannot be missed."""

    def __init__(self, stream: str, predictions: Predictions) -> None:
        self.stream = stream
        self.id = ""  # not known before the append
        self._predictions = predictions
        self._seen: set[str] = set()  # ids answered before ours was known
        self._found: asyncio.Future[OutRecord | None] = asyncio.get_running_loop().create_future()

    def wants(self, record_id: str) -> bool:
        if self.id:
            return record_id == self.id
        self._seen.add(record_id)
        return False

    def give(self, record: OutRecord | None) -> None:
        """None: it will not come while this server runs."""
        if not self._found.done():
            self._found.set_result(record)

    async def record(self, entry_id: str, wait_s: float) -> OutRecord:
        """Raises WaitTimeout, also when the server stops before the record has come."""
        self.id = entry_id
        record, why = None, f"within {wait_s:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                if entry_id in self._seen:
                    with suppress(BrokerAway):  # the entry is in the log all the same: the answer must not deny it
                        (record,) = await self._predictions.fetch([(self.stream, entry_id)])
                if record is None:
                    record, why = await self._found, "before the server stopped"
        if record is None:
            raise WaitTimeout(
                f"no record of entry {entry_id} {why}; it is in the log and will be answered",
                {"id": entry_id, "stream": self.stream},
            )
        return record


class Follower:
    """Written by its own task, `run`; subscribers come and go on the same event loop."""

    def __init__(self, predictions: Predictions, metrics: ApiMetrics, capacity: int = CAPACITY) -> None:
        self.away: str | None = "the broker has not answered yet"
        self.finished = [0] * predictions.shards  # entries answered in each shard, as far as this process saw it
        self.connections = 0  # how often following began: what was cached of the broker before may be wrong after
        self._predictions = predictions
        self._capacity = capacity
        self._count = metrics.subscribers.labels("sse")
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._waiters: dict[str, set[Waiter]] = {}
        self._closing = False

    def subscribe(self, stream: str) -> Subscription:
        subscription = Subscription(stream, self._capacity)
        subscription.closing = self._closing
        self._subscriptions.setdefault(stream, set()).add(subscription)
        self._show_count()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        _discard(self._subscriptions, subscription.stream, subscription)
        self._show_count()

    @contextmanager
    def waiting(self, stream: str) -> Iterator[Waiter]:
        waiter = Waiter(stream, self._predictions)
        self._waiters.setdefault(stream, set()).add(waiter)
        try:
            yield waiter
        finally:
            _discard(self._waiters, stream, waiter)

    def close(self) -> None:
        """Ends every subscription and every wait, at once: they would hold up the server's stop."""
        self._closing = True
        for subscription in _all(self._subscriptions):
            subscription.close()
        for waiter in _all(self._waiters):
            waiter.give(None)

    async def run(self) -> None:
        """Follows for ever; every doubt ends in following anew."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with aclosing(self._predictions.follow()) as commits:
                    async for items in commits:
                        if items:
                            await self._deliver(items)
                        else:
                            await self._begin()
                            pause_s = FIRST_PAUSE_S
            except RollcastError as error:
                self._lost(error.detail)
            except Exception as error:
                log.exception("following the shards failed")
                self._lost(f"{type(error).__name__}: {error}")
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    # --- the task ------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """From here on nothing is missed; what came before is read by those who want it."""
        self.away = None
        self.connections += 1
        log.info("following the shards")
        for subscription in _all(self._subscriptions):
            subscription.read_again()
        await self._answer([waiter for waiter in _all(self._waiters) if waiter.id])

    async def _deliver(self, items: list[FeedItem]) -> None:
        for item in items:
            self.finished[item.shard] += len(item.records)
        if not self._subscriptions and not self._waiters:
            return
        wanted: list[tuple[str, str]] = []
        awaited: list[Waiter] = []
        for item in items:
            for stream, record_id in item.records:
                awaited += [waiter for waiter in self._waiters.get(stream, ()) if waiter.wants(record_id)]
                if stream in self._subscriptions:
                    wanted.append((stream, record_id))
        await self._answer(awaited)
        for (stream, _), record in zip(wanted, await self._predictions.fetch(wanted), strict=True):
            subscriptions = self._subscriptions.get(stream)
            if subscriptions and record is not None:
                delivery = to_delivery(record)
                for subscription in subscriptions:
                    subscription.push(delivery)

    async def _answer(self, waiters: list[Waiter]) -> None:
        found = await self._predictions.fetch([(waiter.stream, waiter.id) for waiter in waiters])
        for waiter, record in zip(waiters, found, strict=True):
            if record is not None:
                waiter.give(record)

    def _lost(self, reason: str) -> None:
        if self.away is None:
            log.warning("broker away", extra={"detail": reason})
        self.away = reason

    def _show_count(self) -> None:
        self._count.set(sum(map(len, self._subscriptions.values())))


def _discard(of_stream: dict[str, set[One]], stream: str, one: One) -> None:
    ones = of_stream.get(stream, set())
    ones.discard(one)
    if not ones:
        of_stream.pop(stream, None)


def _all(of_stream: Mapping[str, set[One]]) -> list[One]:
    return [one for ones in of_stream.values() for one in ones]
