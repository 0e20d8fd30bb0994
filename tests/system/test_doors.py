"""What clients may hold of an api: heads, silence, connections, unfinished bodies, WebSockets' messages."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar

import msgspec
import pytest

from service.api import DoorLimits, create_app
from service.api.doors import HELLO_BYTES
from service.api.intake import Ready
from service.contracts import FrameInput, TextInput
from service.metrics import create_registry
from service.ports import Appended
from tests.answering import InMemory
from tests.doubles import MemoryBroker, tiny_manifest
from tests.ports.fake_predictions import FakePredictions
from tests.raw import BINARY, CONT, HELLO, HOST, PING, TEXT, Raw, frame
from tests.serving import Serving, await_true
from tests.system.test_api_posting import image

LIMITS = DoorLimits(
    head_s=0.5, body_s=0.5, idle_s=0.5, answer_s=0.5, connections=60, client_connections=40, unfinished_bytes=32 << 20
)
POST = b"POST /v1/streams/a/samples HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Held(FakePredictions):
    """Appends of many wait for the test."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker())
        self.begun, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()

    async def append_many(
        self, entries: Sequence[tuple[str, Mapping[str, bytes]]], fsync: bool = False
    ) -> list[Appended]:
        self.begun.set()
        await asyncio.sleep(0.001)
        while not self.go_on.is_set():
            await asyncio.sleep(0.001)
        self.done.set()
        return await super().append_many(entries, fsync)


@pytest.fixture(scope="module")
def api() -> Iterator[Serving]:
    app = create_app(FakePredictions(MemoryBroker()), [tiny_manifest()], create_registry())
    with Serving(app, limits=LIMITS) as serving:
        yield serving


@pytest.fixture(scope="module")
def patient() -> Iterator[Serving]:
    """One that lets clients take their time."""
    app = create_app(FakePredictions(MemoryBroker()), [tiny_manifest()], create_registry())
    with Serving(app, limits=DoorLimits(unfinished_bytes=32 << 20)) as serving:
        yield serving


def counted(api: Serving, reason: str) -> float:
    found = re.search(rf'^rollcast_requests_refused_total{{reason="{reason}"}} (\S+)', shown(api), re.M)
    assert found is not None
    return float(found[1])


def shown(api: Serving) -> str:
    return api.http.get("/metrics", headers={"connection": "close"}).text  # one that idles is soon closed here


def value(api: Serving, name: str) -> float:
    found = re.search(rf"^{name} (\S+)", shown(api), re.M)
    assert found is not None
    return float(found[1])


def kind(answer: bytes) -> tuple[int, str]:
    """Status and type of the problem that the last answer is."""
    head, _, body = answer.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"application/problem+json" in head
    return int(head[:3]), msgspec.json.decode(body)["type"].removeprefix("urn:rollcast:problem:")


# --- heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /livez HTTP/1.1\r\n" + HOST, b"X-A: b\r\n" * 1000),
        (b"GET /", b"a" * 8192),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: ", b"a" * 8192),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A", b"a" * 8192),
        (b"GET /livez HTTP/1.1\r\n" + HOST, b"a:\r\n" * 500),
        (b"\r\n", b"\r\n" * 4096),
        (CHUNKED + b"1\r\n{\r\n0\r\n", b"X-A: b\r\n" * 1000),
        (CHUNKED + b"1\r\n{\r\n0\r\nX-A: ", b"a" * 8192),
        (CHUNKED + b"1;", b"a" * 8192),
    ],
    ids=["headers", "url", "value", "name", "many", "empty-lines", "trailers", "trailer", "chunk-extension"],
)  # fmt: skip
def test_a_head_is_bounded(api: Serving, begin: bytes, more: bytes) -> None:
    before = counted(api, "head_bytes")
    with Raw(api.port) as client:
        client.send(begin, *[more] * 40)
        assert kind(client.rest()) == (431, "head-too-large")
    assert counted(api, "head_bytes") == before + 1


