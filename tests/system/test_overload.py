"""Three times more than the worker can do, for a while: who waits is told so, who must be fresh is, nothing is lost.

`OVERLOAD_S` says how long (20 s in `make test`, 60 s in `make soak`). The load is real work, blocks of 512 rows; how
fast the machine drains them is measured first, and everything after follows from that.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import redis

from service.codec import id_number
from service.keys import ShardKeys, shard_of
from tests.deployment import Up, await_true

OVERLOAD_S = float(os.environ.get("OVERLOAD_S", "20"))
SHARDS, ROWS = 4, 512
BLOCK_BYTES = 4 * 6 * ROWS
BACKLOG_S, BACKLOG_BYTES = 2.0, 2 << 20
MAX_AGE_S = 1.0
MARGIN_S = 5.0  # for a machine that others use too: a batch under way, a poll, a commit
PRODUCERS = 6
OPTIONS = (
    "--shards", str(SHARDS), "--records-kept", "100000", "--lease-s", "5",
    "--backlog-s", str(BACKLOG_S), "--backlog-bytes", str(BACKLOG_BYTES),
)  # fmt: skip


def one_a_shard(kind: str) -> list[str]:
    """Streams in each shard: those that wait and those that must be fresh share everything."""
    found: dict[int, str] = {}
    for n in range(100):
        found.setdefault(shard_of(f"{kind}-{n}", SHARDS), f"{kind}-{n}")
    assert len(found) == SHARDS
    return list(found.values())


EVERY, LATEST = one_a_shard("every"), one_a_shard("latest")


Key = tuple[str, str]  # stream and id: ids of different shards may be alike


class Answer(NamedTuple):
    stream: str
    status: int
    id: str  # of what was accepted
    retry_after_s: int
    at: float  # when it was posted, s of the monotonic clock

    @property
    def key(self) -> Key:
        return self.stream, self.id


class Record(NamedTuple):
    """One record as the feed announced it."""

    stream: str
    id: str
    at: float  # when it was seen, s of the monotonic clock
    age_s: float  # from its id, when the broker took the entry, to when it was seen

    @property
    def key(self) -> Key:
        return self.stream, self.id


class Watch:
    """Follows the feeds of all shards and the broker's memory until it is closed, in a thread."""

    def __init__(self, url: str) -> None:
        self.records: list[Record] = []
        self.client = redis.Redis.from_url(url)
        self._feeds: dict[Any, Any] = {ShardKeys("rollcast", shard).feed: b"0-0" for shard in range(SHARDS)}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        while not self._closing.is_set():
            answer: Any = self.client.xread(self._feeds, block=100)
            now, wall_ms = time.monotonic(), time.time() * 1000
            for feed, commits in answer:
                self._feeds[feed] = commits[-1][0]
                for _, fields in commits:
                    words = fields[b"records"].decode().split()
                    for stream, entry_id in zip(words[::2], words[1::2], strict=True):
                        age_s = (wall_ms - int(entry_id.split("-")[0])) / 1000
                        self.records.append(Record(stream, entry_id, now, age_s))

    def memory(self) -> int:
        said: Any = self.client.info("memory")
        return int(said["used_memory"])

    def close(self) -> None:
        self._closing.set()
        self._thread.join(60)
        self.client.close()


class Producers:
    """Threads that post blocks to the streams in turn, at a steady rate together, whatever the answer is."""

    def __init__(self, url: str, streams: list[str], rate: float, seconds: float) -> None:
        """`rate`: posts a second; inf: one behind the other."""
        self.answers: list[Answer] = []
        self.failures: list[BaseException] = []
        self._streams, self._rate = streams, rate
        # made before the time begins: that takes long on a busy machine
        self._clients = [
            httpx.Client(base_url=url, trust_env=False, timeout=30, verify=False) for _ in range(PRODUCERS)
        ]
        self._began = time.monotonic()
        self._end = self._began + seconds
        rows = np.random.default_rng(3).normal(size=(ROWS, 6)).astype("<f4")
        self._body = rows.tobytes()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(PRODUCERS)]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _run(self, turn: int) -> None:
        try:
            with self._clients[turn] as http:
                while (due := max(time.monotonic(), self._began + turn / self._rate)) < self._end:
                    time.sleep(max(0.0, due - time.monotonic()))
                    self.answers.append(self._post(http, self._streams[turn % len(self._streams)]))
                    turn += PRODUCERS
        except BaseException as failure:
            self.failures.append(failure)

    def _post(self, http: httpx.Client, stream: str) -> Answer:
        at = time.monotonic()
        answer = http.post(
            f"/v1/streams/{stream}/samples", params={"model": "activity-lstm"}, content=self._body,
            headers={"content-type": "application/octet-stream"},
        )  # fmt: skip
        said = answer.json()
        if answer.status_code == 429:
            assert said["type"] == "urn:rollcast:problem:backlog-full"
        return Answer(stream, answer.status_code, said.get("id", ""), int(answer.headers.get("retry-after", "0")), at)

    def join(self) -> list[Answer]:
        for thread in self._threads:
            thread.join()
        assert not self.failures, self.failures
        return self.answers


