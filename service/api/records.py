"""GET of a stream's records: as server-sent events from a cursor on, or as one JSON page. Cursors: docs/protocol.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from service.api import openapi
from service.api.context import Context
from service.api.follower import Delivery, Subscription, to_delivery
from service.api.query import MAX_RECORDS, Query, read_cursor
from service.codec import id_number, number_id, parse_position
from service.contracts import RECORD_TYPES, check_stream_id
from service.errors import BrokerAway
from service.ports import OutRecord, Predictions

RECONNECT_MS: Final = 1000  # told to EventSource
PAGE: Final = 256  # records read from the broker at once
RETRY_S: Final = 1.0  # after the broker did not answer
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def record_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["records"])

    @router.get("/v1/streams/{stream}/predictions", **openapi.GET_PREDICTIONS)
    async def get_predictions(stream: str, request: Request) -> Response:
        """The records of a stream: live as server-sent events, or the newest as JSON, by `Accept`."""
        check_stream_id(stream)
        if "text/event-stream" in request.headers.get("accept", ""):
            return subscribe(stream, request)
        query = Query(request.query_params, ("after", "limit", "type"))
        after = query.text("after")
        limit = query.whole("limit", 1, MAX_RECORDS)
        kind = query.one_of("type", ("all", *RECORD_TYPES), "prediction")
        if after is None:
            return await newest(stream, limit or 100, kind)
        return await page(stream, read_cursor(after, "after"), limit or MAX_RECORDS, kind)

    def subscribe(stream: str, request: Request) -> Response:
        after = Query(request.query_params, ("after",)).text("after")
        last = request.headers.get("last-event-id")
        if last:  # newer than ?after=, which a reconnecting EventSource repeats
            tail = Tail(context.predictions, stream, read_cursor(last, "Last-Event-ID"), exact=True)
        else:
            tail = Tail(context.predictions, stream, None if after is None else read_cursor(after, "after"))
        subscription = context.follower.subscribe(stream)
        tail.on_gap = lambda: context.metrics.subscriber_drops.inc() if subscription.overflowed else None
        events = send_events(subscription, tail, context.heartbeat_s)
        return EventStream(events, lambda: context.follower.unsubscribe(subscription))

    async def newest(stream: str, limit: int, kind: str) -> Response:
        found: list[OutRecord] = []
        before, last = "+", None
        while len(found) < limit:
            records = await context.predictions.newest(stream, PAGE, before)
            if not records:
                break
            last = last or records[-1].id
            found[:0] = [record for record in records if kind in ("all", record.type)]
            before = records[0].id
        return _page(found[-limit:], last or "0-0", gap=False)

    async def page(stream: str, after: int, limit: int, kind: str) -> Response:
        found: list[OutRecord] = []
        cursor = number_id(after).decode()
        last = await newest_record(context.predictions, stream)
        records = await context.predictions.records(stream, cursor, PAGE)
        gap = id_number(records[0].prev) > after if records else last > after or await lost(stream, after)
        if gap and not records:
            cursor = number_id(last).decode()
        while records:
            for record in records:
                cursor = record.id
                if kind in ("all", record.type):
                    found.append(record)
                    if len(found) == limit:
                        return _page(found, cursor, gap)
            records = await context.predictions.records(stream, cursor, PAGE)
        return _page(found, cursor, gap)

    async def lost(stream: str, cursor: int) -> bool:
        """Whether the log lost its tail, and the cursor's entry with it."""
        return cursor > id_number(await context.predictions.last_generated(stream))

    return router


async def send_events(subscription: Subscription, tail: Tail, heartbeat_s: float) -> AsyncIterator[bytes]:
    """The events of one subscriber, for ever; a comment where there was silence; `bye` when the server stops."""
    yield format_sse_event(retry=RECONNECT_MS)
    while not subscription.closing:
        if subscription.behind:
            subscription.begin_reading()
            try:
                async for events in tail.catch_up():
                    yield events
                subscription.caught_up()
            except BrokerAway as error:
                subscription.read_again()
                yield format_sse_event(comment=error.title)
                await subscription.pause(RETRY_S)
        elif waiting := subscription.take():
            events, complete = tail.advance(waiting)
            if not complete:
                subscription.read_again()
            yield events
        elif not await subscription.wait(heartbeat_s):
            yield format_sse_event(comment="heartbeat")
    yield tail.bye()


