"""How fast a shard drains, and how long what waits in it will take."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service.api.backlog import ENTRY_BYTES, STALE_S, UNKNOWN_RETRY_S, WINDOW_S, Backlog, Bounds, Drain
from service.errors import BacklogFull, BrokerAway, BrokerFull
from service.ports import Pressure, ShardBacklog


class Shard:
    """A worker that finishes `rate` entries a second of what is there, looked at ten times a second."""

    def __init__(self) -> None:
        self.drain, self.now, self.waiting = Drain(), 0.0, 0.0
        self.commits = 0

    def run(self, seconds: float, rate: float, arriving: float = 0.0, *, token: str = "aa") -> None:
        """`token`: under which the worker holds the shard; a worker that begins anew has another, none is empty."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            done = min(rate * 0.1, self.waiting)
            self.waiting += arriving * 0.1 - done
            self.commits += done > 0
            self.drain.sample(self.now, 0.1, round(done), ShardBacklog(round(self.waiting), 0, "", token, self.commits))


@pytest.fixture
def shard() -> Shard:
    return Shard()


def test_nothing_is_known_before_anything_was_busy(shard: Shard) -> None:
    assert shard.drain.rate is None
    assert shard.drain.seconds(1000) == 0.0


def test_a_busy_shard_shows_its_rate(shard: Shard) -> None:
    shard.waiting = 10_000
    shard.run(2, rate=500)
    assert shard.drain.rate == pytest.approx(500)
    assert shard.drain.seconds(1000) == pytest.approx(2.0)


def test_a_shard_that_keeps_up_does_not_look_slow(shard: Shard) -> None:
    shard.run(20, rate=100_000, arriving=10)
    assert shard.drain.rate is None, "ten a second is what came, not what it can do"
    assert shard.drain.seconds(400) == 0.0


def test_a_rate_follows_a_worker_that_became_slower(shard: Shard) -> None:
    shard.waiting = 1e6
    shard.run(5, rate=1000)
    shard.run(2 * WINDOW_S, rate=100)
    assert shard.drain.rate == pytest.approx(100)


def test_while_nothing_moves_the_time_that_passes_counts(shard: Shard) -> None:
    shard.waiting = 1e5
    shard.run(5, rate=1000)
    left = round(shard.waiting)
    shard.run(7, rate=0)
    assert shard.drain.stalled_s == pytest.approx(7.0)
    assert shard.drain.seconds(left) == pytest.approx(7 + left / 1000)


def test_a_shard_that_never_moved_is_as_slow_as_it_has_waited(shard: Shard) -> None:
    shard.waiting = 1
    shard.run(31, rate=0)
    assert shard.drain.seconds(1) > 30


def test_progress_ends_a_stall(shard: Shard) -> None:
    shard.waiting = 1e5
    shard.run(5, rate=1000)
    shard.run(40, rate=0)
    shard.run(WINDOW_S + 1, rate=1000)
    assert shard.drain.stalled_s == 0.0
    assert shard.drain.rate == pytest.approx(1000)


def test_a_slow_entry_is_forgotten_as_soon_as_the_worker_keeps_up_again(shard: Shard) -> None:
    shard.waiting = 100
    shard.run(5, rate=0)
    shard.run(0.1, rate=500)
    assert shard.drain.rate == pytest.approx(10, rel=0.03), "one worker held the shard all the while: so far it is slow"
    shard.run(1, rate=500)
    assert shard.drain.rate == pytest.approx(500)
    shard.run(20, rate=500, arriving=10)
    assert shard.drain.rate == pytest.approx(500), "that little comes does not make it slow"


@pytest.mark.parametrize("lease_s", [0.0, 5.0])
@pytest.mark.parametrize("stopped_s", [5.0, 300.0])
def test_a_stop_in_which_nobody_worked_says_nothing_about_the_rate(
    shard: Shard, lease_s: float, stopped_s: float
) -> None:
    """The lease of a worker that died goes on; the next one has another token. The first commit holds but 4 entries."""
    shard.waiting = 1e5
    shard.run(5, rate=200)
    shard.run(lease_s, rate=0)
    shard.run(stopped_s - lease_s, rate=0, token="")
    shard.run(0.2, rate=0, token="bb")
    assert shard.drain.stalled_s == pytest.approx(stopped_s + 0.2)
    shard.run(0.1, rate=40, token="bb")
    assert shard.drain.seconds(205) < 205 / (4 / 0.3) + 0.01, "no longer than what was seen since it works"
    shard.run(1.0, rate=200, token="bb")
    assert shard.drain.seconds(205) < 2.0


