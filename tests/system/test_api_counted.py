"""Whoever is turned away is counted, in whatever way it came and was told."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.api import Bounds, DoorLimits, Limits, create_app
from service.api.patterns import KEPT_CHARACTERS
from service.metrics import create_registry
from tests.answering import InMemory
from tests.doubles import tiny_manifest
from tests.raw import HOST, Raw
from tests.serving import Serving, await_true

ROW = {"samples": [[1.0, 2.0, 3.0]]}
NDJSON = {"content-type": "application/x-ndjson"}
LIMITS = DoorLimits(head_bytes=4096, head_s=1.0, body_s=1.0, message_bytes=1 << 20)
COUNTED = ("rollcast_problems", "rollcast_turned_away", "rollcast_requests_refused", "rollcast_appended")
Key = tuple[str, ...]


class Scene(NamedTuple):
    world: InMemory
    api: Serving

    def post(self, path: str = "/v1/streams/a/samples", **more: Any) -> httpx.Response:
        return self.api.http.post(path, **({"json": ROW} | more))

    def line(self, **entry: Any) -> None:
        self.api.http.post("/v1/entries", content=json.dumps(entry), headers=NDJSON)

    def raw(self, *parts: bytes) -> None:
        with Raw(self.api.port) as client:
            client.send(*parts)
            client.rest()

    def talk(self, *messages: Any, hello: Any = None) -> None:
        """Until each message was answered with a problem, or the WebSocket was closed."""
        with connect(f"ws://127.0.0.1:{self.api.port}/v1/ws", max_size=None) as socket, suppress(ConnectionClosed):
            socket.send(json.dumps({"type": "hello"} | (hello or {})))
            for message in messages or ("",):
                if message:
                    socket.send(message if isinstance(message, str) else json.dumps(message))
                while '"problem"' not in str(socket.recv(5)):
                    pass

    def counts(self) -> dict[Key, float]:
        return {
            (
                family.name.removeprefix("rollcast_"),
                *(sample.labels[name] for name in ("way", "type", "reason") if name in sample.labels),
            ): sample.value
            for family in text_string_to_metric_families(self.api.http.get("/metrics").text)
            if family.name in COUNTED
            for sample in family.samples
            if sample.name.endswith("_total")
        }


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr("service.api.sockets.HELLO_S", 0.2)
    monkeypatch.setattr("service.api.monitor.FRESH_S", 0.0)
    world = InMemory()
    world.serve("tiny")
    app = create_app(
        world.predictions, [tiny_manifest()], create_registry(),
        limits=Limits(frame_bytes=1000, entry_bytes=10_000, pixels=100), bounds=Bounds(1300, 1e9, 2),
    )  # fmt: skip
    with Serving(app, limits=LIMITS) as api:
        await_true(lambda: api.http.get("/readyz").status_code == 200, "it is ready")
        yield Scene(world, api)


def away(scene: Scene) -> None:
    scene.world.broker.away = True


def unserved(scene: Scene) -> None:
    scene.world.predictions.live = []
    await_true(lambda: not scene.api.http.get("/v1/models").json()["models"][0]["served"], "that is known")


def full(scene: Scene) -> None:
    """Its shard has all that may wait."""
    assert scene.post().status_code == 202
    block = {"samples": [[1.0, 2.0, 3.0]] * 100}
    assert scene.post(json=block).status_code in (202, 429)


def crowded(scene: Scene) -> None:
    assert [scene.post(f"/v1/streams/{name}/samples").status_code for name in "ab"] == [202, 202]


def lost(scene: Scene) -> None:
    scene.world.predictions.lose_reply = True


def no_memory(scene: Scene) -> None:
    scene.world.predictions.full = True


def nothing(_: Scene) -> None:
    pass


ENTRY = {"stream": "a", "kind": "samples", **ROW}
BAD = {"stream": "a", "kind": "samples", "samples": [[1.0]], "model": "tiny"}
LARGE = {"stream": "a", "kind": "samples", "samples": [[1.0, 2.0, 3.0]] * 100}
HEAD = b"POST /v1/streams/a/samples HTTP/1.1\r\nContent-Type: text/csv\r\n" + HOST
Act = Callable[[Scene], object]
TURNED_AWAY: list[tuple[str, Act, Act, tuple[Key, ...]]] = [
    ("no such path", nothing, lambda s: s.api.http.get("/v1/nothing"), (("problems", "http", "not-found"),)),
    ("no such method", nothing, lambda s: s.post("/v1/models"), (("problems", "http", "method-not-allowed"),)),
    ("an entry", nothing, lambda s: s.post(json={"samples": [[1.0]]}), (("problems", "http", "model-needed"),)),
    ("a query", nothing, lambda s: s.post(params={"x": "1"}), (("problems", "http", "bad-request"),)),
    ("a body", nothing, lambda s: s.post(content=b"x" * 10_001), (("problems", "http", "too-large"),)),
    (
        "a wait", nothing, lambda s: s.post(params={"wait": "0.01"}),
        (("appended",), ("problems", "http", "wait-timeout")),
    ),
    (
        "a host", nothing, lambda s: s.post(headers={"Host": "example.org"}),
        (("problems", "http", "foreign-host"), ("requests_refused", "host")),
    ),
    (
        "a page", nothing, lambda s: s.post(headers={"Origin": "http://example.org"}),
        (("problems", "http", "foreign-origin"), ("requests_refused", "origin")),
    ),
    (
        "a packing", nothing, lambda s: s.post(headers={"Content-Encoding": "br"}),
        (("problems", "http", "unsupported-encoding"), ("requests_refused", "encoding")),
    ),
    (
        "a packed body", nothing,
        lambda s: s.post(content=gzip.compress(bytes(10_001)), headers={"Content-Encoding": "gzip"}),
        (("problems", "http", "too-large"),),
    ),
    (
        "a head", nothing, lambda s: s.raw(HEAD, b"X-A: " + b"a" * 8192),
        (("problems", "http", "head-too-large"), ("requests_refused", "head_bytes")),
    ),
    (
        "no HTTP", nothing, lambda s: s.raw(b"hello\r\n\r\n"),
        (("problems", "http", "bad-request"), ("requests_refused", "malformed")),
    ),
    (
        "half a head", nothing, lambda s: s.raw(HEAD),
        (("problems", "http", "too-slow"), ("requests_refused", "head_s")),
    ),
    (
        "half a body", nothing, lambda s: s.raw(HEAD + b"Content-Length: 9\r\n\r\n1,2"),
        (("problems", "http", "too-slow"), ("requests_refused", "body_s")),
    ),
    ("no worker", unserved, Scene.post, (("problems", "http", "no-worker"), ("turned_away", "no_worker"))),
    (
        "a broker that is away", away, Scene.post,
        (("problems", "http", "broker-away"), ("turned_away", "broker_away")),
    ),
    (
        "a lost reply", lost, Scene.post,
        (("problems", "http", "append-unknown"), ("turned_away", "append_unknown")),
    ),
    ("a full broker", no_memory, Scene.post, (("problems", "http", "broker-full"), ("turned_away", "broker_full"))),
    (
        "a full shard", full, lambda s: s.post(json={"samples": [[1.0, 2.0, 3.0]] * 100}),
        (("problems", "http", "backlog-full"), ("turned_away", "backlog_full")),
    ),
    (
        "one stream too many", crowded, lambda s: s.post("/v1/streams/c/samples"),
        (("problems", "http", "too-many-streams"), ("turned_away", "too_many_streams")),
    ),
    (
        "settings without a worker", unserved, lambda s: s.api.http.put("/v1/streams/a", json={"model": "tiny"}),
        (("problems", "http", "no-worker"), ("turned_away", "no_worker")),
    ),
    (
        "settings of one stream too many", crowded,
        lambda s: s.api.http.put("/v1/streams/c", json={"model": "tiny"}, params={"wait": "0"}),
        (("problems", "http", "too-many-streams"), ("turned_away", "too_many_streams")),
    ),
    (
        "settings and a broker that is away", away, lambda s: s.api.http.put("/v1/streams/a", json={}),
        (("problems", "http", "broker-away"), ("turned_away", "broker_away")),
    ),
    ("a line", nothing, lambda s: s.line(**BAD), (("problems", "line", "wrong-shape"),)),
    ("a line that is none", nothing, lambda s: s.line(x=1), (("problems", "line", "malformed"),)),
    (
        "a line without a worker", unserved, lambda s: s.line(**ENTRY),
        (("problems", "line", "no-worker"), ("turned_away", "no_worker")),
    ),
    (
        "a line and a full shard", full, lambda s: s.line(**LARGE),
        (("problems", "line", "backlog-full"), ("turned_away", "backlog_full")),
    ),
    ("an entry of a message", nothing, lambda s: s.talk([BAD]), (("problems", "message", "wrong-shape"),)),
    ("a message that is none", nothing, lambda s: s.talk("x"), (("problems", "message", "malformed"),)),
    (
        "an entry of a message without a worker", unserved, lambda s: s.talk([ENTRY]),
        (("problems", "message", "no-worker"), ("turned_away", "no_worker")),
    ),
    (
        "an entry of a message and a full shard", full, lambda s: s.talk([LARGE]),
        (("problems", "message", "backlog-full"), ("turned_away", "backlog_full")),
    ),
    (
        "a hello", nothing, lambda s: s.talk(hello={"after": "?"}),
        (("problems", "message", "bad-cursor"),),
    ),
    (
        "a message that is too long", nothing, lambda s: s.talk("x" * (2 << 20)),
        (("requests_refused", "message_bytes"),),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "act", "expected"), [pytest.param(*one[1:], id=one[0]) for one in TURNED_AWAY])
def test_who_is_turned_away_is_counted_once(scene: Scene, before: Act, act: Act, expected: tuple[Key, ...]) -> None:
    before(scene)
    was = scene.counts()
    act(scene)
    scene.world.broker.away = False
    await_true(lambda: changed(scene, was) == dict.fromkeys(expected, 1), f"{expected}, found {changed(scene, was)}", 5)


def changed(scene: Scene, was: dict[Key, float]) -> dict[Key, float]:
    now = scene.counts()
    return {key: now[key] - was.get(key, 0) for key in now if now[key] != was.get(key, 0)}


def test_what_is_appended_is_counted_once_in_whatever_way_it_came(scene: Scene) -> None:
    was = scene.counts()
    assert scene.post().status_code == 202
    scene.line(**ENTRY)
    assert scene.api.http.put("/v1/streams/a", json={"model": "tiny"}, params={"wait": "0"}).status_code == 202
    scene.talk([ENTRY, BAD])
    assert changed(scene, was) == {("appended",): 4, ("problems", "message", "wrong-shape"): 1}


def test_a_websocket_that_says_nothing_is_counted(scene: Scene) -> None:
    with connect(f"ws://127.0.0.1:{scene.api.port}/v1/ws") as socket, pytest.raises(ConnectionClosed):
        socket.recv(5)
    assert scene.counts()["requests_refused", "hello_s"] == 1


def test_a_subscription_for_which_there_is_no_room_is_counted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.patterns.KEPT_CHARACTERS", 3)
    was = scene.counts()
    assert KEPT_CHARACTERS > 3
    assert scene.api.http.get("/v1/predictions", params={"stream": "cam-*"}).status_code == 503
    assert changed(scene, was) == {("problems", "http", "busy"): 1, ("turned_away", "busy"): 1}
