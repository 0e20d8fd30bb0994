"""How long a request takes up to the head of its answer, by route and status."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import ApiMetrics


class Timing:
    """Plain ASGI middleware: it never touches bodies, so that a subscription is not held up."""

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
            if not status:
                self._observe(scope, 500, begun)
            raise

    def _observe(self, scope: Scope, status: int, begun: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._seconds.labels(route, status).observe(time.monotonic() - begun)
