"""POST of entries: one of a stream, answered 202 with its id or, with `wait`, by its record; or many, a line each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import msgspec
from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.bodies import hold, media_type, read_body, read_frame, read_lines, read_text, said_of_heading
from service.api.context import LARGE_BYTES, Context
from service.api.intake import Intake, More, Ready
from service.api.messages import read_entry
from service.api.problems import LINE
from service.api.query import PostQuery, Query, read_ack, read_post_query
from service.api.refusals import refusal
from service.api.rows import read_block
from service.contracts import check_stream_id
from service.errors import Busy, RollcastError, TooLarge, Unavailable, UnsupportedMedia
from service.turns import Turn

MAX_LINES = 100_000  # of one request
AT_ONCE = 256  # lines appended in one round trip
NDJSON = "application/x-ndjson"
LEFT_OUT = "Rollcast-Left-Out"  # header of an answer: columns of a CSV that are no signal
_ALL = ""  # among the streams that are held: all of them


class Appended(msgspec.Struct, frozen=True):
    """The answer to a line: its entry is in the log."""

    id: str
    stream: str


def ingest_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["entries"])
    intake = Intake(context)

    @router.post("/v1/streams/{stream}/frames", **openapi.POST_FRAME)
    async def post_frame(stream: str, request: Request) -> Response:
        """Post one image: JPEG, PNG or WebP. It is one step of the stream's state."""
        check_stream_id(stream)
        query = read_post_query(request.query_params, rows=False)
        ready = intake.frame(
            stream, await read_frame(request, context.limits.frame_bytes, context.bodies), _more(query)
        )
        return await append(await ready, query, request)

    @router.post("/v1/streams/{stream}/samples", **openapi.POST_SAMPLES)
    async def post_samples(stream: str, request: Request) -> Response:
        """Post a block of sample rows, 1 to 4096. Each row is one step of the stream's state."""
        check_stream_id(stream)
        query = read_post_query(request.query_params, rows=True)
        return await append(await read_samples(stream, query, request), query, request)

    async def read_samples(stream: str, query: PostQuery, request: Request) -> Ready:
        body = await read_body(request, context.limits.entry_bytes, context.bodies)
        async with context.bodies.above(len(body), LARGE_BYTES):
            block = await read_block(media_type(request), body, said_of_heading(request))
            return await intake.samples(stream, block, _more(query))

    @router.post("/v1/streams/{stream}/text", **openapi.POST_TEXT)
    async def post_text(stream: str, request: Request) -> Response:
        """Post a piece of text: whole words. Each of its tokens is one step of the stream's state."""
        check_stream_id(stream)
        query = read_post_query(request.query_params, rows=False)
        body = await read_body(request, context.limits.entry_bytes, context.bodies)
        text = read_text(media_type(request), body)
        ready = intake.text(stream, text, _more(query))
        del text, body
        return await append(await ready, query, request)

    @router.post("/v1/entries", **openapi.POST_ENTRIES)
    async def post_entries(request: Request) -> Response:
        """Post many entries of any streams, one a line. Each line is answered by one, in order; a refused line stops
        nothing, but where a stream has no room nothing more of it is taken: its order is kept. Lines are appended as
        they come; the answer follows the last one."""
        fsync = read_ack(Query(request.query_params, ("ack",)))
        if media_type(request) != NDJSON:
            raise UnsupportedMedia(f"Content-Type {media_type(request) or 'is missing'}: expected {NDJSON}")
        answers, count = bytearray(), 0
        held: dict[str, Unavailable] = {}
        async for lines in _in_groups(read_lines(request, 2 * context.limits.entry_bytes)):
            count += len(lines)
            if count > MAX_LINES:
                error = TooLarge(f"request of more than {MAX_LINES} lines: nothing was appended from here on")
                answers += msgspec.json.encode(context.told(LINE, error)) + b"\n"
                break
            answers += b"".join(answer + b"\n" for answer in await append_lines(lines, fsync, held))
        return Response(bytes(answers), media_type=NDJSON)

    async def append_lines(
        lines: list[bytes | RollcastError], fsync: bool, held: dict[str, Unavailable]
    ) -> list[bytes]:
        ready: list[Ready | RollcastError] = []
        turn = Turn()
        for line in lines:
            try:
                if isinstance(line, RollcastError):
                    raise line
                if _ALL in held:
                    context.metrics.turned_away.labels(held[_ALL].reason).inc()
                    raise held[_ALL]
                async with context.bodies.above(len(line), LARGE_BYTES):
                    entry = read_entry(line, packed=False)
                    if turn.due():
                        await turn.over()
                    ready.append(await intake.posted(entry))
            except RollcastError as error:
                if isinstance(error, Busy):
                    held[_ALL] = error  # whose entry it is was not read
                ready.append(error)
            if turn.due():
                await turn.over()
        found = iter(await intake.append_many([one for one in ready if isinstance(one, Ready)], fsync, held))
        answers = []
        for one in ready:
            told = next(found) if isinstance(one, Ready) else one
            answer = context.told(LINE, told) if isinstance(told, RollcastError) else Appended(told, _stream(one))
            answers.append(msgspec.json.encode(answer))
        return answers

    async def append(ready: Ready, query: PostQuery, request: Request) -> Response:
        """While the record is waited for, the entry's bytes are in the log alone: the callers keep none of them."""
        headers = {LEFT_OUT: ready.left_out} if ready.left_out else None
        if query.wait_s is None:
            entry_id = await intake.append(ready, query.fsync)
            return _json(202, {"id": entry_id, "stream": ready.stream, "model": ready.model}, headers)
        with context.follower.waiting(ready.stream) as waiter:
            entry_id = await intake.append(ready, query.fsync)
            del ready
            hold(request, None)
            record = await waiter.record(entry_id, query.wait_s)
        if record.type == "prediction":
            return Response(record.body, 200, headers, media_type="application/json")
        raise refusal(record)

    return router


def _more(query: PostQuery) -> More:
    return More(query.model, query.seq, query.time, query.start, query.end, query.interval_s)


def _stream(ready: Ready | RollcastError) -> str:
    return ready.stream if isinstance(ready, Ready) else ""


async def _in_groups(lines: AsyncIterator[bytes | RollcastError | None]) -> AsyncIterator[list[bytes | RollcastError]]:
    """Up to AT_ONCE lines; fewer where nothing more has come yet (None)."""
    group: list[bytes | RollcastError] = []
    async for line in lines:
        if line is not None:
            group.append(line)
        if group and (line is None or len(group) == AT_ONCE):
            yield group
            group = []
    if group:
        yield group


def _json(status: int, value: object, headers: Mapping[str, str] | None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