def test_a_worker_that_was_never_seen_before_its_stop_is_not_slow_after_it(shard: Shard) -> None:
    shard.waiting = 205
    shard.run(20, rate=0, token="")
    shard.run(0.1, rate=40, token="bb")
    assert shard.drain.rate is None, "how much of this moment it worked is not known"
    assert shard.drain.seconds(201) == 0.0
    shard.run(0.1, rate=40, token="bb")
    assert shard.drain.rate == pytest.approx(40)


def test_time_in_which_commits_are_made_that_were_not_heard_of_yet_is_no_stop() -> None:
    drain = Drain()
    for n in range(50):
        drain.sample(n / 10, 0.1, 0, ShardBacklog(100, 0, "", "aa", n))
    assert drain.stalled_s < 0.2
    drain.sample(5.0, 0.1, 50, ShardBacklog(50, 0, "", "aa", 50))
    assert drain.rate == pytest.approx(10, rel=0.03), "they count when they are heard of"


def test_what_was_not_measured_counts_neither_as_work_nor_as_a_stop(shard: Shard) -> None:
    shard.waiting = 1e4
    shard.run(2, rate=500)
    shard.drain.skip(ShardBacklog(round(shard.waiting), 0, "", "aa", shard.commits))
    assert shard.drain.stalled_s == 0.0
    shard.run(0.1, rate=500)
    assert shard.drain.rate == pytest.approx(500)


def test_an_old_rate_is_forgotten(shard: Shard) -> None:
    shard.waiting = 1000
    shard.run(5, rate=100)
    assert shard.drain.rate is not None
    shard.waiting = 0
    shard.run(STALE_S + 1, rate=100)
    assert shard.drain.rate is None


