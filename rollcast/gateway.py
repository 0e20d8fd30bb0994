"""A WebSocket for high rates: many entries of many streams a message, answered together; records on the way back."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from rollcast.entries import Entry
from rollcast.errors import away, to_problem
from rollcast.results import Prediction, Record
from rollcast.talk import Answer, Batch, Talk, messages

ANSWER_S: Final = 60.0  # in which the answer to a message must come
LOST: Final = (WebSocketException, OSError, TimeoutError)
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class Gateway:
    """Made by `Client.gateway`. Not for several threads at once.

    A lost connection is made again. What was sent and not answered is then sent again where every entry has a `seq`
    (`Client(url, numbered=True)` gives them); an id may then be that of a `duplicate`, whose record names the first.
    """

    def __init__(self, url: str, talk: Talk, number: Callable[[Entry], Entry], retry_s: float) -> None:
        self._url, self._talk, self._number, self._retry_s = url, talk, number, retry_s
        self._opened = ExitStack()
        self._socket: ClientConnection | None = None
        self._reached = False  # a server has answered here before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lose()

    def post(self, entries: Sequence[Entry]) -> list[Answer]:
        """Posts entries and waits until each is in the log: in their order an Accepted each, or the Problem that keeps
        it out. What the server asks to post later (429, 503) is posted again, as long as order allows it.
        Raises ServerAway."""
        answers: list[Answer] = []
        for part in messages(entries):
            answers += self._post([self._number(entry) for entry in part])
        return answers

    def predictions(self) -> Iterator[Prediction]:
        """The predictions of the streams that were asked for, or else of those that were posted to here, for ever."""
        return (record for record in self.records() if isinstance(record, Prediction))

    def records(self) -> Iterator[Record]:
        """As `predictions`, but every record, and a Gap where some cannot be delivered. `json` stays empty."""
        pause_s = FIRST_PAUSE_S
        while True:
            while self._talk.records:
                yield self._talk.records.popleft()
            try:
                self._hear(self._connected(), None)
                pause_s = FIRST_PAUSE_S
                if self._talk.over:
                    self._lose()
            except LOST as error:
                self._lose()
                if not self._reached:
                    raise away(self._url, error) from None
                clock.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    # --- inside --------------------------------------------------------------------------------------------------

    def _post(self, entries: Sequence[Entry]) -> list[Answer]:
        self._talk.posting(entries)
        batch = Batch(self._url, entries, self._retry_s)
        while batch:
            sent = False
            try:
                socket = self._connected()
                sent = True
                socket.send(self._talk.sending(batch))
                while len(self._talk.said) < len(batch):
                    self._talk.check()
                    self._hear(socket, ANSWER_S)
            except LOST as error:
                self._lose()
                clock.sleep(batch.lost(error, sent, self._reached))
            else:
                clock.sleep(batch.settle(self._talk.answers()))
            if self._talk.over:
                self._lose()
        return batch.answers

    def _hear(self, socket: ClientConnection, limit_s: float | None) -> None:
        self._talk.take(packed(socket.recv(limit_s)))

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            try:
                self._socket = self._opened.enter_context(connect(**arguments(self._url, self._talk.key)))
            except InvalidStatus as error:
                self._reached = True
                check_passes(error)
                raise
            self._reached = True
            self._socket.send(self._talk.hello())
            self._hear(self._socket, ANSWER_S)
            self._talk.check_welcome()
            while not self._talk.placed:
                self._hear(self._socket, ANSWER_S)
        return self._socket

    def _lose(self) -> None:
        self._socket = None
        self._opened.close()


def arguments(url: str, key: str | None) -> dict[str, Any]:
    """Of websockets' `connect`."""
    near = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    return {
        "uri": f"ws{url.removeprefix('http')}/v1/ws",
        "additional_headers": {} if key is None else {"Authorization": f"Bearer {key}"},
        "compression": None,
        "max_size": None,
        "open_timeout": 10.0,
        "close_timeout": 1.0,
        "proxy": None if near else True,
    }


def check_passes(refused: InvalidStatus) -> None:
    """Raises Problem where it is not worth asking for the WebSocket again."""
    answer = refused.response
    headers = list(answer.headers.raw_items())
    problem = to_problem(httpx.Response(answer.status_code, headers=headers, content=bytes(answer.body or b"")))
    if not problem.passes:
        raise problem from None


def packed(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise ConnectionError(f"expected MessagePack, as hello was: {message[:200]}")
    return message
