"""Readers that do what they should not: stall, vanish, come with a cursor of somewhere else."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from rollcast.events import ServerEvent, parse_events
from service.api import Bounds, create_app
from service.api.follower import Follower, Subscription
from service.cursors import Place, decode_cursor, encode_cursor
from service.keys import shard_of
from service.metrics import create_registry
from tests.answering import InMemory, OnBroker
from tests.doubles import tiny_manifest
from tests.raw import TEXT, Raw, frame
from tests.serving import Serving, await_true

ROW = [1.0, 2.0, 3.0]
LIMIT_S = 60.0
PATHS = ["/v1/streams/{}/predictions", "/v1/predictions?stream={}"]


@pytest.fixture(scope="module")
def world(broker_url: str) -> Iterator[OnBroker]:
    on_broker = OnBroker(broker_url, f"readers-{threading.get_native_id()}")
    on_broker.serve("tiny")
    yield on_broker
    on_broker.close()


@pytest.fixture(scope="module")
def api(world: OnBroker) -> Iterator[Serving]:
    bounds = Bounds(seconds=1e9)
    app = create_app(world.predictions, [tiny_manifest()], create_registry(), bounds=bounds, heartbeat_s=0.1)
    with Serving(app) as serving:
        yield serving


@pytest.fixture
def stream(prefix: str) -> str:
    return f"s-{prefix}"


class Reader:
    """A subscriber that reads only when it is told to."""

    def __init__(self, api: Serving, path: str, buffer: int = 1 << 16, **headers: str) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(("127.0.0.1", api.port))
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{more}\r\n"
        self.socket.sendall(head.encode())
        self.seen: list[str] = []  # for who uses it
        self._body = self._lines()
        self._events = parse_events(self._body)

    def begin(self) -> None:
        """Waits for the first words: it has subscribed."""
        next(self._body)

    def take(self, count: int) -> list[ServerEvent]:
        return [next(self._events) for _ in range(count)]

    def rest(self) -> Iterator[ServerEvent]:
        """Up to the end of the answer."""
        for event in self._events:
            yield event
            if event.event == "bye":
                return

    def _lines(self) -> Iterator[str]:
        """Of the body; the sizes of its chunks are no lines of events."""
        rest, head = b"", True
        while data := self.socket.recv(1 << 16):
            *whole, rest = (rest + data).split(b"\n")
            for one in whole:
                line = one.decode().rstrip("\r")
                if head:
                    head = line != ""
                elif not one.endswith(b"\r"):
                    yield line


def subscribers(api: Serving, transport: str = "sse") -> float:
    return shown(api, f'rollcast_subscribers{{transport="{transport}"}}')


def shown(api: Serving, series: str) -> float:
    found = [line for line in api.http.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
    return float(found[0].split()[-1]) if found else 0.0


def is_empty(api: Serving) -> bool:
    """Nothing is held for any client but the one that asks."""
    follower: Follower = api.app.state.said_bye.__self__
    kept = follower._subscriptions, follower._choosers, follower._patterns.members(), follower._waiters
    gauges = subscribers(api), subscribers(api, "websocket"), shown(api, "rollcast_unfinished_bytes")
    return not any(kept) and not any(gauges) and shown(api, "rollcast_connections") == 1


def vanish(socket_: socket.socket, reset: bool) -> None:
    """Without a word: the connection is reset, or closed."""
    if reset:
        socket_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket_.close()


def record(api: Serving, world: OnBroker | InMemory, stream: str, count: int) -> list[str]:
    line = json.dumps({"stream": stream, "kind": "samples", "samples": [ROW], "model": "tiny"}).encode() + b"\n"
    answer = api.http.post("/v1/entries", content=line * count, headers={"Content-Type": "application/x-ndjson"})
    ids = [json.loads(one)["id"] for one in answer.text.splitlines()]
    for entry_id in ids:
        world.answer(stream, entry_id)
    return ids


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reset", [True, False])
def test_readers_that_vanish_leave_nothing_behind(
    api: Serving, world: OnBroker, stream: str, path: str, reset: bool
) -> None:
    await_true(lambda: is_empty(api), "nobody is left of before")
    readers = [Reader(api, path.format(stream)) for _ in range(20)]
    stays = Reader(api, path.format(stream) + ("&" if "?" in path else "?") + "after=0")
    await_true(lambda: subscribers(api) == 21, "all are there")
    first = record(api, world, stream, 3)
    for reader in readers:
        vanish(reader.socket, reset)
    second = record(api, world, stream, 3)
    assert [event.body["id"] for event in stays.take(6)] == first + second
    await_true(lambda: subscribers(api) == 1, "the others are forgotten")
    stays.socket.close()
    await_true(lambda: is_empty(api), "all are forgotten")


@pytest.mark.parametrize("path", ["/v1/streams/{}/ws", "/v1/ws"])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("wants", ["all", "what it posts to"])
def test_websockets_that_vanish_leave_nothing_behind(
    api: Serving, stream: str, path: str, reset: bool, wants: str
) -> None:
    await_true(lambda: is_empty(api), "nobody is left of before")
    hello = {"type": "hello"} | ({"streams": ["s-*"]} if wants == "all" and path == "/v1/ws" else {})
    entry = {"stream": stream, "kind": "samples", "samples": [ROW], "model": "tiny"}
    readers = [Raw(api.port) for _ in range(5)]
    for reader in readers:
        assert reader.upgrade(path=path.format(stream).encode()).startswith(b"HTTP/1.1 101 ")
        reader.send(frame(TEXT, json.dumps(hello).encode()), frame(TEXT, json.dumps([entry]).encode()))
        said = b""
        while b'"ack"' not in said:
            said += reader.socket.recv(1 << 16)
    assert (subscribers(api), subscribers(api, "websocket")) == (0, 5)
    for reader in readers:
        vanish(reader.socket, reset)
    await_true(lambda: is_empty(api), "all are forgotten")


@pytest.mark.parametrize("path", PATHS)
def test_a_reader_that_stalls_holds_nobody_up_and_then_gets_everything(
    api: Serving, world: OnBroker, stream: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More comes than its buffer and the system's hold; it is read from the broker when it goes on."""
    overflows, overflow = [], Subscription._overflow

    def counted(subscription: Subscription) -> None:
        overflows.append(subscription)
        overflow(subscription)

    monkeypatch.setattr(Subscription, "_overflow", counted)
    api._server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of who connects now
    where = path.format(stream) + ("&" if "?" in path else "?") + "after=0"
    stalled, quick = Reader(api, where, buffer=4096), Reader(api, where)
    ids: list[str] = []
    for _ in range(13):
        some = record(api, world, stream, 100)
        assert [event.body["id"] for event in quick.take(100)] == some
        ids += some
    assert overflows, "it did stall"
    assert [event.body["id"] for event in stalled.take(1300)] == ids
    for reader in (stalled, quick):
        reader.socket.close()


