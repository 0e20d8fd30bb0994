"""What a failover of the broker costs: a primary with a replica, killed under load; the replica takes its name over.

    python -m bench.failover [--stopped 1.0]        (needs redis-server, Debian package redis-server)

`--stopped`: the replica receives nothing for so long before the primary is killed. Two workers, an api, six numbered
producers, one subscriber. Prints what was acknowledged and lost, and how the streams tell.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import redis

from bench.sizing import MODEL, process
from rollcast import Client, Gap
from service.keys import ShardKeys, shard_of
from service.processes import stop, tied

SHARDS = 4
STREAMS = [f"f-{n}" for n in range(6)]
ROW = [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3]]
LOAD_S = 4.0


class Server:
    """One Redis, reached by us over its socket and by its replica over TCP."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.path = folder / "s.sock"
        options = {
            "port": self.port, "bind": "127.0.0.1", "unixsocket": self.path, "dir": folder, "appendonly": "yes",
            "save": "", "stream-node-max-bytes": 512, "repl-diskless-sync-delay": 0,
        }  # fmt: skip
        command = ["redis-server", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(tied(command, signal.SIGKILL), stdout=log, stderr=log)
        self.client: Any = redis.Redis(unix_socket_path=str(self.path))
        while not self.path.exists():
            time.sleep(0.02)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


class Load:
    """Producers and a subscriber."""

    def __init__(self, url: str) -> None:
        self.acknowledged: dict[str, list[str]] = defaultdict(list)
        self.longest_s, self.gaps, self.over = 0.0, 0, threading.Event()
        self._url = url
        self.producers = [threading.Thread(target=self._produce, args=(stream,)) for stream in STREAMS]
        threading.Thread(target=self._watch, daemon=True).start()
        for thread in self.producers:
            thread.start()

    def _produce(self, stream: str) -> None:
        with Client(self._url, numbered=True) as client:
            while not self.over.wait(0.01):
                began = time.monotonic()
                self.acknowledged[stream].append(client.post_samples(stream, ROW, model=MODEL).id)
                self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _watch(self) -> None:
        with Client(self._url) as client:
            for record in client.records(STREAMS, after="0"):
                self.gaps += isinstance(record, Gap)


def run(stopped_s: float, folder: Path, stack: ExitStack) -> None:
    primary, replica = Server(folder / "one"), Server(folder / "two")
    for server in (primary, replica):
        stack.callback(stop, server.process, 5)
    replica.client.replicaof("127.0.0.1", primary.port)
    while replica.client.info("replication").get("master_link_status") != "up":
        time.sleep(0.05)
    name = folder / "current.sock"
    name.symlink_to(primary.path)
    url, shards = f"unix://{name}", ("--shards", str(SHARDS))
    for number in ("0", "1"):
        more = ("--number", number, "--metrics-port", "0", "--lease-s", "1")
        stack.enter_context(process(url, folder, "worker", *more, *shards))
    stack.enter_context(process(url, folder, "api", "--port", "0", *shards))
    while not (said := re.search(r"http://[0-9.:]+", (folder / "api.log").read_text())):
        time.sleep(0.05)
    while not ready(said[0]):
        time.sleep(0.05)

    load = Load(said[0])
    time.sleep(LOAD_S)
    if stopped_s:
        os.kill(replica.process.pid, signal.SIGSTOP)
        time.sleep(stopped_s)
    primary.process.kill()
    primary.process.wait()
    if stopped_s:
        os.kill(replica.process.pid, signal.SIGCONT)
    began = time.monotonic()
    replica.client.replicaof("NO", "ONE")
    (folder / "next.sock").symlink_to(replica.path)
    (folder / "next.sock").replace(name)
    while not ready(said[0]):
        time.sleep(0.02)
    ready_s = time.monotonic() - began
    time.sleep(LOAD_S)
    load.over.set()
    for thread in load.producers:
        thread.join()
    time.sleep(1)
    lost, told = 0, []
    for stream in STREAMS:
        records = replica.client.xrange(ShardKeys("rollcast", shard_of(stream, SHARDS)).out(stream))
        ids = {entry_id.decode() for entry_id, _ in records}
        lost += sum(entry_id not in ids for entry_id in load.acknowledged[stream])
        bodies = [json.loads(fields[b"body"]) for _, fields in records]
        told += [body["missed"] for body in bodies if body.get("missed")]
    print(f"acknowledged {sum(map(len, load.acknowledged.values()))}, lost {lost}; told as missed: {told or 'nothing'}")
    print(f"ready again after {ready_s:.2f} s, longest post {load.longest_s:.2f} s, gaps told {load.gaps}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stopped", type=float, default=0.0)
    if shutil.which("redis-server") is None:
        sys.exit("redis-server is not on PATH (Debian package redis-server)")
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder, ExitStack() as stack:
        run(parser.parse_args().stopped, Path(folder), stack)


if __name__ == "__main__":
    main()
