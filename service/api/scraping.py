"""The workers' metrics, fetched from this machine, within bounds.

The list of workers may be somebody else's work and name any address, with an answer that never ends: only a port is
taken from it, the answer has a largest size and an end, and what is no exposition is left out.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx

SCRAPE_S: Final = 1.0  # a worker that has not answered as a whole by then is left out
SCRAPE_ALL_S: Final = 4.0  # so are those that are not through by then
AT_ONCE: Final = 8  # asked, over all calls
ASKED: Final = 64  # workers, a call
MAX_BYTES: Final = 8 << 20  # of one answer
MAX_LINE: Final = 16 << 10  # characters; what looks at a line lets no other thread run
MAX_ALL_BYTES: Final = 32 << 20  # of all answers to one call
_LABEL: Final = r'[a-zA-Z_]\w*="(?:[^"\\]|\\.)*"'
_LABELS: Final = rf"\{{(?:{_LABEL}(?:,{_LABEL})*,?)?\}}"
_LINE: Final = re.compile(
    rf"# HELP [a-zA-Z_:][\w:]* .*|# TYPE [a-zA-Z_:][\w:]* \w+|[a-zA-Z_:][\w:]*(?:{_LABELS})? [-+\w.]+(?: -?\d+)?|",
    re.ASCII,
)
log = logging.getLogger("rollcast.api")


def port_of(said: str) -> int | None:
    """The port in what a worker says of its metrics; nothing else of it is used.

    >>> port_of("http://127.0.0.1:9101/metrics"), port_of("http://10.0.0.1:80/x"), port_of("http://h/"), port_of("x")
    (9101, 80, None, None)
    """
    try:
        return urlsplit(said).port or None
    except ValueError:
        return None


class Scraper:
    """Asks the workers of this machine. One for a process: it bounds how many are asked at once."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def scrape(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Process -> its metrics; those that do not answer in time and within bounds are left out."""
        some = dict(list(ports.items())[:ASKED])
        tasks = {process: asyncio.create_task(self._get(port)) for process, port in some.items()}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=SCRAPE_ALL_S)
        texts: dict[str, str] = {}
        left = MAX_ALL_BYTES
        for process, task in tasks.items():
            if not task.cancel() and (text := task.result()) is not None and len(text) <= left:
                left -= len(text)
                texts[process] = text
        return texts

    async def _get(self, port: int) -> str | None:
        url = f"http://127.0.0.1:{port}/metrics"
        try:
            async with self._turns, asyncio.timeout(SCRAPE_S):
                return await self._read(url)
        except (httpx.HTTPError, httpx.StreamError, TimeoutError, ValueError) as error:
            detail = str(error) or type(error).__name__
            log.warning("a worker's metrics cannot be read", extra={"url": url, "detail": detail})
            return None

    async def _read(self, url: str) -> str:
        """Raises httpx.HTTPError and ValueError."""
        plain = {"Accept-Encoding": "identity"}
        async with self._http.stream("GET", url, timeout=SCRAPE_S, follow_redirects=False, headers=plain) as answer:
            if answer.status_code != 200:
                raise ValueError(f"answered {answer.status_code}")
            data = bytearray()
            async for piece in answer.aiter_raw():  # never unpacked
                data += piece
                if len(data) > MAX_BYTES:
                    raise ValueError(f"more than {MAX_BYTES} bytes")
        return await asyncio.to_thread(read_exposition, bytes(data))


def read_exposition(data: bytes) -> str:
    """Raises ValueError where it is not Prometheus's text format.

    >>> read_exposition(b"# HELP a b\\n# TYPE a gauge\\na{l=\\"x\\"} 1\\n")
    '# HELP a b\\n# TYPE a gauge\\na{l="x"} 1\\n'
    """
    text = data.decode()
    for number, line in enumerate(lines_of(text), start=1):
        if len(line) > MAX_LINE or _LINE.fullmatch(line) is None:
            raise ValueError(f"line {number} is none of Prometheus's text format")
    return text


def lines_of(text: str) -> Iterator[str]:
    """One after the other: to split all of it at once would let no other thread run."""
    return (line.removesuffix("\n") for line in io.StringIO(text, newline="\n"))


def label_value(text: str) -> str:
    r"""As the text format writes it.

    >>> label_value('a"b')
    'a\\"b'
    """
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