def test_a_head_within_the_bound_is_read(api: Serving) -> None:
    with Raw(api.port) as client:
        client.send(b"GET /livez HTTP/1.0\r\n", *[b"X-A: " + b"b" * 990 + b"\r\n"] * 60, HOST, b"\r\n")
        assert client.rest().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://evil.example/livez", 421), (b"http://evil.example:%d/livez", 421),
        (b"http://127.0.0.1:%d/livez", 200), (b"http://[::1]:%d/livez", 200),
        (b"http://evil.example@127.0.0.1/livez", 200), (b"//evil.example/livez", 404),
    ],
)  # fmt: skip
def test_a_target_that_names_a_host_is_meant_for_that_host(api: Serving, target: bytes, status: int) -> None:
    with Raw(api.port) as client:
        client.send(b"GET %s HTTP/1.1\r\nConnection: close\r\n%s\r\n" % (target.replace(b"%d", b"%d" % api.port), HOST))
        assert client.rest().startswith(b"HTTP/1.1 %d " % status)


def test_trailers_never_become_headers(api: Serving) -> None:
    with Raw(api.port) as client:
        client.send(CHUNKED.replace(b"json", b"zip"), b"2\r\n{}\r\n0\r\nContent-Type: application/json\r\n\r\n")
        client.send(b"GET /livez HTTP/1.0\r\n", HOST, b"\r\n")
        assert client.rest().startswith(b"HTTP/1.1 415")


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: 127", (408, "too-slow"), "head_s"),
        (POST + b"Content-Length: 100\r\n\r\n{", (408, "too-slow"), "body_s"),
        (CHUNKED, (408, "too-slow"), "body_s"),
        (b"", None, "head_s"),
    ],
    ids=["head", "body", "chunked", "nothing"],
)
def test_silence_is_bounded(api: Serving, sent: bytes, status: tuple[int, str] | None, reason: str) -> None:
    before = counted(api, reason)
    with Raw(api.port) as client:
        client.send(sent)
        answer = client.rest()
        assert (kind(answer) if answer else None) == status
    assert counted(api, reason) >= before + 1


def test_a_connection_is_not_kept_longer_where_the_body_came_after_the_answer(api: Serving) -> None:
    with Raw(api.port) as client:
        client.send(POST.replace(b"/a/", b"/no%20name/") + b"Content-Length: 2\r\n\r\n")
        client.socket.settimeout(10)
        said = b""
        while b"bad-stream-id" not in said:
            said += client.socket.recv(4096)
        client.send(b"{}")
        client.rest()  # ends, long before the socket's time-out


def test_a_slow_head_is_too_slow_however_steadily_it_comes(api: Serving) -> None:
    with Raw(api.port) as client:
        client.send(b"GET /livez HTTP/1.1\r\n")
        begun = time.monotonic()
        while client.send(b"X: y\r\n") and time.monotonic() - begun < 20:
            time.sleep(0.02)
        assert time.monotonic() - begun < 20
        assert kind(client.rest()) == (408, "too-slow")


