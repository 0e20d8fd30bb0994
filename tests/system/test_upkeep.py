"""What docs/operations.md says of backups and restarts, done as it says: no state is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from rollcast import Client, Prediction
from service.embedded import EmbeddedBroker
from service.keys import ShardKeys, shard_of
from tests.conftest import needs
from tests.deployment import Up, await_true, environment
from tests.pages import blocks

ROWS = [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3], [39.25, 0.43, 23.25, 0.43, 33.0, 0.71]]
STREAMS = [f"kept-{n}" for n in range(3)]


def post(client: Client, stream: str, seq: int) -> Any:
    return client.post_samples(stream, ROWS, model="activity-lstm", seq=seq, time=1000.0 + seq, wait_s=20)


def shell(text: str, folder: Path, up: Up | None = None) -> None:
    """A block of the page, where `.rollcast` is the deployment's home."""
    script = text.replace(".rollcast", str(up.home)) if up is not None else text
    subprocess.run(["bash", "-euc", script], cwd=folder, env=environment(), check=True, timeout=60)


# --- backup and restore ------------------------------------------------------------------------------------------


def test_a_backup_of_a_running_deployment_is_restored_with_every_state(
    deployment: Up, tmp_path_factory: pytest.TempPathFactory
) -> None:
    needs("redis-cli", "redis-tools")
    copy, restore, snapshot, restore_snapshot = (block.text for block in blocks("docs/operations.md"))
    folder = tmp_path_factory.mktemp("k")
    over = threading.Event()

    def disturb() -> None:
        """The deployment works on while it is copied."""
        with Client(deployment.url) as other:
            while not over.wait(0.01):
                other.post_samples("busy-1", ROWS, model="activity-lstm")

    with Client(deployment.url) as client:
        for seq in (1, 2, 3):
            for stream in STREAMS:
                post(client, stream, seq)
        states = {stream: client.save_state(stream) for stream in STREAMS}
        thread = threading.Thread(target=disturb)
        with redis.Redis(unix_socket_path=str((deployment.home / "broker.sock").resolve())) as broker:
            await_true(lambda: broker.info("persistence")["aof_buffer_length"] == 0, "it is in the file")
        thread.start()
        try:
            shell(copy, folder, deployment)
            shell(snapshot, folder, deployment)
        finally:
            over.set()
            thread.join()
        after = {stream: post(client, stream, 4) for stream in STREAMS}  # what the backup does not know

    shell(restore, folder)
    again = Up(folder / "restored")
    try:
        with Client(again.ready().url) as client:
            assert {stream: client.save_state(stream) for stream in STREAMS} == states
            for stream in STREAMS:
                assert client.stream(stream)["steps"] == 6
                assert post(client, stream, 4).probabilities == pytest.approx(after[stream].probabilities, abs=1e-5)
                assert client.stream(stream)["last"]["restarted"] is None
    finally:
        assert again.stop() == 0

    shell(restore_snapshot, folder)
    broker = EmbeddedBroker(folder / "restored-2")
    broker.start()
    try:
        with redis.Redis.from_url(broker.url) as found:
            for stream in STREAMS:
                keys = ShardKeys("rollcast", shard_of(stream, 4))
                assert found.exists(keys.state(stream)) == 1
                assert found.xlen(keys.out(stream)) == 3
    finally:
        broker.stop()


# --- restarts ----------------------------------------------------------------------------------------------------


def test_a_rolling_restart_loses_nothing_and_hardly_anybody_waits(tmp_path_factory: pytest.TempPathFactory) -> None:
    up = Up(tmp_path_factory.mktemp("h"), "--workers", "2", "--lease-s", "300")
    over, ended, posted = threading.Event(), threading.Event(), Counter[str]()
    told: dict[str, list[Prediction]] = {}
    ages_s: list[float] = []  # of answers when they are heard of

    def produce(stream: str) -> None:
        with Client(up.url, numbered=True) as client:
            while not over.wait(0.05):
                client.post_samples(stream, ROWS, model="activity-lstm", time=1000.0 + posted[stream])
                posted[stream] += 1

    def watch() -> None:
        with Client(up.url) as client:
            for prediction in client.predictions(STREAMS, after="0"):
                ages_s.append(time.time() - int(prediction.id.partition("-")[0]) / 1000)
                told.setdefault(prediction.stream, []).append(prediction)
                if ended.is_set() and all(len(told[stream]) == posted[stream] + 1 for stream in STREAMS):
                    return

    try:
        up.ready()
        producers = [threading.Thread(target=produce, args=(stream,)) for stream in STREAMS]
        watcher = threading.Thread(target=watch)
        for thread in (*producers, watcher):
            thread.start()
        await_true(lambda: len(told) == len(STREAMS), "every stream was heard of")
        for number in range(2):
            restart(up, f"worker --number {number}", "worker ready", f"worker {number}")
        oldest_s = max(ages_s)
        restart(up, "api --fd", "listening", "api")
        over.set()
        for thread in producers:
            thread.join(60)
        with Client(up.url) as client:
            ended.set()
            for stream in STREAMS:  # one more of each, so that the watcher looks
                client.post_samples(stream, ROWS, model="activity-lstm", time=1000.0 + posted[stream])
        watcher.join(60)
        assert not watcher.is_alive()
    finally:
        over.set()
        assert up.stop() == 0
    for stream in STREAMS:
        assert [one.step for one in told[stream]] == [2 * n for n in range(1, posted[stream] + 2)], stream
        assert [one.restarted for one in told[stream]] == ["first", *[None] * posted[stream]]
    print(
        f"{len(ages_s)} answers: median {np.median(ages_s):.3f} s old when they were heard of, "
        f"the oldest {oldest_s:.2f} s while workers were restarted, {max(ages_s):.2f} s with the api's restart"
    )
    assert max(ages_s) < 100, "nobody waits for a lease of 300 s to end"


def restart(up: Up, command: str, event: str, process: str) -> None:
    """SIGTERM to one process, and all is well again."""
    before = len(up.said(event, process))
    os.kill(pid_of(up, command), signal.SIGTERM)
    await_true(lambda: len(up.said(event, process)) > before, f"{process} is there again")
    await_true(lambda: up.ready() is up, "and every shard has an owner")


def pid_of(up: Up, command: str) -> int:
    """Of one of its processes, by its command line."""
    for pid in up.family():
        try:
            said = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if command in said and "service.cli" in said:
            found = pid
    return found
