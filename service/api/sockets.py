"""WebSockets: entries in, acknowledgements and records out. docs/streams.md describes the messages.

Two tasks a connection: one reads messages, appends their entries and acknowledges them; the other delivers records.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from service.api.context import LARGE_BYTES, Context
from service.api.follower import Subscription
from service.api.intake import Intake, Ready
from service.api.many import ManyTail
from service.api.messages import (
    Ack,
    Answer,
    Hello,
    Message,
    Welcome,
    encode_answers,
    encode_batch,
    read_entry,
    read_hello,
    split_message,
)
from service.api.patterns import read_pattern
from service.api.posted import PostedEntry
from service.api.problems import MESSAGE
from service.api.query import read_cursor
from service.api.tails import Follows, Tail, deliver, watch_gaps
from service.api.tasks import end
from service.contracts import check_stream_id
from service.cursors import decode_cursor
from service.errors import BadStreamId, BrokerAway, Busy, Malformed, RollcastError, Unavailable
from service.turns import Turn

HELLO_S: Final = 10.0  # in which the first message must come
GOING_AWAY: Final = 1001  # close codes of RFC 6455
POLICY_VIOLATION: Final = 1008
TRY_AGAIN_LATER: Final = 1013
log = logging.getLogger("rollcast.api")


def socket_routes(context: Context) -> APIRouter:
    router = APIRouter()
    intake = Intake(context)

    @router.websocket("/v1/streams/{stream}/ws")
    async def one_stream(socket: WebSocket, stream: str) -> None:
        def follow(hello: Hello) -> tuple[Subscription, Follows]:
            check_stream_id(stream)
            if hello.streams is not None or hello.posted:
                raise Malformed("hello: streams cannot be given on the WebSocket of one stream")
            cursor = None if hello.after is None else read_cursor(hello.after, "hello: after")
            subscription = context.follower.subscribe(stream, transport="websocket", when_full=hello.when_full)
            return subscription, Tail(context.predictions, stream, cursor, exact=False)

        await Connection(context, intake, socket, stream).run(follow)

    @router.websocket("/v1/ws")
    async def many_streams(socket: WebSocket) -> None:
        def follow(hello: Hello) -> tuple[Subscription, Follows]:
            places = None
            if hello.after is not None:
                places = decode_cursor(hello.after, context.predictions.shards, "hello: after")
            if hello.streams is not None and hello.posted:
                raise Malformed("hello: streams and posted: expected one of them")
            wants = None if hello.streams is None else read_pattern(hello.streams)
            names = [check_stream_id(name) for name in hello.posted]
            subscription = context.follower.subscribe(wants, transport="websocket", when_full=hello.when_full)
            for name in names:
                context.follower.choose(subscription, name)
            return subscription, ManyTail(context.predictions, context.follower, subscription.fits, places)

        await Connection(context, intake, socket, None).run(follow)

    return router


_Prepared = tuple[Ready, int | None] | RollcastError  # an entry and its seq, or what is wrong with it
Follow = Callable[[Hello], tuple[Subscription, Follows]]


class Connection:
    """One WebSocket. `stream`: the one it is of, or None for a gateway."""

    def __init__(self, context: Context, intake: Intake, socket: WebSocket, stream: str | None) -> None:
        self._context, self._intake, self._socket, self._stream = context, intake, socket, stream
        self._packed = False  # it speaks MessagePack, as its first message did
        self._sending = asyncio.Lock()
        self._subscription: Subscription | None = None
        self._tail: Follows | None = None
        self._placed = asyncio.Event()  # over many streams: the client was told its cursor

    async def run(self, follow: Follow) -> None:
        try:
            await self._socket.accept()
            async with asyncio.timeout(HELLO_S):
                first = await self._receive()
            self._packed = isinstance(first, bytes)
            subscription, tail = follow(read_hello(first))
        except TimeoutError:  # no refusal: on a busy machine the fault may be ours, and the client comes back
            self._context.metrics.requests_refused.labels("hello_s").inc()
            return await self._close(TRY_AGAIN_LATER, f"no message within {HELLO_S:g} s: expected hello")
        except RollcastError as error:
            return await self._refuse(error)
        except WebSocketDisconnect:
            return None
        self._subscription, self._tail = subscription, tail
        watch_gaps(tail, subscription, self._context.metrics, "websocket")
        tasks: list[asyncio.Task[None]] = []
        try:
            with suppress(BrokerAway):  # it is waited for
                await tail.begin()
            tasks += [asyncio.create_task(self._read()), asyncio.create_task(self._deliver(tail))]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, RuntimeError, OSError) as error:  # it went away, in whatever way that is told
            log.debug("a WebSocket ended", extra={"detail": str(error)})
        finally:
            await end(tasks)
            self._context.follower.unsubscribe(subscription, transport="websocket")
        return None

    # --- records out ---------------------------------------------------------------------------------------------

    async def _deliver(self, tail: Follows) -> None:
        assert self._subscription is not None
        many = self._stream is None
        await self._send(encode_answers([Welcome()], self._packed))
        async for batch in deliver(self._subscription, tail, self._context.heartbeat_s):
            message = encode_batch(batch, self._packed, many)
            if message is not None:
                await self._send(message)
            if any(cursor is not None for _, cursor in batch):
                self._placed.set()
        code = TRY_AGAIN_LATER if self._subscription.too_slow else GOING_AWAY
        await self._socket.close(code)

    # --- entries in ----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            try:
                async with self._context.bodies.above(len(message), LARGE_BYTES):
                    parts = split_message(message)
                    await asyncio.sleep(0)
                    prepared = await self._prepare_all(parts, isinstance(message, bytes))
            except (Malformed, Busy) as error:
                await self._send(encode_answers([self._context.told(MESSAGE, error)], self._packed))
                continue
            await self._send(encode_answers(await self._append(prepared), self._packed))

    async def _prepare_all(self, parts: list[msgspec.Raw], packed: bool) -> list[_Prepared]:
        prepared: list[_Prepared] = []
        turn = Turn()
        for part in parts:
            try:
                entry = read_entry(part, packed)
                if turn.due():
                    await turn.over()
                prepared.append(await self._prepare(entry))
            except RollcastError as error:
                prepared.append(error)
        return prepared

    async def _append(self, prepared: list[_Prepared]) -> list[Answer]:
        """One answer an entry, in their order."""
        ready = [one[0] for one in prepared if isinstance(one, tuple)]
        found = iter(await self._appended(ready)) if ready else iter(())
        answers: list[Answer] = []
        for index, one in enumerate(prepared):
            told = next(found) if isinstance(one, tuple) else one
            if isinstance(told, RollcastError):
                answers.append(self._context.told(MESSAGE, told, index))
            else:
                assert isinstance(one, tuple)
                answers.append(Ack(told, one[0].stream, one[0].model, one[1]))
        return answers

    async def _appended(self, ready: list[Ready]) -> list[str | RollcastError]:
        """Behind the gate of bodies: the place may be waited for as long as the broker and the client take."""
        try:
            await self._place()
        except BrokerAway as error:
            self._context.metrics.turned_away.labels(error.reason).inc(len(ready))
            return [error] * len(ready)
        return await self._intake.append_many(ready)

    async def _prepare(self, entry: PostedEntry) -> tuple[Ready, int | None]:
        if self._stream is not None:
            if entry.stream not in ("", self._stream):
                raise BadStreamId(f"stream {entry.stream!r} on the WebSocket of stream {self._stream!r}")
            entry = msgspec.structs.replace(entry, stream=self._stream)
        ready = await self._intake.posted(entry)
        if self._subscription is not None and self._subscription.chosen is not None:
            self._context.follower.choose(self._subscription, ready.stream)
        return ready, entry.seq

    async def _place(self) -> None:
        """Before an entry is in the log: its record is not missed, also by a client that comes back. Raises
        BrokerAway."""
        assert self._tail is not None
        assert self._subscription is not None
        await self._tail.begin()
        if self._stream is None and not self._placed.is_set():
            self._subscription.read_again()  # where it waits for the broker: its cursor is told now
            await self._placed.wait()

    # --- the socket ----------------------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        data = message.get("bytes")
        found: Message = message["text"] if data is None else data
        return found

    async def _send(self, message: Message) -> None:
        async with self._sending:
            if isinstance(message, str):
                await self._socket.send_text(message)
            else:
                await self._socket.send_bytes(message)

    async def _refuse(self, error: RollcastError) -> None:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            await self._send(encode_answers([self._context.told(MESSAGE, error)], self._packed))
        await self._close(TRY_AGAIN_LATER if isinstance(error, Unavailable) else POLICY_VIOLATION)

    async def _close(self, code: int, reason: str | None = None) -> None:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            await self._socket.close(code, reason)
