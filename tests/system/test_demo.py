"""`rollcast up --demo`: it counts its own entries only, ends by itself with a summary, and bears to be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deployment import COMMAND, await_true, environment, interruptible, runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
Demo = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Starts a demo; all of them share one home."""
    home = tmp_path_factory.mktemp("h")
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "up", "--demo", "--home", str(home), "--port", "0", "--metrics-port", "0", "--shards", "4"]
        process = subprocess.Popen(
            [*command, *arguments], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=interruptible,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def shows_predictions(process: subprocess.Popen[str]) -> None:
    """Reads until the first line of predictions."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("digit-1"):
            return
    pytest.fail(f"the demo ended with status {process.wait()} before it showed a prediction: {lines}")


def test_it_can_be_killed_and_the_next_run_counts_only_its_own_and_ends_by_itself(demo: Demo) -> None:
    killed = demo()
    shows_predictions(killed)
    family = children(killed.pid)
    assert len(family) == 3  # broker, api, worker
    killed.kill()
    await_true(lambda: not [pid for pid in family if runs(pid)], "no process is left")

    output, _ = demo("--seconds", "10").communicate(timeout=120)
    posted, missing = re.search(r"posted (\d+), without an answer (\d+)", output).groups()  # type: ignore[union-attr]
    counted = [int(count) for count in re.findall(r"over (\d+) predictions", output)]
    assert missing == "0", output
    assert sum(counted) == int(posted), output
    assert len(counted) == 2, output
    assert min(counted) >= 20, output
    accuracy = re.search(r"digits-cnn: accuracy ([\d.]+)", output)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.95, output


def test_ctrl_c_ends_it_with_the_summary(demo: Demo) -> None:
    process = demo()
    shows_predictions(process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert "digits-cnn: accuracy" in output
    assert "without an answer 0" in output
    assert "Traceback" not in output
