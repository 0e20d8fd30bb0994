"""A broker that dies, forgets, refuses, or answers half: what the worker does is what docs/protocol.md says, and every
entry that the log still has gets its one record, as if nothing had been."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry

from service.api import create_app
from service.app import broker_url, check_answers, check_keeps
from service.broker.log import RedisLog
from service.broker.predictions import RedisPredictions
from service.chaos.broker import ChaosBroker, connect
from service.chaos.proxy import FaultProxy
from service.codec import id_number, parse_head
from service.errors import BrokerFailed
from service.keys import ShardKeys, shard_of
from service.metrics import WorkerMetrics, create_registry
from service.settings import Settings
from service.worker import Worker
from tests.conftest import needs
from tests.deployment import rollcast
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.serving import Serving
from tests.worlds import wait_until, working

SHARDS, LEASE_S = 2, 0.5
STREAMS = [f"s{n}" for n in range(6)]
ON_BOTH = pytest.mark.parametrize("kind", ["valkey", "redis"])


class Scene:
    """A broker to be ill-treated, a worker behind a proxy, a producer that writes to the broker itself."""

    def __init__(self, folder: Path, binary: str | None) -> None:
        self.broker = ChaosBroker(folder, binary)
        self.proxy = FaultProxy(folder / "proxy.sock", self.broker.path)
        self.client = self.broker.client()
        self.keys = [ShardKeys("rollcast", shard) for shard in range(SHARDS)]
        self.engine = TinyEngine(tiny_manifest())
        self.posted: dict[str, list[tuple[str, np.ndarray, float]]] = {stream: [] for stream in STREAMS}
        self.rng = np.random.default_rng(3)
        self.clock = 1000.0
        self.registry = CollectorRegistry()

    def close(self) -> None:
        self.proxy.close()
        self.client.close()
        self.broker.stop()

    @contextmanager
    def working(self, name: str = "w", lease_s: float = LEASE_S) -> Iterator[Worker]:
        log = RedisLog(
            self.proxy.url, worker=name, shards=SHARDS, lease_s=lease_s, records_kept=10**6, trim_finished=False
        )
        self.registry = CollectorRegistry()
        metrics = WorkerMetrics(self.registry)
        with working(log, self.engine, lease_s=lease_s, input_history_s=1e6, metrics=metrics) as worker:
            yield worker

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def post(self, count: int) -> None:
        for _ in range(count):
            stream = STREAMS[int(self.rng.integers(len(STREAMS)))]
            rows = self.rng.normal(size=(int(self.rng.choice([1, 1, 3])), 3)).astype(np.float32)
            self.clock = round(self.clock + 0.1 * len(rows), 6)
            fields: Any = rows_fields(stream, rows, time=repr(self.clock).encode())
            entry_id: Any = self.client.xadd(self.keys[shard_of(stream, SHARDS)].inbox, fields)
            self.posted[stream].append((entry_id.decode(), rows, self.clock))

    def survived(self) -> int:
        """Forgets the posted entries that the log no longer has; returns how many it has."""
        logged: list[set[str]] = []
        for keys in self.keys:
            found: Any = self.client.xrange(keys.inbox)
            logged.append({entry_id.decode() for entry_id, _ in found})
        for stream, entries in self.posted.items():
            mine = logged[shard_of(stream, SHARDS)]  # another shard may have given the same id
            self.posted[stream] = [entry for entry in entries if entry[0] in mine]
        return sum(map(len, self.posted.values()))

    def records(self, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = self.client.xrange(self.keys[shard_of(stream, SHARDS)].out(stream))
        return found  # type: ignore[no-any-return]

    def answered(self) -> bool:
        try:
            return all(len(self.records(stream)) >= len(entries) for stream, entries in self.posted.items())
        except (redis.RedisError, OSError):
            return False

    def check(self) -> None:
        """Every entry has one record, in order, and it is the oracle's; commits are counted without a hole."""
        for stream, entries in self.posted.items():
            records = self.records(stream)
            assert [entry_id.decode() for entry_id, _ in records] == [entry_id for entry_id, _, _ in entries]
            oracle, previous = Oracle(self.engine), b"0-0"
            for (entry_id, rows, time), (_, fields) in zip(entries, records, strict=True):
                body = json.loads(fields[b"body"])
                same(body, oracle.step(rows, time), tolerance=1e-5)
                assert fields[b"prev"] == previous
                assert body["restarted"] == ("first" if previous == b"0-0" else None)
                previous = entry_id.encode()
        for keys in self.keys:
            feed: Any = self.client.xrange(keys.feed)
            head: Any = self.client.get(keys.head)
            assert [id_number(i) >> 64 for i, _ in feed] == list(range(1, parse_head(head).n + 1))


