"""GET of streams: what each is, how far it came, what it remembers, what was last seen in it."""

from __future__ import annotations

import heapq
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.context import Context
from service.api.described import (
    Backlog,
    StreamDetail,
    StreamSummary,
    stepped_entry,
    summarise_state,
    summarise_stream,
)
from service.api.query import MAX_RECORDS, Query
from service.codec import read_settings
from service.contracts import STREAM_ID, check_stream_id
from service.errors import BadCursor, RollcastError, UnknownStream
from service.ports import Lag, StreamRow
from service.turns import Turn

Sort = Literal["name", "lag", "drops", "restarts"]
SORTS: Final[tuple[Sort, ...]] = ("name", "lag", "drops", "restarts")
UNRANKED: Final = 1 << 62  # the place of streams of which there is nothing to say: behind all others
MOST: Final = 1 << 61
_LOOKED_AT: Final = 2048  # ranks, in one go


def stream_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["streams"])

    @router.get("/v1/streams", **openapi.GET_STREAMS)
    async def list_streams(request: Request) -> Response:
        """The streams, by name or by what is wrong with them: `next` is the `after` of the next page, null on the last
        one. By `lag` those whose oldest unfinished entry is the oldest come first, by `drops` and `restarts` those with
        the most; then all others, by name."""
        query = Query(request.query_params, ("after", "limit", "sort"))
        limit, after = query.whole("limit", 1, MAX_RECORDS) or 100, query.text("after")
        sort = query.one_of("sort", SORTS, "name")
        begin = read_rank(after) if after and sort != "name" else (0, "")
        async with context.looks:
            lags = await context.predictions.lags()
            if sort == "name":
                rows = await context.predictions.streams(after or "", limit + 1)
                places = [row.stream for row in rows]
            else:
                ranks = await rank(sort, lags)
                rows = await ranked(ranks, begin, limit + 1)
                places = [write_rank(ranks.get(row.stream, UNRANKED), row.stream) for row in rows]
            summaries = await summarise(rows[:limit], lags)
        return _json({"streams": summaries, "next": places[limit - 1] if len(rows) > limit else None})

    @router.get("/v1/streams/{stream}", **openapi.GET_STREAM)
    async def get_stream(stream: str) -> Response:
        """One stream: model, steps, cursors, last record, what waits, its state and its settings."""
        row = await context.predictions.stream(check_stream_id(stream))
        if row is None:
            raise UnknownStream(f"stream {stream!r}: no entry of it was ever answered")
        async with context.looks:
            (summary,) = await summarise([row], await context.predictions.lags())
            newest = await context.predictions.newest(stream, 1)
            waiting = await context.predictions.waiting(stream)
            state = summarise_state(await context.predictions.state(stream), context.layouts)
        # the state knows its steps, where the last prediction's record is not kept any more
        summary = summary if state is None else msgspec.structs.replace(summary, steps=state.steps or summary.steps)
        backlog = Backlog(waiting.entries, waiting.complete, context.backlog.entries(row.shard))
        settings = read_settings(row.settings)
        detail = StreamDetail(**msgspec.structs.asdict(summary), backlog=backlog, state=state, settings=settings)
        last = msgspec.Raw(newest[0].body) if newest else None
        return _json(msgspec.structs.asdict(detail) | {"last": last})

    async def rank(sort: Sort, lags: Mapping[str, Lag]) -> dict[str, int]:
        """Of the streams that come first: the lower, the earlier."""
        if sort == "lag":
            return {stream: lag.oldest_ms for stream, lag in lags.items() if STREAM_ID.fullmatch(stream)}
        counted = await context.predictions.counted("drops" if sort == "drops" else "restarts")
        turn, ranks = Turn(), dict[str, int]()
        for stream, n in counted.items():
            ranks[stream] = MOST - min(n, MOST - 1)
            if turn.due():
                await turn.over()
        return ranks

    async def ranked(ranks: Mapping[str, int], after: tuple[int, str], limit: int) -> list[StreamRow]:
        """Those that come first, then all others by name, as far as they lie behind `after`: rank and name."""
        rows: list[StreamRow] = []
        while len(rows) < limit:  # more than one turn only where streams were deleted
            wanted = limit - len(rows)
            some = await lowest(ranks, after, wanted)
            rows += await context.predictions.rows(name for _, name in some)
            if len(some) < wanted:
                break
            after = some[-1]
        if len(rows) < limit:
            name = after[1] if after[0] == UNRANKED else ""
            rows += await context.predictions.streams(name, limit - len(rows), but=ranks.keys())
        return rows

    async def summarise(rows: Sequence[StreamRow], lags: Mapping[str, Lag]) -> list[StreamSummary]:
        """The last prediction of each is fetched, all in one round trip."""
        stepped = {row.stream: at for row in rows if (at := stepped_entry(row.position)) is not None}
        records = await context.predictions.fetch(list(stepped.items()), replay=True)
        found = dict(zip(stepped, records, strict=True))
        turn, summaries = Turn(), []
        for row in rows:
            record, lag = found.get(row.stream), lags.get(row.stream)
            summaries.append(summarise_stream(row, record, lag, context.models, context.state_ttl_s))
            if turn.due():
                await turn.over()
        return summaries

    return router


async def lowest(ranks: Mapping[str, int], after: tuple[int, str], count: int) -> list[tuple[int, str]]:
    """The first `count` of (rank, name) behind `after`: nothing is sorted but what may be among them."""
    turn = Turn()
    found: list[tuple[int, str]] = []
    items = iter(ranks.items())
    while some := list(islice(items, _LOOKED_AT)):
        behind = [(place, name) for name, place in some if (place, name) > after]
        found = heapq.nsmallest(count, found + behind)
        if turn.due():
            await turn.over()
    return found


def write_rank(place: int, stream: str) -> str:
    """A cursor, opaque to those who hold it.

    >>> read_rank(write_rank(17, "cam-1"))
    (17, 'cam-1')
    """
    return urlsafe_b64encode(f"{place} {stream}".encode()).decode().rstrip("=")


def read_rank(cursor: str) -> tuple[int, str]:
    """Raises BadCursor."""
    try:
        place, _, stream = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        return int(place), check_stream_id(stream)
    except (ValueError, RollcastError):
        raise BadCursor(f"after: {cursor[:60]!r} is no cursor of a sorted list: expected the next of a page") from None


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
