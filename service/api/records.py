"""GET of records: of one stream as server-sent events from a cursor on or as one JSON page, of many streams as
server-sent events. Cursors: docs/protocol.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from service.api import openapi
from service.api.context import Context
from service.api.delivery import as_events
from service.api.follower import WHEN_FULL, Subscription
from service.api.many import ManyTail
from service.api.patterns import Pattern, read_pattern
from service.api.query import MAX_RECORDS, Query, read_cursor
from service.api.tails import Follows, Tail, deliver, newest_record, watch_gaps
from service.codec import id_number, number_id
from service.contracts import RECORD_TYPES, check_stream_id
from service.cursors import decode_cursor
from service.errors import BrokerAway
from service.ports import OutRecord

RECONNECT_MS: Final = 1000  # told to EventSource
PAGE: Final = 256  # records read from the broker at once
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def record_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["records"])
    predictions, follower = context.predictions, context.follower

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

    @router.get("/v1/predictions", **openapi.GET_MANY_PREDICTIONS)
    async def get_many_predictions(request: Request) -> Response:
        """The records of every stream that fits a pattern, live, as server-sent events."""
        query = Query(request.query_params, ("after", "when_full"), repeated=("stream",))
        pattern = read_pattern(query.texts("stream") or ["*"])
        text, where = _cursor_text(query, request)
        places = None if text is None else decode_cursor(text, predictions.shards, where)
        return send(pattern, lambda fits: ManyTail(predictions, follower, fits, places), query)

    def subscribe(stream: str, request: Request) -> Response:
        query = Query(request.query_params, ("after", "when_full"))
        text, where = _cursor_text(query, request)
        cursor = None if text is None else read_cursor(text, where)
        return send(stream, lambda _: Tail(predictions, stream, cursor, exact=where == _LAST), query)

    def send(wants: str | Pattern, follow: Callable[[Callable[[str], bool]], Follows], query: Query) -> Response:
        subscription = follower.subscribe(wants, when_full=query.one_of("when_full", WHEN_FULL, "catch_up"))
        tail = follow(subscription.fits)
        watch_gaps(tail, subscription, context.metrics, "sse")
        events = send_events(subscription, tail, context.heartbeat_s)
        return EventStream(events, tail.begin, lambda: follower.unsubscribe(subscription))

    async def newest(stream: str, limit: int, kind: str) -> Response:
        found: list[OutRecord] = []
        before, last = "+", None
        while len(found) < limit:
            records = await predictions.newest(stream, PAGE, before)
            if not records:
                break
            last = last or records[-1].id
            found[:0] = [record for record in records if kind in ("all", record.type)]
            before = records[0].id
        return _page(found[-limit:], last or "0-0", gap=False)

    async def page(stream: str, after: int, limit: int, kind: str) -> Response:
        found: list[OutRecord] = []
        cursor = number_id(after).decode()
        last = await newest_record(predictions, stream)
        records = await predictions.records(stream, cursor, PAGE)
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
            records = await predictions.records(stream, cursor, PAGE)
        return _page(found, cursor, gap)

    async def lost(stream: str, cursor: int) -> bool:
        """Whether the log lost its tail, and the cursor's entry with it."""
        return cursor > id_number(await predictions.last_generated(stream))

    return router


_LAST: Final = "Last-Event-ID"


def _cursor_text(query: Query, request: Request) -> tuple[str | None, str]:
    """The cursor and where it stood: the header is newer than ?after=, which a reconnecting EventSource repeats."""
    last = request.headers.get(_LAST)
    return (last, _LAST) if last else (query.text("after"), "after")


async def send_events(subscription: Subscription, tail: Follows, heartbeat_s: float) -> AsyncIterator[bytes]:
    """The events of one subscriber, for ever; a comment where there was silence; `bye` at the end."""
    yield format_sse_event(retry=RECONNECT_MS)
    async for batch in deliver(subscription, tail, heartbeat_s):
        yield as_events(batch)


class EventStream(EventSourceResponse):
    """Server-sent events whose subscription begins before their head is sent and ends with them, however they end."""

    def __init__(
        self, events: AsyncIterator[bytes], begin: Callable[[], Awaitable[None]], on_end: Callable[[], None]
    ) -> None:
        super().__init__(events, headers=_HEADERS)
        self._begin, self._on_end = begin, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(BrokerAway):  # it is waited for: an EventSource gives up after any answer but 200
                await self._begin()
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def _page(records: Iterable[OutRecord], following: str, gap: bool) -> Response:
    """`{"predictions", "next", "gap"}` around the bodies as they are stored."""
    bodies = b",".join(record.body for record in records)
    rest = msgspec.json.encode({"next": following, "gap": gap})
    return Response(b'{"predictions":[' + bodies + b"]," + rest[1:], media_type="application/json")