@pytest.fixture
def new_scene() -> Iterator[Callable[[str], Scene]]:
    scenes: list[tuple[Scene, Path]] = []

    def make(kind: str) -> Scene:
        binary = needs("redis-server", "redis-server") if kind == "redis" else None
        folder = Path(tempfile.mkdtemp(prefix="rcf-"))  # short: a socket's path has 107 bytes
        scenes.append((Scene(folder, binary), folder))
        return scenes[-1][0]

    yield make
    for scene, folder in scenes:
        scene.close()
        shutil.rmtree(folder, ignore_errors=True)


# --- a broker that dies ----------------------------------------------------------------------------------------------


@ON_BOTH
def test_a_broker_killed_and_restarted_from_its_log_changes_nothing(
    new_scene: Callable[[str], Scene], kind: str
) -> None:
    scene = new_scene(kind)
    with scene.working() as worker:
        for _ in range(3):
            scene.post(80)
            scene.broker.kill()
            wait_until(lambda: worker.away, 60, "the worker sees that the broker is away")
            scene.broker.start()
        scene.survived()
        scene.post(40)
        wait_until(scene.answered, 60, "every entry is answered")
    scene.check()


@ON_BOTH
def test_a_broker_without_its_tail_is_followed_back_and_on(new_scene: Callable[[str], Scene], kind: str) -> None:
    scene, chance = new_scene(kind), random.Random(4)
    lost = 0
    with scene.working():
        while lost == 0:
            scene.post(120)
            wait_until(scene.answered, 60, "every entry is answered")
            before = scene.survived()
            scene.broker.kill()
            torn = scene.broker.tear(chance)
            assert torn.commands > 0
            assert torn.bytes > 0
            scene.broker.start()
            lost += before - scene.survived()
        scene.post(60)
        wait_until(scene.answered, 60, "every entry that is left is answered")
    scene.check()
    assert lost > 0, "entries went with the tail"


def test_an_empty_broker_is_a_new_life_and_cursors_of_the_old_one_say_gap(new_scene: Callable[[str], Scene]) -> None:
    scene = new_scene("valkey")
    predictions = RedisPredictions(f"unix://{scene.broker.path}", "rollcast", SHARDS)
    app = create_app(predictions, [scene.engine.manifest], create_registry())
    with scene.working(), Serving(app) as api:
        scene.post(30)
        wait_until(scene.answered, 60, "every entry is answered")
        stream = max(STREAMS, key=lambda name: len(scene.posted[name]))
        life = parse_head(scene.client.get(scene.keys[0].head)).life  # type: ignore[arg-type]
        cursor = scene.posted[stream][-1][0]
        scene.broker.kill()
        scene.broker.replace_by_an_empty_one()
        scene.broker.start()
        assert scene.survived() == 0

        def known() -> bool:
            return api.http.get("/readyz").status_code == 200 or "worker" in api.http.get("/readyz").text

        wait_until(known, 60, "the api has found the broker")
        page = api.http.get(f"/v1/streams/{stream}/predictions", params={"after": cursor}).json()
        assert page == {"predictions": [], "next": "0-0", "gap": True}
        with api.follow(stream, last=cursor) as events:
            gap = next(events)
            assert (gap.event, gap.body["reason"]) == ("gap", "lost")
            scene.post(60)
            wait_until(scene.answered, 60, "what is new is answered")
            assert next(events).id == scene.posted[stream][0][0]
        assert parse_head(scene.client.get(scene.keys[0].head)).life != life  # type: ignore[arg-type]
    scene.check()


