"""Following the shards for many subscribers: who reads too slowly, and what a fault leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from rollcast.events import ServerEvent, parse_events
from service.api.delivery import Delivery
from service.api.follower import Follower
from service.api.many import ManyTail
from service.api.patterns import read_pattern
from service.api.records import send_events
from service.api.tails import READ, Tail
from service.api.tasks import end
from service.codec import entry_fields
from service.errors import WaitTimeout
from service.keys import shard_of
from service.metrics import ApiMetrics, create_registry
from service.ports import FeedItem, OutRecord
from tests.answering import InMemory
from tests.ports.fake_predictions import FakePredictions

pytestmark = pytest.mark.anyio
LIMIT_S = 30.0
CAPACITY = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Scene:
    """A follower on a world in memory, whose subscribers hold `CAPACITY` records."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.world = InMemory()
        self.predictions: FakePredictions = self.world.predictions
        self.follower = Follower(self.predictions, ApiMetrics(create_registry()), capacity)

    async def record(self, count: int) -> list[str]:
        fields = entry_fields("cam-1", "samples", bytes(4), shape=(1, 1))
        ids = [await self.predictions.append("cam-1", fields) for _ in range(count)]
        for entry_id in ids:
            self.world.answer("cam-1", entry_id)
        return ids


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    task = asyncio.create_task(scene.follower.run())
    await until(lambda: scene.follower.away is None)
    yield scene
    await end([task])


async def until(condition: object) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


async def take(events: AsyncGenerator[bytes], count: int) -> list[ServerEvent]:
    """So many events, comments left out."""
    found: list[ServerEvent] = []
    async with asyncio.timeout(LIMIT_S):
        while len(found) < count:
            text = (await anext(events)).decode()
            found += [event for event in parse_events(text.splitlines()) if event.id]
    return found


async def test_who_reads_too_slowly_reads_again_and_misses_nothing(scene: Scene) -> None:
    subscription = scene.follower.subscribe("cam-1")
    tail = Tail(scene.predictions, "cam-1", 0)
    async with aclosing(send_events(subscription, tail, 1.0)) as events:
        first = await scene.record(2)
        found = await take(events, 2)
        rest = await scene.record(50)
        await until(lambda: subscription.overflowed)
        found += await take(events, 50)
        assert [event.id for event in found] == first + rest
        assert {event.event for event in found} == {"prediction"}
        new = await scene.record(1)
        assert [event.id for event in await take(events, 1)] == new
    assert not subscription.overflowed


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("many", [True, False])
async def test_a_slow_subscriber_has_few_records_in_memory_that_are_its_own(live: bool, many: bool) -> None:
    """Of all that wait for it a part is encoded, and the next one when that was sent."""
    scene = Scene(1024)
    task = asyncio.create_task(scene.follower.run())
    await until(lambda: scene.follower.away is None)
    wants = read_pattern(["cam-*"]) if many else "cam-1"
    subscription = scene.follower.subscribe(wants)
    tail = ManyTail(scene.predictions, scene.follower, subscription.fits, None) if many else None
    async with aclosing(send_events(subscription, tail or Tail(scene.predictions, "cam-1", 0), LIMIT_S)) as events:
        await anext(events)  # the reconnection time
        expected: list[str] = []
        if live:
            expected = await scene.record(1)
            assert len(await take(events, 1)) == 1
        elif tail is not None:
            await tail.begin()
        expected += await scene.record(200)
        await until(lambda: scene.follower.finished[shard_of("cam-1", 4)] == len(expected))
        found: list[ServerEvent] = []
        while len(found) < 200:
            part = [one for one in parse_events((await anext(events)).decode().splitlines()) if one.data]
            assert len(part) <= READ
            found += part
    assert [one.body["id"] for one in found] == expected[-200:]
    await end([task])


async def test_who_reads_so_slowly_that_records_are_gone_is_told_so(scene: Scene) -> None:
    subscription = scene.follower.subscribe("cam-1")
    tail = Tail(scene.predictions, "cam-1", 0)
    dropped = []
    tail.on_gap = lambda: dropped.append(subscription.overflowed)
    async with aclosing(send_events(subscription, tail, 1.0)) as events:
        first = await scene.record(2)
        await take(events, 2)
        lost = await scene.record(20)
        await until(lambda: subscription.overflowed)
        scene.world.trim("cam-1")
        new = await scene.record(1)
        gap, event = await take(events, 2)
        assert (gap.event, gap.id, gap.body["after"]) == ("gap", lost[-1], first[-1])
        assert event.id == new[0]
    assert dropped == [True]


async def test_a_record_that_was_trimmed_before_it_was_fetched_is_a_gap(scene: Scene) -> None:
    subscription = scene.follower.subscribe("cam-1")
    tail = Tail(scene.predictions, "cam-1", None)
    async with aclosing(send_events(subscription, tail, 0.01)) as events:
        await anext(events)  # the reconnection time
        await anext(events)  # a heartbeat: it has caught up with "now"
        lost = await scene.record(1)
        scene.world.trim("cam-1")
        new = await scene.record(1)
        gap, event = await take(events, 2)
        assert (gap.event, gap.id) == ("gap", lost[0])
        assert (event.event, event.id) == ("prediction", new[0])


async def test_a_record_that_comes_as_silence_ends_is_no_silence(scene: Scene) -> None:
    """Else a heartbeat would say a cursor behind a record that is still to be delivered."""
    subscription = scene.follower.subscribe("cam-1")
    subscription.begin_reading()
    subscription.caught_up()
    delivery = Delivery("cam-1", OutRecord("17-0", "prediction", b"{}", "0-0"))
    asyncio.get_running_loop().call_soon(subscription.push, delivery)
    assert await subscription.wait(0.0)
    assert subscription.take() == [delivery]
    assert not await subscription.wait(0.0)


