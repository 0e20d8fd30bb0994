"""One api process and a thousand subscribers, who all get everything, in order."""

from __future__ import annotations

import asyncio
import re
import resource
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rollcast import Client, samples
from tests.deployment import Up

SUBSCRIBERS = 1000
PREDICTIONS = 200
MIB = 1 << 20
ROW = [40.0, 1.0, 20.0, 1.0, 20.0, 1.0]
ID = re.compile(rb'"id":"(\d+-\d+)"')


class Listener:
    """One subscriber: a raw connection, so that a thousand of them cost the test little."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ids: list[bytes] = []
        self.listening = asyncio.Event()

    async def run(self, host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
        request = f"GET {self.path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n"
        writer.write(request.encode())
        rest = b""
        try:
            while len(self.ids) < PREDICTIONS:
                data = await reader.read(1 << 16)
                assert data, "the server ended a subscription"
                *whole, rest = (rest + data).split(b"\n\n")
                for part in whole:
                    self.ids += ID.findall(part)
                    if b"retry" in part:
                        self.listening.set()
        finally:
            writer.close()


def memory(pid: int) -> int:
    """What the process holds now, bytes."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def api_of(up: Up) -> int:
    found = [pid for pid in up.family() if b"\0api\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


@pytest.fixture(autouse=True)
def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < SUBSCRIBERS + 200:
        pytest.fail(f"at most {hard} open files are allowed here: expected {SUBSCRIBERS + 200}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SUBSCRIBERS + 200), hard))


def test_a_thousand_subscribers_get_all_predictions_in_order_for_little_memory(deployment: Up) -> None:
    with Client(deployment.url) as client:
        first = client.post_samples("fan-1", [ROW], model="activity-lstm", wait_s=10)
        before = memory(api := api_of(deployment))
        posted, most = asyncio.run(listen(deployment, client, api))
    grown = most - before
    assert first.id not in posted
    assert grown <= 100 * MIB, f"{grown / MIB:.0f} MiB for {SUBSCRIBERS} subscribers"


async def listen(up: Up, client: Client, api: int) -> tuple[list[str], int]:
    """The ids that were posted, all of which all subscribers got; and the most memory that was seen."""
    parts = urlsplit(up.url)
    listeners = [
        Listener(("/v1/streams/fan-1/predictions", "/v1/predictions?stream=fan-*")[n % 2]) for n in range(SUBSCRIBERS)
    ]
    tasks = []
    async with asyncio.timeout(120):
        for listener in listeners:
            tasks.append(asyncio.create_task(listener.run(parts.hostname or "", parts.port or 0)))
            if len(tasks) % 50 == 0:  # as a backlog of connections allows
                await asyncio.gather(*(one.listening.wait() for one in listeners[len(tasks) - 50 : len(tasks)]))
        while subscribers(await asyncio.to_thread(client._http.get, "/metrics")) < SUBSCRIBERS:
            await asyncio.sleep(0.05)
    posted: list[str] = []
    most = memory(api)
    with client.gateway([]) as gateway:
        for _ in range(PREDICTIONS // 10):
            some = [samples("fan-1", [ROW])] * 10
            posted += [one.id for one in await asyncio.to_thread(gateway.post, some)]  # type: ignore[union-attr]
            async with asyncio.timeout(60):  # readers that fall behind would be measured, too
                while any(len(one.ids) < len(posted) for one in listeners):
                    await asyncio.sleep(0.01)
            most = max(most, memory(api))
    async with asyncio.timeout(90):
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=0.2)
            most = max(most, memory(api))
    for task in tasks:
        task.result()
    expected = [one.encode() for one in posted]
    assert all(listener.ids == expected for listener in listeners)
    return posted, most


def subscribers(answer: object) -> float:
    text: str = answer.text  # type: ignore[attr-defined]
    (line,) = [line for line in text.splitlines() if line.startswith('rollcast_subscribers{transport="sse"}')]
    return float(line.split()[-1])