def test_a_slow_body_is_read_while_something_comes(api: Serving) -> None:
    body = b'{"samples": [[1,2,3]]}'
    with Raw(api.port) as client:
        client.send(POST, b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        begun = time.monotonic()
        for byte in body:
            client.send(bytes([byte]))
            time.sleep(0.05)
        assert time.monotonic() - begun > LIMITS.body_s
        assert b"no-worker" in client.rest()  # it was read: nobody serves it here


def test_a_subscription_is_not_cut(api: Serving) -> None:
    with Raw(api.port) as client:
        client.send(b"GET /v1/predictions HTTP/1.1\r\nAccept: text/event-stream\r\n" + HOST + b"\r\n")
        assert client.socket.recv(4096).startswith(b"HTTP/1.1 200")
        with Raw(api.port) as other:  # which is cut meanwhile
            other.send(b"GET")
            other.rest()
        client.socket.settimeout(0.2)
        try:
            while client.socket.recv(4096):
                pass
        except TimeoutError:
            return
        raise AssertionError("the subscription was cut")


def test_a_client_that_leaves_with_requests_ahead_leaves_nothing_behind(api: Serving) -> None:
    """The subscription that is being answered ends, and what waits behind it is not begun."""
    request = b"GET /v1/predictions HTTP/1.1\r\nAccept: text/event-stream\r\n" + HOST + b"\r\n"
    subscribed = 'rollcast_subscribers{transport="sse"} '
    with Raw(api.port) as client:
        client.send(request * 3)
        await_true(lambda: f"{subscribed}1.0" in shown(api), "one is subscribed")
    await_true(lambda: f"{subscribed}0.0" in shown(api), "it is gone")


# --- connections -------------------------------------------------------------------------------------------------


def test_silent_connections_make_room_for_those_that_ask(api: Serving) -> None:
    before = counted(api, "connections")
    silent = [Raw(api.port) for _ in range(3 * LIMITS.client_connections)]
    try:
        for _ in range(20):
            with Raw(api.port) as client:
                client.send(b"GET /livez HTTP/1.0\r\n\r\n")
                assert client.rest().startswith(b"HTTP/1.1 200")
        assert counted(api, "connections") >= before + 2 * LIMITS.client_connections
        for one in silent:
            one.rest()  # ends, all of them
    finally:
        for one in silent:
            one.socket.close()


def test_without_room_the_answer_is_prompt(api: Serving) -> None:
    subscribers = []
    try:
        for _ in range(LIMITS.client_connections):
            subscribers.append(one := Raw(api.port))
            one.send(b"GET /v1/predictions HTTP/1.1\r\nAccept: text/event-stream\r\n" + HOST + b"\r\n")
            assert one.socket.recv(4096).startswith(b"HTTP/1.1 200")
        for _ in range(5):
            with Raw(api.port) as client:
                client.send(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
                answer = client.rest()
                assert kind(answer) == (503, "crowded")
                assert b"retry-after: 1" in answer
    finally:
        for one in subscribers:
            one.socket.close()
    await_true(lambda: value(api, "rollcast_connections") < 5, "the connections are gone")


def test_what_unfinished_bodies_take_is_bounded(patient: Serving) -> None:
    before = counted(patient, "unfinished_bytes")
    clients = []
    for _ in range(8):
        clients.append(Raw(patient.port))
        clients[-1].send(POST + b"Content-Length: 8000000\r\n\r\n", *[b" " * 1_000_000] * 7)
    assert value(patient, "rollcast_unfinished_bytes") <= LIMITS.unfinished_bytes
    assert kind(clients[0].rest()) == (503, "crowded")  # it began first
    for one in clients:
        one.socket.close()
    assert counted(patient, "unfinished_bytes") >= before + 3
    await_true(lambda: value(patient, "rollcast_unfinished_bytes") == 0, "nothing is held any more")


def test_a_body_that_was_answered_early_is_not_counted(patient: Serving) -> None:
    with Raw(patient.port) as client:
        client.send(CHUNKED, *[b"100000\r\n" + b" " * (1 << 20) + b"\r\n"] * 9)
        assert client.socket.recv(4096).startswith(b"HTTP/1.1 413")
        assert value(patient, "rollcast_unfinished_bytes") < 1 << 20


def test_nothing_is_counted_of_a_client_that_went_away_within_its_body() -> None:
    """It sent the rest of its body while the lines before it were appended."""
    predictions = Held()
    head = b"POST /v1/entries HTTP/1.1\r\nContent-Type: application/x-ndjson\r\n" + HOST
    with Serving(create_app(predictions, [tiny_manifest()], create_registry())) as api, Raw(api.port) as client:
        client.send(head + b"Content-Length: 50006\r\n\r\n", b"first\n")
        assert predictions.begun.wait(30)
        client.send(b" " * 50_000)
        await_true(lambda: value(api, "rollcast_unfinished_bytes") == 50_006, "it is counted")
        client.reset()
        await_true(lambda: value(api, "rollcast_connections") == 1, "it is gone")
        predictions.go_on.set()
        assert predictions.done.wait(30)
        assert value(api, "rollcast_unfinished_bytes") == 0


def test_the_bytes_of_an_entry_are_let_go_while_its_record_is_waited_for() -> None:
    """Each of three calls waits; the log alone has what it posted."""

    class Log(FakePredictions):
        given: ClassVar[list[Mapping[str, bytes]]] = []

        async def append(self, stream: str, fields: Mapping[str, bytes], fsync: bool = False) -> str:
            self.given.append(fields)
            return await super().append(stream, fields, fsync)

    world = InMemory()
    world.predictions = Log(world.broker)
    world.serve("tiny", "bright", "reader")
    models = [
        tiny_manifest("tiny"),
        tiny_manifest("bright", kind="frame", states=[], rows=None, frames=FrameInput(8, 8, 1, "gray")),
        tiny_manifest("reader", kind="text", rows=None, text=TextInput()),
    ]
    posts: list[tuple[str, str, bytes]] = [
        ("samples", "application/octet-stream", bytes(12 * 4000)),
        ("frames", "image/png", image()),
        ("text", "text/plain", b"word " * 4000),
    ]
    with Serving(create_app(world.predictions, models, create_registry())) as api, ExitStack() as opened:
        for kind_, media, body in posts:
            head = f"POST /v1/streams/{kind_}/{kind_}?wait=30 HTTP/1.1\r\nContent-Type: {media}\r\n".encode() + HOST
            client = opened.enter_context(Raw(api.port))
            client.send(head + b"Content-Length: %d\r\n\r\n" % len(body), body)
        await_true(lambda: len(Log.given) == 3, "all are in the log")
        assert value(api, "rollcast_unfinished_bytes") < 1000
        for fields in Log.given:
            assert [one for one in gc.get_referrers(fields) if isinstance(one, Ready)] == [], fields["kind"]


def test_many_requests_ahead_are_answered_in_order(api: Serving) -> None:
    paths = [b"/livez", b"/v1/nothing"] * 200
    with Raw(api.port) as client:
        head = b"".join(b"GET %s HTTP/1.1\r\n%s\r\n" % (path, HOST) for path in paths)
        client.send(head + b"GET /livez HTTP/1.0\r\n\r\n")
        statuses = re.findall(rb"HTTP/1.1 (\d+)", client.rest())
    assert statuses == [b"200", b"404"] * 200 + [b"200"]


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\x00 / HTTP/1.1\r\n"]
)
def test_what_is_no_http_is_a_problem(api: Serving, sent: bytes) -> None:
    with Raw(api.port) as client:
        client.send(sent)
        assert kind(client.rest()) == (400, "bad-request")


# --- WebSockets --------------------------------------------------------------------------------------------------


LARGE = LIMITS.message_bytes


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([frame(TEXT, b" " * (HELLO_BYTES + 1))], 1009),
        ([frame(BINARY, b"", said=1 << 20), b"x" * 100_000], 1009),
        ([frame(TEXT, b"", fin=False), *[frame(CONT, b" " * 30_000, fin=False)] * 3], 1009),
        ([HELLO, frame(BINARY, b"", said=LARGE + 1)], 1009),
        ([HELLO, frame(TEXT, b"", fin=False), *[frame(CONT, b"", fin=False)] * 5000], 1008),
        ([frame(TEXT, b"", fin=False), *[frame(CONT, b"", fin=False)] * 5000], 1008),
        ([HELLO, *[frame(PING, b"x")] * 2000], 1008),
        ([frame(TEXT, b"\xff\xfe")], 1007),
        ([b"\xff" * 20], 1002),
        ([frame(TEXT, b"[]", fin=False)], 1008),
        ([HELLO, frame(BINARY, b"x", said=1000)], 1008),
    ],
    ids=[
        "hello", "hello-said", "hello-fragments", "message", "fragments", "hello-empty-fragments", "pings", "utf-8",
        "no-frame", "half-a-hello", "half-a-message",
    ],
)  # fmt: skip
def test_messages_are_bounded(api: Serving, sent: list[bytes], code: int) -> None:
    with Raw(api.port) as client:
        assert client.upgrade().startswith(b"HTTP/1.1 101")
        client.send(*sent)
        assert client.closed_with() == code


