"""Readers of entries: a shard's log is heard once for all of them, and who reads slowly reads it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from service.api import readers as module
from service.api.readers import Reader, Readers
from service.broker import looks
from service.broker.predictions import RedisPredictions
from service.codec import entry_fields
from service.contracts import Entry
from service.embedded import EmbeddedBroker
from service.errors import BrokerAway, Busy
from service.turns import Gate
from tests.doubles import MemoryBroker
from tests.ports.fake_predictions import FakePredictions

pytestmark = pytest.mark.anyio
LIMIT_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Counting(FakePredictions):
    """Says how often it was listened to."""

    listened = 0

    async def heard(self, shard: int) -> AsyncGenerator[list[Entry]]:
        self.listened += 1
        async for entries in super().heard(shard):
            yield entries


def append(broker: MemoryBroker, stream: str, count: int) -> list[str]:
    return [broker.append(stream, entry_fields(stream, "text", b"word")) for _ in range(count)]


async def take(readers: Readers, reader: Reader, after: int, count: int) -> list[str]:
    found: list[str] = []
    async with asyncio.timeout(LIMIT_S), aclosing(readers.entries(reader, after)) as entries:
        async for some in entries:
            found += [entry.id.decode() for entry in some]
            if len(found) >= count:
                break
    return found


async def test_all_readers_of_a_shard_share_one_listener() -> None:
    broker = MemoryBroker()
    predictions = Counting(broker)
    readers = Readers(predictions, lambda: None)
    before = append(broker, "talk", 5)
    opened = [readers.open("talk") for _ in range(20)]
    tasks = [asyncio.create_task(take(readers, reader, 0, 8)) for reader in opened]
    await asyncio.sleep(0.02)
    expected = before + append(broker, "talk", 3)
    assert await asyncio.gather(*tasks) == [expected] * 20
    assert predictions.listened == 1
    for reader in opened:
        readers.close(reader)
    await readers.end()


async def test_who_reads_slowly_misses_nothing_that_the_log_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 40)  # ten words
    broker = MemoryBroker()
    readers = Readers(FakePredictions(broker), lambda: None)
    reader = readers.open("talk")
    expected: list[str] = []
    found: list[str] = []
    async with asyncio.timeout(LIMIT_S), aclosing(readers.entries(reader, 0)) as entries:
        async for some in entries:
            found += [entry.id.decode() for entry in some]
            if len(expected) < 100:
                expected += append(broker, "talk", 25)
                await asyncio.sleep(0.02)  # it is heard meanwhile
            elif len(found) == 100:
                break
    assert found == expected
    readers.close(reader)
    await readers.end()


async def test_no_more_read_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_READERS", 2)
    refused: list[int] = []
    readers = Readers(FakePredictions(MemoryBroker()), lambda: refused.append(1))
    first, _ = readers.open("a"), readers.open("b")
    with pytest.raises(Busy, match="2 are open"):
        readers.open("c")
    readers.close(first)
    readers.open("c")
    assert refused == [1]
    await readers.end()


async def test_readers_end_when_the_broker_goes_and_can_come_again() -> None:
    broker = MemoryBroker()
    readers = Readers(FakePredictions(broker), lambda: None)
    reader = readers.open("talk")
    reading = asyncio.create_task(take(readers, reader, 0, 1))
    await asyncio.sleep(0.02)
    broker.away = True
    with pytest.raises(BrokerAway):
        await reading
    readers.close(reader)
    broker.away = False
    (entry,) = append(broker, "talk", 1)
    reader = readers.open("talk")
    assert await take(readers, reader, 0, 1) == [entry]
    await readers.end()


async def test_a_gate_lets_in_few_in_their_order_and_refuses_the_rest() -> None:
    refused: list[int] = []
    gate = Gate("lists", lambda: refused.append(1), at_once=1, waiting=2, within_s=LIMIT_S)
    order: list[int] = []
    inside = asyncio.Event()

    async def enter(number: int) -> None:
        async with gate:
            order.append(number)
            await inside.wait()

    tasks = [asyncio.create_task(enter(number)) for number in range(4)]
    with pytest.raises(Busy, match="2 wait already"):
        await tasks[3]
    inside.set()
    await asyncio.gather(*tasks[:3])
    assert (order, refused) == ([0, 1, 2], [1])
    hasty = Gate("lists", lambda: None, at_once=1, waiting=2, within_s=0.01)
    async with hasty:
        with pytest.raises(Busy, match="no turn within"):
            await hasty.__aenter__()
    async with hasty:
        pass


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_logged_entries_are_found_look_by_look(
    start_broker: Callable[[str], EmbeddedBroker], prefix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "LOOK_ENTRIES", 8)
    predictions = RedisPredictions(start_broker(kind).url, prefix, 1)
    for number in range(20):
        for stream in ("mine", "other"):
            await predictions.append(stream, entry_fields(stream, "text", b"%d" % number))
    found: list[bytes] = []
    place: str | None = "0-0"
    for _ in range(5):
        assert place is not None
        some, place = await predictions.logged("mine", place)
        found += [entry.data for entry in some]
    assert found == [b"%d" % number for number in range(20)]
    assert place is not None
    assert await predictions.logged("mine", place) == ([], None)
    await predictions.close()
