"""What a stream costs in memory, and what coming and going costs: many streams, touched once each, then once more.

    python -m bench.residence [--streams 100000] [--limits 100000,10000] [--rounds 2]

For each limit a worker process of its own, on an embedded broker of its own, LSTM-64. Exit status 1 when the worker
takes more than 1.5 times the bytes of state and 600 B for each resident stream (and 32 MiB to work with), or when a
state is wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from bench.model import FEATURES, lstm_package
from service.broker.log import RedisLog
from service.broker.wire import Wire, pack
from service.embedded import EmbeddedBroker
from service.engine import OnnxEngine
from service.keys import ShardKeys, shard_of
from service.metrics import WorkerMetrics
from service.processes import calm_collector
from service.worker import Worker

SHARDS = 32
WORKING_BYTES = 32 << 20  # what is read ahead and being answered, whatever the number of streams
CHECKED = 97  # every so many streams are compared with a run of their own


def rows_of(streams: int, round_number: int) -> np.ndarray:
    return np.random.default_rng(round_number).normal(size=(streams, FEATURES)).astype("<f4")


def fill(wire: Wire, streams: int, round_number: int) -> None:
    rows, keys = rows_of(streams, round_number), [ShardKeys("r", p) for p in range(SHARDS)]
    for at in range(0, streams, 1000):
        names = [f"stream-{n:06d}" for n in range(at, min(at + 1000, streams))]
        commands = [
            pack(("XADD", keys[shard_of(name, SHARDS)].inbox, "*", "stream", name, "kind", "samples", "shape",
                  f"1,{FEATURES}", "data", rows[at + n].tobytes()))
            for n, name in enumerate(names)
        ]  # fmt: skip
        wire.send(b"".join(commands))
        for _ in commands:
            wire.reply()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def work(url: str, folder: str, limit: int, expected: Any, pipe: Any) -> None:
    """The worker's process: tells its memory whenever as many entries as expected are answered."""
    calm_collector()
    engine = OnnxEngine(lstm_package(Path(folder)))  # type: ignore[arg-type]
    engine.warm_up()
    metrics, stop = WorkerMetrics(CollectorRegistry()), threading.Event()
    answered = metrics.records.labels("lstm64", "prediction")
    log = RedisLog(url, worker="bench", prefix="r", shards=SHARDS, lease_s=60)
    slowest, last = 0.0, 0.0

    def look(point: str) -> None:
        nonlocal slowest, last
        if point == "after-commit":
            now = time.thread_time()  # of the worker's thread: the machine may be busy with others
            slowest, last = max(slowest, now - last), now

    worker = Worker(log, {"lstm64": (engine, "00" * 8)}, metrics, lease_s=60, max_resident_streams=limit, fault=look)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    while (target := pipe.recv()) is not None:
        if target:
            slowest = 0.0
        while answered.value < target:
            time.sleep(0.01)
        time.sleep(1.5)  # a beat: gauges are set, the table of leases is quiet
        gc.collect()
        table = worker._stepper.models["lstm64"].table
        pipe.send(
            {
                "rss": resident_bytes(), "resident": len(worker._residence), "row": table.layout.dtype.itemsize,
                "evictions": worker._residence.evicted, "loads": metrics.loads.value, "slowest": slowest,
            }
        )  # fmt: skip
    stop.set()
    worker.wake()
    thread.join()


def check(wire: Wire, folder: str, streams: int, rounds: int) -> int:
    """How many streams differ from a run of their own."""
    engine = OnnxEngine(lstm_package(Path(folder)))  # type: ignore[arg-type]
    given = [rows_of(streams, number) for number in range(rounds)]
    wrong = 0
    for n in range(0, streams, CHECKED):
        name, state = f"stream-{n:06d}", engine.initial(1)
        records = wire.call("XRANGE", ShardKeys("r", shard_of(name, SHARDS)).out(name), "-", "+")
        for number, rows in enumerate(given):
            scores, state = engine.run(rows[n][None, None], state)
            body = json.loads(records[number][1][3])
            good = (
                len(records) == rounds
                and body["step"] == number + 1
                and np.abs(scores[0, 0] - body["probabilities"]).max() < 1e-5
            )
            wrong += not good
    return wrong


def used(wire: Wire) -> int:
    text = wire.call("INFO", "memory").decode()
    return int(next(line for line in text.splitlines() if line.startswith("used_memory:")).split(":")[1])


def broker_per_stream(wire: Wire, streams: int, state: int) -> str:
    keys = [ShardKeys("r", p) for p in range(SHARDS)]
    names = [f"stream-{n:06d}" for n in range(0, streams, max(1, streams // 200))]

    def mean(of: str) -> float:
        sizes = [wire.call("MEMORY", "USAGE", getattr(keys[shard_of(name, SHARDS)], of)(name)) for name in names]
        return float(np.mean(sizes))

    def whole(of: str) -> float:
        return sum(wire.call("MEMORY", "USAGE", getattr(key, of), "SAMPLES", 100) for key in keys) / streams

    parts = {name: whole(key) for name, key in (("position", "pos"), ("settings", "settings"), ("activity", "streams"))}
    shown = ", ".join(f"{name} {size:.0f} B" for name, size in parts.items())
    return f"state key {mean('state'):,.0f} B (state {state} B), records {mean('out'):,.0f} B, {shown}"


def measure(limit: int, streams: int, rounds: int) -> bool:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder:
        broker = EmbeddedBroker(Path(folder) / "home")
        wire = Wire(broker.start(), 120)
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(broker.url, folder, limit, None, theirs))
        process.start()
        try:
            ours.send(0)
            before, broker_before = ours.recv(), used(wire)
            good = True
            for number in range(rounds):
                fill(wire, streams, number)
                began = time.perf_counter()
                ours.send((number + 1) * streams)
                seen = ours.recv()
                seconds = time.perf_counter() - began
                grown, n = seen["rss"] - before["rss"], seen["resident"]
                allowed = n * (1.5 * seen["row"] + 600)
                good &= n <= limit and grown <= allowed + WORKING_BYTES
                print(
                    f"limit {limit:7,}  round {number + 1}: {streams / seconds:7,.0f}/s, resident {n:,}, "
                    f"worker {grown / max(1, n):,.0f} B a resident stream ({grown / 2**20:.0f} MiB; "
                    f"state {seen['row']} B, goal {1.5 * seen['row'] + 600:.0f} B), "
                    f"evicted {seen['evictions']:,}, loaded {seen['loads']:,.0f}, "
                    f"longest turn {seen['slowest'] * 1000:.0f} ms of CPU; "
                    f"broker {(used(wire) - broker_before) / streams:,.0f} B a stream",
                    flush=True,
                )
                print(f"    {broker_per_stream(wire, streams, seen['row'])}")
            wrong = check(wire, folder, streams, rounds)
            print(f"    {streams // CHECKED:,} streams compared with runs of their own: {wrong} differ", flush=True)
            ours.send(None)
            process.join(30)
            return good and wrong == 0
        finally:
            process.kill()
            wire.close()
            broker.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--limits", default="100000,10000", help="of resident streams, one run each")
    parser.add_argument("--rounds", type=int, default=2, help="rows of each stream")
    arguments = parser.parse_args()
    results = [measure(int(limit), arguments.streams, arguments.rounds) for limit in arguments.limits.split(",")]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