def test_messages_whose_answers_are_not_read_are_bounded(patient: Serving) -> None:
    """Each client sends large messages and reads nothing: the one that began first goes."""
    before = counted(patient, "unfinished_bytes")
    with ExitStack() as opened:
        for _ in range(5):
            client = opened.enter_context(Raw(patient.port))
            client.upgrade()
            client.send(HELLO, frame(TEXT, b"", said=15 << 20), *[b" " * (1 << 20)] * 14)
        await_true(lambda: counted(patient, "unfinished_bytes") > before, "one is closed")
        assert value(patient, "rollcast_unfinished_bytes") <= LIMITS.unfinished_bytes
    await_true(lambda: value(patient, "rollcast_unfinished_bytes") < 1 << 20, "nothing is held any more")


def test_messages_that_were_answered_are_not_counted_however_many_follow() -> None:
    """The client never waits for an answer, so that another message always waits to be taken."""
    predictions, message, count = Held(), frame(TEXT, b"[" + b" " * 40_000 + b"0]"), 1000
    predictions.go_on.set()
    app = create_app(predictions, [tiny_manifest()], create_registry())
    with Serving(app, limits=DoorLimits(unfinished_bytes=32 << 20)) as api, Raw(api.port) as client:
        client.upgrade()
        client.send(HELLO)
        sending = threading.Thread(target=client.send, args=[message] * count)
        sending.start()
        found, rest = 0, b""
        while found < count // 2:
            data = client.socket.recv(1 << 16)
            assert data, f"closed after {found} answers"
            found += (rest + data).count(b"malformed") - rest.count(b"malformed")
            rest = data[-8:]
        assert value(api, "rollcast_unfinished_bytes") < 1 << 20
        client.reset()
        sending.join(30)


