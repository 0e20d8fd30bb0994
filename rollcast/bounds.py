"""What may be received: whoever answers at a URL may send without end, and a client is to notice."""

from __future__ import annotations

import time as clock
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx

MAX_ANSWER: Final = 256 << 20  # bytes of one answer
MAX_LINE: Final = 64 << 20  # of an answer without end: bytes of one line, and of one event
LONGEST_S: Final = 600.0  # that an answer with an end may take
ENDLESS: Final = "rollcast-endless"  # of a request whose answer goes on for ever, line by line


def watch(response: httpx.Response) -> None:
    """httpx's hook for answers: their bodies are counted from here on."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx.RemoteProtocolError("the answer is compressed, which was not asked for")
    response.stream = _Counted(response.stream, _Count(bool(response.request.extensions.get(ENDLESS))))


async def watch_async(response: httpx.Response) -> None:
    """The same for asyncio."""
    watch(response)


class _Count:
    def __init__(self, endless: bool) -> None:
        self._endless, self._bytes, self._until = endless, 0, clock.monotonic() + LONGEST_S

    def take(self, piece: bytes) -> bytes:
        if self._endless and (end := piece.rfind(b"\n")) >= 0:
            self._bytes = len(piece) - end - 1
        else:
            self._bytes += len(piece)
        most = MAX_LINE if self._endless else MAX_ANSWER
        if self._bytes > most:
            raise httpx.RemoteProtocolError(f"the answer has a part of more than {most} bytes")
        if not self._endless and clock.monotonic() > self._until:
            raise httpx.RemoteProtocolError(f"the answer has not ended after {LONGEST_S:g} s")
        return piece


class _Counted(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, stream: Any, count: _Count) -> None:
        self._stream, self._count = stream, count

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            yield self._count.take(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield self._count.take(piece)

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()
