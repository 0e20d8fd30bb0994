"""Subscribing to many streams: every record once, in order within a stream, from any cursor; else a gap is said.

The same sentences for the fake and for real brokers. A worker's part is played by hand, so that the commits of
different shards are mixed as a test likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from rollcast.events import ServerEvent, parse_events
from service.api.follower import Follower, WhenFull
from service.api.many import ManyTail
from service.api.patterns import read_pattern
from service.api.records import send_events
from service.api.tasks import end
from service.codec import entry_fields, id_number
from service.cursors import decode_cursor
from service.embedded import EmbeddedBroker
from service.errors import Malformed
from service.keys import shard_of
from service.metrics import ApiMetrics, create_registry
from tests.answering import Answering, InMemory, OnBroker

pytestmark = pytest.mark.anyio
LIMIT_S = 60.0
CAPACITY = 8
STREAMS = [f"cam-{i}" for i in range(8)] + ["belt-1"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", "valkey", "redis"])
async def world(
    request: pytest.FixtureRequest, start_broker: Callable[[str], EmbeddedBroker], prefix: str
) -> AsyncIterator[Answering]:
    if request.param == "memory":
        yield InMemory()
        return
    on_broker = OnBroker(start_broker(request.param).url, prefix)
    yield on_broker
    await on_broker.predictions.close()
    on_broker.close()


class Scene:
    """A follower in a world, with as many subscribers as a test likes, each of `CAPACITY` records."""

    def __init__(self, world: Answering) -> None:
        self.world, self.predictions = world, world.predictions
        self.follower = Follower(self.predictions, ApiMetrics(create_registry()), CAPACITY)
        self.gaps = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def follow(self) -> None:
        """From now on; if it did before, it begins again."""
        await end(self.tasks)
        connections = self.follower.connections
        self.tasks = [asyncio.create_task(self.follower.run())]
        await until(lambda: self.follower.connections > connections)

    async def append(self, stream: str) -> tuple[str, str]:
        fields = entry_fields(stream, "samples", bytes(4), shape=(1, 1))
        return stream, await self.predictions.append(stream, fields)

    def answer(self, entry: tuple[str, str]) -> None:
        self.world.answer(*entry)

    async def record(self, *streams: str) -> list[str]:
        entries = [await self.append(stream) for stream in streams]
        for entry in entries:
            self.answer(entry)
        return [entry_id for _, entry_id in entries]

    def subscribe(
        self, *globs: str, after: str | None = "0", when_full: WhenFull = "catch_up", heartbeat_s: float = 5.0
    ) -> AsyncGenerator[bytes]:
        pattern = read_pattern(globs)
        places = None if after is None else decode_cursor(after, self.predictions.shards, "after")
        subscription = self.follower.subscribe(pattern, when_full=when_full)
        tail = ManyTail(self.predictions, self.follower, subscription.fits, places)

        def count() -> None:
            self.gaps += 1

        tail.on_gap = count

        async def events() -> AsyncGenerator[bytes]:
            try:
                async for part in send_events(subscription, tail, heartbeat_s):
                    yield part
            finally:
                self.follower.unsubscribe(subscription)

        return events()


@pytest.fixture
async def scene(world: Answering) -> AsyncIterator[Scene]:
    scene = Scene(world)
    await scene.follow()
    yield scene
    await end(scene.tasks)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def take(events: AsyncGenerator[bytes], count: int) -> list[ServerEvent]:
    """So many events; what only moves the cursor is left out."""
    found: list[ServerEvent] = []
    async with asyncio.timeout(LIMIT_S):
        while len(found) < count:
            text = (await anext(events)).decode()
            found += parse_events(text.splitlines())
    assert len(found) == count
    return found


async def standing(events: AsyncGenerator[bytes]) -> str:
    """The cursor that the next silence says."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            lines = (await anext(events)).decode().splitlines()
            if lines[:1] and lines[0].startswith("id: ") and lines[1] == ": heartbeat":
                return lines[0].removeprefix("id: ")


def ids(events: list[ServerEvent]) -> list[str]:
    assert {event.event for event in events} <= {"prediction"}
    return [event.body["id"] for event in events]


