"""Errors as RFC 9457 answers. docs/problems.md lists every type; a test keeps the two together."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.errors import NotAnswered, RequestError, RollcastError, Unavailable, UnsupportedEncoding
from service.metrics import Counter, Family

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:rollcast:problem:"
log = logging.getLogger("rollcast.api")
HTTP: Final = "http"  # a way in which a problem is told; the others:
LINE: Final = "line"  # among the answers to the lines of one request
MESSAGE: Final = "message"  # over a WebSocket
HTTP_TYPES: Final = {404: "not-found", 405: "method-not-allowed"}  # what the router itself answers


def problem(
    status: int,
    kind: str,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> Response:
    """`{"type", "title", "status", "detail"}` and what this type adds."""
    body = {"type": TYPE_PREFIX + kind, "title": title, "status": status, "detail": detail, **(members or {})}
    return Response(msgspec.json.encode(body), status, dict(headers or {}), MEDIA_TYPE)


def answer_error(error: RollcastError, told: Family[Counter]) -> Response:
    """As HTTP; `told` counts it."""
    told.labels(HTTP, error.type).inc()
    headers = None
    if isinstance(error, Unavailable):
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
    elif isinstance(error, UnsupportedEncoding):
        headers = {"Accept-Encoding": error.taken}  # RFC 9110, 15.5.16
    members = error.members if isinstance(error, NotAnswered) else None
    return problem(error.status, error.type, error.title, error.detail, headers=headers, members=members)


def answer_bug(told: Family[Counter]) -> Response:
    """A fault of ours: nothing of its inside is shown."""
    return answer_error(RollcastError("a fault of the server; its log has the details"), told)


def where(scope: MutableMapping[str, Any]) -> dict[str, object]:
    """Which call it was, for the log: never its query, headers or body."""
    route = getattr(scope.get("route"), "path", "unmatched")
    return {"method": scope.get("method"), "route": route, "stream": scope.get("path_params", {}).get("stream")}


def add_handlers(app: FastAPI, told: Family[Counter]) -> None:
    """Every error that leaves a route, and those that never reach one."""

    @app.exception_handler(RollcastError)
    async def on_rollcast_error(request: Request, error: RollcastError) -> Response:
        if isinstance(error, Unavailable):
            said = {"status": error.status, "reason": error.reason, "detail": error.detail}
            log.warning("a call was turned away", extra=where(request.scope) | said)
        return answer_error(error, told)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        title = HTTPStatus(error.status_code).phrase
        kind = HTTP_TYPES.get(error.status_code, title.lower().replace(" ", "-"))
        told.labels(HTTP, kind).inc()
        detail = f"{request.method} {request.url.path} is no call of this server; /docs lists them"
        return problem(error.status_code, kind, title, detail, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return answer_error(RequestError("; ".join(faults)), told)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it
