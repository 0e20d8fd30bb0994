"""HTTP/1.1 as uvicorn speaks it, with bounds: of a head's bytes and time, of silence in a body, of requests ahead."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.doors import HOLD, Doors, client_of
from service.api.problems import answer_error
from service.errors import Crowded, HeadTooLarge, RequestError, RollcastError

PIECE: Final = 1024  # bytes parsed at once where a head may be among them: some fifty of the smallest requests
HEADERS: Final = 256  # of one request
BODY_PIECE: Final = 64 * 2**10
AHEAD: Final = 2**20  # bytes of later requests, at most, that wait for the answer to an earlier one


class HttpDoor(HttpToolsProtocol):
    """One connection until it closes or becomes a WebSocket.

    What came is parsed a piece at a time, and nothing behind a request before that is answered. So a bound on what was
    parsed since the last head or piece of a body is one on heads, trailers and the heads of chunks.
    """

    def __init__(self, doors: Doors, **given: Any) -> None:
        super().__init__(**given)
        self.peer = ""
        self._doors = doors
        self._ahead = b""  # came, and waits to be parsed
        self._silent = 0  # bytes that were parsed since a head was complete or a piece of a body came
        self._left = 0  # of the body, as its length was said
        self._in_body = False
        self._body_bytes = 0  # that came of it
        self._current: RequestResponseCycle | None = None  # being answered; `cycle` is the newest that was parsed
        self._headers_too_many = self._ended = self._upgraded = False

    # --- what clients send ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = client_of(transport.get_extra_info("peername"))
        if self._doors.admit(self):
            self._doors.waits(self, "head")
        else:
            self._end(Crowded("too many connections: try again", 1.0), "connections", asked=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ahead = b""
        self.pipeline.clear()
        self._abandon()
        self._doors.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._ahead = self._ahead + data if self._ahead else data
        self._parse()
        if len(self._ahead) > AHEAD:
            self.turn_away(Crowded("too many requests ahead of their answers", 1.0), "unfinished_bytes")
        elif self._ahead:
            self.flow.pause_reading()

    def _parse(self) -> None:
        """As much as may be parsed now."""
        data, at = self._ahead, 0
        while at < len(data) and not self._ended and not self._upgraded and not self._answering():
            piece = data[at : at + min(max(self._left, PIECE), BODY_PIECE)]
            at += len(piece)
            self._silent += len(piece)
            super().data_received(piece)
            if self._silent > self._doors.limits.head_bytes:
                limit = self._doors.limits.head_bytes
                self.turn_away(HeadTooLarge(f"head or trailers of more than {limit} bytes"), "head_bytes")
        if self._ended or self._upgraded:
            self._ahead = b""
            return
        self._ahead = data[at:]
        self._say()

    def _answering(self) -> bool:
        """A request is complete and its answer is not."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _say(self) -> None:
        """Tells the doors what this connection waits for, and what it holds."""
        if self._in_body:
            self._doors.waits(self, "body", again=True)
        elif self._answering():
            self._doors.waits(self, None)
        else:
            self._doors.waits(self, "head" if self._silent else "idle")
            if not self._silent and self.timeout_keep_alive_task is None:  # the rest of an answered body has come
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        held = self._body_bytes + len(self._ahead) + self._silent
        self._doors.holds(self, held, whole=not self._in_body and not self._ahead and not self._silent)

    def _hold(self, more: int | None) -> None:
        """For routes: the body takes so many bytes more in memory, or less; None: none any more. Raises Crowded where
        there is no room for more."""
        self._body_bytes = 0 if more is None else max(0, self._body_bytes + more)
        self._doors.holds(self, self._body_bytes + len(self._ahead), whole=not self._in_body)
        if more is not None and more > 0:
            self._doors.check_room()

    # --- what the parser finds -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._left = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer: nothing reads them, and as headers they would come too late to be checked
            return
        if len(self.headers) == HEADERS:
            self._headers_too_many = True
            raise ValueError(name)  # which ends the parsing: no call is made with some of its headers
        super().on_header(name, value)
        if name.lower() == b"content-length" and value.isdigit():
            self._left = int(value)

    def on_headers_complete(self) -> None:
        if not self.url.startswith(b"/"):
            self._take_host_of_target()
        self._silent, self._body_bytes, self._in_body = 0, 0, True
        self.scope["extensions"] = {HOLD: self._hold}  # type: ignore[dict-item]
        super().on_headers_complete()
        if not self.pipeline:
            self._current = self.cycle

    def _take_host_of_target(self) -> None:
        """RFC 9112, 3.2.2: where the target is a whole URL it names the host, whatever the header says."""
        target = httptools.parse_url(self.url)
        if target.host is None:
            return
        host = b"[%s]" % target.host if b":" in target.host else target.host
        if target.port:
            host += b":%d" % target.port
        self.headers[:] = [(name, host if name == b"host" else value) for name, value in self.headers]

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        self._left -= len(body)
        if self.cycle is not None and not self.cycle.response_complete:
            self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent, self._left, self._in_body = 0, 0, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._current = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self._ended:
            return
        self._body_bytes = 0  # what still comes of its body is thrown away
        self._doors.answered(self)
        if self.transport.is_closing():
            self._ahead = b""  # nothing is done for a client that cannot be answered
            return
        self._parse()
        if self._ahead:
            self.flow.pause_reading()

    def handle_websocket_upgrade(self) -> None:
        if self._answering():
            self.turn_away(RequestError("a WebSocket cannot begin before an earlier answer has ended"), "malformed")
            return
        self._upgraded = True
        self._doors.leave(self)  # the WebSocket takes its place
        super().handle_websocket_upgrade()

    # --- the end -------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        if self._headers_too_many:
            self._end(HeadTooLarge(f"a head of more than {HEADERS} headers"), "head_bytes", asked=True)
        else:
            self._end(RequestError("not a request of HTTP that can be read"), "malformed", asked=True)

    def turn_away(self, error: RollcastError, reason: str) -> None:
        """Answers with a problem, unless nothing was asked or an earlier answer is under way, and closes."""
        if self._ended:
            return
        asked = self._silent > 0 or self._in_body or self._answering()
        self._end(error, reason, asked)

    def _end(self, error: RollcastError, reason: str, asked: bool) -> None:
        self._ended, self._ahead = True, b""
        self._doors.refused(reason)
        self._doors.leaves(self)
        self._unset_keepalive_if_required()
        late = bool(self.pipeline) or not asked
        self.pipeline.clear()
        late = late or (self._current is not None and self._current.response_started)
        self._abandon()
        if self.transport.is_closing():
            return
        if late:
            self.transport.close()
        else:
            say_goodbye(self.transport, answer_error(error, self._doors.told), self.server_state.default_headers)
            self.flow.resume_reading()

    def _abandon(self) -> None:
        """Tells whoever answers the current request that its client is gone. (The framework tells the newest one.)"""
        if self._current is not None:
            self._current.disconnected = True
            self._current.message_event.set()

    def paused(self) -> bool:
        return self.flow.read_paused

    def unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def cut(self) -> None:
        self.transport.abort()


def say_goodbye(transport: asyncio.Transport, answer: Response, headers: list[tuple[bytes, bytes]]) -> None:
    """`answer` as the last one of a connection. What still comes must be read for a while: to close a socket with
    unread bytes in it would take the answer from the client, too."""
    own = [(b"x-content-type-options", b"nosniff"), (b"connection", b"close")]
    lines = [b"%s: %s\r\n" % line for line in (*headers, *answer.raw_headers, *own)]
    transport.write(b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)]))
    if transport.can_write_eof():
        transport.write_eof()
