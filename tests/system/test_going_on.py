"""Clients of a server that has no place for them yet, or is too busy to listen: they come back, and miss nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import connect
from websockets.sync.server import Server, ServerConnection, serve

from rollcast import Accepted, AsyncClient, Client, Problem, samples
from service.api import create_app
from service.errors import BrokerAway
from service.metrics import create_registry
from service.ports import WorkerInfo
from tests.answering import PATIENT
from tests.cutting import Cutting
from tests.doubles import TinyEngine, tiny_manifest
from tests.living import Living, living
from tests.ports.fake_predictions import FakePredictions
from tests.serving import Serving, await_true

ROW = [1.0, 2.0, 3.0]
CURSOR = "AQEAAAAAAA"
Part = Callable[[ServerConnection], None]


def say(socket: ServerConnection, *messages: dict[str, Any]) -> None:
    socket.send(msgspec.msgpack.encode(list(messages)))


def is_too_late(socket: ServerConnection) -> None:
    socket.close(1013, "no message within 10 s: expected hello")


def stops(socket: ServerConnection) -> None:
    socket.recv(60)
    say(socket, {"type": "hello"})
    say(socket, {"type": "bye", "reason": "closing"})
    socket.close(1001)


def is_no_server_of_ours(socket: ServerConnection) -> None:
    socket.send('{"detail": "starting"}')


def refuses(status: int) -> Part:
    def part(socket: ServerConnection) -> None:
        socket.recv(60)
        say(socket, {"type": "problem", "problem": "urn:x", "title": "no", "status": status, "detail": "so"})
        socket.close(1008)

    return part


def works(socket: ServerConnection) -> None:
    assert msgspec.msgpack.decode(socket.recv(60))["type"] == "hello"
    say(socket, {"type": "hello"})
    say(socket, {"type": "cursor", "cursor": CURSOR})
    entries = msgspec.msgpack.decode(socket.recv(60))
    say(socket, *({"type": "ack", "id": "17-0", "stream": one["stream"], "model": "m"} for one in entries))
    socket.recv(60)  # until the client goes


@contextmanager
def playing(*parts: Part | HTTPStatus) -> Iterator[str]:
    """A server, by its URL, that plays these parts: one a connection, a status refuses it."""
    left = list(parts)

    def admit(_: ServerConnection, request: Request) -> Response | None:
        part = left[0]
        return None if callable(part) else Response(left.pop(0), "no", request.headers.__class__(), b"full")

    def play(socket: ServerConnection) -> None:
        part = left.pop(0)
        assert callable(part)
        part(socket)

    with serve(play, "127.0.0.1", 0, process_request=admit, compression=None) as server:
        yield from _served(server)


def _served(server: Server) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, quick_monitor: None) -> None:
    for where in ("talk._", "gateway.", "events._"):
        for pause in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
            monkeypatch.setattr(f"rollcast.{where}{pause}", 0.001)


BUSY = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS, is_too_late, stops, refuses(503), refuses(429)
ENTRY = samples("way-1", [ROW])


def test_a_gateway_comes_back_to_a_server_that_is_too_busy_for_it() -> None:
    with playing(*BUSY, is_no_server_of_ours, works) as url, Client(url) as client, client.gateway() as gateway:
        assert gateway.post([ENTRY]) == [Accepted("17-0", "way-1", "m")]


def test_the_same_for_asyncio() -> None:
    async def walk(url: str) -> None:
        async with AsyncClient(url) as client, client.gateway() as gateway:
            assert await gateway.post([ENTRY]) == [Accepted("17-0", "way-1", "m")]

    with playing(*BUSY, is_no_server_of_ours, works) as url:
        asyncio.run(walk(url))


@pytest.mark.parametrize("part", [HTTPStatus.FORBIDDEN, refuses(400)])
def test_a_gateway_ends_where_coming_back_would_change_nothing(part: Any) -> None:
    async def walk(url: str) -> None:
        async with AsyncClient(url) as client, client.gateway() as gateway:
            with pytest.raises(Problem):
                await gateway.post([ENTRY])

    with playing(part, part, part) as url:
        with Client(url) as client:
            for act in (lambda gateway: next(gateway.records()), lambda gateway: gateway.post([ENTRY])):
                with client.gateway() as gateway, pytest.raises(Problem):
                    act(gateway)
        asyncio.run(walk(url))


# --- the server's side -------------------------------------------------------------------------------------------


@pytest.fixture
def life() -> Iterator[Living]:
    with living("memory", "", "", TinyEngine(tiny_manifest()), bounds=PATIENT) as life, life.worker():
        yield life


def hear(socket: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.msgpack.decode(socket.recv(60))
    return found


def heard(socket: Any, *kinds: str) -> list[dict[str, Any]]:
    """All messages up to the first one with a map of such a type, in one."""
    found: list[dict[str, Any]] = []
    while not {one["type"] for one in found} & {*kinds}:
        found += hear(socket)
    return found


def test_a_hello_that_does_not_come_in_time_is_no_fault_that_is_told(
    life: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.sockets.HELLO_S", 0.01)
    with connect(life.api.url.replace("http", "ws") + "/v1/ws", proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        assert "expected hello" in closed.value.rcvd.reason


def test_nothing_is_taken_from_a_gateway_before_it_was_told_its_cursor(
    life: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The api follows nothing yet, as when it has just started; the broker answers. Were the entry taken, its record
    would lie before the "now" of this subscriber."""
    followed = threading.Event()
    follow = life.predictions.follow

    async def later() -> AsyncIterator[Any]:
        if not followed.is_set():
            raise BrokerAway("not yet")
        async for items in follow():
            yield items

    monkeypatch.setattr(life.predictions, "follow", later)
    entry = {"stream": "new-1", "kind": "samples", "samples": [ROW]}
    with living_again(life) as url, connect(url.replace("http", "ws") + "/v1/ws", proxy=None) as socket:
        socket.send(msgspec.msgpack.encode({"type": "hello"}))
        assert {"hello", "wait"} >= {one["type"] for one in heard(socket, "wait")}
        socket.send(msgspec.msgpack.encode([entry]))
        (problem,) = [one for one in heard(socket, "problem") if one["type"] == "problem"]
        assert (problem["status"], problem["problem"].rpartition(":")[2]) == (503, "broker-away")
        followed.set()
        found: list[dict[str, Any]] = []
        while "ack" not in {one["type"] for one in found}:
            socket.send(msgspec.msgpack.encode([entry]))
            found += heard(socket, "ack", "problem")
        kinds = [one["type"] for one in found]
        assert "cursor" in kinds[: kinds.index("ack")]
        (ack,) = [one for one in found if one["type"] == "ack"]
        records = found if "prediction" in kinds else heard(socket, "prediction")
        assert [one["id"] for one in records if one["type"] == "prediction"] == [ack["id"]]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_who_waits_while_the_api_starts_again_gets_the_prediction_from_the_next_one(asynchronous: bool) -> None:
    found: list[Any] = []

    def post(url: str) -> None:
        with Client(url, numbered=True) as client:
            found.append(client.post_samples("wait-1", [ROW], wait_s=30))

    async def post_too(url: str) -> None:
        async with AsyncClient(url, numbered=True) as client:
            found.append(await client.post_samples("wait-1", [ROW], wait_s=30))

    with living("memory", "", "", TinyEngine(tiny_manifest()), bounds=PATIENT) as life:
        assert isinstance(life.predictions, FakePredictions)
        life.predictions.live = [WorkerInfo("w", {"tiny": 1}, "w")]
        with living_again(life) as url, Cutting(life.api.port) as between:
            asked = partial(asyncio.run, post_too(between.url)) if asynchronous else partial(post, between.url)
            posting = threading.Thread(target=asked)
            posting.start()
            await_true(lambda: life.world.logged(), "the entry is in the log")
            between.port = httpx.URL(url).port or 0
            life.api.stop()
            assert posting.is_alive(), "it waits, though the server it asked has stopped"
            with life.worker():
                posting.join(60)
        ((only, *_), (again, kind, _, _)) = life.world.records("wait-1")
    assert kind == "duplicate"
    assert only != again
    assert [(one.id, one.step) for one in found] == [(only, 1)]


