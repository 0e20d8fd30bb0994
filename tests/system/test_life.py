"""The life of a stream through real processes: the client, the command line, a worker that is stopped and killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from rollcast import Client, Prediction, Problem
from service.embedded import machine_memory
from service.keys import shard_of
from tests.deployment import Up, await_true, rollcast
from tests.pictures import png

MODEL = "activity-lstm"
ROWS = [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3], [39.0, 0.5, 22.0, 0.4, 33.0, 1.2]]
SHARDS = 4


@pytest.fixture
def client(deployment: Up) -> Iterator[Client]:
    with Client(deployment.url) as client:
        yield client


def test_a_state_is_saved_restored_and_reset_by_the_client(client: Client) -> None:
    for n in range(3):
        client.post_samples("belt-a", ROWS, model=MODEL, time=100 + n, wait_s=10)
    client.post_samples("belt-b", ROWS, model=MODEL, time=100, wait_s=10)
    assert client.restore("belt-b", client.save_state("belt-a"))["action"] == "restore"
    one, other = (client.post_samples(stream, ROWS, time=103, wait_s=10) for stream in ("belt-a", "belt-b"))
    assert (other.step, other.probabilities, other.rolling) == (8, one.probabilities, one.rolling)
    assert client.state("belt-b")["steps"] == 8
    assert client.reset("belt-b")["action"] == "reset"
    assert client.post_samples("belt-b", ROWS, wait_s=10).restarted == "reset"


def test_settings_and_deletion_by_the_client(client: Client) -> None:
    gap = {"policy": "reset", "gap_s": 1.0}
    client.configure("belt-c", model=MODEL, gap=gap, state_ttl_s=3600)
    client.post_samples("belt-c", ROWS, time=100, wait_s=10)
    assert client.post_samples("belt-c", ROWS, time=110, wait_s=10).restarted == "gap"
    detail = client.stream("belt-c")
    assert detail["settings"] == {"model": MODEL, "gap": gap, "state_ttl_s": 3600.0}
    assert (detail["state"]["steps"], detail["backlog"]["entries"]) == (2, 0)
    assert client.delete("belt-c")["action"] == "delete"
    with pytest.raises(Problem) as caught:
        client.stream("belt-c")
    assert caught.value.status == 404


def test_the_command_line_looks_at_a_state_saves_it_and_puts_it_back(
    client: Client, deployment: Up, tmp_path: Path
) -> None:
    client.post_samples("belt-d", ROWS, model=MODEL, wait_s=10)
    file, url = tmp_path / "belt.state", ("--url", deployment.url)
    shown = rollcast("state", "belt-d", *url).stdout
    assert f"model    {MODEL}" in shown
    assert "steps    2" in shown
    saved = rollcast("state", "belt-d", "--save", str(file), *url)
    assert saved.stdout == f"{file}: {file.stat().st_size} bytes\n", saved.stderr
    restored = rollcast("state", "belt-e", "--restore", str(file), "--json", *url)
    assert json.loads(restored.stdout)["action"] == "restore", restored.stderr
    assert client.state("belt-e")["steps"] == 2
    refused = rollcast("state", "belt-e", "--restore", __file__, *url)
    assert refused.returncode == 1
    assert "state: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_command_line_lists_shows_retries_and_drops_what_was_refused(
    client: Client, deployment: Up, tmp_path: Path
) -> None:
    url = ("--url", deployment.url)
    broken = png(8, 8, pixels=b"broken")  # its structure is well
    with pytest.raises(Problem) as caught:
        client.post_frame("door-x", broken, model="digits-cnn", wait_s=10)
    entry_id = caught.value.body["id"]
    assert entry_id in rollcast("dead", "list", "--stream", "door-x", *url).stdout
    shown = rollcast("dead", "show", "door-x", entry_id, *url).stdout
    assert "reason   bad_image" in shown
    assert "model    digits-cnn" in shown
    rollcast("dead", "show", "door-x", entry_id, "--save", str(tmp_path / "bytes"), *url)
    assert (tmp_path / "bytes").read_bytes() == broken
    retried = json.loads(rollcast("dead", "retry", "door-x", entry_id, "--drop", "--json", *url).stdout)
    assert (retried["retry_of"], retried["dropped"]) == (entry_id, True)
    await_true(lambda: [row["id"] for row in client.dead(stream="door-x")] == [retried["id"]], "refused again")
    dropped = rollcast("dead", "drop", "door-x", retried["id"], *url)
    assert dropped.stdout == f"{retried['id']}  door-x  dropped\n"
    assert list(client.dead(stream="door-x")) == []
    assert rollcast("dead", "drop", "--stream", "door-x", *url).stdout == "0 dropped\n"


# --- a deployment of its own, whose worker suffers -------------------------------------------------------------------


@pytest.fixture(scope="module")
def suffering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    options = ("--backlog-bytes", "60000", "--broker-memory-bytes", "100000000", "--lease-s", "60")
    up = Up(tmp_path_factory.mktemp("s"), *options)
    try:
        yield up.ready()
    finally:
        status = up.stop()
    assert status == 0


def test_the_embedded_broker_has_half_of_the_memory_or_what_it_is_given(deployment: Up, suffering: Up) -> None:
    for up, expected in ((deployment, machine_memory() // 2), (suffering, 100_000_000)):
        with redis.Redis.from_url(f"unix://{(up.home / 'broker.sock').resolve()}") as broker:
            assert broker.config_get("maxmemory") == {"maxmemory": str(expected)}
    assert machine_memory() > 100 << 20


def fill(client: Client, stream: str, taken: list[str]) -> None:
    while len(taken) < 2000:
        taken.append(client.post_samples(stream, ROWS * 10, model=MODEL).id)


def worker_pid(up: Up) -> int:
    found = []
    for pid in up.family()[1:]:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"worker" in command:
            found.append(pid)
    (only,) = found
    return only


def test_while_a_worker_is_stopped_its_shards_fill_up_and_then_all_is_answered(suffering: Up) -> None:
    with Client(suffering.url, retry_s=0) as client:
        client.post_samples("full", ROWS, model=MODEL, wait_s=30)
        other = next(f"o{n}" for n in range(99) if shard_of(f"o{n}", SHARDS) != shard_of("full", SHARDS))
        pid = worker_pid(suffering)
        os.kill(pid, signal.SIGSTOP)
        try:
            taken: list[str] = []
            with pytest.raises(Problem) as caught:
                fill(client, "full", taken)
            assert (caught.value.status, caught.value.type) == (429, "urn:rollcast:problem:backlog-full")
            assert caught.value.retry_after_s is not None
            assert 1 <= caught.value.retry_after_s <= 60
            taken.append(client.post_samples(other, ROWS, model=MODEL).id)
        finally:
            os.kill(pid, signal.SIGCONT)

        def accepted() -> bool:
            return httpx.post(
                f"{suffering.url}/v1/streams/full/samples", json={"samples": ROWS}, params={"model": MODEL},
                timeout=30, trust_env=False,
            ).is_success  # fmt: skip

        await_true(accepted, "there is room again")

        def answered() -> set[str]:
            pages = [client.history(stream, after="0", limit=1000) for stream in ("full", other)]
            return {record.id for page in pages for record in page.records}

        await_true(lambda: set(taken) <= answered(), "nothing was dropped")


def test_a_repeat_after_the_workers_death_is_a_duplicate_and_a_hole_is_told(suffering: Up) -> None:
    with Client(suffering.url, retry_s=0) as client:
        first = client.post_samples("retry", ROWS, model=MODEL, seq=7, wait_s=30)
        os.kill(worker_pid(suffering), signal.SIGKILL)
        with pytest.raises(Problem) as caught:
            post_until_served(client, 7)
        assert (caught.value.status, caught.value.body["of"]) == (409, first.id)
        hole = post_until_served(client, 10)
        assert (hole.missed, hole.step, hole.restarted) == (2, 2, "gap"), "the package's policy is reset"


def post_until_served(client: Client, seq: int) -> Prediction:
    """As a producer does: the same `seq` again while the server asks to wait."""
    answers: list[Any] = []

    def served() -> bool:
        try:
            answers.append(client.post_samples("retry", ROWS, model=MODEL, seq=seq, wait_s=30))
        except Problem as problem:
            if problem.status != 503:
                raise
            return False
        return True

    await_true(served, "a worker is there again", 60)
    found: Prediction = answers[0]
    return found
