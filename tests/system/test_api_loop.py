"""No request holds up the api's event loop: measured by what its callbacks take of the CPU, one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import ClassVar

import httpx
import msgspec
import pytest
import redis
from websockets.sync.client import connect

from service.api import create_app
from service.broker.predictions import MANY_STREAMS
from service.errors import BrokerAway
from service.keys import ShardKeys, shard_of
from service.metrics import create_registry
from service.ports import OutRecord
from tests.answering import PATIENT, InMemory, OnBroker
from tests.doubles import tiny_manifest
from tests.holding import watching_callbacks
from tests.hostile.test_loop import posts
from tests.ports.fake_predictions import FakePredictions
from tests.serving import Serving, await_true
from tests.turns import BUSY, LONGEST_S

MOST_S = BUSY * LONGEST_S
STREAMS = 2 * MANY_STREAMS


@pytest.fixture(scope="module")
def api() -> Iterator[Serving]:
    world = InMemory()
    world.serve("tiny")
    with Serving(create_app(world.predictions, [tiny_manifest()], create_registry(), bounds=PATIENT)) as serving:
        yield serving


def test_no_body_holds_up_the_loop(api: Serving) -> None:
    for kind, media, body, status in posts():
        with watching_callbacks() as held:
            url = f"{api.url}/v1/streams/dear-{kind}/{kind}"
            answer = httpx.post(url, content=body, headers={"Content-Type": media}, timeout=60)
        assert answer.status_code in (status, 422), answer.text  # 422: no model is named, and none is found by its rows
        assert held.longest_s < MOST_S, (media, body[:20], held.longest)


@pytest.mark.parametrize("body", [b"x\n" * 30_000, b"\n" * 4_000_000, b"x" * 40_000_000, b" " * 16_000_000])
def test_no_lines_hold_up_the_loop(api: Serving, body: bytes) -> None:
    with watching_callbacks() as held:
        answer = httpx.post(
            f"{api.url}/v1/entries", content=body, headers={"Content-Type": "application/x-ndjson"}, timeout=60
        )
    assert answer.status_code == 200
    assert held.longest_s < MOST_S, held.longest


def test_no_message_holds_up_the_loop(api: Serving) -> None:
    many = [{"kind": "samples", "stream": f"s{n}", "samples": [[1.0] * 60] * 10} for n in range(1024)]
    messages = ["[" + "1," * 4_000_000 + "1]", "[" + "{}," * 2_000_000 + "{}]", msgspec.msgpack.encode([1] * 8_000_000),
                msgspec.msgpack.encode(many), msgspec.json.encode(many).decode()]  # fmt: skip
    with connect(f"{api.url.replace('http', 'ws')}/v1/ws", max_size=None) as gateway:
        gateway.send('{"type":"hello"}')
        for message in messages:
            with watching_callbacks() as held:
                gateway.send(message)
                while '"type":"problem"' not in str(gateway.recv(60)):
                    pass
            assert held.longest_s < MOST_S, held.longest


def test_a_message_that_waits_for_its_place_keeps_no_body_waiting() -> None:
    """Two WebSockets whose first record is asked for again, and does not come; as many may be read at once."""

    class Slow(FakePredictions):
        asked: ClassVar[list[str]] = []

        async def newest(self, stream: str, limit: int, before: str = "+") -> list[OutRecord]:
            self.asked.append(stream)
            if self.asked.count(stream) == 1:
                raise BrokerAway("for a moment")
            await asyncio.sleep(60)
            return []

    world = InMemory()
    world.predictions = Slow(world.broker)
    world.serve("tiny")
    rows = bytes(12 * 8192)
    message = [{"kind": "samples", "model": "tiny", "data": rows[: 12 * 4096]}] * 2
    with (
        Serving(create_app(world.predictions, [tiny_manifest()], create_registry()), grace_s=1) as api,
        ExitStack() as opened,
    ):
        for stream in ("a", "b"):
            url = f"{api.url.replace('http', 'ws')}/v1/streams/{stream}/ws"
            socket = opened.enter_context(connect(url))
            socket.send(msgspec.msgpack.encode({"type": "hello"}))
            socket.send(msgspec.msgpack.encode(message))
        await_true(lambda: min(map(Slow.asked.count, "ab")) >= 3, "both wait for their places")
        answer = api.http.post(
            "/v1/streams/c/samples", content=rows, headers={"Content-Type": "application/octet-stream"}
        )
        assert answer.status_code == 422, answer.text  # too many rows; busy, if the gate were shut


@pytest.fixture(scope="module")
def many(broker_url: str) -> Iterator[OnBroker]:
    """A broker that knows very many streams, all with drops."""
    world = OnBroker(broker_url, "many-streams")
    world.serve("tiny")
    pipe = redis.Redis.from_url(broker_url).pipeline(transaction=False)
    for number in range(STREAMS):
        stream = f"s-{number:06}"
        keys = ShardKeys(world.prefix, shard_of(stream, world.shards))
        pipe.zadd(keys.streams, {stream: 1})
        pipe.hset(keys.pos, stream, "17-4")
        pipe.zadd(keys.drops, {stream: 1 + number % 7})
    pipe.execute()
    yield world
    world.close()


@pytest.mark.parametrize("sort", ["name", "lag", "drops", "restarts"])
def test_a_page_of_very_many_streams_is_the_right_one_and_holds_up_nobody(many: OnBroker, sort: str) -> None:
    names = [f"s-{number:06}" for number in range(STREAMS)]
    expected = sorted(names, key=lambda name: (-(1 + int(name[2:]) % 7), name)) if sort == "drops" else names
    with Serving(create_app(many.predictions, [tiny_manifest()], create_registry(), bounds=PATIENT)) as api:
        after, found = None, []
        for limit in (1000, 1, 999):
            with watching_callbacks() as held:
                query = {"sort": sort, "limit": limit} | ({"after": after} if after else {})
                page = api.http.get("/v1/streams", params=query).json()
            after, found = page["next"], found + [one["stream"] for one in page["streams"]]
            assert held.longest_s < MOST_S, held.longest
        assert found == expected[:2000]


def test_a_stream_that_comes_is_in_a_list_of_few_at_once_and_of_very_many_within_a_second(many: OnBroker) -> None:
    with Serving(create_app(many.predictions, [tiny_manifest()], create_registry(), bounds=PATIENT)) as api:

        def first() -> str:
            name: str = api.http.get("/v1/streams", params={"limit": 1}).json()["streams"][0]["stream"]
            return name

        first()
        keys = many.keys("a-new-one")
        many.redis.zadd(keys.streams, {"a-new-one": 1})
        many.redis.hset(keys.pos, "a-new-one", "17-4")
        deadline = time.monotonic() + 30
        while first() != "a-new-one":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        many.redis.zrem(keys.streams, "a-new-one")
