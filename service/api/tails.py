"""Where a subscriber stands, and what it gets next: what it missed from the broker, then what is live. docs/protocol.md
has the rules of cursors; many.py does the same for many streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, Protocol

from service.api.delivery import Delivery, Outgoing
from service.api.follower import Subscription
from service.api.notices import Bye, ByeReason, Gap, GapReason, Moved, Wait
from service.codec import id_number, number_id, read_position
from service.errors import BrokerAway
from service.metrics import ApiMetrics
from service.ports import Predictions

READ: Final = 64  # records read from the broker, and sent, at once: each slow subscriber has so many in memory
RETRY_S: Final = 1.0  # after the broker did not answer
Batch = list[Outgoing]
log = logging.getLogger("rollcast.api")


class Follows(Protocol):
    """Decides what one subscriber gets: Tail for one stream, ManyTail for many."""

    on_gap: Callable[[], None]

    async def begin(self) -> None:
        """Fixes "now" for a subscriber without a cursor: it misses nothing from then on. Changes nothing where the
        place is known. Raises BrokerAway; then the next `begin` or `catch_up` does it."""
        ...

    def catch_up(self) -> AsyncIterator[Batch]:
        """What lies between the cursor and now. Raises BrokerAway; what was yielded before stays delivered."""
        ...

    def advance(self, deliveries: Sequence[Delivery]) -> tuple[Batch, bool]:
        """Live records, and whether they follow each other; if not, the rest must be read from the broker."""
        ...

    def skip(self, dropped: int, following: Delivery) -> Batch:
        """Says that so many records before `following` were dropped because the subscriber read too slowly."""
        ...

    def standing(self) -> str | None:
        """The cursor after everything so far; None where it has not moved."""
        ...

    def bye(self, reason: ByeReason) -> Outgoing: ...


def watch_gaps(tail: Follows, subscription: Subscription, metrics: ApiMetrics, transport: str) -> None:
    """Counts and tells the gaps of a subscriber that reads too slowly. Other gaps are none of its doing."""

    def on_gap() -> None:
        if subscription.overflowed:
            metrics.subscriber_drops.inc()
            cursor = None if subscription.many else tail.standing()
            log.warning(
                "a subscriber reads too slowly: it misses records",
                extra={"transport": transport, "stream": subscription.shown, "cursor": cursor},
            )

    tail.on_gap = on_gap


async def deliver(subscription: Subscription, tail: Follows, heartbeat_s: float) -> AsyncIterator[Batch]:
    """What one subscriber gets, for ever; where there was silence its cursor, and `bye` at the end."""
    while not subscription.closing:
        if subscription.behind:
            subscription.begin_reading()
            try:
                async for batch in _in_turn(tail.catch_up(), subscription.catching_up):
                    yield batch
                subscription.caught_up()
            except BrokerAway as error:
                subscription.read_again()
                yield [Outgoing(Wait(error.title), None)]
                await subscription.pause(RETRY_S)
        elif waiting := subscription.take():
            dropped = subscription.take_dropped()
            batch = tail.skip(dropped, waiting[0]) if dropped else []
            more, complete = tail.advance(waiting)
            if not complete:
                subscription.read_again()
            batch += more
            for start in range(0, len(batch), READ):
                yield batch[start : start + READ]
        elif not await subscription.wait(heartbeat_s):
            yield [Outgoing(Moved(), tail.standing())]
    yield [tail.bye("too_slow" if subscription.too_slow else "closing")]


async def _in_turn(pages: AsyncIterator[Batch], turns: asyncio.Semaphore) -> AsyncIterator[Batch]:
    """Each page is read and made in its turn. The turn ends before it is sent: a slow client delays no other."""
    while True:
        async with turns:
            page = await anext(pages, None)
        if page is None:
            return
        yield page


class Tail:
    """One subscriber of one stream. Its cursor is an id; records hold the id of the one before them."""

    def __init__(self, predictions: Predictions, stream: str, cursor: int | None, *, exact: bool = False) -> None:
        self.on_gap: Callable[[], None] = lambda: None
        self._predictions = predictions
        self._stream = stream
        self._cursor = cursor  # None: now
        self._exact = exact  # the cursor is a record's id, so the next one's `prev` must equal it

    async def begin(self) -> None:
        """ "Now" is after the newest record: an entry that waits in the log is still to be answered."""
        if self._cursor is not None:
            return
        found = await self._predictions.newest(self._stream, 1)
        newest = id_number(found[0].id) if found else await newest_record(self._predictions, self._stream)
        if self._cursor is None:  # two tasks may ask at once: the earlier place counts
            self._cursor, self._exact = newest, True

    async def catch_up(self) -> AsyncIterator[Batch]:
        await self.begin()
        newest = await newest_record(self._predictions, self._stream)  # first: a later one cannot be missing by chance
        last = id_number(await self._predictions.last_generated(self._stream))
        if (self._cursor or 0) > last:  # the log lost its tail: what it gives ids to from now on is new
            yield [self._gap(newest, None, "lost")]
        while records := await self._predictions.records(self._stream, self._id(), READ):
            yield list(self._deliver(Delivery(self._stream, record) for record in records))
            if len(records) < READ:
                break
        if newest > (self._cursor or 0):
            yield [self._gap(newest, None, "trimmed")]

    def advance(self, deliveries: Sequence[Delivery]) -> tuple[Batch, bool]:
        batch: Batch = []
        for delivery in deliveries:
            cursor = self._cursor or 0
            if delivery.number <= cursor:
                continue
            if delivery.prev > cursor or (self._exact and delivery.prev != cursor):
                return batch, False
            batch.append(self._record(delivery))
        return batch, True

    def skip(self, dropped: int, following: Delivery) -> Batch:
        return [self._gap(following.prev, following.number, "slow")]

    def standing(self) -> str | None:
        return None  # every record moves it

    def bye(self, reason: ByeReason) -> Outgoing:
        return Outgoing(Bye(stream=self._stream, reason=reason), self._id() if self._exact else None)

    # --- inside --------------------------------------------------------------------------------------------------

    def _deliver(self, deliveries: Iterable[Delivery]) -> Iterable[Outgoing]:
        for delivery in deliveries:
            cursor = self._cursor or 0
            if delivery.prev > cursor or (self._exact and delivery.prev != cursor):
                yield self._gap(delivery.prev, delivery.number, "trimmed" if delivery.prev > cursor else "lost")
            yield self._record(delivery)

    def _record(self, delivery: Delivery) -> Outgoing:
        self._cursor, self._exact = delivery.number, True
        return Outgoing(delivery, delivery.record.id)

    def _gap(self, to: int, following: int | None, reason: GapReason) -> Outgoing:
        """Says that records between the cursor and `to` cannot be delivered; its id is the cursor after it."""
        gap = Gap(
            id=number_id(to).decode(),
            stream=self._stream,
            after=self._id(),
            next=number_id(following).decode() if following is not None else None,
            reason=reason,
        )
        self._cursor, self._exact = to, True
        self.on_gap()
        return Outgoing(gap, self._id())

    def _id(self) -> str:
        return number_id(self._cursor or 0).decode()


async def newest_record(predictions: Predictions, stream: str) -> int:
    """Id of the stream's last record, kept or not; 0: it never had one."""
    position = read_position(await predictions.position(stream))
    return id_number(position.record) if position else 0