@pytest.fixture
def small(broker_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Serving, OnBroker]]:
    """An api whose subscribers hold few records, as little as the system allows in between."""
    monkeypatch.setattr(Follower.__init__, "__defaults__", (64,))
    world = OnBroker(broker_url, prefix)
    world.serve("tiny")
    bounds = Bounds(seconds=1e9)
    app = create_app(world.predictions, [tiny_manifest()], create_registry(), bounds=bounds, heartbeat_s=0.1)
    with Serving(app) as api:
        api._server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield api, world
    world.close()


def stalled(api: Serving, world: OnBroker, stream: str, path: str, when_full: str) -> tuple[Reader, list[str]]:
    """A reader that follows live, and then does not read while much comes; the ids of all of it."""
    reader = Reader(api, path.format(stream) + ("&" if "?" in path else "?") + f"when_full={when_full}", buffer=4096)
    reader.begin()
    ids = record(api, world, stream, 1)
    reader.seen += [event.body["id"] for event in reader.take(1)]
    assert reader.seen == ids
    for _ in range(6):
        ids += record(api, world, stream, 100)
    return reader, ids


@pytest.mark.parametrize("path", PATHS)
def test_who_would_rather_lose_the_oldest_gets_the_newest_and_is_told(
    small: tuple[Serving, OnBroker], stream: str, path: str
) -> None:
    api, world = small
    reader, ids = stalled(api, world, stream, path, "drop_oldest")
    gaps, seen = [], reader.seen
    while seen[-1] != ids[-1]:
        (event,) = reader.take(1)
        if event.event == "gap":
            gaps.append(event.body)
        else:
            seen.append(event.body["id"])
    assert {gap["reason"] for gap in gaps} == {"slow"}
    assert seen == [entry_id for entry_id in ids if entry_id in set(seen)], "in order, each once"
    if "records" in gaps[0]:
        assert len(seen) + sum(gap["records"] for gap in gaps) == len(ids)
    else:
        assert all(gap["after"] in seen and gap["next"] in seen for gap in gaps)
    reader.socket.close()