def test_a_cursor_from_a_lost_tail_says_gap(new_scene: Callable[[str], Scene]) -> None:
    scene = new_scene("valkey")
    predictions = RedisPredictions(f"unix://{scene.broker.path}", "rollcast", SHARDS)
    with scene.working(), Serving(create_app(predictions, [scene.engine.manifest], create_registry())) as api:
        scene.post(60)
        wait_until(scene.answered, 60, "every entry is answered")
        newest = {stream: entries[-1][0] for stream, entries in scene.posted.items()}
        chance, before = random.Random(1), scene.survived()
        while scene.survived() == before:
            scene.broker.kill()
            scene.broker.tear(chance)
            scene.broker.start()
        wait_until(lambda: "broker" not in api.http.get("/readyz").text, 60, "the api has found the broker")
        gone = [stream for stream in STREAMS if newest[stream] not in {i for i, _, _ in scene.posted[stream]}]
        with api.follow(gone[0], last=newest[gone[0]]) as events:
            gap = next(events)
            assert (gap.event, gap.body["reason"]) == ("gap", "lost")


# --- a connection that breaks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["cut-reply", "cut-request"])
def test_a_connection_cut_inside_a_commit_or_its_reply_changes_nothing(
    new_scene: Callable[[str], Scene], cut: str
) -> None:
    scene = new_scene("valkey")
    order = scene.proxy.cut_reply if cut == "cut-reply" else scene.proxy.cut_request
    with scene.working(lease_s=10.0):
        for n in range(1, 9):
            order()
            scene.post(30)
            wait_until(lambda n=n: scene.proxy.counts[cut] == n, 60, "the connection is cut")  # type: ignore[misc]
        wait_until(scene.answered, 60, "every entry is answered")
        wait_until(lambda: scene.counted("rollcast_fenced_total") >= 8, 60, "each cut was noticed")
    scene.check()
    assert scene.proxy.counts["blind"] == 0


def test_a_commit_that_arrives_after_another_worker_took_over_leaves_no_trace(
    new_scene: Callable[[str], Scene],
) -> None:
    scene = new_scene("valkey")
    thief = FaultProxy(scene.broker.home / "thief.sock", scene.broker.path)
    with scene.working("first"):
        scene.post(40)
        wait_until(scene.answered, 60, "every entry is answered")
        scene.proxy.hold_a_commit()
        scene.post(40)
        wait_until(lambda: scene.proxy.counts["hold"] == 1, 60, "a commit is on its way")
        mine, scene.proxy = scene.proxy, thief
        with scene.working("second"):
            wait_until(scene.answered, 60, "the other worker answers")
            scene.check()
            mine.release()
            scene.post(40)
            wait_until(scene.answered, 60, "and goes on")
        scene.check()
        scene.proxy = mine
    thief.close()


# --- a broker that refuses -------------------------------------------------------------------------------------------


@contextmanager
def out_of_memory(scene: Scene) -> Iterator[None]:
    scene.broker.starve()
    with pytest.raises(redis.OutOfMemoryError):
        scene.post(1)
    yield
    scene.broker.feed()


@contextmanager
def a_replica(scene: Scene) -> Iterator[None]:
    """READONLY: a failover made another one the primary. Of nobody, so that it keeps its data."""
    scene.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(redis.ReadOnlyError):
        scene.post(1)
    yield
    scene.client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def a_failed_snapshot(scene: Scene) -> Iterator[None]:
    """MISCONF: a snapshot cannot be written, since a folder has its name."""
    folder = scene.broker.home / "dump.rdb"
    folder.mkdir()
    scene.client.config_set("save", "3600 1")

    def status() -> str:
        if not scene.client.info("persistence")["rdb_bgsave_in_progress"]:
            scene.client.bgsave()
        return str(scene.client.info("persistence")["rdb_last_bgsave_status"])

    wait_until(lambda: status() == "err", 60, "the snapshot fails")
    with pytest.raises(redis.ResponseError, match=r"MISCONF|RDB snapshots"):
        scene.post(1)
    yield
    folder.rmdir()
    wait_until(lambda: status() == "ok", 60, "the snapshot succeeds")


@contextmanager
def too_few_replicas(scene: Scene) -> Iterator[None]:
    scene.client.config_set("min-replicas-to-write", 1)
    with pytest.raises(redis.ResponseError, match=r"NOREPLICAS|Not enough good replicas"):
        scene.post(1)
    yield
    scene.client.config_set("min-replicas-to-write", 0)


