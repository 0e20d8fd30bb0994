"""How fast a backlog of few streams is drained, several entries a call, against one by one in the same run.

    python -m bench.catch_up [--streams 4] [--entries 5000] [--pairs 3]

`entries` single rows in all, LSTM-64, 32 shards, one worker. One by one: the same package, whose manifest allows one
step a call. Exit status 1 when catching up is not faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.drain import drain_rollcast, fill
from bench.model import lstm_package
from service.broker.wire import Wire
from service.embedded import EmbeddedBroker
from service.processes import calm_collector

SHARDS = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--entries", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    calm_collector()
    rounds = arguments.entries // arguments.streams
    entries = rounds * arguments.streams
    gains = []
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder:
        package = lstm_package(Path(folder))
        fields = {name: getattr(package.manifest, name) for name in package.manifest.__struct_fields__}
        single = package._replace(manifest=type(package.manifest)(**fields | {"many_steps": False}))
        broker = EmbeddedBroker(Path(folder) / "home")
        url = broker.start()
        wire = Wire(url, 60)
        try:
            for pair in range(arguments.pairs + 1):
                seconds = []
                for prefix, served in ((f"a{pair}", single), (f"b{pair}", package)):
                    fill(wire, prefix, SHARDS, arguments.streams, rounds)
                    seconds.append(drain_rollcast(url, prefix, SHARDS, served, entries))
                wire.call("FLUSHDB")  # the benchmark's own private broker
                slow, fast = (f"{entries / one:8,.0f}/s" for one in seconds)
                name, gain = "warm-up" if pair == 0 else f"pair {pair}", seconds[0] / seconds[1]
                print(f"{name:8} one by one {slow}   catching up {fast}   gain {gain:.1f}", flush=True)
                if pair:
                    gains.append(gain)
        finally:
            wire.close()
            broker.stop()
    gain = statistics.median(gains)
    print(
        f"{entries} entries of {arguments.streams} streams: median gain {gain:.1f} ({min(gains):.1f}–{max(gains):.1f})"
    )
    return 0 if gain > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
