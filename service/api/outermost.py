"""Around every request: how long it takes up to the head of its answer, and an answer whatever fails inside."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import answer_bug, where
from service.metrics import ApiMetrics

log = logging.getLogger("rollcast.api")


class Outermost:
    """Plain ASGI middleware: it never touches bodies, so that a subscription is not held up.

    Faults are answered here, not by the framework, which would close the client's connection after them.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._seconds = metrics.http_request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._observe(scope, status, begun)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("a request failed", extra=where(scope))
            if status:
                raise  # its answer was under way: only the end of the connection can tell the client
            await answer_bug()(scope, receive, watched)

    def _observe(self, scope: Scope, status: int, begun: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._seconds.labels(route, status).observe(time.monotonic() - begun)
