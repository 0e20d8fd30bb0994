"""Quarantine over HTTP: refused entries listed, looked at, tried again, dropped."""

from __future__ import annotations

import logging
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping

import msgspec
from fastapi import APIRouter, Request, Response

from service.api import openapi_control
from service.api.carrying import admit, answer, append, check_model, json_answer
from service.api.context import Context
from service.api.described import summarise_dead
from service.api.pages import SAVED
from service.api.query import MAX_RECORDS, MAX_WAIT_S, Query
from service.codec import id_number, parse_entry
from service.contracts import KINDS, NO_STREAM, check_stream_id, check_text_size
from service.errors import BadCursor, BadStreamId, Malformed, NotInQuarantine, RequestError, TooLarge
from service.ports import DeadEntry, DeadPage, DeadRow, Predictions

OWN_FIELDS = ("id", "stream", "kind", "reason", "detail", "bytes", "data")  # of quarantine; the others are the entry's
LOOKED = 2048  # refused entries that are looked at in one call, about
PLACE_FIELDS = ("time", "seq", "start", "end")  # they told where the entry stood: a new one stands elsewhere
log = logging.getLogger("rollcast.api")


def dead_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["quarantine"])

    @router.get("/v1/dead", **openapi_control.GET_DEAD)
    async def list_dead(request: Request) -> Response:
        """The refused entries that are still kept, of all shards, without their bytes.

        A page may be short, or empty: of a large quarantine a limited part is looked through at once.
        """
        query = Query(request.query_params, ("stream", "reason", "after", "limit"))
        pages = Pages(context.predictions, query, query.whole("limit", 1, MAX_RECORDS) or 100)
        async with context.looks:
            rows = [row async for page in pages for row in page]
        return json_answer({"dead": [summarise_dead(row) for row in rows], "next": pages.next})

    @router.delete("/v1/dead", **openapi_control.DELETE_MANY_DEAD)
    async def delete_many_dead(request: Request) -> Response:
        """Drop the refused entries of a stream, of a reason, of both, or with `all=1` all of them. Their records stay.

        Of a large quarantine a limited part is looked through at once: call again with `next` as `after` until it is
        null.
        """
        query = Query(request.query_params, ("stream", "reason", "all", "after"))
        if query.flag("all") == bool(query.text("stream") or query.text("reason")):
            raise RequestError("query: expected stream, reason, or both; or all=1, without them, for all that is kept")
        pages = Pages(context.predictions, query)
        async with context.looks:
            dropped = sum([await context.predictions.drop_dead(page) async for page in pages])
        log.info("refused entries dropped from quarantine", extra={"entries": dropped})
        return json_answer({"dropped": dropped, "next": pages.next})

    @router.get("/v1/dead/{stream}/{id}", **openapi_control.GET_DEAD_ENTRY)
    async def get_dead(stream: str, id: str, request: Request) -> Response:
        """One refused entry: why, its fields, and its bytes in base64; or the bytes alone, by `Accept`."""
        dead = await find(stream, id)
        if "application/octet-stream" in request.headers.get("accept", ""):
            return Response(bytes_of(dead), media_type="application/octet-stream", headers=SAVED)
        fields = {name: value.decode(errors="replace") for name, value in dead.fields.items() if name not in OWN_FIELDS}
        data = b64encode(bytes_of(dead)).decode() if are_kept(dead) else None
        return json_answer(msgspec.structs.asdict(summarise_dead(dead.row)) | {"fields": fields, "data": data})

    @router.delete("/v1/dead/{stream}/{id}", **openapi_control.DELETE_DEAD)
    async def delete_dead(stream: str, id: str) -> Response:
        """Drop a refused entry from quarantine. Its record stays."""
        dropped = await context.predictions.drop_dead([(await find(stream, id)).row]) > 0
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
        check_retry(context, fields)
        await admit(context, stream, dead.row.bytes)
        entry_id, record = await append(context, stream, fields, wait_s)
        log.info("refused entry appended again", extra={"stream": stream, "cursor": entry_id, "retry_of": id})
        dropped = drop and await context.predictions.drop_dead([dead.row]) > 0
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
    fields = {"stream": dead.row.stream.encode(), "kind": dead.row.kind.encode(), "data": bytes_of(dead)}
    left_out = (*OWN_FIELDS, *PLACE_FIELDS)
    fields |= {name: value for name, value in dead.fields.items() if name not in left_out}
    if model is not None:
        fields["model"] = model.encode()
    return fields | {"retry_of": dead.row.id.encode()}


def check_retry(context: Context, fields: Mapping[str, bytes]) -> None:
    """Raises the EntryError for which the entry would be refused again, as far as its fields tell."""
    entry = parse_entry(b"1-0", [part for name, value in fields.items() for part in (name.encode(), value)])
    if entry.fault is not None:
        raise entry.fault
    limit = context.limits.frame_bytes if entry.kind == "frame" else context.limits.entry_bytes
    if len(entry.data) > limit:
        raise TooLarge(f"entry of {len(entry.data)} bytes: the limit is {limit} bytes")
    manifest = context.models.get(entry.model or "")
    if manifest is not None and manifest.text is not None and entry.kind == "text":
        check_text_size(len(entry.data), manifest.text)


def are_kept(dead: DeadEntry) -> bool:
    return "data" in dead.fields or dead.row.bytes == 0


def bytes_of(dead: DeadEntry) -> bytes:
    """Raises NotInQuarantine where they were too many to be kept."""
    if not are_kept(dead):
        raise NotInQuarantine(
            f"entry {dead.row.id} of stream {dead.row.stream!r}: its {dead.row.bytes:,} bytes were too many for "
            "quarantine (dead_share, dead_bytes); only what is said of it was kept"
        )
    return dead.fields.get("data", b"")


class Pages:
    """The refused entries that a query selects, page by page, all of one shard, until `limit` are found or enough was
    looked through. `next`: where another call goes on; None after the last one."""

    def __init__(self, predictions: Predictions, query: Query, limit: int = LOOKED) -> None:
        self._predictions, self._limit = predictions, limit
        self._stream, self._reason = query.text("stream"), query.text("reason")
        after = query.text("after")
        self.next: str | None = after or write_place(0, "0-0")
        self._shard, self._place = read_place(self.next, predictions.shards)

    async def __aiter__(self) -> AsyncIterator[list[DeadRow]]:
        found = looked = 0
        while self.next is not None and found < self._limit and looked < LOOKED:
            page = await self._read(self._limit - found)
            found, looked = found + len(page.rows), looked + page.looked
            if page.rows:
                yield page.rows
        kept = self.next
        while self.next is not None and looked < LOOKED:  # a full page may have been the last one
            page = await self._read(1)
            looked += page.looked
            if page.rows:
                self.next = kept
                return

    async def _read(self, limit: int) -> DeadPage:
        page = await self._predictions.dead(self._shard, self._place, limit, self._stream, self._reason)
        self._shard, self._place = (self._shard, page.next) if page.next else (self._shard + 1, "0-0")
        over = self._shard == self._predictions.shards
        self.next = None if over else write_place(self._shard, self._place)
        return page


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