class Phase(NamedTuple):
    """Some time of posting: every answer, and the records of what was taken."""

    answers: list[Answer]
    records: list[Record]

    def refused(self, streams: Container[str]) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 429 and answer.stream in streams]

    def summary(self, told: Mapping[Key, str]) -> str:
        counted = Counter((record.stream.split("-")[0], told[record.key]) for record in self.records)
        refused = Counter(answer.stream.split("-")[0] for answer in self.answers if answer.status == 429)
        took_s = self.answers[-1].at - self.answers[0].at
        return f"{len(self.answers) / took_s:.0f} posts/s for {took_s:.0f} s; {dict(counted)}; 429: {dict(refused)}"


def ages(records: Sequence[Record], streams: Sequence[str] = (*EVERY, *LATEST)) -> list[float]:
    """From the least to the greatest, s."""
    return sorted(record.age_s for record in records if record.stream in streams)


def middle_and_most(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} s, at most {values[-1]:.2f} s"


class Service:
    """A deployment with one worker and small bounds, and all that was taken and answered."""

    def __init__(self, up: Up) -> None:
        self.url = up.ready().url
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self.watch = Watch(f"unix://{(up.home / 'broker.sock').resolve()}")
        self.accepted: list[Answer] = []

    def close(self) -> None:
        self.watch.close()
        self.http.close()

    def begin(self, rate: float, seconds: float) -> Producers:
        return Producers(self.url, EVERY + LATEST, rate, seconds)

    def post(self, rate: float, seconds: float) -> Phase:
        return self.end(self.begin(rate, seconds))

    def end(self, producers: Producers) -> Phase:
        """Waits until all is posted, and until all that was taken is answered."""
        answers = producers.join()
        assert {answer.status for answer in answers} <= {202, 429}
        taken = [answer for answer in answers if answer.status == 202]
        self.accepted += taken
        expected = {answer.key for answer in taken}
        await_true(lambda: expected <= {record.key for record in self.watch.records}, "what was taken is answered", 60)
        return Phase(answers, [record for record in self.watch.records if record.key in expected])

    def drain_rate(self) -> float:
        """Blocks a second, while there is always something to do and nobody posts: the best of some."""
        self.post(float("inf"), 0.5)  # warms it up
        rates = []
        for _ in range(3):
            phase = self.post(float("inf"), 1.5)
            posted = max(answer.at for answer in phase.answers)
            times = [record.at for record in phase.records if record.at > posted]
            rates.append(len(times) / (times[-1] - posted))
        return max(rates)

    def prefer_latest(self, max_age_s: float) -> None:
        settings = {"freshness": {"mode": "latest", "max_age_s": max_age_s}}
        for stream in LATEST:
            answer = self.http.put(f"/v1/streams/{stream}", json=settings, params={"wait": 10})
            assert answer.status_code == 200, answer.text

    def bodies(self, stream: str) -> list[dict[str, Any]]:
        """Every record of a stream over HTTP, page after page, but those of controls."""
        found: list[dict[str, Any]] = []
        query = {"after": "0", "limit": "1000", "type": "all"}
        while page := self.http.get(f"/v1/streams/{stream}/predictions", params=query).json()["predictions"]:
            found += page
            query["after"] = page[-1]["id"]
        return [body for body in found if body["type"] != "done"]

    def await_idle(self) -> None:
        await_true(lambda: self.lag() == 0, "nothing waits")

    def lag(self) -> float:
        """Entries that wait, as the metrics say."""
        lines = self.http.get("/metrics").text.splitlines()
        lags = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("rollcast_lag_entries{")]
        assert len(lags) == SHARDS
        return sum(lags)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    up = Up(tmp_path, *OPTIONS)
    try:
        service = Service(up)
        try:
            yield service
        finally:
            service.close()
    finally:
        status = up.stop()
    assert status == 0


