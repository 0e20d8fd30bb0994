"""GET of entries: what came in, as lines, while the log holds it. For bug reports, tests and training data."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from service.api import openapi
from service.api.context import Context
from service.api.posted import LoggedEntry
from service.api.query import Query, read_cursor
from service.codec import number_id
from service.contracts import Entry, check_stream_id
from service.errors import BrokerAway

NDJSON = "application/x-ndjson"


def logged_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["entries"])

    @router.get("/v1/streams/{stream}/entries", **openapi.GET_ENTRIES)
    async def get_entries(stream: str, request: Request) -> StreamingResponse:
        """The entries of a stream as they are in the log and as they come, for ever, a line each.

        A line without its `id` can be posted again. Finished entries leave the log after `input_history_s`: one that
        was finished at once may be missed. Each entry leaves a record, by which that is seen.
        """
        check_stream_id(stream)
        query = Query(request.query_params, ("after",))
        after = number_id(read_cursor(query.text("after") or "0", "after")).decode()
        await context.predictions.last_generated(stream)  # a broker that is away is told at once
        return StreamingResponse(lines(stream, after), media_type=NDJSON, headers={"Cache-Control": "no-store"})

    async def lines(stream: str, after: str) -> AsyncIterator[bytes]:
        """An empty line at first, and where nothing came for a while. Ends with the server, or when the broker goes."""
        said = float("-inf")
        with suppress(BrokerAway):
            async with aclosing(context.predictions.entries(stream, after)) as entries:
                async for some in entries:
                    if context.closing.is_set():
                        return
                    if some or time.monotonic() - said >= context.heartbeat_s:
                        yield b"".join(msgspec.json.encode(logged(entry)) + b"\n" for entry in some) or b"\n"
                        said = time.monotonic()

    return router


def logged(entry: Entry) -> LoggedEntry:
    if entry.fault is not None:
        raw = entry.raw or {}
        kind, data = raw.get(b"kind", b"").decode(errors="replace"), raw.get(b"data", b"")
        return LoggedEntry(entry.id.decode(), entry.stream, kind, data, fault=entry.fault.detail)
    text, control, content = None, None, entry.data if entry.kind in ("frame", "samples") else None
    if entry.kind == "text":
        try:
            text = entry.data.decode()
        except UnicodeDecodeError as error:
            return LoggedEntry(entry.id.decode(), entry.stream, entry.kind, entry.data, fault=str(error))
    elif entry.kind == "control":
        try:
            control = msgspec.json.decode(entry.data)
        except msgspec.DecodeError as error:
            return LoggedEntry(entry.id.decode(), entry.stream, entry.kind, entry.data, fault=str(error))
    return LoggedEntry(
        entry.id.decode(), entry.stream, entry.kind, content, text, control, entry.shape, entry.model, entry.seq,
        entry.time, entry.start, entry.end, entry.interval_s, retry_of=entry.retry_of,
    )  # fmt: skip
