"""The api's side of the broker: the same sentences for the fake and for real brokers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import redis
from redis.retry import Retry

from service.broker import predictions
from service.broker.predictions import RedisPredictions
from service.codec import entry_fields, id_number, number_id, parse_head
from service.embedded import EmbeddedBroker
from service.errors import AppendUnknown, BadCursor, BrokerAway, BrokerFull, Disagreement
from service.keys import ShardKeys, shard_of, worker_key, workers_key
from service.ports import FeedItem
from tests.answering import Answering, InMemory, OnBroker

pytestmark = pytest.mark.anyio
LIMIT_S = 60.0


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


def rows(stream: str) -> dict[str, bytes]:
    return entry_fields(stream, "samples", b"\0\0\0\0", shape=(1, 1), model="tiny")


async def test_what_is_appended_gets_ascending_ids(world: Answering) -> None:
    ids = [await world.predictions.append("cam-1", rows("cam-1")) for _ in range(3)]
    assert sorted(ids, key=id_number) == ids
    assert len(set(ids)) == 3
    assert await world.predictions.last_generated("cam-1") == ids[-1]


async def test_a_log_without_entries_has_generated_nothing(world: Answering) -> None:
    assert await world.predictions.last_generated("cam-1") == "0-0"


async def test_records_are_read_from_a_cursor_on_and_backwards_from_the_newest(world: Answering) -> None:
    ids = [await world.predictions.append("cam-1", rows("cam-1")) for _ in range(5)]
    bodies = [world.answer("cam-1", entry_id, step=n) for n, entry_id in enumerate(ids, 1)]
    found = await world.predictions.records("cam-1", ids[1], 2)
    assert [record.id for record in found] == ids[2:4]
    assert [record.body.decode() for record in found] == bodies[2:4]
    assert [record.prev for record in found] == ids[1:3]
    assert [record.id for record in await world.predictions.newest("cam-1", 2)] == ids[3:]
    assert [record.id for record in await world.predictions.newest("cam-1", 2, before=ids[3])] == ids[1:3]
    assert await world.predictions.records("cam-1", ids[-1], 10) == []
    assert await world.predictions.records("no-such", "0-0", 10) == []


async def test_fetch_finds_each_record_or_says_that_there_is_none(world: Answering) -> None:
    wanted = []
    for stream in ("cam-1", "cam-2", "belt-3"):
        wanted.append((stream, await world.predictions.append(stream, rows(stream))))
    for stream, entry_id in wanted[:2]:
        world.answer(stream, entry_id)
    found = await world.predictions.fetch(wanted)
    assert [record and record.id for record in found] == [wanted[0][1], wanted[1][1], None]
    assert await world.predictions.fetch([]) == []


async def test_follow_says_when_now_is_fixed_then_gives_every_commit_once(world: Answering) -> None:
    old = await world.predictions.append("cam-1", rows("cam-1"))
    world.answer("cam-1", old)
    async with asyncio.timeout(LIMIT_S), aclosing(world.predictions.follow()) as commits:
        assert [item.records for item in await anext(commits)] == [[("cam-1", old)]]
        new = [(s, await world.predictions.append(s, rows(s))) for s in ("cam-1", "cam-2", "cam-1")]
        for stream, entry_id in new:
            world.answer(stream, entry_id)
        found: list[tuple[str, str]] = []
        while len(found) < 3:
            found += [pair for item in await anext(commits) for pair in item.records]
        assert sorted(found) == sorted(new)


async def test_commits_are_read_again_from_any_of_them(world: Answering) -> None:
    old = [await world.predictions.append("cam-1", rows("cam-1")) for _ in range(5)]
    for entry_id in old:
        world.answer("cam-1", entry_id)
    home = shard_of("cam-1", world.predictions.shards)
    other = (home + 1) % world.predictions.shards
    of_other, mine = await world.predictions.feeds({other: 0, home: 3}, 2)
    assert of_other == []
    assert [(item.shard, item.n, item.records) for item in mine] == [
        (home, 3, [("cam-1", old[2])]), (home, 4, [("cam-1", old[3])]),
    ]  # fmt: skip
    (newest,) = await world.predictions.last_commits()
    assert (newest.shard, newest.n) == (home, 5)
    assert (newest.end.n, newest.end.i, newest.end.token) == (5, 1, newest.token[:4])
    assert await world.predictions.feeds({}, 2) == []


async def test_following_ends_when_a_log_begins_anew(world: Answering) -> None:
    for _ in range(3):
        world.answer("cam-1", await world.predictions.append("cam-1", rows("cam-1")))
    async with asyncio.timeout(LIMIT_S), aclosing(world.predictions.follow()) as commits:
        await anext(commits)
        world.begin_anew()
        world.answer("cam-1", await world.predictions.append("cam-1", rows("cam-1")))
        with pytest.raises(BrokerAway, match="began anew"):
            await read_on(commits)


async def test_following_ends_when_a_log_of_another_life_is_further_than_the_old_one(
    either: OnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but its life tells it from the old one: whoever went on would be given commits of two logs as one."""
    monkeypatch.setattr(predictions, "_CHECK_S", 0.05)
    for _ in range(3):
        either.answer("cam-1", await either.predictions.append("cam-1", rows("cam-1")))
    keys = either.keys("cam-1")
    async with asyncio.timeout(LIMIT_S), aclosing(either.predictions.follow()) as commits:
        await anext(commits)
        anew = either.redis.pipeline(transaction=True)
        anew.set(keys.head, parse_head(either.redis.get(keys.head))._replace(life="another", n=50).encode())  # type: ignore[arg-type]
        anew.delete(keys.feed)
        anew.execute()
        with pytest.raises(BrokerAway, match="began anew"):
            await read_on(commits)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_following_goes_on_after_the_event_loop_was_held_up(
    start_broker: Callable[[str], EmbeddedBroker], prefix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came meanwhile is taken: a clock that ran on does not say that the broker was silent."""
    monkeypatch.setattr("service.broker.predictions._CHECK_S", 0.1)
    world = OnBroker(start_broker(kind).url, prefix)
    hasty = RedisPredictions(world.url, prefix, world.shards, timeout_s=0.2)
    world.answer("cam-1", await world.predictions.append("cam-1", rows("cam-1")))
    async with asyncio.timeout(LIMIT_S), aclosing(hasty.follow()) as commits:
        await anext(commits)
        for _ in range(3):
            following = asyncio.ensure_future(anext(commits))
            await asyncio.sleep(0.05)  # it has asked
            time.sleep(0.5)  # longer than the broker may be silent; it has answered that nothing came
            entry_id = await world.predictions.append("cam-1", rows("cam-1"))
            world.answer("cam-1", entry_id)
            assert [pair for item in await following for pair in item.records] == [("cam-1", entry_id)]
    await hasty.close()
    await world.predictions.close()
    world.close()


async def read_on(commits: AsyncIterator[list[FeedItem]]) -> None:
    async for _ in commits:
        pass


async def test_streams_are_listed_page_by_page(world: Answering) -> None:
    names = [f"cam-{n}" for n in range(7)]
    for name in reversed(names):
        world.answer(name, await world.predictions.append(name, rows(name)))
    first = await world.predictions.streams("", 4)
    rest = await world.predictions.streams(first[-1].stream, 4)
    assert [row.stream for row in first + rest] == names
    assert all(row.position and row.settings for row in first)
    assert [row.shard for row in first] == [shard_of(name, 4) for name in names[:4]]
    one = await world.predictions.stream("cam-3")
    assert one is not None
    assert one.position == await world.predictions.position("cam-3")
    assert one.settings == await world.predictions.settings("cam-3")
    assert await world.predictions.stream("no-such") is None
    assert await world.predictions.position("no-such") is None


async def test_lag_counts_unfinished_entries_of_each_shard(world: Answering) -> None:
    shard = shard_of("cam-1", 4)
    before = (await world.predictions.shard_status())[shard]
    assert (before.owned, before.lag_entries, before.lag_s) == (False, 0, 0.0)
    ids = [await world.predictions.append("cam-1", rows("cam-1")) for _ in range(3)]
    world.serve("tiny")
    waiting = (await world.predictions.shard_status())[shard]
    assert (waiting.owned, waiting.lag_entries) == (True, 3)
    assert waiting.lag_s >= 0
    for entry_id in ids:
        world.answer("cam-1", entry_id)
    assert (await world.predictions.shard_status())[shard].lag_s == 0


async def test_live_workers_say_what_they_have(world: Answering) -> None:
    assert await world.predictions.workers() == []
    world.serve("tiny", "brightness", metrics="http://127.0.0.1:1/metrics")
    (worker,) = await world.predictions.workers()
    assert worker.models == {"tiny": 1, "brightness": 1}
    assert worker.process == "worker-0"


# --- only a real broker can show these ---------------------------------------------------------------------------


@pytest.fixture
async def real(broker_url: str, prefix: str) -> AsyncIterator[OnBroker]:
    on_broker = OnBroker(broker_url, prefix)
    yield on_broker
    await on_broker.predictions.close()
    on_broker.close()


async def test_connections_that_write_never_retry(broker_url: str, prefix: str) -> None:
    predictions = RedisPredictions(f"{broker_url}?retry_on_timeout=true", prefix, 4)
    assert await predictions.end_script() is None
    connection = await predictions.pool.get_connection()
    assert isinstance(connection.retry, Retry)
    assert connection.retry.get_retries() == 0
    await predictions.pool.release(connection)
    await predictions.close()


async def test_another_number_of_shards_is_a_disagreement(broker_url: str, prefix: str) -> None:
    first, second = RedisPredictions(broker_url, prefix, 4), RedisPredictions(broker_url, prefix, 8)
    await first.check_deployment()
    await first.check_deployment()
    with pytest.raises(Disagreement, match=r"4 shards.*this process.*8 shards"):
        await second.check_deployment()
    await first.close()
    await second.close()


async def test_no_broker_is_broker_away(tmp_path: Path) -> None:
    predictions = RedisPredictions(f"unix://{tmp_path}/none.sock", "t", 4)
    for call in (predictions.end_script(), predictions.append("cam-1", rows("cam-1")), predictions.workers()):
        with pytest.raises(BrokerAway, match=r"none\.sock"):
            await call
    with pytest.raises(BrokerAway):
        await anext(predictions.follow())


async def test_a_lost_reply_is_append_unknown_and_the_entry_is_in_the_log_once(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, real: OnBroker
) -> None:
    with Cutting(broker.url.removeprefix("unix://"), tmp_path / "cut.sock", b"XADD") as path:
        predictions = RedisPredictions(f"unix://{path}", prefix, 4)
        with pytest.raises(AppendUnknown, match="same seq"):
            await predictions.append("cam-1", rows("cam-1"))
        await predictions.close()
    inbox = ShardKeys(prefix, shard_of("cam-1", 4)).inbox
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not real.redis.xlen(inbox) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    assert real.redis.xlen(inbox) == 1


async def test_an_entry_refused_for_memory_is_broker_full(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "home")
    broker.start()
    try:
        with redis.Redis.from_url(broker.url) as direct:
            direct.config_set("maxmemory", "1")
        predictions = RedisPredictions(broker.url, "t", 4)
        with pytest.raises(BrokerFull, match="nothing was appended"):
            await predictions.append("cam-1", rows("cam-1"))
        await predictions.close()
    finally:
        broker.stop()


async def test_a_cancelled_call_leaves_its_reply_to_nobody(real: OnBroker) -> None:
    for turns in range(40):  # cancelled at a different point of its way each time
        call = asyncio.create_task(real.predictions.append("cam-1", rows("cam-1")))
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await real.predictions.workers() == []


async def test_a_worker_that_speaks_another_language_is_not_counted(real: OnBroker, prefix: str) -> None:
    real.serve("tiny")
    real.redis.zadd(workers_key(prefix), {"other": 2, "gone": 3})
    real.redis.set(worker_key(prefix, "other"), b'{"id": "other"}')
    assert [worker.id for worker in await real.predictions.workers()] == ["w"]


async def test_a_count_of_finished_entries_that_were_trimmed_meanwhile_is_not_believed(real: OnBroker) -> None:
    """The commit that trims writes the count from before; a worker that stops right after it leaves that behind."""
    shard, keys = shard_of("cam-1", 4), real.keys("cam-1")
    finished = await real.predictions.append("cam-1", rows("cam-1"))
    for _ in range(3):
        await real.predictions.append("cam-1", rows("cam-1"))
    real.redis.set(keys.head, f"life token 1 {finished} 1 0")
    assert (await real.predictions.pressure()).shards[shard].entries == 3
    real.redis.xtrim(keys.inbox, minid=number_id(id_number(finished) + 1), approximate=False)
    found = (await real.predictions.pressure()).shards[shard]
    assert found.entries == real.redis.xlen(keys.inbox) == 3
    assert found.bytes > 100


async def test_entries_that_were_finished_behind_one_that_takes_long_do_not_wait(real: OnBroker) -> None:
    """They stay in the log until it is finished too, and the shard's other streams have their room."""
    shard, keys = shard_of("cam-1", 4), real.keys("cam-1")
    for _ in range(5):
        await real.predictions.append("cam-1", rows("cam-1"))
    real.redis.set(keys.head, "life token 4 0-0 4 0")
    real.redis.set(keys.owner, "worker token")
    assert (await real.predictions.pressure()).shards[shard].entries == 1
    real.redis.delete(keys.owner)
    assert (await real.predictions.pressure()).shards[shard].entries == 5, "nobody says that these are finished"


async def test_quarantine_is_looked_through_without_carrying_bytes(real: OnBroker) -> None:
    keys = real.keys("cam-1")
    words = {"stream": "cam-1", "kind": "frame", "reason": "bad_image", "detail": "no", "data": b"\xff" * 1_000_000}
    for n in range(20):
        real.redis.xadd(keys.dead, {"id": f"{n}-0", **words})
    before = real.redis.info("stats")["total_net_output_bytes"]
    rows_found, after = [], "0-0"
    while after is not None:
        page = await real.predictions.dead(shard_of("cam-1", 4), after, 100)
        rows_found, after = rows_found + page.rows, page.next
        assert page.looked <= 4, "2 MiB at once"
    assert [(row.id, row.bytes) for row in rows_found] == [(f"{n}-0", 1_000_000) for n in range(20)]
    assert real.redis.info("stats")["total_net_output_bytes"] - before < 50_000
    found = await real.predictions.dead_entry("cam-1", "7-0")
    assert found is not None
    assert (found.row, len(found.fields["data"])) == (rows_found[7], 1_000_000)


async def test_the_status_of_a_shard_never_carries_the_bytes_of_an_entry(real: OnBroker) -> None:
    frame = entry_fields("cam-1", "frame", b"\xff" * 1_000_000, model="brightness")
    await real.predictions.append("cam-1", frame)
    before = real.redis.info("stats")["total_net_output_bytes"]
    assert (await real.predictions.shard_status())[shard_of("cam-1", 4)].lag_entries == 1
    await real.predictions.last_generated("cam-1")
    assert real.redis.info("stats")["total_net_output_bytes"] - before < 50_000


async def test_what_waits_in_a_shard_that_is_not_its_streams_is_no_lag_of_the_stream(
    real: OnBroker, prefix: str
) -> None:
    wrong = (shard_of("cam-1", 4) + 1) % 4
    real.redis.xadd(ShardKeys(prefix, wrong).inbox, rows("cam-1"))
    assert await real.predictions.lags() == {}
    await real.predictions.append("cam-1", rows("cam-1"))
    assert list(await real.predictions.lags()) == ["cam-1"]


async def test_a_foreign_value_over_what_is_listed_of_streams_stops_no_list(real: OnBroker) -> None:
    keys = real.keys("cam-1")
    real.answer("cam-1", await real.predictions.append("cam-1", rows("cam-1")))
    real.redis.zadd(keys.drops, {"cam-1": 2})
    real.redis.set(keys.restarts, "mine")
    for listed in (await real.predictions.streams("", 9), await real.predictions.rows(["cam-1"])):
        assert [(row.stream, row.drops, row.restarts) for row in listed] == [("cam-1", 2, 0)]
    assert (await real.predictions.counted("drops"), await real.predictions.counted("restarts")) == ({"cam-1": 2}, {})
    await real.predictions.append("cam-1", rows("cam-1"))
    real.redis.set(keys.pos, "mine")
    assert list(await real.predictions.lags()) == ["cam-1"]
    real.redis.set(keys.streams, "mine")
    assert await real.predictions.streams("", 9) == []


@pytest.fixture(params=["valkey", "redis"])
async def either(
    request: pytest.FixtureRequest, start_broker: Callable[[str], EmbeddedBroker], prefix: str
) -> AsyncIterator[OnBroker]:
    on_broker = OnBroker(start_broker(request.param).url, prefix)
    yield on_broker
    await on_broker.predictions.close()
    on_broker.close()


FAR = "10000000000000000-0"
LAST = "18446744073709551615-18446744073709551615"


async def test_an_id_that_no_clock_gives_is_not_believed(either: OnBroker) -> None:
    either.redis.xadd(either.keys("cam-1").inbox, rows("cam-1"), id=FAR)  # type: ignore[arg-type]
    other = next(name for name in map(str, range(100)) if either.keys(name).shard != either.keys("cam-1").shard)
    first, second = await either.predictions.append_many([("cam-1", rows("cam-1")), (other, rows(other))])
    assert isinstance(first, AppendUnknown)
    assert "10000000000000000-1" in first.detail
    assert isinstance(second, str)
    with pytest.raises(AppendUnknown):
        await either.predictions.append("cam-1", rows("cam-1"))


async def test_an_id_is_believed_where_the_brokers_clock_was_put_back(either: OnBroker) -> None:
    ahead = f"{int(time.time() * 1000) + 72 * 3_600_000}-7"
    keys = either.keys("cam-1")
    either.redis.xadd(keys.inbox, rows("cam-1"), id=ahead)  # type: ignore[arg-type]
    either.redis.set(keys.head, f"life 00 7 {ahead} 0 0")
    assert await either.predictions.append("cam-1", rows("cam-1")) == ahead.replace("-7", "-8")


@pytest.mark.parametrize(
    "head", ["nonsense", f"life 00 7 {LAST} 1 0", "life 00 7 99999999999999999999-0 1 0", "life 00 7 x 1 0", ["list"]]
)
async def test_a_head_that_cannot_be_read_stops_one_shard_only(
    either: OnBroker, head: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named; the others are followed, measured and listed."""
    monkeypatch.setattr(predictions, "_CHECK_S", 0.01)  # so often are the heads looked at
    bad = either.keys("cam-1")
    other = next(name for name in map(str, range(100)) if either.keys(name).shard != bad.shard)
    async with aclosing(either.predictions.follow()) as commits, asyncio.timeout(LIMIT_S):
        await anext(commits)
        await either.predictions.append("cam-1", rows("cam-1"))
        if isinstance(head, list):
            either.redis.rpush(bad.head, *head)
        else:
            either.redis.set(bad.head, head)
        for _ in range(5):
            entry_id = await either.predictions.append(other, rows(other))
            either.answer(other, entry_id)
            while [item.records for item in await anext(commits)] != [[(other, entry_id)]]:
                pass
            await asyncio.sleep(0.02)
    faults = {status.shard: status.fault for status in await either.predictions.shard_status() if status.fault}
    assert list(faults) == [bad.shard]
    assert "head" in faults[bad.shard]
    assert len((await either.predictions.pressure()).shards) == either.shards
    assert set(await either.predictions.lags()) <= {"cam-1"}
    assert (await either.predictions.waiting("cam-1")).complete
    assert [row.stream for row in await either.predictions.streams("", 10)] == [other]


async def test_the_last_possible_cursor_is_one(either: OnBroker) -> None:
    either.answer("cam-1", await either.predictions.append("cam-1", rows("cam-1")))
    assert await either.predictions.records("cam-1", LAST, 10) == []
    assert len(await either.predictions.records("cam-1", "0-0", 10)) == 1
    assert await either.predictions.newest("cam-1", 10, "0-0") == []
    with pytest.raises(BadCursor):
        await either.predictions.feeds({0: 1 << 64}, 10)


async def test_a_refused_entry_is_found_by_an_id_that_no_clock_gives(either: OnBroker) -> None:
    for at, entry_id in enumerate((LAST, f"{int(time.time() * 1000) + 23 * 3_600_000}-0")):
        refused = {"id": entry_id, "stream": "cam-1", "kind": "samples", "reason": "bad_id", "detail": ""}
        either.redis.xadd(either.keys("cam-1").dead, refused | {"data": b"%d" % at})  # type: ignore[arg-type]
        dead = await either.predictions.dead_entry("cam-1", entry_id)
        assert dead is not None
        assert dead.fields["data"] == b"%d" % at


class Cutting:
    """A socket in front of a broker that passes everything on, until a command named `word` was passed: then it
    cuts the client off without the reply."""

    def __init__(self, broker: str, path: Path, word: bytes) -> None:
        self._broker, self._path, self._word = broker, path, word
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Path:
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._thread.start()
        return self._path

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LIMIT_S)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as broker:
                broker.connect(self._broker)
                while data := client.recv(65536):
                    broker.sendall(data)
                    answer = broker.recv(65536)
                    if self._word in data:
                        break
                    client.sendall(answer)
