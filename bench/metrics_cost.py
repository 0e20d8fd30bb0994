"""What counting costs: the share of the worker's CPU time that goes into its metrics while it drains a full log.

    python -m bench.metrics_cost [--streams 1000] [--rounds 30] [--shards 32] [--drains 7] [--ceiling 0.03]

The drain is that of bench.drain. Every call that counts is timed by the clock of the worker's own thread, within one
run: on a machine that others use, too, drains with and without metrics differ by more than what is to be measured.
Exit status 1 when the median share is above `--ceiling`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import service.worker.loop
import service.worker.records
from bench.drain import drain_rollcast, fill
from bench.model import lstm_package
from service.broker.wire import Wire
from service.embedded import EmbeddedBroker
from service.processes import calm_collector
from service.worker.shard import Group
from service.worker.tally import Tally

CALLS = ("stage", "decoded", "committed", "count", "batch", "loaded", "residence", "held", "dead_overflow")
spent_s = 0.0


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        global spent_s
        began = time.thread_time()
        answer = function(*arguments, **named)
        spent_s += time.thread_time() - began
        return answer

    return call


def main() -> int:
    global spent_s
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30, help="entries a stream")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--drains", type=int, default=7)
    parser.add_argument("--ceiling", type=float, default=0.03, help="exit 1 when the median share lies above")
    arguments = parser.parse_args()
    calm_collector()
    service.worker.loop.Tally = type("Timed", (Tally,), {name: timed(getattr(Tally, name)) for name in CALLS})  # type: ignore[misc]
    service.worker.records.Group = timed(Group)  # type: ignore[assignment,misc]
    entries = arguments.streams * arguments.rounds
    shares = []
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder:
        package = lstm_package(Path(folder))
        broker = EmbeddedBroker(Path(folder) / "home")
        wire = Wire(broker.start(), 60)
        try:
            for drain in range(arguments.drains + 1):
                fill(wire, "m", arguments.shards, arguments.streams, arguments.rounds)
                spent_s, began = 0.0, time.thread_time()
                drain_rollcast(broker.url, "m", arguments.shards, package, entries)
                all_s = time.thread_time() - began
                wire.call("FLUSHDB")  # the benchmark's own private broker
                said = f"{spent_s / entries * 1e6:5.2f} of {all_s / entries * 1e6:5.2f} µs an entry"
                print(f"{'warm-up' if drain == 0 else f'drain {drain}':8} {said}: {spent_s / all_s:.1%}", flush=True)
                if drain:
                    shares.append(spent_s / all_s)
        finally:
            wire.close()
            broker.stop()
    share = statistics.median(shares)
    print(f"median share {share:.1%} ({min(shares):.1%} to {max(shares):.1%})")
    return 0 if share <= arguments.ceiling else 1


if __name__ == "__main__":
    sys.exit(main())