@contextmanager
def living_again(life: Living) -> Iterator[str]:
    """Another api on the same broker, which has just started."""
    manifests = [engine.manifest for engine in life.engines]
    with Serving(create_app(life.predictions, manifests, create_registry(), bounds=PATIENT)) as api:
        yield api.url


def test_a_subscription_that_was_cut_before_it_had_a_cursor_goes_on(life: Living) -> None:
    """The server answered, so there is one: "now" is when it says where."""
    with Cutting(life.api.port) as cutting, Client(cutting.url) as client:
        with client._http.stream("GET", "/v1/predictions") as response:
            head = len(b"HTTP/1.1 200 OK\r\n\r\n") + sum(len(b": \r\n" + k + v) for k, v in response.headers.raw)
        cutting.cuts.extend(range(head, head + 20))  # the first event has more
        records = client.records("cut-*")
        found: list[str] = []
        reading = threading.Thread(target=lambda: found.append(next(records).stream), daemon=True)
        reading.start()
        while reading.is_alive():
            life.api.post_rows("cut-1", ROW)
            reading.join(0.02)
        assert found == ["cut-1"]
        assert cutting.cut == 20


def test_a_connection_is_not_used_when_the_server_may_be_closing_it() -> None:
    with Client() as client:
        pool = client._http._transport._pool  # type: ignore[attr-defined]
        assert pool._keepalive_expiry < 5.0, "uvicorn closes what was idle for 5 s"
    assert httpx.Limits().keepalive_expiry == 5.0, "which is a race"
