"""How fast single-step entries are drained, state committed, against the bare loop in the same run.

    python -m bench.drain [--streams 1000] [--rounds 60] [--shards 32] [--pairs 5] [--floor 0.4]

The log is filled first; then one loop after the other drains its own copy, on one embedded broker. The ratio of each
pair counts, since machines are noisy. Exit status 1 below `--floor`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from bench.bare import drain
from bench.model import BenchPackage, lstm_package
from service.broker.log import RedisLog
from service.broker.wire import Wire, pack
from service.embedded import EmbeddedBroker
from service.engine import OnnxEngine
from service.keys import ShardKeys, shard_of
from service.metrics import WorkerMetrics
from service.processes import calm_collector
from service.worker import Worker


def fill(wire: Wire, prefix: str, shards: int, streams: int, rounds: int) -> None:
    """Puts one row of every stream into the log, `rounds` times."""
    keys = [ShardKeys(prefix, p) for p in range(shards)]
    rng = np.random.default_rng(0)
    names = [f"stream-{n:05d}" for n in range(streams)]
    home = [keys[shard_of(name, shards)].inbox for name in names]
    for _ in range(rounds):
        rows = rng.normal(size=(streams, 6)).astype("<f4")
        wire.send(
            b"".join(
                pack(
                    (
                        "XADD",
                        home[n],
                        "*",
                        "stream",
                        names[n],
                        "kind",
                        "samples",
                        "shape",
                        "1,6",
                        "data",
                        rows[n].tobytes(),
                    )
                )
                for n in range(streams)
            )
        )
        for _ in range(streams):
            wire.reply()


def drain_rollcast(url: str, prefix: str, shards: int, package: BenchPackage, entries: int) -> float:
    """Seconds one worker takes for all of the log, leases and first loads included."""
    metrics = WorkerMetrics(CollectorRegistry())
    stop = threading.Event()
    answered = metrics.records.labels(package.manifest.name, "prediction")
    log = RedisLog(url, worker="bench", prefix=prefix, shards=shards)

    def look(point: str) -> None:
        if point == "after-commit" and answered.value >= entries:
            stop.set()

    engine = OnnxEngine(package)  # type: ignore[arg-type]
    worker = Worker(log, {package.manifest.name: (engine, "00" * 8)}, metrics, fault=look)
    began = time.perf_counter()
    worker.run(stop)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=60, help="entries a stream")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--floor", type=float, default=0.4, help="exit 1 when the median ratio lies below")
    arguments = parser.parse_args()
    calm_collector()  # as a worker process does; both loops profit
    entries = arguments.streams * arguments.rounds
    print(f"{arguments.streams} streams, {entries} single-step entries, {arguments.shards} shards, LSTM-64, "
          f"Python {platform.python_version()}, {platform.machine()}")  # fmt: skip
    ratios = []
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder:
        package = lstm_package(Path(folder))
        broker = EmbeddedBroker(Path(folder) / "home")
        url = broker.start()
        try:
            wire = Wire(url, 60)
            sizes = (1, 512)
            for pair in range(arguments.pairs + 1):
                ours, bare = f"a{pair}", f"b{pair}"
                fill(wire, ours, arguments.shards, arguments.streams, arguments.rounds)
                seconds = drain_rollcast(url, ours, arguments.shards, package, entries)
                keys = ShardKeys(ours, shard_of("stream-00000", arguments.shards))
                record = wire.call("XREVRANGE", keys.out("stream-00000"), "+", "-", "COUNT", 1)[0][1]
                sizes = (len(record[3]), len(wire.call("GET", keys.state("stream-00000"))))
                fill(wire, bare, arguments.shards, arguments.streams, arguments.rounds)
                began = time.perf_counter()
                drain(url.removeprefix("unix://").partition("?")[0], bare, arguments.shards, package,
                      arguments.streams, entries, sizes)  # fmt: skip
                ceiling = time.perf_counter() - began
                wire.call("FLUSHDB")  # the benchmark's own private broker
                said = f"rollcast {entries / seconds:8,.0f}/s   bare {entries / ceiling:8,.0f}/s"
                print(
                    f"{'warm-up' if pair == 0 else f'pair {pair}':8} {said}   ratio {ceiling / seconds:.2f}", flush=True
                )
                if pair:
                    ratios.append(ceiling / seconds)
            wire.close()
        finally:
            broker.stop()
    median = statistics.median(ratios)
    print(
        f"median ratio {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); record {sizes[0]} B, state {sizes[1]} B"
    )
    return 0 if median >= arguments.floor else 1


if __name__ == "__main__":
    sys.exit(main())
