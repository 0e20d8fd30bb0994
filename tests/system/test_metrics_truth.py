"""What is scraped is what was posted: of every kind of answer, and when a worker is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import redis

from service.codec import parse_head
from service.keys import ShardKeys, shard_of
from service.metrics import SCORES
from tests.deployment import Up, await_true, runs
from tests.scraping import Scrape, scrape

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
SHARDS = 4
ROWS, FRAMES = "activity-lstm", "digits-cnn"
STREAMS = [f"belt-{n}" for n in range(12)]
FRAMES_POSTED = 10
_, _JPEG = cv2.imencode(".jpg", cv2.circle(np.zeros((28, 28), np.uint8), (14, 14), 8, 255, 3))


class Scene:
    """A deployment, what was posted to it, and every record that is in its broker."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.http = httpx.Client(base_url=up.url, trust_env=False, timeout=30)
        self.client = redis.Redis(unix_socket_path=str(up.home / "broker.sock"))
        self.keys = [ShardKeys("rollcast", shard) for shard in range(SHARDS)]
        self.rng = np.random.default_rng(5)
        self.appended = 0  # by the api
        self.foreign = 0  # by XADD

    def rows(self, stream: str, steps: int = 1, **query: Any) -> str:
        """The id."""
        data = self.rng.normal(20, 10, size=(steps, 6)).astype("<f4").tobytes()
        return self.post(f"/v1/streams/{stream}/samples", data, "application/octet-stream", model=ROWS, **query)

    def post(self, path: str, data: bytes, media: str, **query: Any) -> str:
        answer = self.http.post(path, content=data, headers={"Content-Type": media}, params=query)
        assert answer.status_code == 202, answer.text
        self.appended += 1
        entry_id: str = answer.json()["id"]
        return entry_id

    def add(self, stream: str, shard: int | None = None, **fields: Any) -> None:
        keys = self.keys[shard_of(stream, SHARDS) if shard is None else shard]
        self.client.xadd(keys.inbox, {"stream": stream, **fields})
        self.foreign += 1

    def records(self) -> list[dict[str, Any]]:
        """All of them, as the broker has them."""
        found: list[dict[str, Any]] = []
        for key in self.client.scan_iter("rollcast:{*}:out:*", count=1000):
            items: Any = self.client.xrange(key)
            found += [json.loads(fields[b"body"]) for _, fields in items]
        return found

    def await_answers(self) -> list[dict[str, Any]]:
        await_true(lambda: len(self.records()) == self.appended + self.foreign, "every entry has its record", 60)
        return self.records()

    def await_counted(self, records: int, **labels: str) -> Scrape:
        def counted() -> bool:
            return scrape(self.up.url).sum("rollcast_records_total", **labels) >= records

        await_true(counted, f"{records} records are counted")
        shown: list[Scrape] = []

        def whole() -> bool:  # the steps of a record are counted after it; and a slow worker is left out of a scrape
            shown.append(scrape(self.up.url))
            return shown[-1].sum("rollcast_records_total", **labels) >= records

        await_true(whole, "every worker shows them")
        return shown[-1]

    def owner_of(self, stream: str) -> str:
        owner: Any = self.client.get(self.keys[shard_of(stream, SHARDS)].owner)
        worker: str = owner.split()[0].decode()
        return worker

    def tokens_of(self, worker: str) -> set[str]:
        """Of its present acquisitions."""
        tokens = set()
        for keys in self.keys:
            owner: Any = self.client.get(keys.owner)
            head: Any = self.client.get(keys.head)
            if owner is not None and owner.split()[0].decode() == worker:
                tokens.add(parse_head(head).token)
        return tokens

    def committed(self, tokens: set[str]) -> int:
        """Records of the commits made under these."""
        count = 0
        for keys in self.keys:
            commits: Any = self.client.xrange(keys.feed)
            for _, fields in commits:
                if fields[b"token"].decode() in tokens:
                    count += len(fields[b"records"].split()) // 2
        return count

    def process_of(self, worker: str) -> tuple[str, int]:
        """Its name among the processes, and its pid."""
        about: Any = self.client.get(f"rollcast:worker:{worker}")
        pids = [pid for pid in self.up.family() if worker in Path(f"/proc/{pid}/cmdline").read_text()]
        return json.loads(about)["process"], pids[-1]  # the last: the one that has no child


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    up = Up(tmp_path_factory.mktemp("h"), "--workers", "2", "--records-kept", "100000")
    try:
        scene = Scene(up.ready())
        yield scene
        scene.http.close()
        scene.client.close()
    finally:
        status = up.stop()
    assert status == 0


