"""GET of entries: what came in, as lines, while the log holds it. For bug reports, tests and training data."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api import openapi
from service.api.context import Context
from service.api.posted import LoggedEntry
from service.api.query import Query, read_cursor
from service.api.readers import Reader
from service.contracts import Entry, check_stream_id
from service.controls import decode_control
from service.errors import BrokerAway, Malformed

NDJSON = "application/x-ndjson"
PART_BYTES = 64 * 1024  # of lines that are sent together


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
        after = read_cursor(query.text("after") or "0", "after")
        await context.predictions.position(stream)  # a broker that is away is told at once
        reader = context.readers.open(stream)
        return EntryStream(lines(reader, after), lambda: context.readers.close(reader))

    async def lines(reader: Reader, after: int) -> AsyncIterator[bytes]:
        """An empty line at first, and where nothing came for a while. Ends with the server, or when the broker goes."""
        said = float("-inf")
        with suppress(BrokerAway):
            async for some in context.readers.entries(reader, after):
                if context.closing.is_set():
                    return
                for line in _lines(some) if some or time.monotonic() - said < context.heartbeat_s else [b"\n"]:
                    yield line
                    said = time.monotonic()

    return router


class EntryStream(StreamingResponse):
    """Lines whose reader is closed with them, however they end."""

    def __init__(self, lines: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(lines, media_type=NDJSON, headers={"Cache-Control": "no-store"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def _lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Small ones together, large ones by themselves."""
    part = b""
    for entry in entries:
        part += msgspec.json.encode(logged(entry)) + b"\n"
        if len(part) > PART_BYTES:
            yield part
            part = b""
    if part:
        yield part


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
            decode_control(entry.data)  # what it holds is known then, and little
            control = msgspec.json.decode(entry.data)
        except Malformed as error:
            return LoggedEntry(entry.id.decode(), entry.stream, entry.kind, entry.data, fault=error.detail)
    return LoggedEntry(
        entry.id.decode(), entry.stream, entry.kind, content, text, control, entry.shape, entry.model, entry.seq,
        entry.time, entry.start, entry.end, entry.interval_s, retry_of=entry.retry_of,
    )  # fmt: skip