def ordered(events: list[ServerEvent]) -> bool:
    """Within each stream."""
    last: dict[str, int] = {}
    for event in events:
        stream, number = event.body["stream"], id_number(event.body["id"])
        if number <= last.get(stream, 0):
            return False
        last[stream] = number
    return True


async def test_a_pattern_gets_its_streams_and_no_others(scene: Scene) -> None:
    async with aclosing(scene.subscribe("cam-*", "x?y")) as events:
        kept = await scene.record("cam-1", "belt-1", "cam-2", "xay", "xaay", "cam-1")
        assert sorted(ids(await take(events, 4))) == sorted([kept[0], kept[2], kept[3], kept[5]])


async def test_now_is_where_it_begins_without_a_cursor(scene: Scene) -> None:
    await scene.record(*STREAMS)
    await until(lambda: sum(place.n > 0 for place in scene.follower.places) > 1)
    async with aclosing(scene.subscribe("*", after=None)) as events:
        await standing(events)
        new = await scene.record("cam-3", "belt-1")
        assert sorted(ids(await take(events, 2))) == sorted(new)


async def test_what_was_committed_between_connecting_and_the_first_record_is_not_lost(scene: Scene) -> None:
    async with aclosing(scene.subscribe("*", after=None)) as events:
        cursor = await standing(events)
    new = await scene.record(*STREAMS)
    async with aclosing(scene.subscribe("*", after=cursor)) as events:
        assert sorted(ids(await take(events, len(new)))) == sorted(new)


async def test_resuming_after_every_single_event_gives_the_same_records(scene: Scene) -> None:
    """Entries are answered in reverse order of their shards, so that ids and commits disagree; one stream has a
    backlog beside one without."""
    entries = [await scene.append(stream) for _ in range(3) for stream in STREAMS]
    backlog = [await scene.append("cam-0") for _ in range(20)]
    shards = scene.predictions.shards
    for entry in sorted(entries, key=lambda entry: -shard_of(entry[0], shards)):
        scene.answer(entry)
    for entry in backlog:
        scene.answer(entry)
    expected = sorted(entry_id for stream, entry_id in entries + backlog if stream.startswith("cam"))
    async with aclosing(scene.subscribe("cam-*")) as events:
        whole = await take(events, len(expected))
    assert sorted(ids(whole)) == expected
    assert ordered(whole)
    for cut in range(len(whole)):
        async with aclosing(scene.subscribe("cam-*", after=whole[cut].id)) as events:
            rest = await take(events, len(whole) - cut - 1)
        assert sorted(ids(whole[: cut + 1] + rest)) == expected
        assert ordered(whole[: cut + 1] + rest)


@pytest.mark.parametrize("after", ["0", "now", None])
@pytest.mark.parametrize("away", [False, True])
async def test_the_cursor_of_a_server_that_stops_at_once_is_taken_by_the_next_one(
    scene: Scene, after: str | None, away: bool
) -> None:
    """Whatever was known when it stopped: it gives a cursor that resumes without a gap, or none."""
    await scene.record(*STREAMS)
    await until(lambda: sum(place.n for place in scene.follower.places) == len(STREAMS))
    if after == "now":
        async with aclosing(scene.subscribe("*", after=None)) as events:
            after = await standing(events)
    if away:
        await end(scene.tasks)
        scene.follower.away = "the broker has not answered yet"
    scene.follower.close()
    async with aclosing(scene.subscribe("*", after=after)) as events:
        (bye,) = await take(events, 1)
    assert bye.event == "bye"
    scene.follower = Follower(scene.predictions, ApiMetrics(create_registry()), CAPACITY)
    await scene.follow()
    new = await scene.record("cam-2")
    async with aclosing(scene.subscribe("*", after=bye.id or after or "0")) as events:
        expected = len(new) if after not in ("0", None) else len(new) + len(STREAMS)
        assert new[0] in ids(await take(events, expected))
    assert bye.id == "" if after is None else decode_cursor(bye.id, scene.predictions.shards, "bye")
    assert scene.gaps == 0