def test_compression_is_not_offered(api: Serving) -> None:
    with Raw(api.port) as client:
        answer = client.upgrade(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"sec-websocket-extensions" not in answer.lower()


@pytest.mark.parametrize("line", [b"X-A: " + b"b" * 20_000, b"\r\n".join([b"X-A: b"] * 300)], ids=["long", "many"])
def test_the_request_of_a_web_socket_is_answered_whatever_its_headers(api: Serving, line: bytes) -> None:
    with Raw(api.port) as client:
        answer = client.upgrade(line) + client.rest()
        assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 101"))
        assert answer.startswith(b"HTTP/1.1 431")


def test_a_message_that_is_nested_too_deeply_is_malformed(api: Serving) -> None:
    deep = 60_000
    packed = msgspec.msgpack.encode({"type": "hello"})
    for hello, message in (
        (HELLO, frame(TEXT, b"[" * deep + b"]" * deep)),
        (HELLO, frame(TEXT, b'[{"stream":"a","kind":"text","text":' + b"[" * deep + b"]" * deep + b"}]")),
        (frame(BINARY, packed), frame(BINARY, b"\x91" * deep + b"\xc0")),
    ):
        with Raw(api.port) as client:
            client.upgrade()
            client.send(hello, message)
            client.socket.settimeout(10)
            said = b""
            while b"malformed" not in said:
                data = client.socket.recv(4096)
                assert data, said
                said += data
            client.send(frame(PING, b"still there"))
            while b"still there" not in said:
                said += client.socket.recv(4096)
    with Raw(api.port) as client:
        client.upgrade()
        client.send(frame(BINARY, b"\x91" * 60_000 + b"\xc0"))
        assert client.closed_with() == 1008


def test_many_messages_in_one_write_are_answered_in_turn(api: Serving) -> None:
    with Raw(api.port) as client:
        client.upgrade()
        client.send(HELLO + frame(TEXT, b"[0]") * 3000)
        count, rest = 0, b""
        while count < 3000:
            data = client.socket.recv(1 << 16)
            assert data
            rest = rest[-8:] + data
            count += rest.count(b"malformed")
    assert count == 3000


def test_an_unread_answer_is_given_up(api: Serving) -> None:
    before = counted(api, "answer_s")
    with Raw(api.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
        client.send(request * 8)
        await_true(lambda: counted(api, "answer_s") > before, "it is cut")
