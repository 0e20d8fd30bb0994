"""Quarantine over HTTP: refused entries listed, looked at, tried again, dropped."""

from __future__ import annotations

import logging
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode

import msgspec
from fastapi import APIRouter, Request, Response

from service.api import openapi_control
from service.api.carrying import answer, append, check_model, json_answer
from service.api.context import Context
from service.api.described import summarise_dead
from service.api.query import MAX_RECORDS, MAX_WAIT_S, Query
from service.codec import id_number
from service.contracts import KINDS, NO_STREAM, check_stream_id
from service.errors import BadCursor, BadStreamId, Malformed, NotInQuarantine
from service.ports import DeadEntry, DeadRow

OWN_FIELDS = ("id", "stream", "kind", "reason", "detail", "data")  # of quarantine; the others are the entry's
PLACE_FIELDS = ("time", "seq", "start", "end")  # they told where the entry stood: a new one stands elsewhere
log = logging.getLogger("rollcast.api")


def dead_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["quarantine"])

    @router.get("/v1/dead", **openapi_control.GET_DEAD)
    async def list_dead(request: Request) -> Response:
        """The refused entries that are still kept, of all shards, without their bytes."""
        query = Query(request.query_params, ("stream", "reason", "after", "limit"))
        limit = query.whole("limit", 1, MAX_RECORDS) or 100
        after = query.text("after")
        shard, place = read_place(after, context.predictions.shards) if after else (0, "0-0")
        rows: list[DeadRow] = []
        async with context.looks:
            while shard < context.predictions.shards and len(rows) <= limit:
                wanted = limit + 1 - len(rows)
                rows += await context.predictions.dead(shard, place, wanted, query.text("stream"), query.text("reason"))
                shard, place = shard + 1, "0-0"
        page, more = rows[:limit], len(rows) > limit
        following = write_place(page[-1].shard, page[-1].at) if more else None
        return json_answer({"dead": [summarise_dead(row) for row in page], "next": following})

    @router.get("/v1/dead/{stream}/{id}", **openapi_control.GET_DEAD_ENTRY)
    async def get_dead(stream: str, id: str, request: Request) -> Response:
        """One refused entry: why, its fields, and its bytes in base64; or the bytes alone, by `Accept`."""
        dead = await find(stream, id)
        if "application/octet-stream" in request.headers.get("accept", ""):
            return Response(dead.fields.get("data", b""), media_type="application/octet-stream")
        fields = {name: value.decode(errors="replace") for name, value in dead.fields.items() if name not in OWN_FIELDS}
        data = b64encode(dead.fields.get("data", b"")).decode()
        return json_answer(msgspec.structs.asdict(summarise_dead(dead.row)) | {"fields": fields, "data": data})

    @router.delete("/v1/dead/{stream}/{id}", **openapi_control.DELETE_DEAD)
    async def delete_dead(stream: str, id: str) -> Response:
        """Drop a refused entry from quarantine. Its record stays."""
        dropped = await context.predictions.drop_dead((await find(stream, id)).row)
        log.info("refused entry dropped from quarantine", extra={"stream": stream, "cursor": id})
        return json_answer({"id": id, "stream": stream, "dropped": dropped})

    @router.post("/v1/dead/{stream}/{id}/retry", **openapi_control.RETRY_DEAD)
    async def retry_dead(stream: str, id: str, request: Request) -> Response:
        """Append a refused entry again, as a NEW entry at the end of its stream's log; its record names the old one.

        `seq`, `time`, `start` and `end` are left out: they told the old entry's place.
        """
        query = Query(request.query_params, ("model", "drop", "wait"))
        wait_s, drop, model = query.number("wait", 0.0, MAX_WAIT_S), query.flag("drop"), query.text("model")
        dead = await find(stream, id)
        if stream == NO_STREAM:
            raise BadStreamId(f"entry {id} has no legal stream id: post it to a stream instead")
        if dead.row.kind not in KINDS:
            raise Malformed(f"entry {id} is of kind {dead.row.kind!r}: expected one of {', '.join(KINDS)}")
        if model is not None:
            await check_model(context, model)
        fields = retry_fields(dead, model)
        context.backlog.admit(stream, dead.row.bytes)
        entry_id, record = await append(context, stream, fields, wait_s)
        log.info("refused entry appended again", extra={"stream": stream, "cursor": entry_id, "retry_of": id})
        dropped = await context.predictions.drop_dead(dead.row) if drop else False
        if record is not None:
            return answer(record)
        return json_answer({"id": entry_id, "stream": stream, "retry_of": id, "dropped": dropped}, 202)

    async def find(stream: str, entry_id: str) -> DeadEntry:
        if stream != NO_STREAM:
            check_stream_id(stream)
        try:
            id_number(entry_id)
        except ValueError as error:
            raise BadCursor(str(error)) from None
        async with context.looks:
            dead = await context.predictions.dead_entry(stream, entry_id)
        if dead is None:
            raise NotInQuarantine(f"no entry {entry_id} of stream {stream!r} in quarantine: it may have been dropped")
        return dead

    return router


def retry_fields(dead: DeadEntry, model: str | None) -> dict[str, bytes]:
    """The new entry's fields."""
    fields = {"stream": dead.row.stream.encode(), "kind": dead.row.kind.encode(), "data": dead.fields.get("data", b"")}
    left_out = (*OWN_FIELDS, *PLACE_FIELDS)
    fields |= {name: value for name, value in dead.fields.items() if name not in left_out}
    if model is not None:
        fields["model"] = model.encode()
    return fields | {"retry_of": dead.row.id.encode()}


def write_place(shard: int, at: str) -> str:
    """A cursor, opaque to those who hold it.

    >>> read_place(write_place(3, "17-0"), 4)
    (3, '17-0')
    """
    return urlsafe_b64encode(f"{shard} {at}".encode()).decode().rstrip("=")


def read_place(cursor: str, shards: int) -> tuple[int, str]:
    """Raises BadCursor."""
    try:
        shard, _, at = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        id_number(at)
        if not shard.isdecimal() or int(shard) >= shards:
            raise ValueError(shard)
    except ValueError:
        raise BadCursor(f"after: {cursor[:60]!r} is no cursor of this list: expected the next of a page") from None
    return int(shard), at
