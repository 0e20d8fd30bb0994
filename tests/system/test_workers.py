"""Many workers: they share the shards, take over, hand over, and a stopped one that comes back does no harm."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.faults import POINTS
from service.worker.loop import BEAT_S
from tests.system.crew import Crew
from tests.system.test_kill import end_in_order
from tests.worlds import wait_until

BUSY_S = 10.0  # what a machine that is busy with other things may add
STEADY_S = 3.0  # a lease that such a machine keeps


@pytest.fixture
def crew(broker_url: str, prefix: str, tmp_path: Path) -> Iterator[Crew]:
    one = Crew(broker_url, prefix, tmp_path, shards=8)
    yield one
    one.close()


def test_workers_come_go_and_die_and_every_entry_is_answered_as_if_nothing_had_happened(crew: Crew) -> None:
    crew.hire("a", lease_s=STEADY_S)
    crew.await_shared(a=8)
    crew.feed(200)

    crew.hire("b", "c", lease_s=STEADY_S)
    crew.await_shared(a=3, b=3, c=2)
    crew.feed(200)
    assert crew.shared(a=3, b=3, c=2), "and it stays so"

    os.kill(crew.workers["b"].pid, signal.SIGKILL)
    died = time.monotonic()
    crew.await_shared(a=4, c=4)
    assert time.monotonic() - died < STEADY_S + 1 + BUSY_S, "taken over within lease + 1 s"
    crew.feed(100)

    crew.hire("b", lease_s=STEADY_S)
    crew.await_shared(a=3, b=3, c=2)
    crew.feed(100)

    end_in_order(crew.workers["c"])
    assert "c" not in crew.owners(), "it gave everything back before it ended"
    assert "c" not in crew.live()
    crew.feed(100)
    crew.await_shared(a=4, b=4)
    crew.await_answers()
    crew.dismiss()
    crew.check()
    crew.check_feed()


def test_who_ends_in_order_hands_over_without_waiting_for_a_lease(broker_url: str, prefix: str, tmp_path: Path) -> None:
    crew = Crew(broker_url, prefix, tmp_path, shards=8)
    try:
        crew.hire("a", "b", lease_s=30.0)
        crew.await_shared(30, a=4, b=4)
        crew.feed(100)
        crew.workers["a"].terminate()
        assert crew.await_shared(b=8) < BUSY_S, "not a third of the lease"
        crew.await_answers()
        assert [head.split()[-1] for head in crew.heads() if head.split()[2] == b"0"] == [b"1"] * crew.numbers().count(
            0
        )
        crew.dismiss()
        crew.check()
    finally:
        crew.close()


def test_a_stopped_worker_that_comes_back_changes_nothing_and_joins_again(crew: Crew) -> None:
    crew.hire("a")
    crew.await_shared(a=8)
    crew.feed(100)
    for _ in range(3):
        crew.feed(30)
        os.kill(crew.workers["a"].pid, signal.SIGSTOP)  # wherever it is: reading, stepping, its commits in flight
        crew.hire("b")
        crew.await_shared(b=8)
        crew.feed(60)
        crew.await_answers()
        crew.workers["b"].terminate()
        crew.workers["b"].join(60)
        for keys in crew.keys:  # nobody works; the shards are another's, so that only the stopped one could write
            crew.client.set(keys.owner, "nobody token", px=3_600_000)
        before, numbers = crew.dump(), crew.numbers()
        crew.post()  # a zombie's blocked read is served: that must change nothing either
        inbox = changed(before, crew.dump())
        assert len(inbox) == 1
        os.kill(crew.workers["a"].pid, signal.SIGCONT)
        wait_until(lambda: "a" in crew.live(), 60, "it is back")
        time.sleep(4 * BEAT_S)  # it tries what it tries
        assert changed(before, crew.dump()) == inbox
        assert crew.numbers() == numbers
        for keys in crew.keys:
            crew.client.delete(keys.owner)
        crew.await_shared(a=8)
        crew.await_answers()
    crew.dismiss()
    crew.check()
    crew.check_feed()


def test_kills_at_every_point_of_the_loop_with_three_workers(crew: Crew) -> None:
    crew.hire("steady")
    for n, point in enumerate(POINTS):
        name = f"w{n % 2}"
        crew.hire(name, fault=f"{point}:{20 + 7 * n}")
        process = crew.workers[name]

        def ended() -> bool:
            if crew.logged() < 200:
                crew.post()
            return process.exitcode is not None  # noqa: B023

        wait_until(ended, 60, f"a worker dies at {point}")
        assert process.exitcode == -signal.SIGKILL, point
    crew.feed(200)
    crew.await_answers()
    crew.await_shared(steady=8)
    crew.dismiss()
    crew.check()
    crew.check_feed()


def changed(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> set[bytes]:
    return {key for key in before | after if before.get(key) != after.get(key)}
