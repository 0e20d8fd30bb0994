"""Requests that are dear to read: each is answered, and nobody else waits for the api's event loop meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx
import msgspec
import pytest
from websockets.sync.client import connect

from service.api.readers import MOST_READERS
from tests.deployment import Up, await_true
from tests.hostile.watching import ROW, Bounds

MB8 = 8_000_000
LONGEST_S = 2.0  # that /livez may take, generously: what this guards against took from 3 s to for ever
NAME = "a" * 128


def posts() -> Iterator[tuple[str, str, bytes, int]]:
    """Kind, type, body, and the status it is answered with."""
    yield "samples", "text/csv", b"a," * (MB8 // 2), 413
    yield "samples", "text/csv", b"1\n" * (MB8 // 2), 422
    yield "samples", "text/csv", b"\n" * MB8, 400
    yield "samples", "text/csv", b"1," * 262_000 + b"1", 422
    yield "samples", "application/json", b'{"samples":[[' + b"1," * (MB8 // 2 - 20) + b"1]]}", 413
    yield "samples", "application/json", b'{"samples":[' + b"[]," * (MB8 // 3 - 20) + b"[]]}", 413
    yield "samples", "application/json", b'{"samples":' + b"[" * (MB8 - 20), 422
    yield "samples", "application/octet-stream", b"\xff" * MB8, 422
    yield "frames", "multipart/form-data; boundary=xx", b"\r\n--x" * (MB8 // 5), 400
    yield "frames", "multipart/form-data; boundary=xx", b"--xx\r\n" + b"A: b\r\n" * (MB8 // 7), 400
    yield "text", "application/json", b'{"text":["' + b"a" * (MB8 - 20) + b'"]}', 400


class Probe:
    """Asks /livez all the time."""

    def __init__(self, url: str) -> None:
        self.waits_s: list[float] = []
        self._url, self._ended = url, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _ask(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as http:
            while not self._ended.is_set():
                begun = time.monotonic()
                assert http.get(f"{self._url}/livez").status_code == 200
                self.waits_s.append(time.monotonic() - begun)
                self._ended.wait(0.005)


@pytest.fixture(scope="module")
def calm_s(target: Up) -> float:
    """The longest wait for /livez while nothing hostile comes, on this machine now."""
    with Probe(target.url) as probe:
        await_true(lambda: len(probe.waits_s) >= 100, "/livez is answered")
    return max(probe.waits_s)


@contextmanager
def alive(target: Up, calm_s: float) -> Iterator[None]:
    with Probe(target.url) as probe:
        yield
        await_true(lambda: len(probe.waits_s) >= 20, "/livez is answered")
    assert max(probe.waits_s) < max(LONGEST_S, 20 * calm_s)


def all_at_once(*calls: Callable[[], object]) -> None:
    failed: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed, failed


def test_bodies_and_messages_of_allowed_size_hold_nobody_up(target: Up, bounded: Bounds, calm_s: float) -> None:
    def bodies() -> None:
        for kind, media, body, status in posts():
            url = f"{target.url}/v1/streams/dear-{kind}/{kind}"
            answer = httpx.post(url, content=body, headers={"Content-Type": media}, timeout=60)
            assert answer.status_code == status, answer.text[:300]

    def lines() -> None:
        body = b"x\n" * 20_000 + b"\n" * 1_000_000
        head = {"Content-Type": "application/x-ndjson"}
        answer = httpx.post(f"{target.url}/v1/entries", content=body, headers=head, timeout=60)
        assert answer.text.count('"status":400') == 20_000

    def messages() -> None:
        with connect(f"{target.url.replace('http', 'ws')}/v1/ws", max_size=None) as gateway:
            gateway.send('{"type":"hello"}')
            for message, problems in (
                ("[" + "1," * 1_000_000 + "1]", 1),
                ("[" + "{}," * 600_000 + "{}]", 1),
                (msgspec.msgpack.encode([1] * 2_000_000), 1),
                (msgspec.msgpack.encode([{"kind": "samples", "samples": [[1] * 1_500_000]}]), 1),
                (msgspec.msgpack.encode([{"kind": "text"}] * 1024), 1024),
            ):
                gateway.send(message)
                while (found := str(gateway.recv(60)).count('"type":"problem"')) == 0:
                    pass
                assert found == problems

    with bounded(memory=400 << 20, cpu_s=12.0), alive(target, calm_s):
        all_at_once(bodies, bodies, lines, messages)


def test_answers_that_are_dear_to_make_hold_nobody_up(target: Up, bounded: Bounds, calm_s: float) -> None:
    """Many who read all records from the beginning, all metrics and the whole description, at once."""
    line = b'{"stream":"shown-%d","kind":"samples","model":"activity-lstm","samples":[[1,1,1,1,1,1]]}\n'
    body, head = b"".join(line % n for n in range(40)) * 10, {"Content-Type": "application/x-ndjson"}
    taken = 0

    def more() -> bool:
        nonlocal taken
        taken += httpx.post(f"{target.url}/v1/entries", content=body, headers=head, timeout=60).text.count('"id"')
        return taken >= 4000

    def answered(n: int) -> bool:
        url = f"{target.url}/v1/streams/shown-{n}/samples?model=activity-lstm&wait=30"
        return httpx.post(url, json=ROW, timeout=60).status_code == 200

    await_true(more, "there are records to read")
    for n in range(40):
        await_true(partial(answered, n), "all that was posted before is answered")

    address = ("127.0.0.1", httpx.URL(target.url).port or 80)
    paths = ["/v1/predictions?after=0"] * 40 + ["/metrics"] * 60 + ["/openapi.json"] * 100
    with bounded(), alive(target, calm_s), ExitStack() as opened:
        clients = [opened.enter_context(socket.create_connection(address, timeout=60)) for _ in paths]
        for client, path in zip(clients, paths, strict=True):
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"


def test_patterns_hold_nobody_up(target: Up, bounded: Bounds, calm_s: float) -> None:
    url = f"{target.url}/v1/streams/{NAME}/samples?model=activity-lstm&wait=30"
    assert httpx.post(url, json=ROW, timeout=60).status_code == 200

    def follow(glob: str) -> None:
        with httpx.stream("GET", f"{target.url}/v1/predictions", params={"after": "0", "stream": glob}) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())

    with bounded(), alive(target, calm_s):
        all_at_once(*(lambda stars=stars: follow("*a" * stars + "*b") for stars in range(1, 8)))
        assert httpx.get(f"{target.url}/v1/predictions", params={"stream": "*a" * 12}).status_code == 400


def test_readers_of_entries_share_what_they_read(target: Up, bounded: Bounds) -> None:
    def clients() -> int:
        text = httpx.get(f"{target.url}/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith("rollcast_broker_clients ")]
        return int(float(line.split()[-1]))

    address = ("127.0.0.1", httpx.URL(target.url).port or 80)
    before = clients()
    readers = [socket.create_connection(address, timeout=60) for _ in range(MOST_READERS + 20)]
    try:
        with bounded():
            statuses = []
            for number, reader in enumerate(readers):
                path = f"/v1/streams/read-{number % 8}/entries"
                reader.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                statuses.append(reader.recv(1024).split()[1])
            assert (statuses.count(b"200"), statuses.count(b"503")) == (MOST_READERS, 20)
            await_true(lambda: clients() > before, "their connections are counted")
            assert clients() <= before + 8 + 10, "one connection a shard, and what this process asks besides"
    finally:
        for reader in readers:
            reader.close()

    def free() -> bool:
        with httpx.stream("GET", f"{target.url}/v1/streams/read-1/entries") as answer:
            return answer.status_code == 200

    await_true(free, "a reader that left makes room")