async def test_live_cursors_resume_as_well_as_those_of_catching_up(scene: Scene) -> None:
    async with aclosing(scene.subscribe("*", after=None, heartbeat_s=0.02)) as events:
        await standing(events)
        seen: list[ServerEvent] = []
        for _ in range(4):
            await scene.record(*STREAMS[:4])
            seen += await take(events, 4)
    for cut, event in enumerate(seen):
        async with aclosing(scene.subscribe("*", after=event.id)) as again:
            rest = await take(again, len(seen) - cut - 1)
        assert sorted(ids(seen[: cut + 1] + rest)) == sorted(ids(seen))


async def test_silence_moves_the_cursor_past_what_did_not_fit(scene: Scene) -> None:
    async with aclosing(scene.subscribe("belt-*", after=None, heartbeat_s=0.02)) as events:
        first = await standing(events)
        await scene.record("cam-1", "cam-2", "cam-3")
        homes = [shard_of(stream, scene.predictions.shards) for stream in ("cam-1", "cam-2", "cam-3")]
        await until(lambda: all(scene.follower.places[home].n == homes.count(home) for home in homes))
        async with asyncio.timeout(LIMIT_S):
            while (cursor := await standing(events)) == first:
                pass
    assert cursor == scene.follower.cursor()


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_a_commit_of_many_records_is_resumed_in_its_middle(scene: Scene, world: InMemory) -> None:
    new = await scene.record(*["cam-1"] * 6)
    world.broker.shards[shard_of("cam-1", 4)].feed = {1: [("cam-1", entry_id) for entry_id in new]}
    async with aclosing(scene.subscribe("*")) as events:
        whole = await take(events, 6)
    for cut in range(6):
        async with aclosing(scene.subscribe("*", after=whole[cut].id)) as events:
            assert ids(await take(events, 5 - cut)) == new[cut + 1 :]


async def test_who_reads_too_slowly_reads_again_and_misses_nothing(scene: Scene) -> None:
    async with aclosing(scene.subscribe("*")) as events:
        first = await scene.record("cam-1")
        found = await take(events, 1)
        rest = await scene.record(*STREAMS * 4)
        await until(lambda: scene.follower.places[shard_of(STREAMS[-1], scene.predictions.shards)].n >= 4)
        found += await take(events, len(rest))
        assert sorted(ids(found)) == sorted(first + rest)
        assert ordered(found)
    assert scene.gaps == 0


async def test_who_would_rather_lose_the_oldest_is_told_how_many(scene: Scene) -> None:
    async with aclosing(scene.subscribe("cam-1", when_full="drop_oldest", heartbeat_s=0.02)) as events:
        await scene.record("cam-1")
        await take(events, 1)
        await standing(events)  # it has caught up: what comes now waits for it in memory
        home = shard_of("cam-1", scene.predictions.shards)
        await until(lambda: scene.follower.places[home].n == 1)
        new = await scene.record(*["cam-1"] * (CAPACITY + 5))
        await until(lambda: scene.follower.places[home].n == 1 + len(new))
        gap, *rest = await take(events, 1 + CAPACITY)
        assert (gap.event, gap.body["reason"], gap.body["records"]) == ("gap", "slow", 5)
        assert ids(rest) == new[5:]
    assert scene.gaps == 1
    async with aclosing(scene.subscribe("cam-1", after=gap.id)) as events:  # nothing is lost to who comes back
        assert ids(await take(events, len(new))) == new


async def test_who_would_rather_be_sent_away_is(scene: Scene) -> None:
    events = scene.subscribe("cam-1", when_full="disconnect", heartbeat_s=0.02)
    async with aclosing(events):
        await scene.record("cam-1")
        await take(events, 1)
        await standing(events)
        home = shard_of("cam-1", scene.predictions.shards)
        await until(lambda: scene.follower.places[home].n == 1)
        new = await scene.record(*["cam-1"] * (CAPACITY + 5))
        await until(lambda: scene.follower.places[home].n == 1 + len(new))
        (bye,) = await take(events, 1)
        assert (bye.event, bye.body["reason"]) == ("bye", "too_slow")
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with aclosing(scene.subscribe("cam-1", after=bye.id)) as again:
        assert ids(await take(again, len(new))) == new


