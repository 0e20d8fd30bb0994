"""The gateway for asyncio: one task hears what the server says, so that entries go out while records are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from rollcast.entries import Entry
from rollcast.errors import Problem, away
from rollcast.gateway import ANSWER_S, FIRST_PAUSE_S, LONGEST_PAUSE_S, LOST, arguments, check_passes, packed
from rollcast.results import Prediction, Record
from rollcast.talk import Answer, Batch, Talk, messages


class AsyncGateway:
    """As Gateway. Several tasks may post, one message after another; one may read records meanwhile."""

    def __init__(self, url: str, talk: Talk, number: Callable[[Entry], Awaitable[Entry]], retry_s: float) -> None:
        self._url, self._talk, self._number, self._retry_s = url, talk, number, retry_s
        self._socket: ClientConnection | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._reached = False
        self._closed = False
        self._posting, self._connecting = asyncio.Lock(), asyncio.Lock()
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        await self._lose()

    async def post(self, entries: Sequence[Entry]) -> list[Answer]:
        """As Gateway.post."""
        answers: list[Answer] = []
        async with self._posting:
            for part in messages(entries):
                answers += await self._post([await self._number(entry) for entry in part])
        return answers

    async def predictions(self) -> AsyncIterator[Prediction]:
        """As Gateway.predictions."""
        async for record in self.records():
            if isinstance(record, Prediction):
                yield record

    async def records(self) -> AsyncIterator[Record]:
        """As Gateway.records. Ends when the gateway is closed."""
        pause_s = FIRST_PAUSE_S
        while not self._closed:
            while self._talk.records:
                yield self._talk.records.popleft()
            try:
                await self._connected()
                pause_s = FIRST_PAUSE_S
            except LOST as error:
                if not self._reached:
                    raise away(self._url, error) from None
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
                continue
            async with self._news:
                await self._news.wait_for(lambda: self._talk.records or self._socket is None)

    # --- inside --------------------------------------------------------------------------------------------------

    async def _post(self, entries: Sequence[Entry]) -> list[Answer]:
        self._talk.posting(entries)
        batch = Batch(self._url, entries, self._retry_s)
        while batch:
            sent = False
            try:
                socket = await self._connected()
                sent = True
                await socket.send(self._talk.sending(batch))
                await self._answered(socket, len(batch))
            except LOST as error:
                await self._lose()
                await asyncio.sleep(batch.lost(error, sent, self._reached))
            else:
                await asyncio.sleep(batch.settle(self._talk.answers()))
        return batch.answers

    async def _answered(self, socket: ClientConnection, count: int) -> None:
        async with asyncio.timeout(ANSWER_S), self._news:
            await self._news.wait_for(lambda: len(self._talk.said) >= count or self._socket is not socket)
        if len(self._talk.said) < count:
            raise ConnectionError("the connection was lost before the answer")

    async def _connected(self) -> ClientConnection:
        async with self._connecting:
            if self._socket is None:
                try:
                    socket = await connect(**arguments(self._url, self._talk.key))
                except InvalidStatus as error:
                    self._reached = True
                    check_passes(error)
                    raise
                self._reached = True
                try:
                    await socket.send(self._talk.hello())
                    async with asyncio.timeout(ANSWER_S):
                        self._talk.take(packed(await socket.recv()))
                        self._talk.check_welcome()
                        while not self._talk.placed:
                            self._talk.take(packed(await socket.recv()))
                except (*LOST, Problem):
                    await socket.close()
                    raise
                self._socket = socket
                self._hearing = asyncio.create_task(self._hear(socket))
            return self._socket

    async def _hear(self, socket: ClientConnection) -> None:
        """Until the connection is lost."""
        with suppress(*LOST):
            while not self._talk.over:
                message = packed(await socket.recv())
                async with self._news:
                    self._talk.take(message)
                    self._news.notify_all()
        async with self._news:
            if self._socket is socket:
                self._socket = None
            self._news.notify_all()
        await socket.close()

    async def _lose(self) -> None:
        socket, hearing = self._socket, self._hearing
        self._socket = self._hearing = None
        if socket is not None:
            await socket.close()  # which ends the task that hears
        if hearing is not None:
            await hearing
