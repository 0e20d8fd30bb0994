"""Around every request: is it meant for us, can it be read, how long does it take up to the head of its answer, and an
answer whatever fails inside."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.browsers import Names
from service.api.encodings import read_coding
from service.api.problems import answer_bug, answer_error, where
from service.errors import ForeignHost, ForeignOrigin, RequestError, UnsupportedEncoding
from service.metrics import ApiMetrics

NO_SNIFF = (b"x-content-type-options", b"nosniff")
log = logging.getLogger("rollcast.api")


class Outermost:
    """Plain ASGI middleware: it never touches bodies, so that a subscription is not held up.

    Faults are answered here, not by the framework, which would close the client's connection after them.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, names: Names) -> None:
        self._app, self._names = app, names
        self._seconds, self._refused = metrics.http_request_seconds, metrics.requests_refused
        self._told = metrics.problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket" and (error := self._foreign(scope)) is not None:
            await answer_error(error, self._told)(scope, receive, send)  # as HTTP, in place of a WebSocket
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), NO_SNIFF]
                self._observe(scope, status, begun)
            await send(message)

        if (error := self._foreign(scope)) is not None:
            await answer_error(error, self._told)(scope, receive, watched)
            return
        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("a request failed", extra=where(scope))
            if status:
                raise  # its answer was under way: only the end of the connection can tell the client
            await answer_bug(self._told)(scope, receive, watched)

    def _foreign(self, scope: Scope) -> RequestError | None:
        """Why the call is not for us, not from where it may come, or packed as nobody here unpacks it."""
        try:
            self._names.check(scope)
            read_coding(scope["headers"])
        except RequestError as error:
            named = error.reason if isinstance(error, ForeignOrigin | UnsupportedEncoding) else ForeignHost.reason
            self._refused.labels(named).inc()
            return error
        return None

    def _observe(self, scope: Scope, status: int, begun: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._seconds.labels(route, status).observe(time.monotonic() - begun)
