"""`rollcast up`: it starts, keeps running, continues, stops in order, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployment import Up, await_true, rollcast, runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROW = {"samples": [[40.0, 1.0, 20.0, 1.0, 20.0, 1.0]]}


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")


@pytest.fixture
def up() -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(home: Path, *arguments: str) -> Up:
        started.append(Up(home, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.stop()


def predict(url: str, stream: str = "belt-1") -> dict[str, Any]:
    """One row in, its prediction out; the server may ask to come back."""
    deadline = time.monotonic() + 150
    while True:
        try:
            answer = httpx.post(
                f"{url}/v1/streams/{stream}/samples?model=activity-lstm&wait=60", json=ROW, timeout=100, trust_env=False
            )
        except httpx.TransportError:
            assert time.monotonic() < deadline
            continue
        if answer.status_code == 200:
            prediction: dict[str, Any] = answer.json()
            return prediction
        assert answer.status_code == 503, answer.text  # after a 504 a repeat would be a second step
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)


def test_it_stops_in_order_and_a_restart_continues_where_it_stopped(home: Path, up: Callable[..., Up]) -> None:
    first = up(home, "--workers", "2").ready()
    await_true(lambda: all(first.said("shards acquired", f"worker {n}") for n in (0, 1)), "both workers work", 60)
    family = first.family()
    assert len(family) == 5  # up, broker, api, two workers
    steps = [predict(first.url)["step"] for _ in range(3)]
    assert steps == [1, 2, 3]
    assert first.stop() == 0
    assert not [pid for pid in family if runs(pid)]
    ends = [line["process"] for line in first.lines if line["event"] == "stopped"]
    assert ends[0] == "api"
    assert sorted(ends[1:]) == ["worker 0", "worker 1"]

    second = up(home).ready()
    following = predict(second.url)
    assert (following["step"], following["restarted"]) == (4, None)
    assert second.stop(signal.SIGINT) == 0


def test_what_dies_is_started_again(home: Path, up: Callable[..., Up]) -> None:
    deployment = up(home, "--appendfsync", "always").ready()  # what was acknowledged outlives the broker's SIGKILL
    assert predict(deployment.url)["step"] == 1
    for step, victim in enumerate(("api --fd", "worker --number", "broker.sock"), start=2):
        (pid,) = [pid for pid in deployment.family()[1:] if victim in cmdline(pid)]
        os.kill(pid, signal.SIGKILL)
        await_true(lambda: not runs(pid), "the victim is gone")  # noqa: B023
        assert predict(deployment.url)["step"] == step, victim
    assert deployment.stop() == 0


def test_its_sigkill_leaves_no_process_and_the_home_free(home: Path, up: Callable[..., Up]) -> None:
    deployment = up(home).ready()
    assert predict(deployment.url)["step"] == 1
    family = deployment.family()
    assert len(family) == 4
    deployment.process.kill()
    await_true(lambda: not [pid for pid in family[1:] if runs(pid)], "every child is gone")
    again = up(home).ready()
    assert predict(again.url)["step"] == 2


def test_a_second_one_on_the_same_home_is_refused_and_the_first_goes_on(home: Path, up: Callable[..., Up]) -> None:
    first = up(home)
    url = first.url
    second = rollcast("up", "--home", str(home), "--port", "0")
    assert second.returncode == 2
    assert f"in use by process {first.process.pid}" in second.stderr
    first.ready()
    assert predict(url)["step"] == 1


def test_a_port_in_use_is_refused_before_anything_starts(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = rollcast("up", "--home", str(home / "new"), "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1" in done.stderr
    assert "--port" in done.stderr
    assert not (home / "new").exists()


def test_a_broker_that_is_not_there_is_named(home: Path) -> None:
    url = f"unix://{home}/nobody.sock"
    done = rollcast("up", "--home", str(home), "--port", "0", "--broker", url)
    assert done.returncode == 2
    assert url in done.stderr
    assert "--broker" in done.stderr


def test_a_folder_without_a_sound_model_ends_it_with_the_reason(home: Path) -> None:
    models = home / "models" / "foreign" / "1"
    models.mkdir(parents=True)
    (models / "model.onnx").write_bytes(b"not a model")
    done = rollcast("up", "--home", str(home), "--port", "0", "--models", str(home / "models"), "--metrics-port", "0")
    assert done.returncode == 2
    assert str(models) in done.stderr
    assert "no model package can be served" in done.stderr


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
