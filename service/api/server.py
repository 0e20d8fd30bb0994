"""How the app is served: uvicorn, with doors that bound what clients may hold."""

from __future__ import annotations

import socket
from functools import partial
from typing import Final

import uvicorn
from fastapi import FastAPI

from service.api.doors import DoorLimits, Doors
from service.api.http_door import HttpDoor
from service.api.websocket_door import WebSocketDoor

GRACE_S: Final = 5  # how long open answers may take when the server stops
BYE_S: Final = 1.0  # how long subscribers may take to hear that it stops
MESSAGE_BYTES: Final = 16 * 2**20


def message_bytes(entry_bytes: int) -> int:
    """Of one WebSocket message: room for the largest entry in base64, and what is around it."""
    return max(MESSAGE_BYTES, 2 * entry_bytes)


class Server(uvicorn.Server):
    """Serves an app of `create_app`. Tells it that it is closing before it waits for open answers, and cuts WebSockets:
    subscriptions end by themselves."""

    def __init__(
        self, app: FastAPI, limits: DoorLimits, host: str = "127.0.0.1", port: int = 0, grace_s: int = GRACE_S
    ) -> None:
        self._app, self._doors = app, Doors(limits, app.state.metrics)
        config = uvicorn.Config(
            app,
            host,
            port,
            log_config=None,
            log_level="warning",
            access_log=False,
            http=partial(HttpDoor, self._doors),  # type: ignore[arg-type]
            ws=partial(WebSocketDoor, self._doors),  # type: ignore[arg-type]
            ws_max_size=limits.message_bytes,
            ws_per_message_deflate=False,  # 64 kB of it may be 64 MB
            timeout_keep_alive=limits.idle_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=grace_s,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._doors.watch()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.closing.set()
        await self._app.state.said_bye(BYE_S)
        await super().shutdown(sockets)
        self._doors.close()