@contextmanager
def a_long_script(scene: Scene) -> Iterator[None]:
    """BUSY: somebody's script goes on and on."""
    scene.client.config_set("lua-time-limit", 20)
    other = connect(scene.broker.path, 120.0)

    def run() -> None:
        with pytest.raises(redis.ResponseError):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()

    def busy() -> bool:
        try:
            scene.client.ping()
        except redis.ResponseError as error:
            return "BUSY" in str(error) or "busy" in str(error)
        return False

    wait_until(busy, 60, "the broker is busy")
    yield
    scene.client.execute_command("SCRIPT", "KILL")
    thread.join(60)
    other.close()


def saying(error: str) -> Callable[[Scene], Any]:
    """Said by the proxy to every command."""

    @contextmanager
    def ill(scene: Scene) -> Iterator[None]:
        scene.proxy.error = error.encode()
        yield
        scene.proxy.error = None

    ill.__name__ = error.split()[0].lower()
    return ill


ILLNESSES = {  # and what the worker's log says of each, as docs/operations.md has it
    out_of_memory: "the broker refuses OOM",
    a_replica: "broker away READONLY",
    a_failed_snapshot: "the broker refuses MISCONF",
    too_few_replicas: "the broker refuses NOREPLICAS",
    a_long_script: "the broker refuses BUSY",
    saying(
        "LOADING Redis is loading the dataset in memory"
    ): "the broker refuses LOADING",  # so little data is read too quickly
    saying("MOVED 1 127.0.0.1:1"): "broker away MOVED",
    saying("CLUSTERDOWN The cluster is down"): "broker away CLUSTERDOWN",
    saying(
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
    ): "broker away MASTERDOWN",
}
EACH = [(kind, ill) for ill in ILLNESSES for kind in ("valkey", "redis") if kind == "valkey" or "_" in ill.__name__]


def said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    """The log has every word, in one line."""
    lines = [f"{line.getMessage()} {getattr(line, 'detail', '')}" for line in list(caplog.records)]
    return any(all(word in line for word in words.split()) for line in lines)


@pytest.mark.parametrize(("kind", "illness"), EACH, ids=[f"{kind}-{ill.__name__}" for kind, ill in EACH])
def test_what_the_broker_refuses_is_done_when_it_is_well_again_and_once(
    new_scene: Callable[[str], Scene], kind: str, illness: Callable[[Scene], Any], caplog: pytest.LogCaptureFixture
) -> None:
    scene = new_scene(kind)
    with scene.working(lease_s=20.0) as worker:  # to be held must not look like a broker that is away
        scene.post(60)
        wait_until(scene.answered, 60, "every entry is answered")
        scene.proxy.hold()
        scene.post(60)
        with illness(scene):
            answered = sum(len(scene.records(stream)) for stream in STREAMS) if illness is not a_long_script else 60
            scene.proxy.release()
            wait_until(lambda: bool(worker.trouble) or worker.away, 60, "/readyz says that the broker refuses")
            wait_until(lambda: said(caplog, ILLNESSES[illness]), 60, ILLNESSES[illness])
            assert answered == 60
        wait_until(scene.answered, 60, "what was refused is answered")
        wait_until(lambda: not worker.trouble and not worker.away, 60, "all is well again")
        scene.post(20)
        wait_until(scene.answered, 60, "and so is what comes after")
    scene.check()


