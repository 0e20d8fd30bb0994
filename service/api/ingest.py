"""POST of entries: the body is checked, the model chosen, one XADD made. 202 with the id, or `wait` for the record."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from fastapi import APIRouter, Request, Response

from service.api import openapi
from service.api.bodies import Block, check_image, media_type, read_block, read_body, read_frame, read_text, to_rows
from service.api.context import Context
from service.api.query import PostQuery, read_post_query
from service.api.refusals import refusal
from service.choosing import choose_model
from service.codec import MAX_TIME_S, entry_fields
from service.contracts import ModelInfo, check_stream_id
from service.errors import (
    EntryError,
    Malformed,
    ModelNeeded,
    NoWorker,
    UnknownModel,
)


def ingest_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["entries"])
    models = context.infos()

    @router.post("/v1/streams/{stream}/frames", **openapi.POST_FRAME)
    async def post_frame(stream: str, request: Request) -> Response:
        """Post one image: JPEG, PNG or WebP. It is one step of the stream's state."""
        check_stream_id(stream)
        query = read_post_query(request.query_params, rows=False)
        image = await read_frame(request, context.limits.frame_bytes)
        check_image(image, context.limits.pixels)
        model = await choose(stream, "frame", query.model)
        fields = entry_fields(
            stream, "frame", image,
            model=model, time=query.time, seq=query.seq, start=query.start, end=query.end,
        )  # fmt: skip
        return await append(stream, model, fields, query.wait_s)

    @router.post("/v1/streams/{stream}/samples", **openapi.POST_SAMPLES)
    async def post_samples(stream: str, request: Request) -> Response:
        """Post a block of sample rows, 1 to 4096. Each row is one step of the stream's state."""
        check_stream_id(stream)
        query = read_post_query(request.query_params, rows=True)
        media = media_type(request)
        block = read_block(media, await read_body(request, context.limits.entry_bytes))
        model = await choose(stream, "samples", query.model, block)
        spec = context.models[model].rows
        if spec is None:
            raise UnknownModel(f"model {model!r} does not describe its rows")
        rows = to_rows(block, spec)
        fields = entry_fields(
            stream, "samples", rows.tobytes(),
            model=model, time=event_time(query, block.time), seq=query.seq, start=query.start, end=query.end,
            shape=(rows.shape[0], rows.shape[1]), interval_s=query.interval_s,
        )  # fmt: skip
        return await append(stream, model, fields, query.wait_s)

    @router.post("/v1/streams/{stream}/text", **openapi.POST_TEXT)
    async def post_text(stream: str, request: Request) -> Response:
        """Post a piece of text: whole words. Each of its tokens is one step of the stream's state."""
        check_stream_id(stream)
        query = read_post_query(request.query_params, rows=False)
        text = read_text(media_type(request), await read_body(request, context.limits.entry_bytes))
        model = await choose(stream, "text", query.model)
        fields = entry_fields(
            stream, "text", text.text.encode(),
            model=model, time=event_time(query, text.time), seq=query.seq, start=query.start, end=query.end,
        )  # fmt: skip
        return await append(stream, model, fields, query.wait_s)

    async def choose(stream: str, kind: str, asked: str | None, block: Block | None = None) -> str:
        try:
            return await choose_for(stream, kind, asked, block, await context.bindings.model(stream))
        except EntryError:  # a refusal is not given on old news: the stream may have another model meanwhile
            if not context.bindings.forget(stream):
                raise
            return await choose_for(stream, kind, asked, block, await context.bindings.model(stream))

    async def choose_for(stream: str, kind: str, asked: str | None, block: Block | None, bound: str | None) -> str:
        named = asked or bound or context.defaults.get(kind)
        if named is None and block is not None and block.width is None:
            named = asked = _model_by_bytes(models, len(block.rows))
        width = None if named is not None or block is None else block.width  # with a model, `to_rows` says more
        chosen = choose_model(
            models, kind, asked=asked, bound=bound, default=context.defaults.get(kind), width=width
        ).name
        if not await context.monitor.serves(chosen):
            raise NoWorker(f"no live worker serves model {chosen!r}", retry_after_s=2.0)
        return chosen

    async def append(stream: str, model: str, fields: Mapping[str, bytes], wait_s: float | None) -> Response:
        context.backlog.admit(stream, len(fields["data"]))
        if wait_s is None:
            entry_id = await context.predictions.append(stream, fields)
            return _json(202, {"id": entry_id, "stream": stream, "model": model})
        with context.follower.waiting(stream) as waiter:
            entry_id = await context.predictions.append(stream, fields)
            record = await waiter.record(entry_id, wait_s)
        if record.type == "prediction":
            return Response(record.body, 200, media_type="application/json")
        raise refusal(record)

    return router


def event_time(query: PostQuery, said: float | None) -> float | None:
    """Of the last step, from the query or from what the body `said`."""
    if said is None:
        return query.time
    if query.time is not None:
        raise Malformed("time is given in the query and in the body: expected one of them")
    if not 0.0 <= said <= MAX_TIME_S:
        raise Malformed(f"time {said}: expected seconds from 0 to {MAX_TIME_S:g}")
    return said


def _model_by_bytes(models: Mapping[str, ModelInfo], size: int) -> str:
    """Raw float32 does not say its width: the only model whose rows would divide it."""
    fitting = [m.name for m in models.values() if m.kind == "samples" and m.width and size % (4 * m.width) == 0]
    if size == 0 or len(fitting) != 1:
        widths = ", ".join(f"{m.name} ({m.width} columns)" for m in models.values() if m.kind == "samples")
        raise ModelNeeded(
            f"{size} bytes of float32 rows do not tell the model: name one with model; there are: {widths}"
        )
    return fitting[0]


def _json(status: int, value: object) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
