"""What one entry costs: CPU of worker, broker and api, bytes in the broker. docs/operations.md plans with it.

    python -m bench.sizing [--entries 20000]

One worker with the shipped models on an embedded broker, 1,000 streams (frames: 100). CPU is the processes' own, so
that a busy machine blurs it little. Frames are 640×480 JPEGs of 90 kB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np

from service.broker.wire import Wire, pack
from service.embedded import EmbeddedBroker
from service.keys import ShardKeys, shard_of
from service.processes import stop, tied

SHARDS = 32
KEYS = [ShardKeys("rollcast", shard) for shard in range(SHARDS)]
MODEL = "activity-lstm"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def jpeg() -> bytes:
    """640×480, about as large as a camera's."""
    rng = np.random.default_rng(0)
    rough = cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(rough + rng.normal(0, 9, rough.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def rows(count: int) -> dict[str, Any]:
    data = np.random.default_rng(0).normal(20, 5, (count, 6)).astype("<f4").tobytes()
    return {"kind": "samples", "model": MODEL, "shape": f"{count},6", "data": data}


KINDS: dict[str, tuple[dict[str, Any], int, int]] = {  # fields, streams, how many of them for one row
    "a row of 6": (rows(1), 1000, 1),
    "a block of 32 rows": (rows(32), 1000, 4),
    "a frame": ({"kind": "frame", "model": "digits-cnn", "data": jpeg()}, 100, 20),
}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def append(wire: Wire, fields: dict[str, Any], streams: int, entries: int) -> None:
    flat = [part for field in fields.items() for part in field]
    for at in range(0, entries, 500):
        names = [f"stream-{n % streams:06d}" for n in range(at, min(at + 500, entries))]
        wire.send(b"".join(pack(("XADD", KEYS[shard_of(n, SHARDS)].inbox, "*", "stream", n, *flat)) for n in names))
        for _ in names:
            wire.reply()


def usage(wire: Wire, keys: list[bytes]) -> int:
    return sum(wire.call("MEMORY", "USAGE", key, "SAMPLES", 0) or 0 for key in keys)


def file_bytes(wire: Wire) -> int:
    """Of the append-only file."""
    said = wire.call("INFO", "persistence").decode()
    return int(re.search(r"aof_current_size:(\d+)", said)[1])  # type: ignore[index]


def waiting(wire: Wire) -> int:
    """Entries of which the head does not say that they are finished."""
    heads = [wire.call("GET", keys.head) for keys in KEYS]
    lows = [head.split(b" ")[3].decode() if head else "0-0" for head in heads]
    return sum(len(wire.call("XRANGE", k.inbox, f"({low}", "+", "COUNT", 1)) for k, low in zip(KEYS, lows, strict=True))


def await_none(wire: Wire) -> None:
    while waiting(wire):
        time.sleep(0.05)


@contextlib.contextmanager
def process(url: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "service.cli", *arguments, "--broker", url, "--home", str(folder)]
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        running = subprocess.Popen(tied(command, signal.SIGKILL), stdout=log, stderr=log)
        try:
            yield running
        finally:
            stop(running, 10)


def inside(name: str, entries: int) -> None:
    """Worker and broker, entries written into the broker directly."""
    fields, streams, share = KINDS[name]
    entries //= share
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder:
        broker = EmbeddedBroker(Path(folder) / "home")
        wire = Wire(broker.start(), 120)
        try:
            wire.call("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
            append(wire, fields, streams, streams)  # each stream has its state before anything is measured
            with process(broker.url, Path(folder), "worker", "--metrics-port", "0") as worker:
                await_none(wire)
                assert broker.pid is not None
                time.sleep(1)
                out = [KEYS[shard_of(n, SHARDS)].out(n) for n in map("stream-{:06d}".format, range(streams))]
                records = usage(wire, out)
                before, written = (cpu_s(worker.pid), cpu_s(broker.pid)), file_bytes(wire)
                began = time.monotonic()
                append(wire, fields, streams, entries)
                await_none(wire)
                took_s = time.monotonic() - began
                spent = cpu_s(worker.pid) - before[0], cpu_s(broker.pid) - before[1]
                grown, written = usage(wire, out), file_bytes(wire) - written
                feed, commits = usage(wire, [keys.feed for keys in KEYS]), sum(wire.call("XLEN", k.feed) for k in KEYS)
            log = usage(wire, [keys.inbox for keys in KEYS])
            append(wire, fields, streams, streams)  # nobody takes these
            log = usage(wire, [keys.inbox for keys in KEYS]) - log
        finally:
            wire.close()
            broker.stop()
    per = 1e6 / entries
    cells = [
        f"{name}, {len(fields['data']):,} B",
        *(f"{seconds * per:.0f} µs" for seconds in spent),
        *(f"{size:,.0f} B" for size in (log / streams, (grown - records) / entries, written / entries)),
        f"{feed / commits:.0f} B a commit of {(entries + streams) / commits:.1f}",
        f"{entries / took_s:,.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def ways_in(http: httpx.Client) -> dict[str, tuple[int, Callable[[int], httpx.Response]]]:
    """Entries in one call, and the call, given a number."""
    row, picture = rows(1)["data"], jpeg()
    line = json.dumps({"stream": "s-{}", "kind": "samples", "samples": [[1.0, 2, 3, 4, 5, 6]], "model": MODEL})

    def post(path: str, content: bytes | str, media: str, model: str | None = None) -> httpx.Response:
        params = {"model": model} if model else {}
        return http.post(path, content=content, params=params, headers={"Content-Type": media})

    def many(n: int) -> httpx.Response:
        lines = "\n".join(line.replace("{}", str(m)) for m in range(n, n + 64))
        return post("/v1/entries", lines, "application/x-ndjson")

    return {
        "POST of a row": (1, lambda n: post(f"/v1/streams/s-{n}/samples", row, "application/octet-stream", MODEL)),
        "POST of a frame": (1, lambda n: post(f"/v1/streams/c-{n}/frames", picture, "image/jpeg", "digits-cnn")),
        "POST /v1/entries, 64 rows": (64, many),
    }


def at_the_door(entries: int) -> None:
    """The api's CPU."""
    with tempfile.TemporaryDirectory(prefix="rcb-") as name:
        folder = Path(name)
        broker = EmbeddedBroker(folder / "home")
        try:
            with (
                process(broker.start(), folder, "worker", "--metrics-port", "0"),
                process(broker.url, folder, "api", "--port", "0") as api,
            ):
                while not (said := re.search(r"http://[0-9.:]+", (folder / "api.log").read_text())):
                    time.sleep(0.05)
                with httpx.Client(base_url=said[0], timeout=60, trust_env=False) as http:
                    while http.get("/readyz").status_code != 200:
                        time.sleep(0.05)
                    ways = ways_in(http)
                    for way, (each, call) in ways.items():
                        calls = max(20, entries // 20 // each)
                        before = cpu_s(api.pid)
                        for n in range(calls):
                            assert call(n % 100).status_code < 300
                        print(f"| {way} | {(cpu_s(api.pid) - before) / calls / each * 1e6:.0f} µs |", flush=True)
        finally:
            broker.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=20_000)
    entries = parser.parse_args().entries
    print("| entry | worker | broker | in the log | record | append-only file | feed | a second |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in KINDS:
        inside(name, entries)
    print("\n| way in | api, an entry |\n| --- | ---: |")
    at_the_door(entries)


if __name__ == "__main__":
    main()
