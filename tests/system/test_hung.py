"""Processes that hang are seen and replaced; entries that take long are stepped; those that take for ever are refused.
Meanwhile, everybody else is answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from service.codec import Head, parse_head
from service.keys import ShardKeys, shard_of
from service.supervisor import GRACE_S
from tests.deployment import Up, await_true
from tests.system.test_poison import pictures
from tests.system.test_up import ROW, cmdline, predict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SHARDS = 4
CAM = "cam"
SAME = next(name for name in map(str, range(99)) if shard_of(name, SHARDS) == shard_of(CAM, SHARDS))
OTHERS = [
    next(name for name in map(str, range(99)) if shard_of(name, SHARDS) == shard)
    for shard in range(SHARDS)
    if shard != shard_of(CAM, SHARDS)
]


@pytest.fixture
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Up]]:
    """Starts one on a home; without a home, on a new one."""
    started: list[Up] = []

    def start(*arguments: str, home: Path | None = None, **more: str) -> Up:
        started.append(Up(home or tmp_path_factory.mktemp("h"), *arguments, **more))
        return started[-1].ready()

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.stop()


def child(up: Up, words: str) -> int:
    """The pid of the one whose command line has these words."""
    (pid,) = [pid for pid in up.family()[1:] if words in cmdline(pid)]
    return pid


def hangs(up: Up) -> list[str]:
    return [line["event"] for line in up.lines if "hangs" in line["event"]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    deployment = Up(tmp_path_factory.mktemp("h"), "--hung-s", "3", "--lease-s", "1").ready()
    yield deployment
    assert deployment.stop() == 0


def test_an_api_that_answers_nobody_is_started_again(watched: Up) -> None:
    assert predict(watched.url, "one")["step"] == 1
    api, before = child(watched, "api --fd"), hangs(watched)
    os.kill(api, signal.SIGSTOP)
    assert predict(watched.url, "one")["step"] == 2, "the call waited for the next one"
    assert hangs(watched) == [*before, "api hangs, killing it"]
    assert child(watched, "api --fd") != api


def test_a_worker_without_a_heartbeat_is_started_again_and_nothing_is_lost_or_doubled(watched: Up) -> None:
    before = hangs(watched)
    for killed in (1, 2):
        worker = child(watched, "worker --number")
        assert predict(watched.url, "two")["step"] == 2 * killed - 1
        os.kill(worker, signal.SIGSTOP)
        assert predict(watched.url, "two")["step"] == 2 * killed, "the entry waited for the next one"
        assert hangs(watched) == [*before, *["worker 0 hangs, killing it"] * killed]
    page = httpx.get(f"{watched.url}/v1/streams/two/predictions", trust_env=False).json()
    assert [one["step"] for one in page["predictions"]] == [1, 2, 3, 4]


def test_nobody_is_taken_for_hung_while_the_machine_is_busy(watched: Up) -> None:
    family, before = watched.family(), hangs(watched)
    busy = [
        subprocess.Popen([sys.executable, "-c", f"import time\nwhile time.monotonic() < {time.monotonic() + 8}: pass"])
        for _ in range(3 * (os.cpu_count() or 1))
    ]
    steps = 0
    try:
        while any(process.poll() is None for process in busy):
            steps += 1
            assert predict(watched.url, "three")["step"] == steps
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert hangs(watched) == before
    assert watched.family() == family


@pytest.mark.parametrize("victim", ["api --fd", "worker --number"])
def test_it_ends_within_its_grace_though_a_child_does_not(up: Callable[..., Up], victim: str) -> None:
    deployment = up()
    os.kill(child(deployment, victim), signal.SIGSTOP)
    began = time.monotonic()
    assert deployment.stop(signal.SIGHUP) == 0
    assert GRACE_S <= time.monotonic() - began < 2 * GRACE_S + 4


class Innocents:
    """Rows of streams in all other shards, one after the other, each waited for."""

    def __init__(self, url: str) -> None:
        self.waits_s: list[float] = []
        self.failed: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(url, stream), daemon=True) for stream in OTHERS]

    def __enter__(self) -> Innocents:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _post(self, url: str, stream: str) -> None:
        with httpx.Client(trust_env=False, timeout=60) as http:
            while not self._over.is_set():
                began = time.monotonic()
                answer = http.post(f"{url}/v1/streams/{stream}/samples?model=activity-lstm&wait=30", json=ROW)
                if answer.status_code == 200:
                    self.waits_s.append(time.monotonic() - began)
                else:
                    self.failed.append(answer.text)
                self._over.wait(0.02)


class Trial:
    """A frame whose decoding takes long, put on trial: its workers were killed three times."""

    def __init__(self, deployment: Up) -> None:
        self.up = deployment
        self.broker = redis.Redis(unix_socket_path=str(deployment.home / "broker.sock"))
        self.keys = ShardKeys("rollcast", shard_of(CAM, SHARDS))
        answer = httpx.post(
            f"{deployment.url}/v1/streams/{CAM}/frames?model=digits-cnn", content=pictures()[1],
            headers={"Content-Type": "image/jpeg"}, trust_env=False,
        )  # fmt: skip
        assert answer.status_code == 202, answer.text
        self.id = answer.json()["id"]
        httpx.post(f"{deployment.url}/v1/streams/{SAME}/samples?model=activity-lstm", json=ROW, trust_env=False)

    def begin(self, workers: int) -> None:
        kills = 0
        while self.head().tries < 3:
            assert kills < 20
            ready = workers + kills
            await_true(lambda ready=ready: len(self.up.said("worker ready")) == ready, "all workers live", 120)
            head = self.head()
            await_true(lambda: self.broker.exists(self.keys.owner), "the shard has an owner")
            owner: Any = self.broker.get(self.keys.owner)
            if owner is None:
                continue
            os.kill(child(self.up, owner.decode().split()[0]), signal.SIGKILL)
            kills += 1
            await_true(lambda was=head.token: self.head().token != was, "the shard has another owner")
        await_true(lambda: self.broker.exists(self.keys.suspect), "it is on trial")

    def head(self) -> Head:
        head: Any = self.broker.get(self.keys.head)
        return parse_head(head)

    def outcome(self, stream: str, up: Up | None = None, limit_s: float = 120.0) -> dict[str, Any]:
        """Of the stream's only entry."""
        url = (up or self.up).url

        def records() -> list[dict[str, Any]]:
            answer = httpx.get(f"{url}/v1/streams/{stream}/predictions?type=all", trust_env=False, timeout=60)
            return list(answer.json().get("predictions", []))

        await_true(records, f"{stream} is answered", limit_s)
        (only,) = records()
        return only