@pytest.mark.timeout(180 + 2 * OVERLOAD_S)
def test_three_times_too_much_is_refused_or_kept_fresh_and_nothing_that_was_taken_is_lost(service: Service) -> None:
    drained = service.drain_rate()
    max_age_s = max(MAX_AGE_S, 3 * 2 * SHARDS / drained)  # longer than a batch takes, however slow the machine is
    service.prefer_latest(max_age_s)
    service.await_idle()
    calm = service.post(drained / 12, 6)
    assert calm.refused(EVERY + LATEST) == []

    memory = [service.watch.memory()]
    producers = service.begin(3 * drained, OVERLOAD_S)
    while producers.alive:
        memory.append(service.watch.memory())
        time.sleep(0.05)
    load = service.end(producers)

    service.await_idle()
    after = service.post(drained / 12, 6)
    service.await_idle()
    bodies = {stream: service.bodies(stream) for stream in EVERY + LATEST}

    # nothing that was taken is lost, doubled or out of order
    for stream, found in bodies.items():
        taken = [answer.id for answer in service.accepted if answer.stream == stream]
        assert [body["id"] for body in found] == sorted(taken, key=lambda entry_id: id_number(entry_id.encode()))
        steps = [body["step"] for body in found if body["type"] == "prediction"]
        assert steps == [ROWS * n for n in range(1, len(steps) + 1)]

    # it was too much, and was said to be
    told = {(s, body["id"]): body.get("reason") or body["type"] for s, found in bodies.items() for body in found}
    stepped = [record for record in load.records if told[record.key] == "prediction"]
    refused = load.refused(EVERY)
    assert len(refused) > 0.1 * len(load.answers)
    assert all(1 <= answer.retry_after_s <= 60 for answer in refused)
    assert len(load.answers) > 1.5 * len(stepped), "far more was offered than could be done"

    # who waits, waits for a bounded time; where only the latest counts, what is stepped is fresh
    waited, fresh = ages(stepped, EVERY), ages(stepped, LATEST)
    print(f"\n{drained:.0f} blocks/s; {load.summary(told)}; memory {memory[0]} to {max(memory)}")
    print(f"from id to record: every {middle_and_most(waited)}, latest {middle_and_most(fresh)}")
    print(f"before the load {middle_and_most(ages(calm.records))}, after {middle_and_most(ages(after.records))}")
    # as much may wait as takes BACKLOG_S at the fastest rate that was measured, at which what is dropped counts; what
    # then has to be stepped goes at the rate that is left to it
    fastest, left = max(drained, len(load.records) / OVERLOAD_S), len(waited) / (OVERLOAD_S + waited[-1])
    longest_s = BACKLOG_S * fastest / left + MARGIN_S
    assert waited[-1] < longest_s
    assert {told[r.key] for r in load.records if r.stream in EVERY} == {"prediction"}
    assert {told[r.key] for r in load.records if r.stream in LATEST} - {"stale"} == {"prediction", "superseded"}
    assert fresh[-1] < max_age_s + MARGIN_S
    # the newest entry of a stream waits for the batch under way and is seen after its own, each of an entry or more of
    # every stream: on a machine so slow that this takes as long as may wait, freshness can do no more
    batches_s = 3 * 2 * SHARDS / min(drained, len(stepped) / OVERLOAD_S)
    assert statistics.median(fresh) < max(statistics.median(waited) / 2, batches_s)
    for stream in LATEST:
        times = [record.at for record in stepped if record.stream == stream]
        assert max(later - earlier for earlier, later in pairwise(times)) < longest_s + MARGIN_S

    # the broker holds what may wait, what is not trimmed yet, and the records
    untrimmed = 3 * len(load.records) / OVERLOAD_S * BLOCK_BYTES
    assert max(memory) - memory[0] < SHARDS * BACKLOG_BYTES + untrimmed + 2000 * len(load.records) + (4 << 20)

    # and then all is as before
    assert after.refused(EVERY + LATEST) == []
    assert statistics.median(ages(after.records)) < 3 * statistics.median(ages(calm.records)) + BACKLOG_S / 4
