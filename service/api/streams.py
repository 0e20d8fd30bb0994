"""GET of streams: what each is, how far it came, what it remembers, what was last seen in it."""

from __future__ import annotations

from collections.abc import Sequence

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
from service.contracts import check_stream_id
from service.errors import UnknownStream
from service.ports import StreamRow


def stream_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["streams"])

    @router.get("/v1/streams", **openapi.GET_STREAMS)
    async def list_streams(request: Request) -> Response:
        """The streams, by name: `next` is the `after` of the next page, null on the last one."""
        query = Query(request.query_params, ("after", "limit"))
        limit = query.whole("limit", 1, MAX_RECORDS) or 100
        rows = await context.predictions.streams(query.text("after") or "", limit + 1)
        page, more = rows[:limit], len(rows) > limit
        summaries = await summarise(page)
        return _json({"streams": summaries, "next": page[-1].stream if more else None})

    @router.get("/v1/streams/{stream}", **openapi.GET_STREAM)
    async def get_stream(stream: str) -> Response:
        """One stream: model, steps, cursors, last record, what waits, its state and its settings."""
        row = await context.predictions.stream(check_stream_id(stream))
        if row is None:
            raise UnknownStream(f"stream {stream!r}: no entry of it was ever answered")
        (summary,) = await summarise([row])
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

    async def summarise(rows: Sequence[StreamRow]) -> list[StreamSummary]:
        """The last prediction of each is fetched, all in one round trip."""
        stepped = {row.stream: at for row in rows if (at := stepped_entry(row.position)) is not None}
        found = dict(zip(stepped, await context.predictions.fetch(list(stepped.items())), strict=True))
        return [summarise_stream(row, found.get(row.stream)) for row in rows]

    return router


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
