"""Connections that end in the middle of a reply, again and again: nothing is lost, doubled or different."""

from __future__ import annotations

import contextlib
import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.broker.log import RedisLog
from service.codec import parse_head
from service.metrics import WorkerMetrics
from tests.doubles import TinyEngine, rows_fields, tiny_manifest
from tests.oracle import Oracle, same
from tests.worlds import SHARDS, BrokerWorld, answered, wait_until, working

pytestmark = pytest.mark.parametrize("broker", ["valkey", "redis"], indirect=True)


class Cutter:
    """Between a worker and its broker: every connection is cut after a random number of bytes of replies."""

    def __init__(self, broker_path: str, dice: random.Random) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rcc-"))
        self.path = self.folder / "s"
        self.cuts = 0
        self.calm = False
        self._broker_path, self._dice = broker_path, dice
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.path.unlink()
        self.folder.rmdir()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.socket(socket.AF_UNIX)
                broker.connect(self._broker_path)
                budget = int(10 ** self._dice.uniform(2, 4.5))
                threading.Thread(target=self._there, args=(client, broker), daemon=True).start()
                threading.Thread(target=self._back, args=(broker, client, budget), daemon=True).start()

    def _there(self, client: socket.socket, broker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                broker.sendall(data)
        self._end(client, broker)

    def _back(self, broker: socket.socket, client: socket.socket, budget: int) -> None:
        with contextlib.suppress(OSError):
            while data := broker.recv(65_536):
                if not self.calm and len(data) >= budget:
                    client.sendall(data[:budget])
                    self.cuts += 1
                    break
                budget -= len(data)
                client.sendall(data)
        self._end(client, broker)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def cutter(broker_url: str) -> Iterator[Cutter]:
    one = Cutter(urlsplit(broker_url).path, random.Random(3))
    yield one
    one.close()


def test_connections_cut_inside_replies_change_nothing(broker_url: str, prefix: str, cutter: Cutter) -> None:
    world, metrics = BrokerWorld(broker_url, prefix), WorkerMetrics(CollectorRegistry())
    engine, rng = TinyEngine(tiny_manifest()), np.random.default_rng(5)
    log = RedisLog(f"unix://{cutter.path}", worker="w", prefix=prefix, shards=SHARDS, lease_s=0.3, records_kept=10_000)
    posted: dict[str, list[tuple[np.ndarray, float]]] = {f"s{n}": [] for n in range(6)}
    with working(log, engine, metrics=metrics, batch_entries=4, lease_s=0.3):
        n = 0
        while n < 200 or cutter.cuts < 20 or metrics.fenced.value <= 5:
            n += 1
            assert n < 3000, "many a connection is cut, and commits too"
            if n % 10 == 0:
                wait_until(lambda: world.logged() < 60, 60, "the worker keeps up")
            stream, rows = f"s{rng.integers(6)}", rng.normal(size=(int(rng.integers(1, 4)), 3)).astype(np.float32)
            time = 100.0 + 0.1 * n
            world.append(stream, rows_fields(stream, rows, time=repr(time).encode()))
            posted[stream].append((rows, time))
        cutter.calm = True
        bodies = answered(world, {stream: len(entries) for stream, entries in posted.items()}, 30)
    for stream, entries in posted.items():
        oracle = Oracle(engine)
        for (rows, time), body in zip(entries, bodies[stream], strict=True):
            same(body, oracle.step(rows, time), tolerance=1e-5)
    for keys in world.keys:
        head = world.client.get(keys.head)
        feed = [i for i, _ in world.client.xrange(keys.feed)]  # type: ignore[union-attr]
        assert feed == [b"%d-0" % n for n in range(1, parse_head(head).n + 1)]  # type: ignore[arg-type]