def test_every_kind_of_answer_is_counted_once(scene: Scene) -> None:
    steps = 0
    for seq in range(4):
        for stream in STREAMS:
            scene.rows(stream, 1 + seq, seq=10 + seq)
            steps += 1 + seq
    for stream in STREAMS[:5]:
        scene.rows(stream, seq=13)  # equal: a duplicate
    for stream in STREAMS[:3]:
        scene.rows(stream, seq=2)  # below: late
    for n in range(FRAMES_POSTED):
        picture = _JPEG.tobytes()
        scene.post(f"/v1/streams/cam-{n % 2}/frames", picture, "image/jpeg", model=FRAMES, time=100 + n)
    for _ in range(2):
        scene.rows("belt-0", start=1)
    scene.add("cam-0", kind="frame", data=_JPEG.tobytes()[:200], model=FRAMES)
    for stream in STREAMS[:2]:
        bad = np.array([[1, 2, np.nan, 4, 5, 6]], "<f4").tobytes()
        scene.add(stream, kind="samples", shape="1,6", data=bad)
    scene.add("belt-0", kind="smell", data=b"?")
    scene.add("belt-0", (shard_of("belt-0", SHARDS) + 1) % SHARDS, kind="text", data=b"elsewhere")
    reset = scene.http.delete("/v1/streams/belt-1/state", params={"wait": 20})
    assert (reset.status_code, reset.json()["type"]) == (200, "done")
    scene.appended += 1
    scene.rows("belt-1")
    refused = scene.http.post("/v1/streams/belt-0/samples", content=b"", headers={"Content-Type": "text/csv"})
    assert refused.status_code in (400, 422)

    records = scene.await_answers()
    shown = scene.await_counted(len(records))
    predictions = [record for record in records if record["type"] == "prediction"]
    assert len(predictions) == 4 * len(STREAMS) + FRAMES_POSTED + 2 + 1
    assert shown.sum("rollcast_entries_total") == shown.sum("rollcast_records_total") == len(records)
    assert shown.by("rollcast_entries_total", "kind") == {
        ("samples",): 4 * len(STREAMS) + 5 + 3 + 2 + 2 + 1, ("frame",): FRAMES_POSTED + 1, ("text",): 1, ("",): 1,
        ("control",): 1,
    }  # fmt: skip
    assert shown.by("rollcast_records_total", "type") == counted("type", of=records)
    assert shown.by("rollcast_records_total", "type") == {
        ("prediction",): len(predictions), ("refused",): 5, ("dropped",): 3, ("duplicate",): 5, ("done",): 1,
    }  # fmt: skip
    assert shown.by("rollcast_steps_total", "model") == {(ROWS,): steps + 2 + 1, (FRAMES,): FRAMES_POSTED}
    assert shown.by("rollcast_predicted_total", "model", "label") == counted("model", "label", of=predictions)
    assert shown.by("rollcast_restarts_total", "model", "reason") == {
        (ROWS, "first"): len(STREAMS), (FRAMES, "first"): 2, (ROWS, "start"): 2, (ROWS, "reset"): 1,
    }  # fmt: skip
    assert shown.by("rollcast_dropped_total", "reason") == {("late",): 3}
    assert shown.sum("rollcast_duplicates_total") == 5
    assert shown.by("rollcast_dead_total", "reason") == {
        ("bad_image",): 1, ("non_finite",): 2, ("malformed",): 1, ("wrong_shard",): 1,
    }  # fmt: skip
    assert shown.sum("rollcast_nonfinite_total") == 2
    happened = Counter((event["label"], event["type"]) for record in records for event in record.get("events", ()))
    assert shown.by("rollcast_events_total", "label", "type") == happened
    assert shown.sum("rollcast_events_total", type="enter") > 0
    check_scores(shown, predictions)
    assert shown.sum("rollcast_end_to_end_seconds_count") == len(records)
    assert shown.sum("rollcast_batch_entries_sum") == len(predictions)
    assert shown.sum("rollcast_stage_seconds_count", stage="decode") == FRAMES_POSTED + 1
    assert shown.sum("rollcast_appended_total") == scene.appended
    taken = shown.sum("rollcast_http_request_seconds_count", status="202")
    assert taken == scene.appended - 1  # the reset was waited for: 200
    refusals = shown.sum("rollcast_http_request_seconds_count", status=str(refused.status_code))
    assert refusals == 1
    for nothing in ("fenced", "commit_errors", "dead_overflow", "evictions", "shards_lost", "turned_away"):
        assert shown.sum(f"rollcast_{nothing}_total") == 0, nothing