async def test_records_that_are_gone_are_a_gap_of_their_stream(scene: Scene) -> None:
    lost = await scene.record("cam-1", "cam-1")
    kept = await scene.record("belt-1")
    scene.world.trim("cam-1")
    async with aclosing(scene.subscribe("*")) as events:
        found = await take(events, 3)
    gaps = [event.body for event in found if event.event == "gap"]
    assert [(gap["stream"], gap["id"], gap["reason"]) for gap in gaps] == [
        ("cam-1", lost[0], "trimmed"), ("cam-1", lost[1], "trimmed"),
    ]  # fmt: skip
    assert [event.body["id"] for event in found if event.event == "prediction"] == kept


def forget_commits(scene: Scene, stream: str, below: int) -> None:
    """As the feed's bound does."""
    if isinstance(scene.world, InMemory):
        feed = scene.world.broker.shards[shard_of(stream, scene.predictions.shards)].feed
        for n in [n for n in feed if n < below]:
            del feed[n]
    else:
        assert isinstance(scene.world, OnBroker)
        scene.world.redis.xtrim(scene.world.keys(stream).feed, minid=f"{below}-0", approximate=False)


@pytest.mark.parametrize("seen", [False, True])
async def test_who_comes_back_with_the_cursor_of_a_gap_gets_the_rest_and_nothing_is_lost(
    scene: Scene, seen: bool
) -> None:
    """From the beginning, and from a commit that is gone. Who comes back is told of the gap again."""
    kept = await scene.record("cam-1")
    after = "0"
    if seen:
        async with aclosing(scene.subscribe("cam-*")) as events:
            after = (await take(events, 1))[0].id
    kept += await scene.record(*["cam-1"] * 5)
    forget_commits(scene, "cam-1", 4)
    for _ in range(3):
        async with aclosing(scene.subscribe("cam-*", after=after)) as events:
            gap, *rest = await take(events, 4)
        assert (gap.event, gap.body["reason"]) == ("gap", "trimmed")
        assert ids(rest) == kept[3:]
        after = gap.id


async def test_a_log_that_begins_anew_is_a_gap(scene: Scene) -> None:
    await scene.record("cam-1", "cam-1", "cam-1")
    await scene.follow()  # it knows the log
    events = scene.subscribe("cam-1", heartbeat_s=0.02)
    async with aclosing(events):
        seen = await take(events, 3)
        connections = scene.follower.connections
        scene.world.begin_anew()
        await scene.record("cam-1")
        await until(lambda: scene.follower.connections > connections)
        (gap,) = await take(events, 1)
        assert (gap.event, gap.body["reason"]) == ("gap", "lost")
        new = await scene.record("cam-1")
        assert ids(await take(events, 1)) == new
    async with aclosing(scene.subscribe("cam-1", after=seen[-1].id)) as again:
        (gap,) = await take(again, 1)
        assert (gap.event, gap.body["reason"], gap.body["shard"]) == (
            "gap", "lost", shard_of("cam-1", scene.predictions.shards),
        )  # fmt: skip


async def test_all_subscribers_share_one_encoding(scene: Scene) -> None:
    many = [scene.subscribe("cam-*", after=None) for _ in range(50)]
    for events in many:
        await standing(events)
    new = await scene.record("cam-1", "cam-2")
    texts = []
    for events in many:
        parts = []
        async with asyncio.timeout(LIMIT_S):
            while len(parts) < 2:
                part = (await anext(events)).decode()
                parts += [part] if "data:" in part else []
        texts.append("".join(parts))
        await events.aclose()
    assert len(set(texts)) == 1
    assert all(entry_id in texts[0] for entry_id in new)


@pytest.mark.parametrize("glob", ["", "cam 1", "[a-z]", "a" * 129, "ü"])
def test_what_is_no_pattern_is_said_so(glob: str) -> None:
    with pytest.raises(Malformed, match="stands for any characters"):
        read_pattern([glob])