class Tail:
    """Where one subscriber stands in one stream: decides what it gets next, and where a gap lies."""

    def __init__(self, predictions: Predictions, stream: str, cursor: int | None, *, exact: bool = False) -> None:
        self.on_gap: Callable[[], None] = lambda: None
        self._predictions = predictions
        self._stream = stream
        self._cursor = cursor  # None: now
        self._exact = exact  # the cursor is a record's id, so the next one's `prev` must equal it

    async def catch_up(self) -> AsyncIterator[bytes]:
        """What lies between the cursor and now. Raises BrokerAway; what was yielded before stays delivered."""
        if self._cursor is None:
            await self._start_now()
        newest = await newest_record(self._predictions, self._stream)  # first: a later one cannot be missing by chance
        last = id_number(await self._predictions.last_generated(self._stream))
        if (self._cursor or 0) > last:  # the log lost its tail: what it gives ids to from now on is new
            yield self._gap(newest, None, "lost")
        while records := await self._predictions.records(self._stream, self._id(), PAGE):
            yield b"".join(self._deliver(map(to_delivery, records)))
            if len(records) < PAGE:
                break
        if newest > (self._cursor or 0):
            yield self._gap(newest, None, "trimmed")

    def advance(self, deliveries: Iterable[Delivery]) -> tuple[bytes, bool]:
        """Live records as events, and whether they follow each other; if not, the rest must be read from the broker."""
        events: list[bytes] = []
        for delivery in deliveries:
            cursor = self._cursor or 0
            if delivery.number <= cursor:
                continue
            if delivery.prev > cursor or (self._exact and delivery.prev != cursor):
                return b"".join(events), False
            events.append(delivery.event)
            self._cursor, self._exact = delivery.number, True
        return b"".join(events), True

    def bye(self) -> bytes:
        """The last event: come back with its id."""
        data = _json({"type": "bye", "stream": self._stream})
        return format_sse_event(data_str=data, event="bye", id=self._id() if self._exact else None)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _start_now(self) -> None:
        """ "Now" is after the newest record: an entry that waits in the log is still to be answered."""
        newest = await self._predictions.newest(self._stream, 1)
        self._cursor = id_number(newest[0].id) if newest else await newest_record(self._predictions, self._stream)
        self._exact = True

    def _deliver(self, deliveries: Iterable[Delivery]) -> Iterable[bytes]:
        for delivery in deliveries:
            cursor = self._cursor or 0
            if delivery.prev > cursor or (self._exact and delivery.prev != cursor):
                yield self._gap(delivery.prev, delivery.number, "trimmed" if delivery.prev > cursor else "lost")
            yield delivery.event
            self._cursor, self._exact = delivery.number, True

    def _gap(self, to: int, following: int | None, reason: str) -> bytes:
        """Says that records between the cursor and `to` cannot be delivered; its id is the cursor after it."""
        body = {
            "type": "gap",
            "id": number_id(to).decode(),
            "stream": self._stream,
            "after": self._id(),
            "next": number_id(following).decode() if following is not None else None,
            "reason": reason,
        }
        self._cursor, self._exact = to, True
        self.on_gap()
        return format_sse_event(data_str=_json(body), event="gap", id=self._id())

    def _id(self) -> str:
        return number_id(self._cursor or 0).decode()


async def newest_record(predictions: Predictions, stream: str) -> int:
    """Id of the stream's last record, kept or not; 0: it never had one."""
    position = await predictions.position(stream)
    return id_number(parse_position(position).record) if position else 0


class EventStream(EventSourceResponse):
    """Server-sent events whose subscription ends with them, however they end."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, headers=_HEADERS)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def _page(records: Iterable[OutRecord], following: str, gap: bool) -> Response:
    """`{"predictions", "next", "gap"}` around the bodies as they are stored."""
    bodies = b",".join(record.body for record in records)
    rest = msgspec.json.encode({"next": following, "gap": gap})
    return Response(b'{"predictions":[' + bodies + b"]," + rest[1:], media_type="application/json")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