def test_the_deployment_and_its_broker_are_measured(scene: Scene) -> None:
    shown = scrape(scene.up.url)

    def settled() -> bool:
        nonlocal shown
        shown = scrape(scene.up.url)
        return (
            shown.by("rollcast_shards_held", "process") == {("worker-0",): 2, ("worker-1",): 2}
            and shown.sum("rollcast_workers_live") == 2
            and shown.sum("rollcast_shard_owned") == SHARDS
            and shown.sum("rollcast_lag_entries") == 0
        )

    await_true(settled, "both workers have their share, and all is answered", 60)
    assert shown.sum("rollcast_lag_seconds") == shown.sum("rollcast_lag_bytes") == 0
    said: Any = scene.client.info()
    assert shown.sum("rollcast_broker_up") == 1
    assert shown.sum("rollcast_broker_seconds_count") >= 1

    def measured() -> bool:
        memory: Any = scene.client.info("memory")
        used = memory["used_memory"] - memory.get("mem_not_counted_for_evict", 0)
        return bool(scrape(scene.up.url).sum("rollcast_broker_memory_bytes") == pytest.approx(used, rel=0.05))

    await_true(measured, "what it uses of its memory is what it says itself", 60)
    assert shown.sum("rollcast_broker_memory_limit_bytes") == said["maxmemory"] > 0
    assert shown.sum("rollcast_broker_system_memory_bytes") == said["total_system_memory"] > 0
    assert shown.sum("rollcast_broker_noeviction") == shown.sum("rollcast_broker_aof_enabled") == 1
    assert shown.sum("rollcast_broker_disk_ok") == 1
    assert 0 < shown.sum("rollcast_broker_clients") <= said["connected_clients"]
    assert 0 < shown.sum("rollcast_broker_commands_total") <= said["total_commands_processed"]
    assert shown.sum("rollcast_broker_evicted_total") == 0
    scene.client.config_set("maxmemory", "3gb")
    scene.client.config_set("maxmemory-policy", "allkeys-lru")
    await_true(lambda: scrape(scene.up.url).sum("rollcast_broker_noeviction") == 0, "the policy is seen")
    assert scrape(scene.up.url).sum("rollcast_broker_memory_limit_bytes") == 3 << 30
    scene.client.config_set("maxmemory-policy", "noeviction")
    scene.client.config_set("maxmemory", "0")


def test_a_kill_costs_no_more_than_what_was_not_yet_scraped_and_nothing_counts_twice(scene: Scene) -> None:
    before = scene.await_counted(len(scene.records()))
    forgetful = STREAMS[-1]
    victim = scene.owner_of(forgetful)
    process, pid = scene.process_of(victim)
    keys = scene.keys[shard_of(forgetful, SHARDS)]
    half, posted = threading.Event(), 0

    def load() -> None:
        nonlocal posted
        for n in range(60):
            lines = [
                json.dumps({"stream": stream, "kind": "samples", "samples": [[1.0 * n, 2, 3, 4, 5, 6]]})
                for stream in STREAMS[:-1]
            ]
            answer = scene.http.post(
                "/v1/entries", content="\n".join(lines), headers={"Content-Type": "application/x-ndjson"}
            )
            posted += sum('"id"' in line for line in answer.text.splitlines())
            if n == 30:
                half.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert half.wait(60)
    tokens = scene.tokens_of(victim)
    counted_before = before.sum("rollcast_records_total", process=process)
    exposed = scene.await_counted(int(counted_before), process=process).sum("rollcast_records_total", process=process)
    os.kill(pid, signal.SIGKILL)
    await_true(lambda: not runs(pid), "it is dead")
    assert scene.client.delete(keys.state(forgetful)) == 1  # behind the back of its next owner
    thread.join(60)
    scene.rows(forgetful)
    scene.appended += posted

    records = scene.await_answers()
    lost = scene.committed(tokens)
    assert counted_before <= exposed <= lost
    await_true(lambda: scrape(scene.up.url).sum("rollcast_workers_live") == 2, "it was started again", 60)
    shown = scene.await_counted(len(records) - lost)
    for one in ("worker-0", "worker-1"):
        entries = shown.sum("rollcast_entries_total", process=one)
        assert entries == shown.sum("rollcast_records_total", process=one), one
    assert shown.sum("rollcast_records_total") == len(records) - lost, "neither twice nor too few"
    assert shown.sum("rollcast_restarts_total", reason="lost") == 1
    assert shown.sum("rollcast_restarts_total", reason="version") == 0
    assert shown.sum("rollcast_appended_total") == scene.appended
    assert shown.sum("rollcast_commit_errors_total") == 0
    await_true(lambda: scrape(scene.up.url).sum("rollcast_lag_entries") == 0, "nothing waits")
    await_true(lambda: scrape(scene.up.url).sum("rollcast_shard_owned") == SHARDS, "every shard is owned again")


def counted(*names: str, of: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(record[name] for name in names) for record in of)


def check_scores(shown: Scrape, predictions: list[dict[str, Any]]) -> None:
    for model in (ROWS, FRAMES):
        scores = np.array([record["score"] for record in predictions if record["model"] == model])
        for bound in SCORES:
            found = shown.sum("rollcast_confidence_bucket", model=model, le=repr(bound))
            assert found == (scores <= bound).sum(), (model, bound)
        assert shown.sum("rollcast_confidence_count", model=model) == len(scores)
        assert shown.sum("rollcast_confidence_sum", model=model) == pytest.approx(scores.sum())
