"""What may be received: whoever answers at a URL may send without end, and a client is to notice."""

from __future__ import annotations

import time as clock
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx

from rollcast.errors import BadAnswer

MAX_ANSWER: Final = 256 << 20  # bytes of one answer
MAX_LINE: Final = 64 << 20  # of an answer without end: bytes of one line, and of one event
LONGEST_S: Final = 600.0  # that an answer with an end may take
ENDLESS: Final = "rollcast-endless"  # of a request whose answer goes on for ever, line by line


def watch(response: httpx.Response) -> None:
    """httpx's hook for answers: their bodies are counted from here on."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadAnswer(f"{_place(response)} answers compressed, which was not asked for")
    count = _Count(_place(response), bool(response.request.extensions.get(ENDLESS)))
    response.stream = _Counted(response.stream, count)


async def watch_async(response: httpx.Response) -> None:
    """The same for asyncio."""
    watch(response)


def _place(response: httpx.Response) -> str:
    url = response.request.url
    return f"what listens on {url.host}" + (f":{url.port}" if url.port is not None else "")


class _Count:
    """What has come of one answer. Raises BadAnswer beyond the bounds."""

    def __init__(self, place: str, endless: bool) -> None:
        self._place, self._endless = place, endless
        self._bytes, self._until = 0, clock.monotonic() + LONGEST_S

    def take(self, piece: bytes) -> bytes:
        if self._endless and (end := piece.rfind(b"\n")) >= 0:
            self._bytes = len(piece) - end - 1
        else:
            self._bytes += len(piece)
        most = MAX_LINE if self._endless else MAX_ANSWER
        if self._bytes > most:
            raise BadAnswer(f"{self._place} answers with more than {most} bytes{' in a line' * self._endless}")
        if not self._endless and clock.monotonic() > self._until:
            raise BadAnswer(f"{self._place} has not ended its answer after {LONGEST_S:g} s")
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