@pytest.mark.parametrize("path", PATHS)
def test_who_would_rather_be_sent_away_comes_back_with_the_cursor(
    small: tuple[Serving, OnBroker], stream: str, path: str
) -> None:
    api, world = small
    reader, ids = stalled(api, world, stream, path, "disconnect")
    *events, bye = list(reader.rest())
    assert (bye.event, bye.body["reason"]) == ("bye", "too_slow")
    seen = reader.seen + [event.body["id"] for event in events]
    assert len(seen) < len(ids)
    reader.socket.close()
    again = Reader(api, path.format(stream), Last_Event_ID=bye.id)
    assert seen + [event.body["id"] for event in again.take(len(ids) - len(seen))] == ids
    again.socket.close()


def test_a_websocket_that_is_too_slow_is_closed_with_its_own_code(small: tuple[Serving, OnBroker], stream: str) -> None:
    api, world = small
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", api.port))
    url = f"ws://127.0.0.1:{api.port}/v1/streams/{stream}/ws"
    with connect(url, sock=slow, proxy=None, max_queue=1, ping_interval=None, compression=None) as one:
        one.send(json.dumps({"type": "hello", "when_full": "disconnect"}))
        seen: list[str] = []
        ids: list[str] = []
        while not seen:  # until it gets what is live
            ids += record(api, world, stream, 1)
            seen += [answer["id"] for answer in json.loads(one.recv(LIMIT_S)) if answer["type"] == "prediction"]
        for _ in range(6):
            record(api, world, stream, 100)
        said: list[dict[str, object]] = []
        while not said or said[-1]["type"] != "bye":
            said += json.loads(one.recv(LIMIT_S))
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(LIMIT_S)
    assert said[-1].items() >= {"type": "bye", "reason": "too_slow", "id": said[-2]["id"]}.items()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013


# --- cursors of somewhere else -----------------------------------------------------------------------------------


def test_a_streams_cursor_from_the_future_is_a_gap_and_then_what_is_new(
    api: Serving, world: OnBroker, stream: str
) -> None:
    (last,) = record(api, world, stream, 1)
    future = f"{int(last.partition('-')[0]) + 3_600_000}-0"
    for headers in ({"Last_Event_ID": future}, {}):
        reader = Reader(api, PATHS[0].format(stream) + ("" if headers else f"?after={future}"), **headers)
        (gap,) = reader.take(1)
        assert (gap.event, gap.body["reason"], gap.body["after"]) == ("gap", "lost", future)
        new = record(api, world, stream, 2)
        assert [event.id for event in reader.take(2)] == new
        reader.socket.close()


def test_a_streams_cursor_from_another_stream_is_a_time_or_a_gap(api: Serving, world: OnBroker, stream: str) -> None:
    first = record(api, world, stream, 2)
    (other,) = record(api, world, f"{stream}-other", 1)
    second = record(api, world, stream, 2)
    asked = Reader(api, PATHS[0].format(stream) + f"?after={other}")
    assert [event.id for event in asked.take(2)] == second, "what came after it"
    seen = Reader(api, PATHS[0].format(stream), Last_Event_ID=other)
    gap, *rest = seen.take(3)
    assert (gap.event, gap.body["reason"], gap.body["after"]) == ("gap", "lost", other)
    assert [event.id for event in rest] == second, "it never was a record of this stream: something may be missing"
    assert first[-1] < other
    for reader in (asked, seen):
        reader.socket.close()


