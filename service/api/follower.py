"""What the shards commit, brought to those who wait for it: once a process, however many subscribers.

One task follows every feed, fetches the records that somebody here wants, encodes each once and hands it on. It never
waits for a subscriber: a slow one reads again from the broker, loses the oldest records, or is disconnected, as its
`when_full` says. After a doubt (broker away, log begun anew) everybody reads again; nothing is remembered across it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Final, Literal, TypeVar

from service.api.delivery import Delivery
from service.api.patterns import Catalogue, Matcher, Pattern
from service.cursors import BEGINNING, Place, encode_place, join_places
from service.errors import BrokerAway, Busy, RollcastError, WaitTimeout
from service.metrics import ApiMetrics
from service.ports import FeedItem, OutRecord, Predictions
from service.turns import Turn

CAPACITY: Final = 1024  # records that may wait for one subscriber
FETCHED: Final = 1024  # records fetched in one round trip
CATCHING_UP: Final = 2  # subscribers that read a page at once: to make one takes 5 to 10 ms of the event loop
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
log = logging.getLogger("rollcast.api")
One = TypeVar("One")
WhenFull = Literal["catch_up", "drop_oldest", "disconnect"]
WHEN_FULL: Final[tuple[WhenFull, ...]] = ("catch_up", "drop_oldest", "disconnect")


class Subscription:
    """One subscriber's buffer. Filled by Follower, emptied by the subscriber."""

    def __init__(
        self, wants: str | Pattern | None, capacity: int, when_full: WhenFull, catching_up: asyncio.Semaphore
    ) -> None:
        self.wants = wants
        self.catching_up = catching_up  # taken for each page that it reads from the broker
        self.chosen: set[str] | None = set() if wants is None else None  # streams, one after another
        self.many = not isinstance(wants, str)  # its cursor is one over many streams
        self.fits: Callable[[str], bool] = Matcher(wants.globs).fits if isinstance(wants, Pattern) else self._is_wanted
        self.behind = True  # what it missed must be read from the broker
        self.overflowed = False  # because it read too slowly
        self.dropped = 0  # records that it lost thereby, not yet said
        self.closing = False
        self.too_slow = False  # it is disconnected for that
        self._reading = False  # from the broker
        self._when_full = when_full
        self._capacity = capacity
        self._waiting: deque[Delivery] = deque()
        self._wake = asyncio.Event()

    @property
    def shown(self) -> str:
        """What it wants, in words."""
        wants = self.wants.globs if isinstance(self.wants, Pattern) else (self.wants,) if self.wants else self.chosen
        return " ".join(sorted(wants or ())[:10])

    def _is_wanted(self, stream: str) -> bool:
        return stream == self.wants if self.chosen is None else stream in self.chosen

    def push(self, delivery: Delivery) -> None:
        if len(self._waiting) >= self._capacity:
            self._overflow()
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
        self.behind, self._reading = False, True
        self.dropped = 0

    def caught_up(self) -> None:
        self._reading = False
        self.overflowed = self.overflowed and self.behind  # it may have happened again meanwhile

    def take(self) -> list[Delivery]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def take_dropped(self) -> int:
        dropped, self.dropped = self.dropped, 0
        return dropped

    async def wait(self, limit_s: float) -> bool:
        """Returns False when nothing happened within `limit_s`; at its very end it may have."""
        if not self._something:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._wake.wait()
        return self._something

    @property
    def _something(self) -> bool:
        return bool(self._waiting) or self.behind or self.closing

    async def pause(self, limit_s: float) -> None:
        """Sleeps, but wakes when the broker is back and when the server stops."""
        self._wake.clear()
        if not self.closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._wake.wait()

    def _overflow(self) -> None:
        """While it reads what it missed it cannot take what is live: that is read, too, whatever it chose."""
        self.overflowed = True
        if self._when_full == "drop_oldest" and not self._reading:
            self._waiting.popleft()
            self.dropped += 1
            return
        self._waiting.clear()
        self.behind = True
        if self._when_full == "disconnect" and not self._reading:
            self.too_slow = self.closing = True


