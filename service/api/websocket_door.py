"""WebSockets as uvicorn speaks them, with bounds: of messages and their fragments, of what is read ahead of a route."""

from __future__ import annotations

from asyncio.transports import BaseTransport
from collections import deque
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from service.api.doors import HELLO_BYTES, LINGER_S, Doors, client_of
from service.api.http_door import say_goodbye
from service.api.problems import answer_error
from service.errors import HeadTooLarge, RollcastError, Unavailable

PIECE: Final = 4096  # bytes parsed at once: some seven hundred of the smallest frames
FRAGMENTS: Final = 4096  # of one message
CONTROLS: Final = 256  # pings and pongs in a second
HELD: Final = 64 * 2**10  # bytes of an unfinished message that are not worth counting


class WebSocketDoor(WebSocketsSansIOProtocol):
    """One WebSocket. It takes the place of the request that it began as.

    What came is parsed a piece at a time, and nothing behind a message that the route has not taken.
    """

    def __init__(self, doors: Doors, **given: Any) -> None:
        super().__init__(**given)
        self.peer = ""
        self._doors = doors
        self._ahead = b""  # came, and waits to be parsed
        self._limit = HELLO_BYTES  # of the next message
        self._size = self._fragments = 0  # of the message that is under way
        self._queued = 0  # bytes of messages that the route has not done with
        self._sizes: deque[int] = deque()  # of those that it has not taken
        self._taken: int | None = None  # bytes of the one that it is at
        self._controls, self._second = 0, 0.0  # in the current second
        self._ended = False
        self._counted = ""  # why it ended

    # --- what clients send ---------------------------------------------------------------------------------------

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = client_of(transport.get_extra_info("peername"))
        self._doors.enter(self)
        self._doors.waits(self, "body")  # for hello

    def connection_lost(self, exc: Exception | None) -> None:
        self._ahead = b""
        self._doors.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if not self.handshake_initiated:
            super().data_received(data)
            if not self.handshake_initiated:  # the parser of WebSockets has narrower bounds on a head
                self._refuse_handshake()
            return
        self._ahead = self._ahead + data if self._ahead else data
        self._parse()

    def _parse(self) -> None:
        """As much as may be parsed now."""
        data, at = self._ahead, 0
        while at < len(data) and not self.read_paused and self.writable.is_set() and not self._ended:
            piece = data[at : at + PIECE]
            at += len(piece)
            super().data_received(piece)
            if self._size + len(self.conn.reader.buffer) > self._limit:
                self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {self._limit} bytes", "message_bytes")
        if self._ended:
            return
        self._ahead = data[at:]
        if self._ahead and self.transport.is_reading():
            self.transport.pause_reading()
        self._say()

    def _say(self) -> None:
        """Tells the doors what this connection waits for, and what it holds."""
        if self._ended or self.disconnected:
            return
        under_way = self._size + len(self.conn.reader.buffer)
        if under_way or self._limit == HELLO_BYTES:
            self._doors.waits(self, "body", again=True)
        else:
            self._doors.waits(self, None)
        held = under_way + len(self._ahead) + self._queued
        self._doors.holds(self, held if held > HELD else 0, whole=self._taken is not None and self.writable.is_set())

    async def receive(self) -> Any:
        if self._taken is not None:
            self._queued -= self._taken
            self._taken = None
            self._say()
        message = await super().receive()
        if message["type"] == "websocket.receive":
            self._taken = self._sizes.popleft()
        self._go_on()
        return message

    def pause_writing(self) -> None:
        super().pause_writing()
        self._say()  # a client that does not read its answers keeps what it sent in memory

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def _go_on(self) -> None:
        if self._ended or self.disconnected or self.read_paused or not self.writable.is_set():
            return
        self._parse()
        if not self._ahead and not self.read_paused:
            self._resume_reading()

    # --- what the parser finds -----------------------------------------------------------------------------------

    def handle_text(self, event: Frame) -> None:
        if self._begins(event):
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if self._begins(event):
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if self._fits(self._size + len(event.data), self._fragments + 1):
            super().handle_cont(event)

    def _begins(self, event: Frame) -> bool:
        return self._fits(len(event.data), 1)

    def _fits(self, size: int, fragments: int) -> bool:
        self._size, self._fragments = size, fragments
        if self._ended:
            return False
        if size > self._limit:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {self._limit} bytes", "message_bytes")
        elif fragments > FRAGMENTS:
            self._fail(CloseCode.POLICY_VIOLATION, f"a message of more than {FRAGMENTS} fragments", "frames")
        return not self._ended

    def send_receive_event_to_app(self) -> None:
        size, self._size, self._fragments = self._size, 0, 0
        thrown_away = self.close_sent
        super().send_receive_event_to_app()
        if not self._ended and not thrown_away:
            self._limit = self._doors.limits.message_bytes
            self._sizes.append(size)
            self._queued += size

    def handle_ping(self) -> None:
        if self._may_control():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._may_control():
            super().handle_pong(event)

    def _may_control(self) -> bool:
        now = self.loop.time()
        if now - self._second >= 1.0:
            self._controls, self._second = 0, now
        self._controls += 1
        if self._controls > CONTROLS and not self._ended:
            self._fail(CloseCode.POLICY_VIOLATION, f"more than {CONTROLS} pings and pongs in a second", "frames")
        return not self._ended

    # --- what the server sends -----------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        if self._ended:
            raise ClientDisconnected
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            await super().send(message)
            self.handshake_complete = True  # by a refusal
            self._leave()
            return
        await super().send(message)
        if message["type"] == "websocket.close" and not self._ended:
            self._doors.answered(self)
            self._go_on()  # the answer to the close may have come already

    # --- the end -------------------------------------------------------------------------------------------------

    def turn_away(self, error: RollcastError, reason: str) -> None:
        code = CloseCode.TRY_AGAIN_LATER if isinstance(error, Unavailable) else CloseCode.POLICY_VIOLATION
        if self.handshake_complete:
            self._fail(code, error.detail, reason)
        elif not self._ended:
            self._doors.refused(reason)
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
            self._end(error)

    def _refuse_handshake(self) -> None:
        self._doors.refused("head_bytes")
        self._end(HeadTooLarge("a WebSocket's request of too many headers, of too long ones, or with a body"))

    def _end(self, error: RollcastError) -> None:
        self.handshake_complete = self.close_sent = True
        say_goodbye(self.transport, answer_error(error, self._doors.told), self.default_headers)
        self._leave()

    def _fail(self, code: CloseCode, reason: str, counted: str) -> None:
        if not self._ended:
            self._counted = counted
            self.conn.fail(code, reason[:120])
            self.handle_parser_exception()

    def handle_close(self, event: Frame) -> None:
        if not self._ended:
            super().handle_close(event)
            self._doors.answered(self)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._doors.answered(self)  # a client that does not read keeps its connection no longer

    def handle_parser_exception(self) -> None:
        """Says why with a close frame; the client has a moment to read it."""
        close = self.conn.close_sent
        code, reason = (close.code, close.reason) if close is not None else (1006, "")
        self._doors.refused(self._counted or ("message_bytes" if code == CloseCode.MESSAGE_TOO_BIG else "malformed"))
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._leave()

    def _leave(self) -> None:
        """What still comes is read and thrown away, so that the client is not kept from reading the last answer."""
        self._ended, self._ahead = True, b""
        self.stop_keepalive()
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self._resume_reading()
        self._doors.leaves(self)

    def _resume_reading(self) -> None:
        if not self.transport.is_closing() and not self.transport.is_reading():
            self.transport.resume_reading()

    def paused(self) -> bool:
        return self.read_paused or not self.writable.is_set()

    def unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def cut(self) -> None:
        self.transport.abort()
