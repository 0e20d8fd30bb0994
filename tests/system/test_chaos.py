"""`rollcast chaos`: it finds nothing where nothing is wrong, and it would find what is."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
from rich.console import Console

import service.broker.log as log_module
from service.broker import packing
from service.broker.log import RedisLog
from service.chaos.broker import connect
from service.chaos.check import Findings, HeadWatch, Judge, missing
from service.chaos.run import Chaos, Options, states_of
from service.chaos.traffic import CASES, Draft, Producer, StreamTraffic, Tally
from service.chaos.verdict import KINDS, TRAFFIC, Verdict
from service.codec import id_number, parse_position
from service.engine import OnnxEngine
from service.errors import BrokerFailed
from service.keys import ShardKeys, shard_of
from service.packages import Package, load_package, zoo_folder
from tests.deployment import rollcast
from tests.worlds import wait_until, working

SHARDS, STREAMS, ENTRIES = 4, 8, 900
UNFENCED = (sys.executable, str(Path(__file__).with_name("unfenced.py")))


@pytest.mark.timeout(700)
def test_half_a_minute_of_everything_loses_doubles_and_changes_nothing() -> None:
    done = rollcast("chaos", "--seconds", "30", "--seed", "11", "--json", limit_s=690)
    verdict = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert verdict["passed"] is True
    assert verdict["faults"].keys() == KINDS.keys()
    assert min(verdict["faults"].values()) > 0, "every fault has happened"
    assert verdict["traffic"].keys() == TRAFFIC.keys()
    assert min(verdict["traffic"].values()) > 0, "every kind of entry was posted and answered"
    assert verdict["evictions"] > 0
    findings = verdict["findings"]
    assert findings["takeovers"] > 0
    assert findings["entries"] > 1000
    assert findings["records"].keys() == {"prediction", "refused", "dropped", "duplicate", "done"}
    assert findings["restarts"].keys() == {"first", "start", "ttl", "gap", "reset"}
    assert min(findings["events"], findings["states"], verdict["torn_commands"], verdict["refused_full"]) > 0
    assert verdict["evidence"] == ""


@pytest.mark.timeout(900)
def test_a_worker_without_its_fence_is_found_out() -> None:
    for seed in range(3):  # chance decides what an unfenced commit hits
        options = Options(
            8, 2, 150, seed, lease_s=0.4, burst=150, kinds=("partition",) * 4 + ("kill",), program=UNFENCED
        )
        run = Chaos(options, lambda line: None)
        try:
            verdict = run.run()
        finally:
            shutil.rmtree(run.home, ignore_errors=True)
        assert verdict.faults["partition"] > 0
        if verdict.findings.faults:
            assert not verdict.passed
            return
    pytest.fail("three runs without a fence, and nothing was found")


def test_the_fence_is_off_in_that_worker_only() -> None:
    """Collecting the tests imports its page, in the process that goes on to test the fence."""
    assert importlib.import_module("tests.system.unfenced").module is log_module
    assert RedisLog.result.__module__ == "service.broker.log"
    assert log_module.pack is packing.pack is hiredis.pack_command


# --- tampering: a run without faults, judged sound; then one thing is changed ---


@pytest.fixture(scope="module")
def package() -> Package:
    return load_package(zoo_folder() / "activity-lstm" / "1")


class Scene:
    """Entries of every case, answered by a worker in this process."""

    def __init__(self, path: Path, prefix: str, package: Package) -> None:
        self.client = connect(path)
        self.prefix, self.package = prefix, package
        states = states_of(package, 5, schema=package.manifest.sha256[:16])  # that of a worker in this process
        self.traffic = [StreamTraffic(f"dense-{n:02}", 5, package.manifest, SHARDS, states) for n in range(STREAMS)]
        self.tally = Tally()
        producer = Producer(path, [], self.tally, seed="5", burst=1, prefix=prefix, shards=SHARDS)
        drafts: list[Draft] = [stream.next() for _ in range(ENTRIES // STREAMS) for stream in self.traffic]
        watch = HeadWatch(SHARDS, prefix)
        log = RedisLog(f"unix://{path}", worker="w", prefix=prefix, shards=SHARDS, records_kept=10**9)
        with working(log, OnnxEngine(package), lease_s=3.0, state_ttl_s=5.0, output_history_s=1e8):
            producer.append(drafts)
            wait_until(lambda: watch.drained(self.client), 60, "every entry is answered")
        # the worker of this process has a schema of its own; states are compared by processes in the run above
        for keys in (ShardKeys(prefix, shard) for shard in range(SHARDS)):
            for key in self.client.scan_iter(keys.state_prefix + b"*"):
                self.client.set(key, self._with_schema(self.client.get(key)))

    def _with_schema(self, record: Any) -> bytes:
        schema = bytes.fromhex(self.package.schema)
        return bytes(record[:4]) + schema + bytes(record[4 + len(schema) :])

    def judge(self) -> Findings:
        judge = Judge(self.package, shards=SHARDS, state_ttl_s=5.0, prefix=self.prefix, turn=lambda: None)
        judge.life(self.client, complete=True)
        return judge.findings

    def keys(self, stream: str) -> ShardKeys:
        return ShardKeys(self.prefix, shard_of(stream, SHARDS))

    def rewrite(self, stream: str, change: Callable[[list[tuple[bytes, dict[bytes, bytes]]]], None]) -> None:
        """The stream's records, changed."""
        key = self.keys(stream).out(stream)
        records: Any = self.client.xrange(key)
        change(records)
        self.client.delete(key)
        for entry_id, fields in records:
            self.client.xadd(key, fields, entry_id)