class Waiter:
    """One call that waits for one entry's record. Made before the entry is appended, so that it cannot be missed."""

    def __init__(self, stream: str, predictions: Predictions) -> None:
        self.stream = stream
        self.id = ""  # not known before the append
        self.in_doubt = False  # following began anew: the record may have come before
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
        record, stopping = None, False
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                if entry_id in self._seen or self.in_doubt:
                    with suppress(BrokerAway):  # the entry is in the log all the same: the answer must not deny it
                        (record,) = await self._predictions.fetch([(self.stream, entry_id)])
                if record is None:
                    record, stopping = await self._found, True
        if record is None:
            why = "before the server stopped" if stopping else f"within {wait_s:g} s"
            told = {"id": entry_id, "stream": self.stream} | ({"stopping": True} if stopping else {})
            raise WaitTimeout(f"no record of entry {entry_id} {why}; it is in the log and will be answered", told)
        return record


class Follower:
    """Written by its own task, `run`; subscribers come and go on the same event loop."""

    def __init__(self, predictions: Predictions, metrics: ApiMetrics, capacity: int = CAPACITY) -> None:
        self.away: str | None = "the broker has not answered yet"
        self.finished = [0] * predictions.shards  # entries answered in each shard, as far as this process saw it
        self.unheard: Container[str] = ()  # streams whose first record somebody waits for
        self.heard: set[str] = set()  # of those, the ones that had a record
        self.connections = 0  # how often following began: what was cached of the broker before may be wrong after
        self.places: list[Place] = [BEGINNING] * predictions.shards  # what was handed on, of every feed
        self._encoded = [encode_place(place) for place in self.places]
        self._predictions = predictions
        self._capacity = capacity
        self._subscribers, self._slow = metrics.subscribers, metrics.subscriber_drops
        self._counts: dict[str, int] = {}
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._choosers: set[Subscription] = set()
        self._patterns: Catalogue[Subscription] = Catalogue(metrics.turned_away.labels(Busy.reason).inc)
        self._waiters: dict[str, set[Waiter]] = {}
        self._catching_up = asyncio.Semaphore(CATCHING_UP)
        self._closing = False
        self._turn = Turn()

    def subscribe(
        self, wants: str | Pattern | None, *, transport: str = "sse", when_full: WhenFull = "catch_up"
    ) -> Subscription:
        """To one stream, to those that fit a pattern, or (None) to those that it will choose. Raises Busy."""
        subscription = Subscription(wants, self._capacity, when_full, self._catching_up)
        subscription.closing = self._closing
        if isinstance(wants, Pattern):
            self._patterns.add(wants, subscription)
        elif wants is not None:
            self._subscriptions.setdefault(wants, set()).add(subscription)
        else:
            self._choosers.add(subscription)
        self._count(transport, 1)
        return subscription

    def unsubscribe(self, subscription: Subscription, *, transport: str = "sse") -> None:
        wants = subscription.wants
        if isinstance(wants, Pattern):
            self._patterns.discard(wants, subscription)
        elif wants is not None:
            _discard(self._subscriptions, wants, subscription)
        else:
            self._choosers.discard(subscription)
            for stream in subscription.chosen or ():
                _discard(self._subscriptions, stream, subscription)
        if subscription.too_slow:
            self._slow.inc()
        self._count(transport, -1)

    def choose(self, subscription: Subscription, stream: str) -> None:
        """One stream more for a subscription that chooses."""
        assert subscription.chosen is not None
        if stream not in subscription.chosen:
            subscription.chosen.add(stream)
            self._subscriptions.setdefault(stream, set()).add(subscription)

    def cursor(self) -> str:
        """Over many streams, of who was given everything so far."""
        return join_places(self._encoded)

    @contextmanager
    def waiting(self, stream: str) -> Iterator[Waiter]:
        waiter = Waiter(stream, self._predictions)
        if self._closing:
            waiter.give(None)
        self._waiters.setdefault(stream, set()).add(waiter)
        try:
            yield waiter
        finally:
            _discard(self._waiters, stream, waiter)

    def close(self) -> None:
        """Ends every subscription and every wait, at once, and those yet to begin: they would hold up the stop."""
        self._closing = True
        for subscription in self._everybody():
            subscription.close()
        for waiter in _all(self._waiters):
            waiter.give(None)

    async def ended(self, limit_s: float) -> None:
        """Waits until nobody is subscribed any more, but no longer than `limit_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._everybody():
                    await asyncio.sleep(0.01)

    async def run(self) -> None:
        """Follows for ever; every doubt ends in following anew."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with aclosing(self._predictions.follow()) as commits:
                    await self._begin(await anext(commits))
                    pause_s = FIRST_PAUSE_S
                    async for items in commits:
                        await self._deliver(items)
            except RollcastError as error:
                self._lost(error.detail)
            except Exception as error:
                log.exception("following the shards failed")
                self._lost(f"{type(error).__name__}: {error}")
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    # --- the task ------------------------------------------------------------------------------------------------

    async def _begin(self, newest: list[FeedItem]) -> None:
        """From here on nothing is missed; what came before is read by those who want it."""
        self.places = [BEGINNING] * self._predictions.shards
        for item in newest:
            self.places[item.shard] = item.end
        self._encoded = [encode_place(place) for place in self.places]
        self.away = None
        self.connections += 1
        log.info("following the shards")
        for subscription in self._everybody():
            subscription.read_again()
        for waiter in _all(self._waiters):
            waiter.in_doubt = True  # of one that does not know its id yet
        await self._answer([waiter for waiter in _all(self._waiters) if waiter.id])

    async def _deliver(self, items: list[FeedItem]) -> None:
        """Fetches what is wanted first, then hands it on. Others have their turns between two records, never within
        one: whoever was given one was given all before it, and the places say so."""
        for item in items:
            self.finished[item.shard] += len(item.records)
            self.heard.update(stream for stream, _ in item.records if stream in self.unheard)
        wanted: list[tuple[str, str]] = []
        awaited: list[Waiter] = []
        for item in items:
            for stream, record_id in item.records:
                if stream in self._waiters:
                    awaited += [waiter for waiter in self._waiters[stream] if waiter.wants(record_id)]
                if stream in self._subscriptions or self._patterns.fitting(stream):
                    wanted.append((stream, record_id))
                if self._turn.due():
                    await self._turn.over()
        await self._answer(awaited)
        found: dict[tuple[str, str], OutRecord | None] = {}
        for start in range(0, len(wanted), FETCHED):
            part = wanted[start : start + FETCHED]
            found.update(zip(part, await self._predictions.fetch(part), strict=True))
        for item in items:
            await self._hand_on(item, found)

    async def _hand_on(self, item: FeedItem, found: Mapping[tuple[str, str], OutRecord | None]) -> None:
        for i, (stream, record_id) in enumerate(item.records, 1):
            if self._turn.due():
                await self._turn.over()
            if (stream, record_id) not in found:
                continue
            record = found[stream, record_id]
            place = Place(item.n, i, item.mark)
            few, many = self._subscriptions.get(stream, ()), self._patterns.fitting(stream)
            shared = bool(many) or any(subscription.many for subscription in few)
            if shared:
                self._encoded[item.shard] = encode_place(place)
            delivery = Delivery(
                stream,
                record or OutRecord(record_id, "", b"", "0-0"),
                item.shard,
                place,
                self.cursor() if shared else "",
                missing=record is None,
            )
            for subscription in few:
                if record is not None or subscription.many:
                    subscription.push(delivery)
            for members in many:
                for subscription in members:
                    subscription.push(delivery)
        self.places[item.shard] = item.end
        self._encoded[item.shard] = encode_place(item.end)

    async def _answer(self, waiters: list[Waiter]) -> None:
        found = await self._predictions.fetch([(waiter.stream, waiter.id) for waiter in waiters])
        for waiter, record in zip(waiters, found, strict=True):
            if record is not None:
                waiter.give(record)

    def _lost(self, reason: str) -> None:
        if self.away != reason:
            log.warning("broker away", extra={"detail": reason})
        self.away = reason

    def _everybody(self) -> list[Subscription]:
        alone = [one for one in _all(self._subscriptions) if one.chosen is None]
        return [*alone, *self._patterns.members(), *self._choosers]

    def _count(self, transport: str, more: int) -> None:
        self._counts[transport] = self._counts.get(transport, 0) + more
        self._subscribers.labels(transport).set(self._counts[transport])


def _discard(of_stream: dict[str, set[One]], stream: str, one: One) -> None:
    ones = of_stream.get(stream, set())
    ones.discard(one)
    if not ones:
        of_stream.pop(stream, None)


def _all(of_stream: Mapping[str, set[One]]) -> list[One]:
    return [one for ones in of_stream.values() for one in ones]
