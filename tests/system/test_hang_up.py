"""A terminal that is closed stops what runs in it, in order; what ignores that, as under nohup, goes on."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.deployment import COMMAND, DEFAULTS, await_true, environment, runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
KINDS = ("api", "worker")
ALONE = {
    "ROLLCAST_PORT": "0", "ROLLCAST_METRICS_PORT": "0", "ROLLCAST_SHARDS": "4", "ROLLCAST_LEASE_S": "60",
    "ROLLCAST_LOG_FORMAT": "json",
}  # fmt: skip


class Alone:
    """One api or worker that runs by itself. `ignored`: hang-ups are, from its start."""

    def __init__(self, kind: str, url: str, prefix: str, home: Path, *, ignored: bool) -> None:
        def begin() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [*COMMAND, kind, "--broker", url, "--prefix", prefix, "--home", str(home)],
            stderr=subprocess.PIPE,
            env=environment() | DEFAULTS | ALONE,
            preexec_fn=begin,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def said(self, *events: str) -> bool:
        assert self.process.poll() is None, self.lines
        return any(line["event"] in events for line in list(self.lines))

    def hang_up(self) -> None:
        """As a terminal that is closed does, to all of its processes."""
        os.killpg(self.process.pid, signal.SIGHUP)

    def end(self) -> tuple[int, str]:
        """Its exit status, and the last word of its log."""
        status = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status, self.lines[-1]["event"]


@pytest.fixture
def alone(broker_url: str, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Alone]]:
    started: list[Alone] = []

    def start(kind: str, *, ignored: bool = False) -> Alone:
        started.append(Alone(kind, broker_url, prefix, tmp_path, ignored=ignored))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.end()


def owned(broker_url: str, prefix: str) -> int:
    with redis.Redis.from_url(broker_url) as client:
        found: int = sum(client.exists(f"{prefix}:{{{shard}}}:owner") for shard in range(4))  # type: ignore[misc]
    return found


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_stops_an_api_and_a_worker_as_sigterm_does(
    alone: Callable[..., Alone], broker_url: str, prefix: str, ignored: bool
) -> None:
    both = [alone(kind, ignored=ignored) for kind in KINDS]
    await_true(lambda: both[0].said("listening") and both[1].said("shards acquired"), "both work", 120)
    await_true(lambda: owned(broker_url, prefix) == 4, "the worker owns every shard")
    for one in both:
        one.hang_up()
    if ignored:
        time.sleep(0.3)  # what it would take to be gone: none is
        assert [one.process.poll() for one in both] == [None, None]
        assert owned(broker_url, prefix) == 4
        for one in both:
            one.process.terminate()
    assert [one.end() for one in both] == [(0, "stopped"), (0, "stopped")]
    assert owned(broker_url, prefix) == 0, "its shards were given back, long before their leases end"


def test_a_terminal_that_is_closed_stops_all_that_up_has_started(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("h")
    ours, theirs = pty.openpty()

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*COMMAND, "up", "--home", str(home), "--port", "0", "--metrics-port", "0", "--shards", "4"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment() | DEFAULTS, preexec_fn=begin,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while b"shards acquired" not in said:
            assert process.poll() is None, said
            said += os.read(ours, 4096)
        family = children(process.pid)
        assert len(family) >= 3, "a broker, an api, a worker"
        os.close(ours)
        assert process.wait(60) == 0
        await_true(lambda: not [pid for pid in family if runs(pid)], "nothing is left", 20)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
