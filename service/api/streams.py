"""GET of streams: what each is, how far it came, what was last seen in it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.context import Context
from service.api.openapi import StreamSummary
from service.api.query import MAX_RECORDS, Query
from service.codec import decode_record, decode_settings, number_id, parse_position
from service.contracts import Prediction, check_stream_id
from service.errors import UnknownStream
from service.ports import OutRecord, StreamRow


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
        """One stream, with its last record."""
        row = await context.predictions.stream(check_stream_id(stream))
        if row is None:
            raise UnknownStream(f"stream {stream!r}: no entry of it was ever answered")
        (summary,) = await summarise([row])
        newest = await context.predictions.newest(stream, 1)
        last = msgspec.Raw(newest[0].body) if newest else None
        return _json(msgspec.structs.asdict(summary) | {"last": last})

    async def summarise(rows: Sequence[StreamRow]) -> list[StreamSummary]:
        """The last prediction of each is fetched, all in one round trip."""
        stepped = {row.stream: at for row in rows if (at := _stepped(row)) is not None}
        found = dict(zip(stepped, await context.predictions.fetch(list(stepped.items())), strict=True))
        return [_summary(row, found.get(row.stream)) for row in rows]

    return router


def _stepped(row: StreamRow) -> str | None:
    """Id of the last entry whose state is kept, if there is one."""
    stepped = parse_position(row.position).stepped if row.position else b"-"
    return stepped.decode() if stepped[:1].isdigit() else None


def _summary(row: StreamRow, record: OutRecord | None) -> StreamSummary:
    position = parse_position(row.position) if row.position else None
    settings = decode_settings(row.settings) if row.settings else None
    last = decode_record(record.body) if record is not None else None
    predicted = last if isinstance(last, Prediction) else None
    return StreamSummary(
        stream=row.stream,
        model=settings.model if settings else None,
        steps=predicted.step if predicted else None,
        label=predicted.rolling.label if predicted else None,
        score=predicted.rolling.score if predicted else None,
        last_entry=number_id(position.last).decode() if position else None,
        last_record=position.record.decode() if position else None,
        seq=position.seq if position else None,
        shard=row.shard,
    )


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