@pytest.mark.parametrize("change", ["future", "token"])
def test_a_cursor_of_many_streams_from_the_future_or_another_life_is_a_gap_of_its_shard(
    api: Serving, world: OnBroker, stream: str, change: str
) -> None:
    record(api, world, stream, 2)
    reader = Reader(api, PATHS[1].format(stream) + "&after=0")
    *_, event = reader.take(2)
    reader.socket.close()
    places = decode_cursor(event.id, world.shards, "after")
    home = shard_of(stream, world.shards)
    place = places[home]
    places[home] = Place(place.n + 1000, 0, place.token) if change == "future" else place._replace(token="ffff")
    reader = Reader(api, PATHS[1].format(stream) + f"&after={encode_cursor(places)}")
    (gap,) = reader.take(1)
    assert (gap.event, gap.body["reason"], gap.body["shard"]) == ("gap", "lost", home)
    new = record(api, world, stream, 3)
    assert [one.body["id"] for one in reader.take(3)] == new
    reader.socket.close()


@pytest.mark.parametrize(
    ("path", "cursor", "told"),
    [
        (PATHS[0], "AQIArAICqxIAAAAA", "MS-SEQ"),
        (PATHS[0], "17-0-1", "MS-SEQ"),
        (PATHS[1], "1763860000000-0", "not a cursor over many streams"),
        (PATHS[1], encode_cursor([Place(1, 0, "0000")] * 3), "a deployment with 3 shards; this one has 4"),
        (PATHS[1], "AQQA", "not a cursor over many streams"),
    ],
)
@pytest.mark.parametrize("by_header", [True, False])
def test_a_cursor_that_is_none_is_refused_before_anything_is_sent(
    api: Serving, path: str, cursor: str, told: str, by_header: bool
) -> None:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": cursor} if by_header else {})
    answer = api.http.get(path.format("cam-1"), headers=headers, params=None if by_header else {"after": cursor})
    if not by_header and "?" in path:
        answer = api.http.get(path.format("cam-1") + f"&after={cursor}", headers=headers)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "bad-cursor")
    assert told in answer.json()["detail"]


# --- once a process ----------------------------------------------------------------------------------------------


def test_a_record_is_fetched_and_encoded_once_however_many_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, encoded, fetched = InMemory(), [], []
    memory.serve("tiny")
    fetch, make = memory.predictions.fetch, _event_maker()

    async def counting(wanted: list[tuple[str, str]]) -> object:
        fetched.extend(wanted)
        return await fetch(wanted)

    def encoding(**values: object) -> bytes:
        if values.get("event", "") is None:  # a prediction; `bye` is everybody's own
            encoded.append(values["id"])
        return make(**values)

    monkeypatch.setattr(memory.predictions, "fetch", counting)
    monkeypatch.setattr("service.api.delivery.format_sse_event", encoding)
    with Serving(create_app(memory.predictions, [tiny_manifest()], registry := create_registry())) as api:
        readers = [Reader(api, PATHS[n % 2].format("cam-1")) for n in range(40)]
        await_true(
            lambda: registry.get_sample_value("rollcast_subscribers", {"transport": "sse"}) == 40, "all are there"
        )
        ids = record(api, memory, "cam-1", 5)
        for reader in readers:
            assert [event.body["id"] for event in reader.take(5)] == ids
            reader.socket.close()
    assert sorted(fetched) == [("cam-1", entry_id) for entry_id in ids]
    assert len(encoded) == 2 * len(ids), "under the record's own id, and under the cursor over many streams"


def _event_maker() -> Callable[..., bytes]:
    from fastapi.sse import format_sse_event

    return format_sse_event
