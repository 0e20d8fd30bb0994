"""What a worker says of itself comes from the broker: whoever wrote it, the api asks its own machine, within bounds."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
import redis
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.api.health import health_routes, merge
from service.api.scraping import AT_ONCE, MAX_BYTES, SCRAPE_ALL_S, SCRAPE_S, Scraper, port_of, read_exposition
from service.broker.predictions import RedisPredictions
from service.keys import worker_key, workers_key
from service.ports import WorkerInfo

pytestmark = pytest.mark.anyio
GOOD = b'# HELP rollcast_steps_total steps\n# TYPE rollcast_steps_total counter\nrollcast_steps_total{model="a"} 3.0\n'
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
Write = Callable[[bytes], Awaitable[None]]
Behaviour = Callable[[Write], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """Answers each call in the same way, and counts what it sent."""

    def __init__(self, behave: Behaviour) -> None:
        self.calls = self.sent = 0
        self._behave = behave
        self._tasks: set[asyncio.Task[Any]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.calls += 1

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()
            self.sent += len(data)

        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                await self._behave(write)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[tuple[Server, int]]:
    server = Server(behave)
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    async with listening:
        try:
            yield server, listening.sockets[0].getsockname()[1]
        finally:
            await server.end()


@pytest.fixture
async def scraper() -> AsyncIterator[Scraper]:
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        yield Scraper(http)


def saying(body: bytes, more: bytes = b"") -> Behaviour:
    async def behave(write: Write) -> None:
        await write(HEAD + more + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return behave


async def endless(write: Write) -> None:
    await write(HEAD + b"\r\n" + GOOD)
    while True:
        await write(b"# HELP a b\n" * 6_000)


async def announced(write: Write) -> None:
    await write(HEAD + b"Content-Length: 4294967296\r\n\r\n")
    while True:
        await write(bytes(1 << 16))


async def dripping(write: Write) -> None:
    await write(HEAD + b"\r\n")
    while True:
        await write(b"#")
        await asyncio.sleep(SCRAPE_S / 20)


async def dripping_head(write: Write) -> None:
    await write(HEAD)
    while True:
        await write(b"X: y\r\n")
        await asyncio.sleep(SCRAPE_S / 20)


async def silent(write: Write) -> None:
    await asyncio.sleep(10 * SCRAPE_S)


HOSTILE: dict[str, Behaviour] = {
    "endless": endless,
    "announced": announced,
    "dripping": dripping,
    "dripping head": dripping_head,
    "silent": silent,
    "unpacks to more": saying(b"\x1f\x8b" + bytes(500), b"Content-Encoding: gzip\r\n"),
    "a page": saying(b"<html><title>router</title></html>"),
    "credentials": saying(b'{"AccessKeyId": "x", "Token": "y"}'),
    "a secret behind a heading": saying(GOOD + b"root:x:0:0:root:/root:/bin/bash\n"),
    "binary": saying(b"\xff\xfe" + GOOD),
    "no HTTP": lambda write: write(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "an error": lambda write: write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
    "long heads": lambda write: write(HEAD + b"X: " + b"y" * 4_000_000 + b"\r\n\r\n"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
async def test_what_is_no_worker_is_left_out_within_bounds(scraper: Scraper, name: str) -> None:
    """Of time, memory and bytes on the way; the worker beside it is shown."""
    async with serving(HOSTILE[name]) as (hostile, port), serving(saying(GOOD)) as (_, good):
        tracemalloc.start()
        began = time.monotonic()
        texts = await scraper.scrape({"evil": port, "worker-0": good})
        took_s, (_, most) = time.monotonic() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (hostile.calls, texts) == (1, {"worker-0": GOOD.decode()})
    assert took_s < SCRAPE_ALL_S + 2
    assert most < 4 * MAX_BYTES
    assert hostile.sent < MAX_BYTES + (16 << 20)  # what lies in the sockets


async def test_a_redirect_is_not_followed(scraper: Scraper) -> None:
    async with serving(saying(GOOD)) as (target, port):
        elsewhere = b"HTTP/1.1 302 No\r\nLocation: http://127.0.0.1:%d/metrics\r\nContent-Length: 0\r\n\r\n" % port
        async with serving(lambda write: write(elsewhere)) as (_, evil):
            assert await scraper.scrape({"evil": evil}) == {}
        assert target.calls == 0


async def test_many_workers_are_asked_a_few_at_a_time_and_not_for_ever(scraper: Scraper) -> None:
    async with serving(silent) as (hostile, port):
        began = time.monotonic()
        assert await scraper.scrape({f"evil-{n}": port for n in range(1_000)}) == {}
        assert time.monotonic() - began < SCRAPE_ALL_S + 2
        assert AT_ONCE <= hostile.calls <= AT_ONCE * (SCRAPE_ALL_S / SCRAPE_S + 1)


@pytest.mark.parametrize(
    "said",
    ["", "x", "http://127.0.0.1/metrics", "http://127.0.0.1:0/", "http://127.0.0.1:65536/", "http://h:-1", "[::1"],
)  # fmt: skip
def test_what_names_no_port_is_not_asked(said: str) -> None:
    assert port_of(said) is None


@pytest.mark.parametrize(
    "line", ["x", "a 1 2 3", 'a{b="c} 1', 'a{b="c"d="e"} 1', "a{} 1;x", "# EXTRA", "# TYPE a", "é 1", "a b c", " a 1"]
)
def test_a_line_of_another_format_is_none(line: str) -> None:
    with pytest.raises(ValueError, match="line 4 is none"):
        read_exposition(GOOD + line.encode() + b"\n")


def test_long_lines_are_not_looked_at() -> None:
    """While a line is compared with the format no other thread runs: 8 MB of it took a second, and 1 GB."""
    for line in (
        b'a{b="' + b"\\" * 400_002 + b'"} 1',
        b"a{" + b'b="c",' * 100_000 + b"} 1",
        b"# HELP a " + b"b" * 16_384,
    ):
        with pytest.raises(ValueError, match="line 1 is none"):
            read_exposition(line)
    read_exposition(b"# HELP a " + b"b" * 16_000)


def test_a_name_is_written_as_the_format_wants_it() -> None:
    text = merge(CollectorRegistry(), {'a"} 1\nevil{x="\\': GOOD.decode()}).decode()
    (sample,) = (line for line in text.split("\n") if line and not line.startswith("#"))
    assert sample == 'rollcast_steps_total{process="a\\"} 1\\nevil{x=\\"\\\\",model="a"} 3.0'


async def test_calls_that_come_together_share_an_answer() -> None:
    async with serving(saying(GOOD)) as (worker, port), httpx.AsyncClient(trust_env=False, verify=False) as http:
        one = WorkerInfo("w", {}, process="worker-0", metrics=f"http://127.0.0.1:{port}/metrics")
        monitor = SimpleNamespace(workers=[one])
        app = FastAPI()
        context: Any = SimpleNamespace(http=http, monitor=monitor, registry=CollectorRegistry())
        app.include_router(health_routes(context))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            answers = await asyncio.gather(*(client.get("/metrics") for _ in range(40)))
        assert {answer.text.count("rollcast_steps_total{") for answer in answers} == {1}
        assert worker.calls <= 2, "one that was under way, and one for all who came meanwhile"


async def test_what_is_no_worker_counts_as_not_there(broker_url: str, prefix: str) -> None:
    """Names that are no text, values of other types, of other forms, and larger than any worker's."""
    good: dict[str, Any] = {"id": "w", "models": {"a": 1}, "process": "worker-0"}
    bad: list[bytes] = [
        b"", b"[]", b"{", b"[" * 100_000, b"\xff", msgspec.json.encode(good | {"id": "x" * 1_000}),
        msgspec.json.encode(good | {"process": "p" * 65}), msgspec.json.encode(good | {"models": {"m" * 65: 1}}),
        msgspec.json.encode(good | {"trouble": "t" * (2 << 20)}), msgspec.json.encode(good | {"metrics": 9101}),
    ]  # fmt: skip
    with redis.Redis.from_url(broker_url) as admin:
        for n, value in enumerate(bad):
            admin.zadd(workers_key(prefix), {f"bad-{n}": n})
            admin.set(worker_key(prefix, f"bad-{n}"), value)
        admin.zadd(workers_key(prefix), {b"\xff\xfe": 50, "list": 51, "w": 52, "gone": 53})
        admin.rpush(worker_key(prefix, "list"), "x")
        admin.set(worker_key(prefix, "w"), msgspec.json.encode(good | {"trouble": "t" * 10_000}))
    predictions = RedisPredictions(broker_url, prefix, 2)
    found = await predictions.workers()
    await predictions.close()
    assert [(worker.id, worker.models, len(worker.trouble)) for worker in found] == [("w", {"a": 1}, 500)]
