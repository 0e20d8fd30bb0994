"""PUT and DELETE of a stream: its settings, and all that is kept of it. Both take their turn in the stream's log."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api import openapi_control
from service.api.bodies import read_body
from service.api.carrying import admit, carry_out, check_model
from service.api.context import Context
from service.api.query import Query
from service.contracts import check_stream_id
from service.controls import Control, decode_new_settings
from service.errors import UnknownStream

MAX_BODY_BYTES = 64 * 1024


def setting_routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["streams"])

    @router.put("/v1/streams/{stream}", **openapi_control.PUT_STREAM)
    async def put_stream(stream: str, request: Request) -> Response:
        """Set a stream's settings, all of them: what is left out is as the package or the deployment says.

        Only the model stays when none is named. Another model begins with a new state: `restarted` is `version`.
        """
        check_stream_id(stream)
        query = Query(request.query_params, ("wait",))
        body = await read_body(request, MAX_BODY_BYTES, context.bodies)
        settings = decode_new_settings(body)
        if settings.model is not None:
            await check_model(context, settings.model)
        await admit(context, stream, len(body))
        return await carry_out(context, stream, Control("settings", settings), query)

    @router.delete("/v1/streams/{stream}", **openapi_control.DELETE_STREAM)
    async def delete_stream(stream: str, request: Request) -> Response:
        """Remove all that is kept of a stream: records, state, settings, its last `seq`. Its name is free again."""
        query = Query(request.query_params, ("wait",))
        if await context.predictions.stream(check_stream_id(stream)) is None:
            raise UnknownStream(f"stream {stream!r}: no entry of it was ever answered")
        return await carry_out(context, stream, Control("delete"), query)

    return router
