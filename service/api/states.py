"""A stream's state over HTTP: looked at, taken away, put back, reset."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api import openapi_control
from service.api.bodies import media_type, read_body
from service.api.carrying import admit, carry_out, check_model, json_answer
from service.api.context import Context
from service.api.described import stepped_entry, summarise_state
from service.api.pages import SAVED
from service.api.query import Query
from service.codec import read_settings
from service.contracts import check_stream_id
from service.controls import Control
from service.errors import NoState, OtherModel, OtherSchema, UnknownStream, UnsupportedMedia
from service.portable import MEDIA_TYPE, export_state, read_state, restore_row
from service.ports import StateRow

STATE_TYPES = (MEDIA_TYPE, "application/octet-stream")
OBJECT_BYTES = 64 * 1024  # of a state's object around its tensors
CONTROL_BYTES = 128  # of a control around its state


def state_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["states"])
    largest = max((layout.record_bytes + OBJECT_BYTES for layout in context.layouts.values()), default=0)

    @router.get("/v1/streams/{stream}/state", **openapi_control.GET_STATE)
    async def get_state(stream: str, request: Request) -> Response:
        """What a stream remembers: recurrent tensors, rolling automaton, step count; as one object, or in words."""
        found = await load(stream)
        summary = summarise_state(found, context.layouts)
        entry = stepped_entry(found.position)
        if found.state is None or summary is None or entry is None:
            raise NoState(
                f"stream {stream!r} has no state: it never stepped, or its state ended and nothing came since"
            )
        if "application/json" in request.headers.get("accept", ""):
            return json_answer(summary)
        layout = context.layouts.get(summary.model)
        row = layout.decode(found.state) if layout is not None else None
        if layout is None or row is None:
            served = f"schema {layout.schema!r} is served" if layout is not None else "no such package is served"
            raise OtherSchema(
                f"the state has schema {summary.schema!r} (version {summary.version} of model {summary.model!r}), "
                f"but {served}"
            )
        return Response(export_state(layout, row, stream, entry), media_type=MEDIA_TYPE, headers=SAVED)

    @router.put("/v1/streams/{stream}/state", **openapi_control.PUT_STATE)
    async def put_state(stream: str, request: Request) -> Response:
        """Put a state back, or into another stream of the same model: tensors, rolling automaton and step count.

        The stream goes on from it with the entry after this one; its position and its `seq` stay its own.
        """
        check_stream_id(stream)
        query = Query(request.query_params, ("wait",))
        if (media := media_type(request)) not in STATE_TYPES:
            raise UnsupportedMedia(f"Content-Type {media or 'is missing'}: expected {' or '.join(STATE_TYPES)}")
        # in the log it is base64; and no state that is served is larger
        limit = min(context.limits.entry_bytes // 4 * 3 - CONTROL_BYTES, largest or context.limits.entry_bytes)
        body = await read_body(request, limit, context.bodies)
        await check(stream, body)
        await admit(context, stream, len(body) * 4 // 3)
        return await carry_out(context, stream, Control("restore", state=body), query)

    @router.delete("/v1/streams/{stream}/state", **openapi_control.DELETE_STATE)
    async def delete_state(stream: str, request: Request) -> Response:
        """Reset: the state is dropped, and the next prediction says `restarted: reset`. Records and `seq` stay."""
        query = Query(request.query_params, ("wait",))
        if await context.predictions.stream(check_stream_id(stream)) is None:
            raise UnknownStream(f"stream {stream!r}: no entry of it was ever answered")
        return await carry_out(context, stream, Control("reset"), query)

    async def load(stream: str) -> StateRow:
        if await context.predictions.stream(check_stream_id(stream)) is None:
            raise UnknownStream(f"stream {stream!r}: no entry of it was ever answered")
        async with context.looks:
            return await context.predictions.state(stream)

    async def check(stream: str, body: bytes) -> None:
        """The worker judges again, in the control's turn: this spares a caller's mistakes the way through the log."""
        state = read_state(body)
        settings = await context.predictions.settings(stream)
        bound = read_settings(settings).model
        if bound is not None and state.model != bound:
            raise OtherModel(f"the state is of model {state.model!r}, stream {stream!r} is bound to {bound!r}")
        await check_model(context, state.model)
        if state.model in context.layouts:
            restore_row(context.layouts[state.model], state)

    return router