def test_an_empty_shard_takes_an_entry_however_long_it_takes() -> None:
    nobody: Any = SimpleNamespace(shards=1)
    backlog = Backlog(nobody, nobody, Bounds(seconds=2.0))
    for n in range(82):  # one in 4 s, while another waits
        backlog._drains[0].sample(n / 10, 0.1, int(n % 41 == 40), ShardBacklog(2, 0, "", "aa", n // 41))
    assert backlog._drains[0].seconds(1) == pytest.approx(4.1)
    backlog.admit("a", 100)
    with pytest.raises(BacklogFull, match="8 s of work") as refused:
        backlog.admit("a", 100)
    assert refused.value.retry_after_s == 2.0, "no longer than what may wait takes"


def drained(entries: int, size: int, rate: float, bounds: Bounds) -> Backlog:
    """In its only shard so many entries of so many bytes wait, and it drains at this rate."""
    nobody: Any = SimpleNamespace(shards=1)
    backlog = Backlog(nobody, nobody, bounds)
    backlog._entries, backlog._bytes = [entries], [size]
    for n in range(1, 51):
        backlog._drains[0].sample(n / 10, 0.1, int(n > 1) * round(rate / 10), ShardBacklog(entries, size, "", "aa", n))
    assert backlog._drains[0].rate == pytest.approx(rate)
    return backlog


def retry_after_s(backlog: Backlog, size: int = 0) -> float:
    with pytest.raises(BacklogFull) as refused:
        backlog.admit("a", size)
    return refused.value.retry_after_s


@pytest.mark.parametrize(("rate", "expected_s"), [(10, 10.0), (20, 5.0), (50, 2.0)])
def test_who_has_no_room_is_told_how_long_the_shard_takes_until_there_is(rate: int, expected_s: float) -> None:
    """A hundred entries more than nine tenths of what may wait, in time and in bytes."""
    by_time = drained(27 * rate + 100, 0, rate, Bounds(seconds=30.0)) if rate < 33 else None
    by_bytes = drained(1000, 1_000_000 - ENTRY_BYTES, rate, Bounds(bytes=999_999, seconds=1e9))
    assert by_time is None or retry_after_s(by_time) == pytest.approx(expected_s, rel=0.01)
    assert retry_after_s(by_bytes) == pytest.approx(expected_s, rel=0.01)


def test_nobody_is_told_to_come_back_within_a_second_or_after_all_has_gone() -> None:
    assert retry_after_s(drained(5000, 1_000_000, 10_000, Bounds(bytes=1_000_000))) == 1.0
    assert retry_after_s(drained(100_000, 0, 10, Bounds(seconds=30.0))) == 30.0
    nothing_moves = drained(1000, 0, 10, Bounds(seconds=30.0))
    for n in range(60):
        nothing_moves._drains[0].sample(6 + n / 10, 0.1, 0, ShardBacklog(1000, 0, "", "aa", 50))
    assert retry_after_s(nothing_moves) == UNKNOWN_RETRY_S


def test_an_empty_shard_takes_an_entry_that_is_larger_than_all_that_may_wait() -> None:
    nobody: Any = SimpleNamespace(shards=1)
    backlog = Backlog(nobody, nobody, Bounds(bytes=1000))
    backlog.admit("a", 5000)
    assert (backlog.entries(0), backlog.waiting_bytes(0)) == (1, 5000 + ENTRY_BYTES)
    with pytest.raises(BacklogFull, match="at most 1,000 bytes"):
        backlog.admit("a", 1)


@pytest.mark.parametrize(
    ("size", "taken"), [(1000 - 2 * ENTRY_BYTES - 100, True), (1001 - 2 * ENTRY_BYTES - 100, False)]
)
def test_what_just_fits_is_taken(size: int, taken: bool) -> None:
    nobody: Any = SimpleNamespace(shards=1)
    backlog = Backlog(nobody, nobody, Bounds(bytes=1000))
    backlog.admit("a", 100)
    if taken:
        backlog.admit("a", size)
    else:
        assert retry_after_s(backlog, size) == UNKNOWN_RETRY_S


@pytest.mark.parametrize(("limit", "size", "taken"), [(10_000, 500, True), (10_000, 501, False), (0, 501, True)])
def test_the_last_part_of_the_brokers_memory_is_kept_for_answers(limit: int, size: int, taken: bool) -> None:
    """15 %; a broker without a limit has no such part."""
    nobody: Any = SimpleNamespace(shards=1)
    backlog = Backlog(nobody, nobody, Bounds())
    backlog._memory = 8_000, limit
    if not taken:
        with pytest.raises(BrokerFull, match="the last 15% are kept"):
            backlog.admit("a", size)
    else:
        backlog.admit("a", size)
    assert backlog.entries(0) == taken


class AwayOnce:
    """A broker that is asked, with a look at the backlog meanwhile; the first time it does not answer."""

    shards = 1

    def __init__(self) -> None:
        self.backlog: Backlog | None = None
        self.seen: list[int] = []

    async def pressure(self) -> Pressure:
        assert self.backlog is not None
        self.seen.append(self.backlog.entries(0))
        self.backlog.admit("s", 100)  # too late for this answer
        if len(self.seen) == 1:
            raise BrokerAway("gone")
        return Pressure([ShardBacklog(4, 800, "")], 0, 0)


def test_own_appends_count_until_an_answer_has_them() -> None:
    predictions: Any = AwayOnce()
    follower: Any = SimpleNamespace(finished=[0], heard=set(), away=None, connections=1)
    predictions.backlog = backlog = Backlog(predictions, follower, Bounds())
    for _ in range(3):
        backlog.admit("s", 100)
    with pytest.raises(BrokerAway):
        asyncio.run(backlog.poll())
    asyncio.run(backlog.poll())
    assert predictions.seen == [3, 4]
    assert backlog.entries(0) == 4 + 1, "those of the answer, and the one that came while it was awaited"


class Slow:
    """A broker in which 100 entries wait; each answer takes as long on the clock as a test says."""

    shards = 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.took_s, self.commits = 0.0, 0.1, 0
        monkeypatch.setattr("service.api.backlog.time.monotonic", lambda: self.now)
        self.follower = SimpleNamespace(finished=[0], heard=set(), away=None, connections=1)
        told: Any = self
        self.backlog = Backlog(told, self.follower, Bounds())  # type: ignore[arg-type]

    async def pressure(self) -> Pressure:
        self.now += self.took_s
        return Pressure([ShardBacklog(100, 0, "", "aa", self.commits)], 0, 0)

    def poll(self, count: int, finished: int) -> None:
        for _ in range(count):
            self.follower.finished[0] += finished
            self.commits += finished > 0
            asyncio.run(self.backlog.poll())

    @property
    def drain(self) -> Drain:
        return self.backlog._drains[0]


def test_time_in_which_the_api_or_the_broker_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    slow.poll(10, finished=10)
    assert slow.drain.rate == pytest.approx(100)
    slow.took_s = 20.0
    slow.poll(2, finished=0)
    slow.took_s = 0.1
    slow.poll(2, finished=4)
    assert slow.drain.stalled_s == 0.0
    assert slow.drain.seconds(205) < 3.0


@pytest.mark.parametrize("away", ["the broker cannot be reached", None])
def test_what_was_finished_while_the_feed_was_not_followed_is_not_known(
    monkeypatch: pytest.MonkeyPatch, away: str | None
) -> None:
    slow = Slow(monkeypatch)
    slow.poll(10, finished=10)
    for _ in range(400):
        slow.follower.away = away
        slow.follower.connections += away is None
        slow.poll(1, finished=0)
    assert slow.drain.stalled_s == 0.0
    assert slow.drain.rate == pytest.approx(100)