def test_what_takes_ten_seconds_is_stepped_though_its_trial_was_broken_off_once(up: Callable[..., Up]) -> None:
    slow = {"ROLLCAST_TEST_FAULT": "slow:AntiLifeAntiLife:10"}
    deployment = up("--lease-s", "1", **slow)
    trial = Trial(deployment)
    trial.begin(workers=1)
    began = time.monotonic()
    assert deployment.stop() == 0
    assert time.monotonic() - began < 2 * GRACE_S
    assert [line["event"] for line in deployment.lines if line["process"] == "worker 0"][-1] == "stopped"
    again = up("--lease-s", "1", home=deployment.home, **slow)
    assert trial.outcome(CAM, again)["type"] == "prediction"
    assert trial.outcome(SAME, again)["type"] == "prediction"
    assert not again.said("shards lost")
    assert again.stop() == 0


def test_what_never_ends_is_refused_and_everybody_else_is_answered_all_the_time(up: Callable[..., Up]) -> None:
    never = {"ROLLCAST_TEST_FAULT": "slow:AntiLifeAntiLife:1000"}
    deployment = up("--workers", "3", "--lease-s", "1", "--hung-s", "6", **never)
    trial = Trial(deployment)
    trial.begin(workers=3)
    with Innocents(deployment.url) as innocents:
        refused = trial.outcome(CAM)
    assert (refused["type"], refused["reason"]) == ("refused", "crash")
    assert trial.outcome(SAME)["type"] == "prediction"
    assert len(deployment.said("this worker ends")) == 2, "two trials"
    assert hangs(deployment) == [], "who waits for a trial lives"
    assert not innocents.failed, innocents.failed[:3]
    assert len(innocents.waits_s) >= 30
    assert max(innocents.waits_s) < 6.0, "nobody waited as long as a trial takes"
    print(f"{len(innocents.waits_s)} innocent rows waited {max(innocents.waits_s):.1f} s at most")
    assert deployment.stop() == 0
