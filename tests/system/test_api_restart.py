"""An api that ends under one who waits for a prediction: who numbers its entries gets it afterwards."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollcast import Client
from tests.deployment import Up, await_true, runs

ROW = [40.0, 1.0, 20.0, 1.0, 20.0, 1.0]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("h"), "--lease-s", "60")  # the worker is stopped for a while
    try:
        yield up.ready()
    finally:
        up.stop()


def child(up: Up, command: str) -> int:
    (pid,) = [
        pid for pid in up.family() if command.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    ]
    return pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_numbered_entry_that_was_waited_for_has_its_prediction_from_the_next_api(
    up: Up, number: signal.Signals
) -> None:
    stream, found = f"wait-{number.name}", []

    def post() -> None:
        found.append(client.post_samples(stream, [ROW], model="activity-lstm", wait_s=60))

    with Client(up.url) as watching, Client(up.url, numbered=True) as client:
        first: Any = client.post_samples(stream, [ROW], model="activity-lstm", wait_s=60)
        worker, api = child(up, "worker --number"), child(up, "api --fd")
        os.kill(worker, signal.SIGSTOP)
        try:
            posting = threading.Thread(target=post)
            posting.start()
            await_true(lambda: watching.stream(stream)["backlog"]["entries"] == 1, "the entry is in the log")
            os.kill(api, number)
            await_true(lambda: not runs(api), "that api is gone")
        finally:
            os.kill(worker, signal.SIGCONT)
        posting.join(120)
        records: Any = watching.history(stream, after=first.id, every_type=True).records
    assert [(one.id, one.step) for one in found] == [(records[0].id, 2)]
    assert [record.type for record in records] == ["prediction", "duplicate"]