@pytest.fixture
def scene(broker: Any, package: Package, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    def copy(shard: int) -> bytes:
        return f"{prefix}:{{{shard}}}:copy".encode()

    for module in ("traffic", "check"):
        monkeypatch.setattr(f"service.chaos.{module}.copy_key", copy)
    made = Scene(Path(broker.url.removeprefix("unix://")), prefix, package)
    findings = made.judge()
    assert findings.faults == 0, findings.told
    assert findings.entries == len(made.tally.acknowledged) == ENTRIES // STREAMS * STREAMS
    assert findings.states > 0
    yield made
    made.client.close()


def a_prediction(records: Sequence[tuple[bytes, dict[bytes, bytes]]], number: int = 20) -> int:
    """Place of a prediction that neither begins nor ends a state."""
    found = [n for n, (_, fields) in enumerate(records) if b'"restarted":null' in fields[b"body"]]
    return found[number]


def test_whatever_is_tampered_with_is_found(scene: Scene) -> None:
    streams = [f"dense-{n:02}" for n in range(STREAMS)]
    lost, doubled, reordered, differing, chained, rewound, torn, stale = streams

    def lose(records: list[Any]) -> None:
        del records[a_prediction(records)]

    def double(records: list[Any]) -> None:
        _, fields = records[a_prediction(records)]
        records.append((b"%d-0" % (int(records[-1][0].split(b"-")[0]) + 1), fields))

    def swap(records: list[Any]) -> None:
        n = a_prediction(records)
        m = a_prediction(records, 21)
        records[n], records[m] = (records[n][0], records[m][1]), (records[m][0], records[n][1])

    def nudge(records: list[Any]) -> None:
        _, fields = records[a_prediction(records)]
        body = json.loads(fields[b"body"])
        body["probabilities"][0] += 5e-5
        fields[b"body"] = json.dumps(body).encode()

    def unchain(records: list[Any]) -> None:
        records[a_prediction(records)][1][b"prev"] = b"0-0"

    def found_after(stream: str, change: Callable[[list[Any]], None]) -> Findings:
        scene.rewrite(stream, change)
        return scene.judge()

    assert found_after(lost, lose).lost == 1
    assert found_after(doubled, double).doubled >= 1
    findings = found_after(reordered, swap)
    assert findings.out_of_order >= 2, findings.told
    assert findings.differing >= 2
    before = findings.differing
    findings = found_after(differing, nudge)
    assert findings.differing == before + 1
    assert findings.largest >= 4e-5
    out_of_order = findings.out_of_order
    assert found_after(chained, unchain).out_of_order == out_of_order + 1

    keys = scene.keys(rewound)
    stored: Any = scene.client.hget(keys.pos, rewound)
    position = parse_position(stored)._replace(last=id_number("1-0"), record=b"1-0")
    scene.client.hset(keys.pos, rewound, position.encode())
    findings = scene.judge()
    assert findings.broken > 0, "low has passed what is not finished"
    broken = findings.broken

    feed: Any = scene.client.xrange(scene.keys(torn).feed)
    scene.client.xdel(scene.keys(torn).feed, feed[len(feed) // 2][0])
    assert scene.judge().broken > broken, "the feed has a hole"

    key = next(iter(scene.client.scan_iter(scene.keys(stale).state_prefix + b"*")))
    record: Any = scene.client.get(key)
    scene.client.set(key, record[:-40] + bytes(40))
    before = findings.differing
    assert scene.judge().differing > before, "a stored state differs"


def test_a_record_of_no_entry_and_an_entry_without_a_record_are_found(scene: Scene) -> None:
    keys = scene.keys("dense-00")
    scene.client.xadd(keys.out("nobody"), {"type": "prediction", "body": "{}", "prev": "0-0"}, "5-0")
    assert scene.judge().doubled == 1
    scene.client.xadd(
        f"{scene.prefix}:{{{keys.shard}}}:copy",
        {b"stream": b"dense-00", b"kind": b"control", b"data": b"{}", b"chaos": b"reset"},
    )
    assert scene.judge().lost == 1


def test_a_head_that_goes_back_is_seen(scene: Scene) -> None:
    watch, findings = HeadWatch(SHARDS, scene.prefix), Findings()
    watch.look(scene.client, findings)
    keys = scene.keys("dense-00")
    head: Any = scene.client.get(keys.head)
    words = head.split()
    words[2] = b"%d" % (int(words[2]) - 1)
    scene.client.set(keys.head, b" ".join(words))
    watch.look(scene.client, findings)
    assert findings.broken == 1


def test_acknowledged_entries_are_missed_unless_the_broker_lost_its_tail() -> None:
    acknowledged = [(0, b"100-0"), (0, b"200-0"), (1, b"300-0")]
    assert missing(acknowledged, {(0, b"100-0"), (1, b"300-0")}, []) == (0, [(0, b"200-0")])
    assert missing(acknowledged, {(0, b"100-0")}, [(150, 250)]) == (1, [(1, b"300-0")])


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_traffic_follows_from_the_seed_and_has_every_case(package: Package) -> None:
    states = states_of(package, 3)

    def drafts(seed: int) -> list[Draft]:
        traffic = [StreamTraffic(f"dense-{n:02}", seed, package.manifest, SHARDS, states) for n in range(60)]
        return [stream.next() for _ in range(150) for stream in traffic]

    assert drafts(3) == drafts(3) != drafts(4)
    assert {draft.fields["chaos"].decode() for draft in drafts(3)} == CASES.keys()
    assert {field for draft in drafts(3) for field in draft.fields} >= {"start", "end", "seq", "time"}


def test_a_broker_binary_that_is_not_there_is_said() -> None:
    options = Options(1, 1, 2, broker_binary="no-such-broker")
    run = Chaos(options, lambda line: None)
    with pytest.raises(BrokerFailed, match="no such program"):
        run.run()
    shutil.rmtree(run.home)
    done = rollcast("chaos", "--seconds", "1", "--broker-binary", "no-such-broker")
    assert (done.returncode, "no such program" in done.stderr) == (2, True)


def test_a_client_of_the_run_repeats_nothing(broker: Any) -> None:
    client = connect(Path(broker.url.removeprefix("unix://")))
    assert isinstance(client, redis.Redis)
    assert client.get_retry().get_retries() == 0
    client.close()


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict_of(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "seed": 1, "seconds": 30.0, "duration_s": 40.0, "workers": 3, "streams": 24, "findings": Findings(),
        "faults": dict.fromkeys(KINDS, 1),
    }  # fmt: skip
    return Verdict(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"findings": Findings(lost=1, told=["lost: dense-1 in shard 2"])}, "dense-1 in shard 2"),
        ({"findings": Findings(differing=1)}, "differing"),
        ({"lost_unexcused": 1}, "lost"),
        ({"blind": 1}, "before the reply"),
        ({"crashes": 1}, "ended by themselves"),
        ({"unseen": ["tear"], "faults": dict.fromkeys(KINDS, 0)}, "not seen: broker restarted without its log's tail"),
    ],
)
def test_a_verdict_fails_for_whatever_was_found_and_for_what_did_not_happen(changes: dict[str, Any], said: str) -> None:
    verdict = verdict_of(**changes, evidence="/tmp/somewhere")
    console = Console(width=200, record=True, file=io.StringIO())
    verdict.show(console)
    text = console.export_text()
    assert not verdict.passed
    assert verdict.as_json()["passed"] is False
    assert said in text
    assert "FAILED" in text
    assert "/tmp/somewhere" in text


def test_a_verdict_passes_when_nothing_was_found() -> None:
    assert verdict_of().passed
    assert verdict_of(findings=Findings(ties=3, suspects=1, unfinished=5), lost_by_broker=7).passed
