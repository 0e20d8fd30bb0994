"""The worker's side of a real broker: fencing, lost replies, refused commits, an absent broker."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry

from service.broker.log import RedisLog
from service.broker.wire import Wire, pack
from service.codec import Head, id_number, number_id, parse_head
from service.embedded import EmbeddedBroker
from service.errors import BrokerAway, Disagreement, Fenced
from service.keys import ShardKeys
from service.metrics import WorkerMetrics
from service.ports import Commit, OutWrite
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.worlds import SHARDS, BrokerWorld, answered, wait_until, working

pytestmark = pytest.mark.parametrize("broker", ["valkey", "redis"], indirect=True)


def new_log(url: str, prefix: str, worker: str = "w", lease_s: float = 20.0, **more: float) -> RedisLog:
    return RedisLog(url, worker=worker, prefix=prefix, shards=SHARDS, lease_s=lease_s, **more)  # type: ignore[arg-type]


def commit_of(head: bytes, *records: OutWrite, trim: bytes | None = None) -> Commit:
    before = parse_head(head)
    after = Head(before.life, before.token, before.n + 1, before.low, before.kept, 0)
    return Commit(
        shard=0, before=head, after=after.encode(), n=after.n, token=b"t", low=number_id(after.low),
        records=list(records), dead=[], states={r.stream: b"state" for r in records}, forgotten=[],
        positions={r.stream: b"pos" for r in records}, settings={}, touched={r.stream: 1 for r in records},
        trim_below=trim,
    )  # fmt: skip


def record(stream: str, entry_id: bytes) -> OutWrite:
    return OutWrite(stream, entry_id, b"prediction", b"{}", b"0-0", None)


def dump(client: redis.Redis, prefix: str) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter(f"{prefix}:*", count=1000)}  # type: ignore[misc]


@pytest.fixture
def client(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker_url) as client:
        yield client


def test_a_lease_has_one_owner_and_ends_with_its_time(broker_url: str, prefix: str) -> None:
    first, second = new_log(broker_url, prefix, "w1"), new_log(broker_url, prefix, "w2", lease_s=0.3)
    assert first.acquire(0) is not None
    assert second.acquire(0) is None
    assert first.renew([0], b"{}").lost == []
    first.release(0)
    assert second.acquire(0) is not None
    second.abandon(0)
    wait_until(lambda: first.acquire(0) is not None, 60, "the lease ends by itself")
    assert second.renew([0], b"{}").lost == [0], "and its old owner is told"
    for log in (first, second):
        log.close()


def test_a_worker_takes_back_its_own_lease_at_once(broker_url: str, prefix: str) -> None:
    log = new_log(broker_url, prefix)
    assert log.acquire(0) is not None
    log.abandon(0)
    assert log.acquire(0) is not None
    log.close()


def test_an_acquisition_changes_the_token_and_never_the_number(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    client.xadd(ShardKeys(prefix, 0).inbox, {"stream": "a"})
    heads = []
    for _ in range(3):
        log = new_log(broker_url, prefix)
        heads.append(parse_head(log.acquire(0) or b""))
        log.close()
    assert len({head.life for head in heads}) == 1
    assert len({head.token for head in heads}) == 3
    assert [(head.n, head.tries) for head in heads] == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize(("waiting", "kept"), [(0, 5000), (1999, 5000), (2500, 4990)])
def test_finished_entries_that_are_kept_are_counted_anew_without_being_read(
    broker_url: str, prefix: str, client: redis.Redis, waiting: int, kept: int
) -> None:
    keys = ShardKeys(prefix, 0)
    pipeline = client.pipeline(transaction=False)
    for n in range(1, 5001 + waiting):
        pipeline.xadd(keys.inbox, {"stream": "a"}, id=f"{n}-0")
    pipeline.execute()
    client.set(keys.head, "life token 7 5000-0 4990 0")  # what it trimmed last was not counted any more
    log = new_log(broker_url, prefix, trim_finished=False)
    before = client.info("commandstats").get("cmdstat_xrange", {"calls": 0})["calls"]
    head = log.acquire(0)
    assert parse_head(head or b"").kept == kept
    assert client.info("commandstats")["cmdstat_xrange"]["calls"] - before <= 12
    log.close()


def test_who_lost_the_shard_commits_nothing_and_no_key_changes(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    zombie, thief = new_log(broker_url, prefix, "zombie"), new_log(broker_url, prefix, "thief")
    head = zombie.acquire(0)
    assert head is not None
    client.delete(ShardKeys(prefix, 0).owner)  # its lease ran out while it was stopped
    assert thief.acquire(0) is not None
    before = dump(client, prefix)
    zombie.send(commit_of(head, record("a", b"5-0")))
    with pytest.raises(Fenced):
        zombie.result(0)
    assert dump(client, prefix) == before
    with pytest.raises(Fenced):
        zombie.send(commit_of(head, record("a", b"6-0")))
    for log in (zombie, thief):
        log.close()


def test_a_broker_that_went_back_in_time_fences_the_living_owner(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    client.set(ShardKeys(prefix, 0).head, b"life older 3 1-0 0 0")
    log.send(commit_of(head, record("a", b"5-0")))
    with pytest.raises(Fenced):
        log.result(0)
    log.close()


def test_a_head_that_is_rewritten_between_a_commit_and_the_watch_behind_it_fences_its_old_owner(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    head = log.acquire(0)
    assert head is not None
    wire = log._commits[0]
    send = wire.send

    def interrupted(packed: bytes) -> None:
        end = packed.index(pack(("EXEC",))) + len(pack(("EXEC",)))
        send(packed[:end])
        wait_until(lambda: client.exists(keys.out("a")) == 1, 60, "the commit is applied")
        client.set(keys.head, "life thief 1 0-0 0 1")  # the WATCH that comes now says nothing of it
        send(packed[end:])

    wire.send = interrupted  # type: ignore[method-assign]
    first = commit_of(head, record("a", b"5-0"))
    log.send(first)
    with pytest.raises(Fenced, match="not what this worker wrote"):
        log.result(0)
    with pytest.raises(Fenced):
        log.send(commit_of(first.after, record("a", b"6-0")))
    assert client.get(keys.head) == b"life thief 1 0-0 0 1"
    log.close()


def test_a_head_that_is_rewritten_between_an_acquisition_and_its_watch_leaves_the_shard_to_who_did(
    broker_url: str, prefix: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    script = log._script

    def interrupted(*arguments: Any) -> Any:
        found = script(*arguments)
        client.set(keys.head, "life thief 1 0-0 0 1")
        return found

    monkeypatch.setattr(log, "_script", interrupted)
    assert log.acquire(0) is None
    with pytest.raises(Fenced):
        log.send(commit_of(b"life thief 1 0-0 0 1"))
    log.close()


def test_a_lease_that_went_to_another_is_not_given_back_by_its_old_holder(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    old, new = new_log(broker_url, prefix, "w1"), new_log(broker_url, prefix, "w2")
    keys = ShardKeys(prefix, 0)
    assert old.acquire(0) is not None
    client.delete(keys.owner)  # it ran out
    client.xadd(keys.inbox, {"stream": "a"})
    head = new.acquire(0)
    owner = client.get(keys.owner)
    old.release(0)
    assert (client.get(keys.owner), client.get(keys.head)) == (owner, head)
    assert old.acquire(0) is None
    assert new.renew([0], b"{}").lost == []
    for log in (old, new):
        log.close()


def test_a_lease_is_given_back_without_a_word_about_a_head_that_is_anothers(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    log, keys = new_log(broker_url, prefix), ShardKeys(prefix, 0)
    assert log.acquire(0) is not None
    client.set(keys.head, "life older 3 1-0 0 2")  # the broker went back in time
    log.release(0)
    assert (client.exists(keys.owner), client.get(keys.head)) == (0, b"life older 3 1-0 0 2")
    log.close()


def test_a_lease_that_ran_out_is_renewed_only_while_nobody_has_acquired_the_shard_since(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    old, new = new_log(broker_url, prefix, "w1"), new_log(broker_url, prefix, "w2")
    owner = ShardKeys(prefix, 0).owner
    assert old.acquire(0) is not None
    client.delete(owner)
    assert old.renew([0], b"{}").lost == []
    assert client.pttl(owner) > 10_000  # type: ignore[operator]
    client.delete(owner)
    assert new.acquire(0) is not None
    client.delete(owner)
    assert old.renew([0], b"{}").lost == [0]
    assert not client.exists(owner)
    assert new.renew([0], b"{}").lost == []
    for log in (old, new):
        log.close()


def test_a_commit_is_one_transaction_and_says_what_it_trimmed(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    keys = ShardKeys(prefix, 0)
    for n in range(1, 4):
        client.xadd(keys.inbox, {"stream": "a"}, id=f"{n}-0")
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    log.send(commit_of(head, record("a", b"1-0"), record("b", b"2-0"), trim=b"3-0"))
    done = log.result(0)
    assert (done.trimmed, done.errors) == (2, [])
    assert client.xlen(keys.inbox) == 1
    assert client.hgetall(keys.pos) == {b"a": b"pos", b"b": b"pos"}
    assert client.xrange(keys.feed)[0][1][b"records"] == b"a 1-0 b 2-0"  # type: ignore[index]
    assert client.get(keys.state("a")) == b"state"
    assert client.pttl(keys.state("a")) > 86_400_000  # type: ignore[operator]
    log.close()


def test_no_commit_is_sent_before_the_reply_to_the_one_before_was_read(broker_url: str, prefix: str) -> None:
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    first = commit_of(head, record("a", b"1-0"))
    log.send(first)
    with pytest.raises(RuntimeError, match="its reply must be read first"):
        log.send(commit_of(first.after, record("a", b"2-0")))
    assert log.result(0).errors == []
    log.send(commit_of(first.after, record("a", b"2-0")))
    assert log.result(0).errors == []
    log.close()


def test_an_element_that_fails_inside_exec_is_told(broker_url: str, prefix: str, client: redis.Redis) -> None:
    client.set(ShardKeys(prefix, 0).out("a"), "a foreign value")
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    log.send(commit_of(head, record("a", b"1-0"), record("b", b"2-0")))
    (error,) = log.result(0).errors
    assert "WRONGTYPE" in error
    log.close()


def test_a_group_that_somebody_removed_is_no_error(broker_url: str, prefix: str, client: redis.Redis) -> None:
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    client.xgroup_destroy(ShardKeys(prefix, 0).inbox, "rollcast")
    log.send(commit_of(head, record("a", b"1-0"), trim=b"1-1"))
    assert log.result(0).errors == []
    log.close()


def test_the_group_shows_the_position_to_standard_tools(broker_url: str, prefix: str, client: redis.Redis) -> None:
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    done = commit_of(head, record("a", b"1-0"), trim=b"1-1")._replace(low=b"1-0")
    log.send(done)
    log.result(0)
    (group,) = client.xinfo_groups(ShardKeys(prefix, 0).inbox)  # type: ignore[misc]
    assert (group["name"], group["last-delivered-id"]) == (b"rollcast", b"1-0")
    log.close()


def test_a_lost_reply_is_never_believed(broker_url: str, prefix: str, client: redis.Redis) -> None:
    log = new_log(broker_url, prefix)
    head = log.acquire(0)
    assert head is not None
    client.client_pause(5000, all=False)  # writes wait: the transaction arrives and is not answered
    log.send(commit_of(head, record("a", b"1-0")))
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_unpause()
    with pytest.raises(Fenced, match="reply was lost"):
        log.result(0)
    with pytest.raises(Fenced):
        log.send(commit_of(head, record("a", b"1-0")))
    log.close()


def test_no_connection_of_a_worker_repeats_a_command(broker_url: str) -> None:
    wire = Wire(broker_url)
    assert wire.retry.get_retries() == 0
    assert wire._connection.retry_on_error == []
    wire.close()


def test_other_shards_than_the_deployments_are_refused(broker_url: str, prefix: str) -> None:
    log = new_log(broker_url, prefix)
    assert log.acquire(0) is not None
    other = RedisLog(broker_url, worker="w", prefix=prefix, shards=SHARDS + 1)
    with pytest.raises(Disagreement, match="4 shards, this process format 1 and 5 shards"):
        other.acquire(1)
    for each in (log, other):
        each.close()


def test_reading_changes_nothing(broker_url: str, prefix: str, client: redis.Redis) -> None:
    keys = ShardKeys(prefix, 0)
    client.xadd(keys.inbox, {"stream": "a"}, id="1-0")
    before = dump(client, prefix)
    log = new_log(broker_url, prefix)
    log.ask({0: 0}, 10, 0.01)
    answer = log.poll(2, None)
    assert answer == [(0, [[b"1-0", [b"stream", b"a"]]])]
    assert dump(client, prefix) == before
    log.close()


def test_a_reading_connection_that_is_lost_twice_in_a_row_means_that_the_broker_is_away(
    broker_url: str, prefix: str, client: redis.Redis
) -> None:
    log = new_log(broker_url, prefix)

    def lose() -> list[Any] | None:
        log.ask({0: id_number("9-0")}, 10, 5.0)
        assert log._reading is not None
        log._reading._socket.shutdown(socket.SHUT_RDWR)
        return log.poll(5, None)

    assert lose() == [], "nothing is lost with the first: it is read again"
    client.xadd(ShardKeys(prefix, 0).inbox, {"stream": "a"}, id="1-0")
    log.ask({0: 0}, 10, 5.0)
    assert log.poll(5, None) == [(0, [[b"1-0", [b"stream", b"a"]]])]
    assert lose() == [], "what was read since then makes it the first again"
    with pytest.raises(BrokerAway, match="reading the log"):
        lose()
    log.close()


# --- faults of a broker of one's own ---------------------------------------------------------------------------------


@pytest.fixture
def own_broker(broker: EmbeddedBroker, request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    folder = Path(tempfile.mkdtemp(prefix="rco-"))
    binary = None if request.node.callspec.params["broker"] == "valkey" else shutil.which("redis-server")
    own = EmbeddedBroker(folder, binary)
    own.start()
    yield own
    own.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_worker_waits_for_an_absent_broker_and_goes_on_where_it_was(own_broker: EmbeddedBroker) -> None:
    world, engine = BrokerWorld(own_broker.url, "away"), TinyEngine(tiny_manifest())
    row = np.ones((1, 3), np.float32)
    for _ in range(5):
        world.append("a", rows_fields("a", row))
    with working(world.new_log(), engine) as worker:
        answered(world, {"a": 5})
        own_broker.stop()
        wait_until(lambda: worker.away, 60, "the worker notices")
        own_broker.start()
        for _ in range(5):
            world.append("a", rows_fields("a", row))
        bodies = answered(world, {"a": 10})["a"]
    assert [body["step"] for body in bodies] == list(range(1, 11))
    assert [body["restarted"] for body in bodies] == ["first", *[None] * 9]


class Gated(TinyEngine):
    """Steps only while its gate is open."""

    def __init__(self) -> None:
        super().__init__(tiny_manifest())
        self.gate, self.waiting = threading.Event(), threading.Event()

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.waiting.set()
        assert self.gate.wait(10)
        return super().run(x, states)


def test_a_commit_for_which_there_is_no_memory_is_repeated_until_there_is(own_broker: EmbeddedBroker) -> None:
    world, engine, metrics = BrokerWorld(own_broker.url, "oom", lease_s=20), Gated(), WorkerMetrics(CollectorRegistry())
    for _ in range(3):
        world.append("a", rows_fields("a", np.ones((1, 3), np.float32)))
    with working(world.new_log(), engine, lease_s=20, metrics=metrics):
        assert engine.waiting.wait(10), "a batch is being stepped"
        world.client.config_set("maxmemory", "1")
        engine.gate.set()
        wait_until(lambda: metrics.commit_errors.value >= 3, 60, "the broker refuses the commit, again and again")
        assert world.records("a") == []
        world.client.config_set("maxmemory", "0")
        bodies = answered(world, {"a": 3})["a"]
    assert [body["step"] for body in bodies] == [1, 2, 3]
    assert metrics.fenced.value == 0