async def test_an_unforeseen_fault_while_following_is_survived(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = scene.follower.connections
    whole = scene.predictions.fetch

    async def broken(wanted: object) -> list[object]:
        monkeypatch.setattr(scene.predictions, "fetch", whole)
        raise ZeroDivisionError

    subscription = scene.follower.subscribe("cam-1")
    async with aclosing(send_events(subscription, Tail(scene.predictions, "cam-1", 0), 1.0)) as events:
        await take(events, 0)
        monkeypatch.setattr(scene.predictions, "fetch", broken)
        expected = await scene.record(3)
        assert [event.id for event in await take(events, 3)] == expected
        await until(lambda: scene.follower.connections > connections)


async def test_nothing_is_fetched_that_nobody_here_wants(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    seen: list[FeedItem] = []
    whole, deliver = scene.predictions.fetch, scene.follower._deliver

    async def counting(wanted: list[tuple[str, str]]) -> object:
        asked.extend(wanted)
        return await whole(wanted)

    async def watching(items: list[FeedItem]) -> None:
        await deliver(items)
        seen.extend(items)

    monkeypatch.setattr(scene.predictions, "fetch", counting)
    monkeypatch.setattr(scene.follower, "_deliver", watching)
    scene.follower.subscribe("cam-2")
    await scene.record(3)
    await until(lambda: sum(len(item.records) for item in seen) == 3)
    assert asked == []


async def test_a_record_that_comes_before_the_id_is_known_is_not_missed(scene: Scene) -> None:
    with scene.follower.waiting("cam-1") as waiter:
        (entry_id,) = await scene.record(1)
        await until(lambda: entry_id in waiter._seen)
        assert (await waiter.record(entry_id, LIMIT_S)).id == entry_id


async def test_a_broker_that_goes_after_the_append_does_not_deny_the_entry(scene: Scene) -> None:
    with scene.follower.waiting("cam-1") as waiter:
        (entry_id,) = await scene.record(1)
        await until(lambda: entry_id in waiter._seen)
        scene.world.broker.away = True
        with pytest.raises(WaitTimeout, match="in the log"):
            await waiter.record(entry_id, 0.05)


async def test_a_record_that_came_while_following_began_anew_is_not_missed(scene: Scene) -> None:
    """It was committed before the new beginning; the answer to the append was read after it."""
    with scene.follower.waiting("cam-1") as waiter:
        scene.world.broker.away = True
        await until(lambda: scene.follower.away is not None)
        scene.world.broker.away = False
        (entry_id,) = await scene.record(1)
        await until(lambda: scene.follower.away is None)
        assert entry_id not in waiter._seen
        assert (await waiter.record(entry_id, LIMIT_S)).id == entry_id


async def test_a_wait_that_ends_without_a_record_leaves_nothing_behind(scene: Scene) -> None:
    entry_id = await scene.predictions.append("cam-1", {})

    async def wait(limit_s: float) -> None:
        with scene.follower.waiting("cam-1") as waiter:
            await waiter.record(entry_id, limit_s)

    with pytest.raises(WaitTimeout):
        await wait(0.01)
    assert scene.follower._waiters == {}
    cancelled = asyncio.create_task(wait(LIMIT_S))
    await until(lambda: scene.follower._waiters)
    await end([cancelled])
    assert scene.follower._waiters == {}


async def test_a_wait_that_begins_while_the_server_stops_ends_at_once(scene: Scene) -> None:
    (answered,) = await scene.record(1)
    scene.follower.close()
    with scene.follower.waiting("cam-1") as waiter, pytest.raises(WaitTimeout, match="before the server stopped"):
        await waiter.record(await scene.predictions.append("cam-1", {}), 10 * LIMIT_S)
    with scene.follower.waiting("cam-1") as waiter:
        waiter.in_doubt = True
        assert (await waiter.record(answered, LIMIT_S)).id == answered, "what is there is given all the same"


async def test_who_leaves_leaves_nothing_behind(scene: Scene) -> None:
    follower, pattern = scene.follower, read_pattern(["cam-*"])
    for _ in range(2):
        first, second = follower.subscribe(pattern), follower.subscribe(pattern, transport="websocket")
        one, chooser = follower.subscribe("cam-1"), follower.subscribe(None)
        follower.choose(chooser, "cam-2")
        await scene.record(1)
        follower.unsubscribe(first)
        assert follower._patterns.members() == [second]
        follower.unsubscribe(second, transport="websocket")
        follower.unsubscribe(one)
        assert follower._subscriptions.keys() == {"cam-2"}
        follower.unsubscribe(chooser)
        assert not follower._patterns
        assert (follower._patterns._size, follower._patterns.fitting("cam-1")) == (0, [])
        assert (follower._subscriptions, follower._choosers, follower._everybody()) == ({}, set(), [])
        assert set(follower._counts.values()) == {0}


async def test_a_wait_outlives_the_broker(scene: Scene) -> None:
    with scene.follower.waiting("cam-1") as waiter:
        entry_id = await scene.predictions.append("cam-1", {})
        waiting = asyncio.create_task(waiter.record(entry_id, LIMIT_S))
        scene.world.broker.away = True
        await until(lambda: scene.follower.away is not None)
        scene.world.answer("cam-1", entry_id)
        scene.world.broker.away = False
        assert (await waiting).id == entry_id
