"""One run: broker, workers, producers and faults for a while; then quiet, and the judge.

Everything is ordered from one thread. Faults come one after the other and last on while the next one comes.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from service.chaos.broker import ChaosBroker
from service.chaos.check import HeadWatch, Judge, missing
from service.chaos.faults import Faults
from service.chaos.objects import some_states
from service.chaos.traffic import Producer, StreamTraffic, Tally
from service.chaos.verdict import KINDS, PROOF_S, Verdict, traffic_of
from service.chaos.workers import PROGRAM, ChaosWorker, WorkerOptions
from service.engine import OnnxEngine
from service.errors import StartError
from service.keys import worker_key
from service.packages import Package, load_package, zoo_folder

MODEL: Final = "activity-lstm/1"
SHARDS: Final = 4
CROWDED: Final = 5_000  # unfinished entries: bursts wait
LONGER_S: Final = 60.0
HISTORY_S: Final = 3.0
QUIET_S: Final = 180.0  # how long the end waits until all is answered


@dataclass(frozen=True)
class Options:
    """What `rollcast chaos` is told."""

    seconds: float = 60.0
    workers: int = 3
    streams: int = 300  # more than the workers may have in memory
    seed: int = 0
    lease_s: float = 1.0
    state_ttl_s: float = 5.0
    burst: int = 600  # entries
    kinds: Sequence[str] = tuple(KINDS)
    program: Sequence[str] = PROGRAM
    broker_binary: str | None = None


class Chaos:
    """`run` once. `progress` gets a line now and then."""

    def __init__(self, options: Options, progress: Callable[[str], None]) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="rollcast-chaos-"))  # its sockets' paths are short
        self._options, self._progress = options, progress
        self._watch = HeadWatch(SHARDS)
        self._tally = Tally()
        self._next_look = self._next_line = 0.0
        self._began = time.monotonic()

    def run(self) -> Verdict:
        """Raises StartError. Leaves no process behind."""
        models = self.home / "models" / MODEL
        shutil.copytree(zoo_folder() / MODEL, models)
        self._package = load_package(models)
        options = self._options
        self._judge = Judge(self._package, shards=SHARDS, state_ttl_s=options.state_ttl_s, turn=self._comparing)
        self._broker = ChaosBroker(self.home, options.broker_binary)
        history_s = HISTORY_S * (options.seed % 2)  # both ways of trimming, by the seed
        told = WorkerOptions(
            self.home, self.home / "models", SHARDS, options.lease_s, options.state_ttl_s, history_s, options.program
        )
        self._workers: list[ChaosWorker] = []
        self._producers: list[Producer] = []
        try:
            self._workers = [ChaosWorker(number, self._broker.path, told) for number in range(options.workers)]
            self._faults = Faults(
                options.kinds, random.Random(options.seed), self._broker, self._workers,
                tally=self._tally, watch=self._watch, shards=SHARDS, lease_s=options.lease_s,
            )  # fmt: skip
            for worker in self._workers:
                worker.start()
            self._produce()
            self._await_first_commit()
            self._rage()
            self._calm()
            return self._conclude()
        finally:
            for producer in self._producers:
                producer.stop()
            for worker in self._workers:
                worker.close()
            self._broker.stop()

    # --- the run -------------------------------------------------------------------------------------------------

    def _produce(self) -> None:
        options = self._options
        sparse = max(1, options.streams // 3)
        manifest, states = self._package.manifest, states_of(self._package, options.seed)
        traffic = [
            StreamTraffic(f"{'sparse' if n < sparse else 'dense'}-{n:02}", options.seed, manifest, SHARDS, states)
            for n in range(options.streams)
        ]
        dense = traffic[sparse:]
        for number, (streams, burst) in enumerate(
            [(traffic[:sparse], 0), (dense[::2], options.burst), (dense[1::2], options.burst)]
        ):
            if streams:
                self._producers.append(
                    Producer(
                        self._broker.path, streams, self._tally, seed=f"{options.seed}-{number}", burst=burst,
                        crowded=lambda: self._watch.backlog > CROWDED, shards=SHARDS,
                    )
                )  # fmt: skip
        for producer in self._producers:
            producer.start()

    def _await_first_commit(self) -> None:
        """The clock of the run starts when something can be broken."""
        deadline = time.monotonic() + 90
        while not self._faults.owners():
            if time.monotonic() > deadline:
                raise StartError(f"no worker was ready within 90 s; their logs lie in {self.home}")
            self._turn("starting")

    def _rage(self) -> None:
        """Longer than was asked for, where a slow machine has not let every kind happen yet."""
        options = self._options
        began = time.monotonic()
        end = began + options.seconds
        dice = random.Random(f"{options.seed} pauses")
        last = end - min(6.0, options.seconds / 5)  # what is broken last is still seen to recover under traffic
        first_round = len(options.kinds) + 2
        pause_s = min(2.5, (last - began) / first_round)
        next_fault = began + pause_s / 2
        while (now := time.monotonic()) < end:
            if options.kinds and next_fault <= now < last:
                done = self._faults.make()
                next_fault = time.monotonic() + (pause_s * dice.uniform(0.6, 1.2) if done else 0.1)
            self._turn(f"{now - began:.0f} of {options.seconds:.0f} s")
        while options.seconds >= PROOF_S and (unseen := self._faults.unseen()) and time.monotonic() < end + LONGER_S:
            if (now := time.monotonic()) >= next_fault:
                self._faults.make(unseen[0])
                next_fault = now + 2 * pause_s
            self._turn(f"waiting for {', '.join(unseen)}")

    def _calm(self) -> None:
        """No more faults, no more entries; all that was posted is answered."""
        for producer in self._producers:
            producer.stop()
        for producer in self._producers:
            producer.join(10)
        self._faults.end()
        deadline = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            self._turn("calming down")
            if self._watch.drained(self._broker.asked()):
                return

    def _turn(self, when: str) -> None:
        """Looks after everything once."""
        now = time.monotonic()
        self._faults.tend()
        for worker in self._workers:
            worker.tend()
        if now >= self._next_look:
            self._next_look = now + 0.1
            try:
                self._watch.look(self._broker.asked(), self._judge.findings)
            except (redis.RedisError, OSError):
                self._broker.hang_up()
        if now >= self._next_line:
            self._next_line = now + 1.0
            faults = "  ".join(f"{kind} {self._faults.happened[kind]}" for kind in self._options.kinds)
            self._progress(f"{when}: entries {self._watch.entries:,}  waiting {self._watch.backlog:,}  {faults}")
        time.sleep(0.01)

    def _comparing(self) -> None:
        if (now := time.monotonic()) >= self._next_line:
            self._next_line = now + 1.0
            self._progress(f"comparing: {sum(self._judge.findings.records.values()):,} records")

    # --- the end -------------------------------------------------------------------------------------------------

    def _conclude(self) -> Verdict:
        options, judge = self._options, self._judge
        evictions = self._evictions()
        crashes = sum(not worker.stop() for worker in self._workers if worker.running())
        crashes += sum(worker.crashes for worker in self._workers)
        with self._broker.client() as client:
            survived = judge.life(client, complete=True)
        self._broker.stop()
        for life in self._broker.lives:
            old = ChaosBroker(life, options.broker_binary)
            try:
                with old.client() as client:
                    survived |= judge.life(client, complete=False)
            finally:
                old.stop()
        excused, unexcused = missing(self._tally.acknowledged, survived, self._faults.losses_ms)
        proxies = sum((worker.proxy.counts for worker in self._workers), Counter[str]())
        faults = {kind: self._faults.happened[kind] for kind in options.kinds}
        untried = [kind for kind, count in traffic_of(judge.findings).items() if not count]
        judge.findings.told += [f"lost: acknowledged {i.decode()} of shard {p} is nowhere" for p, i in unexcused[:5]]
        return Verdict(
            seed=options.seed, seconds=options.seconds, duration_s=round(time.monotonic() - self._began, 1),
            workers=options.workers, streams=options.streams, findings=judge.findings, faults=faults,
            appended=len(self._tally.acknowledged), refused_full=self._tally.counts["full"],
            unknown=self._tally.counts["unknown"], torn_commands=self._faults.torn, lost_by_broker=excused,
            lost_unexcused=len(unexcused), acquisitions=self._watch.acquisitions, blind=proxies["blind"],
            crashes=crashes, evictions=evictions,
            unseen=[*self._faults.unseen(), *untried] if options.seconds >= PROOF_S else [],
        )  # fmt: skip

    def _evictions(self) -> int:
        """What the living workers say of themselves, in words for Prometheus."""
        total = 0
        for worker in self._workers:
            said: Any = self._broker.asked().get(worker_key("rollcast", worker.name))
            url = json.loads(said)["metrics"] if said else None
            if url is None:
                continue
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                found = re.search(rb"^rollcast_evictions_total ([0-9.e+]+)", answer.read(), re.MULTILINE)
                total += int(float(found[1])) if found else 0
        return total


def states_of(package: Package, seed: int, schema: str | None = None) -> list[dict[str, Any]]:
    """State objects to restore: after walks through the training data's range that follow from the seed."""
    maker = StreamTraffic("walks", seed, package.manifest, SHARDS, [])
    walks = [maker.make_rows(count) for count in (1, 9, 30, 80, 200)]
    return some_states(OnnxEngine(package), schema or package.schema, walks)
