"""A broker that answers and says no: what was refused is sent again, leases outlast it, foreign writes are repaired."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry

from service.broker.log import RedisLog
from service.codec import parse_head
from service.embedded import EmbeddedBroker
from service.errors import BrokerAway, CommitRefused, Fenced
from service.keys import ShardKeys, shard_of, worker_key, workers_key
from service.metrics import Counter, Family, WorkerMetrics
from service.worker import Worker
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.ports.test_log import commit_of, new_log, record
from tests.worlds import SHARDS, BrokerWorld, answered, wait_until, working

pytestmark = pytest.mark.parametrize("broker", ["valkey", "redis"], indirect=True)
ROW = np.ones((1, 3), np.float32)


@pytest.fixture
def client(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker_url) as client:
        yield client


@pytest.fixture(scope="module")
def own_brokers() -> Iterator[dict[str, EmbeddedBroker]]:
    running: dict[str, EmbeddedBroker] = {}
    yield running
    for one in running.values():
        one.stop()
        shutil.rmtree(one.home, ignore_errors=True)


@pytest.fixture
def own(
    broker: EmbeddedBroker, own_brokers: dict[str, EmbeddedBroker], request: pytest.FixtureRequest
) -> Iterator[redis.Redis]:
    """A client of a broker that this module alone uses: it is set up to say no, and back again."""
    kind = request.node.callspec.params["broker"]
    if kind not in own_brokers:
        folder = Path(tempfile.mkdtemp(prefix="rcr-"))
        own_brokers[kind] = EmbeddedBroker(folder, None if kind == "valkey" else shutil.which("redis-server"))
        own_brokers[kind].start()
    with redis.Redis.from_url(own_brokers[kind].url) as client:
        yield client
        client.config_set("maxmemory", "0")
        client.config_set("min-replicas-to-write", "0")
        client.replicaof("no", "one")


def url_of(client: redis.Redis) -> str:
    return f"unix://{client.connection_pool.connection_kwargs['path']}"


# --- leases on a broker that is full ---------------------------------------------------------------------------------


def test_leases_are_taken_renewed_and_given_back_although_the_broker_is_full(own: redis.Redis, prefix: str) -> None:
    keys = ShardKeys(prefix, 0)
    for n in range(1, 4):
        own.xadd(keys.inbox, {"stream": "a"}, id=f"{n}-0")
    first, second = new_log(url_of(own), prefix, "w1"), new_log(url_of(own), prefix, "w2")
    assert first.renew([], b"{}").workers == 1  # the deployment is written down
    assert second.renew([], b"{}")[:3] == ([], 1, 2)
    own.config_set("maxmemory", "1")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        own.set(f"{prefix}:any", "value")
    head = first.acquire(0)
    assert head is not None
    assert first.renew([0], b'{"id": "w1"}').lost == []
    assert own.get(worker_key(prefix, "w1")) == b'{"id": "w1"}'
    assert first.attempt(0, head, b"1-0")
    first.release(0)
    assert second.acquire(0) is not None
    for log in (first, second):
        log.close()


def test_a_full_broker_is_trimmed_up_to_what_is_finished_and_no_further(own: redis.Redis, prefix: str) -> None:
    keys = ShardKeys(prefix, 0)
    for n in range(1, 4):
        own.xadd(keys.inbox, {"stream": "a"}, id=f"{n}-0")
    own.set(keys.head, "life token 7 3-0 2 0")
    log = new_log(url_of(own), prefix, trim_finished=False)
    head = log.acquire(0)
    assert head is not None
    assert own.xlen(keys.inbox) == 3
    own.config_set("maxmemory", "1")
    commit = commit_of(head, record("a", b"3-0"))
    log.send(commit)
    with pytest.raises(CommitRefused, match="OOM"):
        log.result(0)
    assert log.make_room(commit) == 2
    log.send_again(0)
    with pytest.raises(CommitRefused, match="OOM"):
        log.result(0)
    assert own.get(keys.head) == head, "nothing was applied"
    own.config_set("maxmemory", "0")
    log.send_again(0)
    assert log.result(0).errors == []
    assert [i for i, _ in own.xrange(keys.inbox)] == [b"3-0"]  # type: ignore[union-attr]
    assert own.xlen(keys.out("a")) == 1, "once, not thrice"
    log.close()


def test_what_was_refused_is_not_sent_again_once_the_shard_is_anothers(own: redis.Redis, prefix: str) -> None:
    log, thief = new_log(url_of(own), prefix, "w1"), new_log(url_of(own), prefix, "thief")
    head = log.acquire(0)
    assert head is not None
    own.config_set("maxmemory", "1")
    log.send(commit_of(head, record("a", b"5-0")))
    with pytest.raises(CommitRefused):
        log.result(0)
    own.config_set("maxmemory", "0")
    own.delete(ShardKeys(prefix, 0).owner)
    assert thief.acquire(0) is not None
    with pytest.raises(Fenced):
        log.send_again(0)
    assert not own.exists(ShardKeys(prefix, 0).out("a"))
    for each in (log, thief):
        each.close()


# --- a worker on a broker that says no -------------------------------------------------------------------------------


def test_without_enough_replicas_a_worker_waits_says_so_and_goes_on(own: redis.Redis, prefix: str) -> None:
    world, engine, metrics = BrokerWorld(url_of(own), prefix, lease_s=20), TinyEngine(tiny_manifest()), metrics_()
    world.append("a", rows_fields("a", ROW))
    with working(world.new_log(), engine, lease_s=20, metrics=metrics) as worker:
        answered(world, {"a": 1})
        own.config_set("min-replicas-to-write", "1")
        wait_until(lambda: "NOREPLICAS" in worker.trouble, 60, "the worker says what is wrong")
        own.config_set("min-replicas-to-write", "0")
        world.append("a", rows_fields("a", ROW))
        bodies = answered(world, {"a": 2})["a"]
        wait_until(lambda: worker.trouble == "", 60, "and that it is over")
    assert [body["step"] for body in bodies] == [1, 2]
    assert metrics.fenced.value == 0


def test_a_primary_that_became_a_replica_is_left_and_asked_again(own: redis.Redis, prefix: str) -> None:
    world, engine = BrokerWorld(url_of(own), prefix, lease_s=20), TinyEngine(tiny_manifest())
    world.append("a", rows_fields("a", ROW))
    with working(world.new_log(), engine, lease_s=20) as worker:
        answered(world, {"a": 1})
        own.replicaof("127.0.0.1", "1")  # READONLY from now on, on connections that stay open
        wait_until(lambda: worker.away, 60, "the worker notices")
        own.replicaof("no", "one")
        world.append("a", rows_fields("a", ROW))
        bodies = answered(world, {"a": 2})["a"]
    assert [(body["step"], body["restarted"]) for body in bodies] == [(1, "first"), (2, None)]


def test_a_lost_reading_connection_costs_no_shard(broker_url: str, prefix: str, client: redis.Redis) -> None:
    world, engine = BrokerWorld(broker_url, prefix, lease_s=20), TinyEngine(tiny_manifest())
    world.append("a", rows_fields("a", ROW))
    with working(world.new_log(), engine, lease_s=20):
        answered(world, {"a": 1})
        before = [client.get(keys.head).split()[1] for keys in world.keys]  # type: ignore[union-attr]
        readers = [c for c in client.client_list() if c["cmd"] == "xread" and "b" in c["flags"]]
        for reader in readers:
            client.client_kill_filter(_id=reader["id"])
        assert readers
        world.append("a", rows_fields("a", ROW))
        answered(world, {"a": 2})
        assert [client.get(keys.head).split()[1] for keys in world.keys] == before  # type: ignore[union-attr]


def test_an_emptied_broker_begins_a_new_life_under_a_living_worker(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    world, engine = BrokerWorld(broker_url, prefix), TinyEngine(tiny_manifest())
    world.append("a", rows_fields("a", ROW))
    with working(world.new_log(), engine):
        answered(world, {"a": 1})
        keys = world.keys[shard_of("a", SHARDS)]
        life = parse_head(client.get(keys.head)).life  # type: ignore[arg-type]
        found = [*client.scan_iter(f"{prefix}:*", count=1000)]
        client.delete(*found)
        wait_until(lambda: bool(client.exists(keys.head)), 60, "it begins anew")
        world.append("a", rows_fields("a", ROW))
        (body,) = answered(world, {"a": 1})["a"]
        assert parse_head(client.get(keys.head)).life != life  # type: ignore[arg-type]
    assert (body["step"], body["restarted"]) == (1, "first")


# --- foreign writes are repaired -------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", ["text", "a later record"])
def test_a_record_that_a_foreign_write_kept_out_is_written_by_the_next_commit(
    broker_url: str, prefix: str, client: redis.Redis, foreign: str
) -> None:
    world, metrics = BrokerWorld(broker_url, prefix), metrics_()
    missing: list[float] = []

    def look(point: str) -> None:
        if point == "after-commit":
            missing.append(counted(metrics.entries) - counted(metrics.records))

    with working(world.new_log(), TinyEngine(tiny_manifest()), metrics=metrics, fault=look):
        if foreign == "text":
            client.set(world.keys[shard_of("a", SHARDS)].out("a"), "mine")
        else:
            world.append("a", rows_fields("a", ROW))
            answered(world, {"a": 1})
            client.xadd(world.keys[shard_of("a", SHARDS)].out("a"), {"type": "mine"}, id="99999999999999-0")
        expected = 1 if foreign == "text" else 2
        world.append("a", rows_fields("a", ROW))
        wait_until(lambda: metrics.commit_errors.value >= 1, 60, "it is noticed")
        wait_until(lambda: client.type(world.keys[shard_of("a", SHARDS)].out("a")) == b"stream", 60, "repaired")
        wait_until(lambda: b"mine" not in [kind.encode() for _, kind, _, _ in read(world)], 60, "repaired")
        world.append("a", rows_fields("a", ROW))
        bodies = answered(world, {"a": expected + 1})["a"]
    assert [body["step"] for body in bodies] == [*range(1, expected + 2)]
    assert metrics.fenced.value == 0
    assert set(missing) == {0, 1}, "entries without records are seen as long as they are some"
    assert missing[-1] == counted(metrics.entries) - counted(metrics.records) == 0
    assert counted(metrics.records) == expected + 1


def counted(family: Family[Counter]) -> float:
    return sum(child.value for child in family.children.values())


def test_what_is_to_be_repaired_is_repaired_before_its_shard_is_given_back(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    world, metrics, stop = BrokerWorld(broker_url, prefix), metrics_(), threading.Event()
    client.set(world.keys[shard_of("a", SHARDS)].out("a"), "mine")
    world.append("a", rows_fields("a", ROW))

    def end_in_order(point: str) -> None:
        if metrics.commit_errors.value:
            stop.set()

    engine = TinyEngine(tiny_manifest())
    Worker(world.new_log(), {"tiny": (engine, "ab" * 8)}, metrics, lease_s=20, fault=end_in_order).run(stop)
    assert metrics.commit_errors.value >= 1
    assert answered(world, {"a": 1})["a"][0]["step"] == 1


def test_a_foreign_value_where_idle_streams_are_looked_for_stops_no_shard(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    world, metrics = BrokerWorld(broker_url, prefix, lease_s=20), metrics_()
    key = world.keys[shard_of("a", SHARDS)].streams
    client.set(key, "mine")
    swept = {"state_ttl_s": 0.1, "output_history_s": 3600.0}  # looked for at once, and every 0.2 s
    with working(world.new_log(), TinyEngine(tiny_manifest()), lease_s=20, metrics=metrics, **swept):
        wait_until(lambda: all(map(client.exists, (keys.head for keys in world.keys))), 60, "every shard is owned")
        world.append("a", rows_fields("a", ROW))
        answered(world, {"a": 1})
        wait_until(lambda: client.type(key) == b"zset", 60, "repaired")
    assert metrics.fenced.value == 0


@pytest.mark.parametrize("name", ["pos", "settings"])
def test_a_foreign_value_where_streams_are_looked_up_stops_no_shard(
    broker_url: str, prefix: str, client: redis.Redis, name: str
) -> None:
    world, metrics = BrokerWorld(broker_url, prefix, lease_s=20), metrics_()
    neighbour = next(name for name in map(str, range(100)) if shard_of(name, SHARDS) == shard_of("a", SHARDS))
    with working(world.new_log(), TinyEngine(tiny_manifest()), lease_s=20, metrics=metrics):
        world.append("a", rows_fields("a", ROW))
        answered(world, {"a": 1})
        key = getattr(world.keys[shard_of("a", SHARDS)], name)
        client.set(key, "mine")
        world.append(neighbour, rows_fields(neighbour, ROW))  # is met for the first time
        answered(world, {neighbour: 1})
        wait_until(lambda: client.type(key) == b"hash", 60, "repaired")  # type: ignore[arg-type]
        world.append("a", rows_fields("a", ROW))
        assert answered(world, {"a": 2})["a"][1]["step"] == 2
        assert client.hexists(key, neighbour)
    assert metrics.commit_errors.value >= 1
    assert metrics.fenced.value == 0


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", ["owner", "suspect", "workers"])
def test_a_foreign_value_over_leases_suspects_or_workers_stops_nothing(
    broker_url: str, prefix: str, client: redis.Redis, name: str, held: bool
) -> None:
    world = BrokerWorld(broker_url, prefix, lease_s=0.6)
    key = workers_key(prefix) if name == "workers" else getattr(world.keys[shard_of("a", SHARDS)], name)

    def overwrite() -> None:
        with client.pipeline() as pipe:
            pipe.delete(key)
            pipe.rpush(key, "mine")
            pipe.execute()

    elsewhere = next(name for name in map(str, range(100)) if shard_of(name, SHARDS) != shard_of("a", SHARDS))
    if not held:
        overwrite()
    with working(world.new_log(), TinyEngine(tiny_manifest()), lease_s=0.6) as worker:
        wait_until(lambda: worker.owned == SHARDS, 20, "it has all shards")
        if held:
            overwrite()
            wait_until(lambda: name == "suspect" or client.type(key) != b"list", 20, "repaired")
        for stream in ("a", elsewhere):
            world.append(stream, rows_fields(stream, ROW))
        answered(world, {"a": 1, elsewhere: 1}, 20)


@pytest.mark.parametrize("name", ["dead", "dead_data", "dead_places"])
def test_a_foreign_value_over_quarantine_leaves_it_bounded(
    broker_url: str, prefix: str, client: redis.Redis, name: str
) -> None:
    world = BrokerWorld(broker_url, prefix)
    keys = world.keys[shard_of("a", SHARDS)]
    client.set(getattr(keys, name), "mine")
    with working(world.new_log(dead_kept=3), TinyEngine(tiny_manifest())):
        for n in range(1, 8):
            world.append("a", {"stream": b"a", "kind": b"none of ours", "data": b"x"})
            answered(world, {"a": n})
    assert client.xlen(keys.dead) == 3
    assert client.hlen(keys.dead_data) == client.hlen(keys.dead_places) == 3


def test_a_foreign_value_is_told_by_its_place_and_never_quoted(
    broker_url: str, prefix: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    world, shard = BrokerWorld(broker_url, prefix), shard_of("a", SHARDS)
    client.hset(world.keys[shard].pos, "a", "hunter2")  # type: ignore[arg-type]
    with working(world.new_log(), TinyEngine(tiny_manifest())):
        world.append("a", rows_fields("a", ROW))
        answered(world, {"a": 1})
    (line,) = (vars(one) for one in caplog.records if one.message == "foreign value among a stream's keys")
    assert (line["stream"], line["shard"]) == ("a", shard)
    assert not any("hunter2" in str(vars(one)) for one in caplog.records)


def read(world: BrokerWorld) -> list[tuple[str, str, bytes, str]]:
    found: Any = world.client.xrange(world.keys[shard_of("a", SHARDS)].out("a"))
    return [(i.decode(), f[b"type"].decode(), f.get(b"body", b""), "") for i, f in found]


@pytest.mark.parametrize("name", ["pos", "settings", "streams", "drops", "restarts", "feed", "dead"])
def test_every_other_key_of_a_shard_is_repaired_too(
    broker_url: str, prefix: str, client: redis.Redis, name: str
) -> None:
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    head = log.acquire(0)
    assert head is not None
    client.set(getattr(keys, name), "mine")
    counts = {"drops": {"a": 2}, "restarts": {"a": 3}}
    first = commit_of(head, record("a", b"5-0"))._replace(settings={"a": b"{}"}, dead=[dead()], **counts)
    log.send(first)
    errors = log.result(0).errors
    assert errors
    assert all("WRONGTYPE" in error for error in errors)
    log.send(commit_of(first.after))
    assert log.result(0).errors == []
    assert client.hgetall(keys.pos) == {b"a": b"pos"}
    assert client.hgetall(keys.settings) == {b"a": b"{}"}
    assert client.zrange(keys.streams, 0, -1) == [b"a"]
    assert [client.zscore(key, "a") for key in (keys.drops, keys.restarts)] == [2, 3]
    assert [i for i, _ in client.xrange(keys.feed)] == [b"1-0", b"2-0"]  # type: ignore[union-attr]
    assert client.xlen(keys.dead) == 1
    log.send(commit_of(commit_of(first.after).after))
    assert log.result(0).errors == [], "and only once"
    assert client.xlen(keys.dead) == 1
    log.close()


def test_a_foreign_value_over_the_counts_keeps_nothing_of_a_stream(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    head = log.acquire(0)
    assert head is not None
    first = commit_of(head, *(record(stream, b"5-0") for stream in "abc"))
    log.send(first)
    assert log.result(0).errors == []
    for key in (keys.drops, keys.restarts):
        client.set(key, "mine")
    assert log.remove(0, first.after, [], ["a", "b"])
    assert (client.hkeys(keys.pos), client.zrange(keys.streams, 0, -1)) == ([b"c"], [b"c"])
    second = commit_of(first.after)._replace(deleted=["c"])
    log.send(second)
    assert len(log.result(0).errors) == 2
    log.send(commit_of(second.after))
    assert log.result(0).errors == []
    assert [client.exists(key) for key in (keys.drops, keys.restarts)] == [0, 0], "repaired"
    log.close()


def test_records_behind_one_that_failed_in_the_same_commit_are_written_again_too(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    """A broker that comes back with part of a transaction has records of the stream that its position does not know."""
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    head = log.acquire(0)
    assert head is not None
    client.xadd(keys.out("a"), {"type": "half"}, id="6-0")
    first = commit_of(
        head,
        record("a", b"5-0"),
        record("a", b"6-0")._replace(prev=b"5-0"),
        record("a", b"7-0")._replace(prev=b"6-0"),
        record("b", b"8-0"),
    )
    log.send(first)
    done = log.result(0)
    assert (len(done.errors), done.unwritten) == (2, [0, 1])
    log.send(commit_of(first.after))
    done = log.result(0)
    assert (done.errors, done.unwritten, done.repaired) == ([], (), True)
    found: Any = client.xrange(keys.out("a"))
    assert [(i, fields[b"type"]) for i, fields in found] == [(i, b"prediction") for i in (b"5-0", b"6-0", b"7-0")]
    assert client.xlen(keys.out("b")) == 1
    log.close()


def dead() -> Any:
    from service.ports import DeadWrite

    return DeadWrite(b"5-0", "a", "samples", "malformed", "why", b"data")


# --- ids and suspects ------------------------------------------------------------------------------------------------


def test_two_live_workers_with_one_id_do_not_take_each_others_shards(broker_url: str, prefix: str) -> None:
    first, twin = new_log(broker_url, prefix, "same"), new_log(broker_url, prefix, "same")
    assert first.acquire(0) is not None
    assert twin.acquire(0) is not None, "it looks like its own"
    assert first.renew([0], b"{}").lost == [0]
    assert first.renew([], b"{}").workers == 2, "from now on they have two ids"
    assert first.acquire(0) is None
    assert twin.renew([0], b"{}")[:3] == ([], 0, 2)
    for log in (first, twin):
        log.close()


def test_deaths_are_counted_while_an_entry_waits_but_neither_orderly_ends_nor_lost_connections(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    def tries(log: RedisLog) -> int:
        head = log.acquire(0)
        assert head is not None
        return parse_head(head).tries

    client.xadd(ShardKeys(prefix, 0).inbox, {"stream": "a"})
    log = new_log(broker_url, prefix)
    assert tries(log) == 1
    log.abandon(0)
    assert tries(log) == 1, "it lives: only a connection was lost"
    log.release(0)
    assert tries(log) == 0
    for expected in (1, 2, 3, 4):
        log.close()  # its process died
        log = new_log(broker_url, prefix)
        assert tries(log) == expected
    log.release(0)
    assert tries(log) == 4, "a shard in doubt stays in doubt"
    client.delete(ShardKeys(prefix, 0).inbox)
    for _ in range(4):
        log.close()
        log = new_log(broker_url, prefix)
        assert tries(log) == 1, "nothing waits that could have ended anybody"
    log.close()


def test_a_suspect_is_tried_twice_by_whoever_owns_the_shard_and_by_nobody_else(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    first, second = new_log(broker_url, prefix, "w1"), new_log(broker_url, prefix, "w2")
    old = first.acquire(0)
    assert old is not None
    assert not first.suspected(0)
    assert first.attempt(0, old, b"5-0")
    client.delete(ShardKeys(prefix, 0).owner)
    head = second.acquire(0)
    assert head is not None
    assert second.suspected(0)
    before = client.get(ShardKeys(prefix, 0).suspect)
    with pytest.raises(Fenced):
        first.attempt(0, old, b"5-0")
    with pytest.raises(Fenced):
        first.acquit(0, old)
    assert client.get(ShardKeys(prefix, 0).suspect) == before == b"5-0 1"
    assert [second.attempt(0, head, b"5-0") for _ in range(3)] == [True] * 3, (
        "it lives: nothing speaks against the entry"
    )
    for may in (False, False):
        second.close()  # its process died
        second = new_log(broker_url, prefix, "w2")
        head = second.acquire(0)
        assert head is not None
        assert second.attempt(0, head, b"5-0") == may
    assert second.attempt(0, head, b"6-0"), "another entry has its own two tries"
    second.acquit(0, head)
    assert not client.exists(ShardKeys(prefix, 0).suspect)
    for log in (first, second):
        log.close()


def test_a_dead_worker_counts_no_more_when_its_leases_end(broker_url: str, prefix: str, client: redis.Redis) -> None:
    first, second = (new_log(broker_url, prefix, name, lease_s=2.0) for name in ("w1", "w2"))
    began = time.monotonic()
    assert first.renew([], b"{}")[:3] == ([], 0, 1)
    assert second.renew([], b"{}")[:3] == ([], 1, 2)
    wait_until(lambda: second.renew([], b"{}")[:3] == ([], 0, 1), 60, "it is alone")
    assert time.monotonic() - began >= 1.9
    client.zadd(workers_key(prefix), {"w0": clock_ms(client) + 3_600_000})
    assert second.renew([], b"{}")[:3] == ([], 0, 1), "nor one that spoke before the broker's clock was put back"
    second.leave()
    assert client.zrange(workers_key(prefix), 0, -1) in ([], [b"w1"])
    for log in (first, second):
        log.close()


def test_a_worker_counts_for_one_lease_and_is_listed_for_two(broker_url: str, prefix: str, client: redis.Redis) -> None:
    log, key, now_ms = new_log(broker_url, prefix, lease_s=60.0), workers_key(prefix), clock_ms(client)
    client.zadd(key, {"live": now_ms - 30_000, "dead": now_ms - 61_000, "gone": now_ms - 121_000})
    assert log.renew([], b"{}")[:3] == ([], 1, 2), "itself, and the one that spoke within a lease"
    assert client.zrange(key, 0, -1) == [b"dead", b"live", b"w"]
    log.close()


def clock_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()  # type: ignore[misc]
    return int(seconds) * 1000 + int(micros) // 1000


def test_an_absent_broker_is_away_and_not_refusing(prefix: str, broker: EmbeddedBroker) -> None:
    log = RedisLog(f"unix://{broker.home}/nobody.sock", worker="w", prefix=prefix, shards=SHARDS)
    with pytest.raises(BrokerAway):
        log.renew([], b"{}")
    log.close()


def metrics_() -> WorkerMetrics:
    return WorkerMetrics(CollectorRegistry())


def test_which_records_a_commit_lacks_is_told_apart_from_what_it_repairs(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    head = log.acquire(0)
    assert head is not None
    client.set(keys.out("a"), "mine")
    first = commit_of(head, record("b", b"5-0"), record("a", b"6-0"))
    log.send(first)
    assert log.result(0).unwritten == [1]
    client.set(keys.out("c"), "mine")
    second = commit_of(first.after, record("b", b"7-0")._replace(prev=b"5-0"), record("c", b"8-0"))
    log.send(second)
    done = log.result(0)
    assert (done.unwritten, done.repaired) == ([1], True)
    assert client.xlen(keys.out("a")) == 1
    log.send(commit_of(second.after))
    done = log.result(0)
    assert (list(done.unwritten), done.repaired, done.errors) == ([], True, [])
    assert client.xlen(keys.out("c")) == 1
    log.close()
