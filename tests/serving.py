"""An api process inside the test: real HTTP on 127.0.0.1, on any free port, stopped as `rollcast api` stops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx
from fastapi import FastAPI

from rollcast.events import ServerEvent, parse_events
from service.api import DoorLimits, Server
from tests.described import Document

LIMIT_S = 30.0


class Serving:
    """`with Serving(app) as api: api.http.get(…)`."""

    def __init__(self, app: FastAPI, grace_s: int = 10, limits: DoorLimits | None = None) -> None:
        self.app = app
        self._server = Server(app, limits or DoorLimits(), grace_s=grace_s)
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        await_true(lambda: self._server.started or not self._thread.is_alive(), "the api starts")
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        hooks: Any = {"response": [Document(self.app.openapi()).check]}  # every answer is one that /docs describes
        self.http = httpx.Client(base_url=self.url, timeout=LIMIT_S, event_hooks=hooks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.stop()

    def stop(self) -> float:
        """Seconds it took."""
        begun = time.monotonic()
        assert self._loop is not None
        if self._thread.is_alive():
            self._server.should_exit = True
            self._thread.join(60)
            assert not self._thread.is_alive()
        return time.monotonic() - begun

    @contextmanager
    def follow(self, stream: str, after: str | None = None, last: str | None = None) -> Iterator[Iterator[ServerEvent]]:
        """The events of a subscription."""
        with self.open(stream, after, last) as response:
            yield parse_events(response.iter_lines())

    @contextmanager
    def open(self, stream: str, after: str | None = None, last: str | None = None) -> Iterator[httpx.Response]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last is not None else {})
        params = {"after": after} if after is not None else {}
        with self.http.stream("GET", f"/v1/streams/{stream}/predictions", headers=headers, params=params) as response:
            assert response.status_code == 200
            yield response

    def post_rows(self, stream: str, *rows: list[float], **query: Any) -> str:
        """The id."""
        answer = self.http.post(f"/v1/streams/{stream}/samples", json={"samples": rows}, params=query)
        assert answer.status_code == 202, answer.text
        entry_id: str = answer.json()["id"]
        return entry_id

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve()

        asyncio.run(serve())


def await_true(condition: Any, what: str, limit_s: float = LIMIT_S) -> None:
    """Looks every 5 ms until it holds; fails past the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.005)