def test_each_new_reason_why_the_broker_is_away_is_said_and_that_it_is_back(
    new_scene: Callable[[str], Scene], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rollcast")
    scene = new_scene("valkey")
    with scene.working() as worker:
        scene.post(10)
        wait_until(scene.answered, 60, "every entry is answered")
        scene.proxy.hold()
        wait_until(lambda: said(caplog, "broker away no answer"), 60, "silence is said")
        assert not said(caplog, "answers again")
        scene.proxy.error = b"MOVED 1 127.0.0.1:1"
        scene.proxy.release()
        wait_until(lambda: said(caplog, "broker away MOVED"), 60, "and then the new reason")
        scene.proxy.error = None
        wait_until(lambda: said(caplog, "the broker answers again"), 60, "and that it is over")
        assert not worker.away
        scene.post(10)
        wait_until(scene.answered, 60, "what comes after is answered")
    scene.check()


def test_a_full_broker_keeps_leases_and_order_though_it_is_full_for_longer_than_a_lease(
    new_scene: Callable[[str], Scene],
) -> None:
    scene, lease_s = new_scene("valkey"), 1.0
    with scene.working(lease_s=lease_s) as worker:
        scene.post(60)
        wait_until(scene.answered, 60, "every entry is answered")
        owners = [scene.client.get(keys.owner) for keys in scene.keys]
        scene.proxy.hold()
        scene.post(60)
        with out_of_memory(scene):
            scene.proxy.release()
            wait_until(lambda: "OOM" in worker.trouble, 60, "the worker says why")
            refused, until = scene.counted("rollcast_commit_errors_total"), monotonic() + 2.5 * lease_s
            wait_until(lambda: monotonic() > until, 60, "two leases are over")
            wait_until(lambda: scene.counted("rollcast_commit_errors_total") > refused + 3, 60, "it tries again")
        wait_until(scene.answered, 60, "what was refused is answered")
        assert [scene.client.get(keys.owner) for keys in scene.keys] == owners
        for reason in ("fenced", "lease", "broker"):
            assert scene.counted("rollcast_shards_lost_total", reason=reason) == 0
    scene.check()


# --- a broker that evicts --------------------------------------------------------------------------------------------


@ON_BOTH
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru"])
def test_a_broker_that_evicts_is_not_worked_with(new_scene: Callable[[str], Scene], kind: str, policy: str) -> None:
    scene = new_scene(kind)
    scene.client.config_set("maxmemory-policy", policy)
    url = f"unix://{scene.broker.path}"
    with pytest.raises(BrokerFailed, match=f"maxmemory-policy {policy}.*expected noeviction"):
        check_keeps(url)
    with pytest.raises(BrokerFailed, match=policy):
        broker_url(Settings(broker=url))
    scene.client.config_set("maxmemory-policy", "noeviction")
    assert broker_url(Settings(broker=url)) == url


def test_a_worker_does_not_start_on_a_broker_that_evicts(new_scene: Callable[[str], Scene]) -> None:
    scene = new_scene("valkey")
    scene.client.config_set("maxmemory-policy", "allkeys-lru")
    for command in (["worker"], ["up", "--port", "0"]):
        done = rollcast(*command, "--broker", f"unix://{scene.broker.path}")
        assert done.returncode == 2
        assert "expected noeviction" in done.stderr


def test_a_broker_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/nobody.sock"
    assert broker_url(Settings(broker=url)) == url
    with pytest.raises(BrokerFailed, match=r"nobody\.sock"):
        check_answers(url)


def test_an_evicted_state_is_said_to_be_lost_and_counted(new_scene: Callable[[str], Scene]) -> None:
    scene = new_scene("valkey")
    with scene.working("first"):
        scene.post(60)
        wait_until(scene.answered, 60, "every entry is answered")
    evicting = {"maxmemory-policy": "volatile-lru", "maxmemory": 1}
    for name, value in evicting.items():
        scene.client.config_set(name, value)
    states = [key for keys in scene.keys for key in scene.client.scan_iter(keys.state_prefix + b"*")]
    if states:  # eviction comes with the next command that needs memory
        with pytest.raises(redis.OutOfMemoryError):
            scene.post(1)
    assert not [key for keys in scene.keys for key in scene.client.scan_iter(keys.state_prefix + b"*")]
    scene.client.config_set("maxmemory", 0)
    scene.client.config_set("maxmemory-policy", "noeviction")
    with scene.working("second", lease_s=10.0):
        scene.post(60)
        wait_until(scene.answered, 60, "every entry is answered")
        wait_until(
            lambda: scene.counted("rollcast_restarts_total", model="tiny", reason="lost") == len(STREAMS), 10, "counted"
        )
    for stream, entries in scene.posted.items():
        records = [json.loads(fields[b"body"]) for _, fields in scene.records(stream)]
        assert [record["id"] for record in records] == [entry_id for entry_id, _, _ in entries]
        assert sum(record["restarted"] == "lost" for record in records) == 1
