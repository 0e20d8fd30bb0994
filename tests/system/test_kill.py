"""SIGKILL between step and commit, again and again: nothing lost, nothing doubled, nothing different."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from service.codec import encode_settings, parse_head
from service.contracts import Freshness, StreamSettings
from service.keys import ShardKeys, shard_of
from service.worker.careful import TRIES
from tests.doubles import rows_fields
from tests.oracle import Oracle, same
from tests.system import killed
from tests.worlds import wait_until

SHARDS, STREAMS, KILLS, ENTRIES = 3, 16, 20, 2400
POINTS = ("before-read", "after-decode", "before-step", "before-commit", "after-send", "after-commit")
BACKLOG = 400  # the producer waits while more is unanswered

Posted = dict[str, list[tuple[str, np.ndarray, float]]]


@dataclass
class Run:
    """A producer, a succession of worker processes that are killed, and what was seen."""

    url: str
    prefix: str
    folder: Path
    checked: bool = True
    shards: int = SHARDS
    streams: int = STREAMS
    resident: int = 16_384  # streams that a worker may have in memory
    posted: Posted = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    longest_log: int = 0

    def __post_init__(self) -> None:
        self.client = redis.Redis.from_url(self.url)
        self.keys = [ShardKeys(self.prefix, shard) for shard in range(self.shards)]
        self.rng = np.random.default_rng(7)
        self.dice = random.Random(7)
        self.clock = dict.fromkeys((f"s{n:02d}" for n in range(self.streams)), 100.0)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.system.killed"])
        self.started = 0
        self.process: Any = None

    # --- producing -----------------------------------------------------------------------------------------------

    def post(self) -> None:
        """One entry: a row or a block, to a hot stream every third time, so that some streams run ahead of others."""
        stream = "s00" if self.dice.random() < 0.35 else f"s{self.dice.randrange(self.streams):02d}"
        rows = 3 * self.rng.normal(size=(self.dice.choice([1, 1, 1, 2, 5]), 6)).astype(np.float32)
        self.clock[stream] = round(self.clock[stream] + 0.02 * len(rows), 6)
        fields: Any = rows_fields(stream, rows, time=repr(self.clock[stream]).encode())
        entry_id: Any = self.client.xadd(self.keys[shard_of(stream, self.shards)].inbox, fields)
        self.posted.setdefault(stream, []).append((entry_id.decode(), rows, self.clock[stream]))

    def posted_entries(self) -> int:
        return sum(map(len, self.posted.values()))

    def logged(self) -> int:
        lengths: list[int] = [self.client.xlen(keys.inbox) for keys in self.keys]  # type: ignore[misc]
        self.longest_log = max(self.longest_log, sum(lengths))
        return sum(lengths)

    def heads(self) -> list[bytes]:
        found: Any = [self.client.get(keys.head) for keys in self.keys]
        return found

    def answered(self) -> int:
        feeds: list[Any] = [self.client.xrange(keys.feed) for keys in self.keys]
        return sum(len(f[b"records"].split()) // 2 for feed in feeds for _, f in feed)

    # --- working and killing -------------------------------------------------------------------------------------

    def start(self, fault: str) -> Any:
        self.started += 1
        name = f"w{self.started % 2}" if self.started % 3 else f"w{self.started}"  # some come back under their name
        process = self.context.Process(
            target=killed.work,
            args=(self.url, self.prefix, self.shards, str(self.folder), name, fault, self.checked, 0.3, self.resident),
        )
        process.start()
        self.process = process
        return process

    def close(self) -> None:
        """Leaves no worker behind, however the test ended."""
        if self.process is not None:
            self.process.kill()
            self.process.join(60)
        self.client.close()

    def be_killed(self, point: str) -> None:
        """One life of a worker, ended by SIGKILL at `point`; the producer goes on meanwhile."""
        self.calm()
        process = self.start(f"{point}:{self.dice.randint(2, 6)}")

        def ended() -> bool:
            for _ in range(20):
                if self.logged() < BACKLOG:
                    self.post()
            return process.exitcode is not None

        wait_until(ended, 60, f"a worker dies at {point}")
        assert process.exitcode == -signal.SIGKILL
        self.kills[point] += 1

    def calm(self) -> None:
        """Where two lives committed nothing, entries are looked at one by one, and two deaths of one are a refusal, as
        they should be. Then somebody works undisturbed first."""

        def tries() -> int:
            return max(parse_head(head).tries if head else 0 for head in self.heads())

        if tries() < TRIES - 1:
            return
        process = self.start("")

        def moved_on() -> bool:
            if self.logged() < BACKLOG:
                self.post()
            return tries() < TRIES - 1

        wait_until(moved_on, 60, "what two lives left is committed")
        end_in_order(process)

    def finish(self, entries: int = ENTRIES) -> None:
        """Posts until there are so many, and waits for their records under a worker that nobody kills."""
        process = self.start("")

        def all_posted() -> bool:
            for _ in range(20):
                if self.logged() < BACKLOG and self.posted_entries() < entries:
                    self.post()
            return self.posted_entries() >= entries

        wait_until(all_posted, 60, "the rest is posted")
        wait_until(lambda: self.answered() >= self.posted_entries(), 60, "every entry is answered")
        wait_until(lambda: self.logged() == 0, 60, "the log is empty")
        end_in_order(process)

    # --- judging -------------------------------------------------------------------------------------------------

    def prefer_latest(self, streams: Iterable[str]) -> None:
        """Their settings, as a control would have written them."""
        body: Any = encode_settings(StreamSettings(freshness=Freshness("latest")))
        for stream in streams:
            self.client.hset(self.keys[shard_of(stream, self.shards)].settings, stream, body)

    def check(self) -> Counter[str]:
        """Every entry has one record, in order, and it is what an undisturbed run gives of those that were not dropped.

        Returns how many entries of each stream were."""
        engine, dropped = killed.engine(self.folder), Counter[str]()
        for stream, entries in self.posted.items():
            records: Any = self.client.xrange(self.keys[shard_of(stream, self.shards)].out(stream))
            assert [i.decode() for i, _ in records] == [entry_id for entry_id, _, _ in entries]
            oracle, previous, entered = Oracle(engine), b"0-0", Counter[str]()
            for (entry_id, rows, time), (_, fields) in zip(entries, records, strict=True):
                body = json.loads(fields[b"body"])
                assert fields[b"prev"] == previous
                assert body["id"] == entry_id
                if body["type"] == "dropped":
                    assert body["reason"] == "superseded"
                    dropped[stream] += 1
                    previous = entry_id.encode()
                    continue
                same(body, oracle.step(rows, time), tolerance=1e-5)
                assert body["restarted"] == ("first" if body["step"] == len(rows) else None)
                for event in body["events"]:
                    entered[event["label"]] += {"enter": 1, "exit": -1, "update": 0}[event["type"]]
                    assert entered[event["label"]] in (0, 1), "an enter was repeated or lost"
                previous = entry_id.encode()
        return dropped

    def check_feed(self) -> None:
        """Commits are counted without a hole, and each record was announced once."""
        announced: Counter[bytes] = Counter()
        for keys in self.keys:
            feed: Any = self.client.xrange(keys.feed)
            assert [i for i, _ in feed] == [b"%d-0" % n for n in range(1, len(feed) + 1)]
            head: Any = self.client.get(keys.head)
            assert int(head.split()[2]) == len(feed)
            for _, fields in feed:
                words = fields[b"records"].split()
                announced.update(b"%b %b" % pair for pair in zip(words[::2], words[1::2], strict=True))
        assert set(announced.values()) == {1}
        assert len(announced) == self.posted_entries()


def end_in_order(process: Any) -> None:
    """As it does when it is told to."""
    process.terminate()
    process.join(60)
    assert process.exitcode == 0


@pytest.fixture
def new_run(broker_url: str, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(checked: bool, **settings: Any) -> Run:
        runs.append(Run(broker_url, prefix, tmp_path, checked, **settings))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def test_twenty_kills_between_step_and_commit_lose_double_and_change_nothing(new_run: Callable[..., Run]) -> None:
    run = new_run(True)
    for n in range(KILLS):
        run.be_killed("after-step")
        if n % 3 == 0:  # and at the other points of the loop
            run.be_killed(POINTS[n // 3 % len(POINTS)])
    run.finish()
    assert run.kills["after-step"] >= KILLS
    assert run.posted_entries() >= 2000
    assert len(run.posted) >= STREAMS
    assert len({shard_of(stream, SHARDS) for stream in run.posted}) >= 3
    assert not run.check()
    run.check_feed()
    assert run.longest_log <= BACKLOG + 20, "the log is trimmed as it is answered"


def test_a_worker_that_does_not_look_at_positions_is_found_out(new_run: Callable[..., Run]) -> None:
    run = new_run(False)
    for _ in range(8):
        run.be_killed("after-step")
    run.finish(800)
    with pytest.raises(AssertionError):
        run.check()


def test_kills_change_nothing_while_streams_leave_memory_and_come_back(new_run: Callable[..., Run]) -> None:
    """A quarter of the streams fits: the others' states are read back all the time."""
    run = new_run(True, streams=48, resident=12)
    for n in range(6):
        run.be_killed(("after-step", "after-send", "after-decode")[n % 3])
    run.finish(1000)
    assert len(run.posted) == 48
    assert not run.check()
    run.check_feed()


def test_kills_where_only_the_latest_counts_leave_one_record_an_entry(new_run: Callable[..., Run]) -> None:
    """What was dropped stays dropped, what was stepped stays stepped, and nothing between is lost."""
    run = new_run(True)
    latest = {f"s{n:02d}" for n in range(0, STREAMS, 2)}
    run.prefer_latest(latest)
    for n in range(6):
        run.be_killed(("after-step", "after-send", "after-decode")[n % 3])
    run.finish(1000)
    dropped = run.check()
    run.check_feed()
    assert set(dropped) <= latest
    assert dropped["s00"] > 20, "the hot one, at least, was superseded"
