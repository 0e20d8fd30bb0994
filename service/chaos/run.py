"""One run: broker, workers, producers and faults for a while; then quiet, and the judge.

Everything is ordered from one thread. Faults come one after the other and last on while the next one comes.
"""

from __future__ import annotations

import heapq
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import redis

from service.chaos.broker import ChaosBroker
from service.chaos.check import HeadWatch, Judge, missing
from service.chaos.proxy import FaultProxy
from service.chaos.traffic import Producer, StreamTraffic, Tally
from service.chaos.verdict import KINDS, PROOF_S, Verdict
from service.chaos.workers import PROGRAM, ChaosWorker, WorkerOptions
from service.errors import StartError
from service.keys import ShardKeys
from service.packages import load_package, zoo_folder

MODEL: Final = "activity-lstm/1"
SHARDS: Final = 4
CROWDED: Final = 5_000  # unfinished entries: bursts wait
QUIET_S: Final = 180.0  # how long the end waits until all is answered
LOST_BY_A_KILL_MS: Final = 4_000  # `appendfsync everysec` may put off a write while an fsync is under way


@dataclass(frozen=True)
class Options:
    """What `rollcast chaos` is told."""

    seconds: float = 60.0
    workers: int = 3
    streams: int = 24
    seed: int = 0
    lease_s: float = 1.0
    state_ttl_s: float = 5.0
    burst: int = 600  # entries
    kinds: Sequence[str] = tuple(KINDS)
    program: Sequence[str] = PROGRAM
    broker_binary: str | None = None


class Chaos:
    """`run` once. `progress` gets a line now and then."""

    def __init__(self, options: Options, progress: Callable[[str], None], home: Path | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="rollcast-chaos-")) if home is None else home
        self._options, self._progress = options, progress
        self._dice = random.Random(options.seed)
        self._happened: Counter[str] = Counter()
        self._watch = HeadWatch(SHARDS)
        self._tally = Tally()
        self._later: list[tuple[float, int, Callable[[], None]]] = []  # what ends, and when
        self._numbers = count()
        self._losses_ms: list[tuple[int, int]] = []
        self._life_began_ms = 0
        self._torn = 0
        self._ending = False
        self._next_look = self._next_line = 0.0
        self._client: redis.Redis | None = None
        self._began = time.monotonic()

    def run(self) -> Verdict:
        """Raises StartError. Leaves no process behind."""
        models = self.home / "models" / MODEL
        shutil.copytree(zoo_folder() / MODEL, models)
        self._package = load_package(models)
        options = self._options
        self._judge = Judge(self._package, shards=SHARDS, state_ttl_s=options.state_ttl_s, turn=self._comparing)
        self._broker = ChaosBroker(self.home, options.broker_binary)
        self._life_began_ms = _now_ms()
        told = WorkerOptions(
            self.home, self.home / "models", SHARDS, options.lease_s, options.state_ttl_s, options.program
        )
        self._workers: list[ChaosWorker] = []
        self._producers: list[Producer] = []
        try:
            self._workers = [ChaosWorker(number, self._broker.path, told) for number in range(options.workers)]
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
        traffic = [
            StreamTraffic(f"{'sparse' if n < sparse else 'dense'}-{n:02}", options.seed, self._package.manifest, SHARDS)
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
        while not self._owners():
            if time.monotonic() > deadline:
                raise StartError(f"no worker was ready within 90 s; their logs lie in {self.home}")
            self._turn("starting")

    def _rage(self) -> None:
        options = self._options
        began = time.monotonic()
        end = began + options.seconds
        faults = self._faults()
        last = end - min(6.0, options.seconds / 5)  # what is broken last is still seen to recover under traffic
        first_round = len(options.kinds) + 2
        pause_s = min(2.5, (last - began) / first_round)
        next_fault = began + pause_s / 2
        while (now := time.monotonic()) < end:
            if options.kinds and next_fault <= now < last:
                kind = next(faults)
                if getattr(self, "_" + kind.replace("-", "_"))():
                    next_fault = time.monotonic() + pause_s * self._dice.uniform(0.6, 1.2)
                else:  # nobody to hurt now; another kind meanwhile
                    faults = _before(kind, faults)
                    next_fault = time.monotonic() + 0.1
            self._turn(f"{now - began:.0f} of {options.seconds:.0f} s")

    def _faults(self) -> Iterator[str]:
        """Rounds of every kind, in another order each; an empty broker, which ends everything, in every fourth."""
        for number in count():
            kinds = [kind for kind in self._options.kinds if kind != "empty" or number % 4 == 0]
            kinds += [kind for kind in ("kill", "cut-reply") if kind in kinds and number]
            self._dice.shuffle(kinds)
            yield from kinds

    def _calm(self) -> None:
        """No more faults, no more entries; all that was posted is answered."""
        for producer in self._producers:
            producer.stop()
        for producer in self._producers:
            producer.join(10)
        self._end_faults()
        deadline = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            self._turn("calming down")
            if self._watch.drained(self._connected()):
                return

    def _turn(self, when: str) -> None:
        """Looks after everything once."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        for worker in self._workers:
            worker.tend()
        if now >= self._next_look:
            self._next_look = now + 0.1
            try:
                self._watch.look(self._connected(), self._judge.findings)
            except (redis.RedisError, OSError):
                self._disconnect()
        if now >= self._next_line:
            self._next_line = now + 1.0
            faults = "  ".join(f"{kind} {self._happened[kind]}" for kind in self._options.kinds)
            self._progress(f"{when}: entries {self._watch.entries:,}  waiting {self._watch.backlog:,}  {faults}")
        time.sleep(0.01)

    def _comparing(self) -> None:
        if (now := time.monotonic()) >= self._next_line:
            self._next_line = now + 1.0
            self._progress(f"comparing: {sum(self._judge.findings.records.values()):,} records")

    # --- faults: each returns whether it could be done; it is counted when it is seen to have happened -------------

    def _kill(self) -> bool:
        return (worker := self._victim()) is not None and self._count("kill", worker.kill())

    def _short_pause(self) -> bool:
        return self._pause("short-pause", 0.4)

    def _long_pause(self) -> bool:
        return self._pause("long-pause", 2.5)

    def _pause(self, kind: str, leases: float) -> bool:
        worker = self._victim()
        if worker is None or not worker.freeze():
            return False
        self._after(leases * self._options.lease_s, worker.thaw)
        return self._count(kind, True)

    def _cut_reply(self) -> bool:
        return self._order("cut-reply", FaultProxy.cut_reply)

    def _cut_request(self) -> bool:
        return self._order("cut-request", FaultProxy.cut_request)

    def _order(
        self,
        kind: str,
        order: Callable[[FaultProxy], None],
        done: Callable[[FaultProxy], None] = lambda proxy: None,
    ) -> bool:
        """A fault that waits for a commit. Ordered of another worker when the first one commits nothing for a second;
        `done` is called when it has happened."""
        if (worker := self._victim()) is None:
            return False
        proxy, deadline = worker.proxy, time.monotonic() + 1.0
        order(proxy)

        def look() -> None:
            if not proxy.ordered(kind):
                done(proxy)
            elif not self._ending and time.monotonic() < deadline:
                self._after(0.05, look)
            elif not proxy.cancel(kind):
                done(proxy)
            elif not self._ending and not self._order(kind, order, done):
                order(proxy)  # nobody else runs now
                self._after(0.5, look)

        self._after(0.05, look)
        return True

    def _delay(self) -> bool:
        if (worker := self._victim()) is None:
            return False
        proxy, before = worker.proxy, worker.proxy.counts["delayed"]
        proxy.delay_s = 0.05

        def end() -> None:
            proxy.delay_s = 0.0
            self._count("delay", proxy.counts["delayed"] > before)

        self._after(1.0, end)
        return True

    def _partition(self) -> bool:
        """Begins with a commit: it is under way while another worker takes its shard over."""
        return self._order("hold", FaultProxy.hold_a_commit, self._hold_on)

    def _hold_on(self, proxy: FaultProxy) -> None:
        def end() -> None:
            proxy.release()
            self._count("partition", True)

        self._after(2.5 * self._options.lease_s, end)

    def _starve(self) -> bool:
        before = self._tally.counts["full"]
        self._broker.starve()

        def end() -> None:
            if self._tally.counts["full"] == before and time.monotonic() < last and not self._ending:
                return self._after(0.2, end)  # it is to be felt
            self._broker.feed()
            self._count("starve", self._tally.counts["full"] > before)
            return None

        last = time.monotonic() + 5
        self._after(self._dice.choice([0.5, 1.0, 2.0]) * self._options.lease_s, end)
        return True

    def _restart(self) -> bool:
        self._break_broker(lambda: None)
        self._losses_ms.append((_now_ms() - LOST_BY_A_KILL_MS, _now_ms()))
        return self._count("restart", True)

    def _tear(self) -> bool:
        torn = 0

        def tear() -> None:
            nonlocal torn
            torn = self._broker.tear(self._dice).commands

        self._break_broker(tear)
        self._torn += torn
        self._losses_ms.append((self._life_began_ms, _now_ms()))
        return self._count("tear", torn > 0)

    def _empty(self) -> bool:
        self._break_broker(self._broker.replace_by_an_empty_one)
        self._losses_ms.append((_now_ms() - LOST_BY_A_KILL_MS, _now_ms()))
        self._life_began_ms = _now_ms()
        return self._count("empty", True)

    def _break_broker(self, meanwhile: Callable[[], None]) -> None:
        self._disconnect()
        self._broker.kill()
        meanwhile()
        self._broker.start()
        self._watch.forget()

    def _victim(self) -> ChaosWorker | None:
        """A running worker, most often one that owns a shard: the others have little to lose."""
        running = [w for w in self._workers if w.running() and not w.stopped and w.proxy.flowing]
        owners = [w for w in running if w.name in self._owners()]
        return self._dice.choice(owners or running) if running else None

    def _owners(self) -> set[str]:
        try:
            found: Any = self._connected().mget([ShardKeys("rollcast", shard).owner for shard in range(SHARDS)])
        except (redis.RedisError, OSError):
            self._disconnect()
            return set()
        return {value.split()[0].decode() for value in found if value}

    def _count(self, kind: str, happened: bool) -> bool:
        self._happened[kind] += happened
        return happened

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), act))

    def _end_faults(self) -> None:
        self._ending = True
        while self._later:
            heapq.heappop(self._later)[2]()
        for worker in self._workers:
            worker.thaw()
            worker.proxy.release()
            worker.proxy.delay_s = 0.0
        self._broker.feed()

    # --- the end -------------------------------------------------------------------------------------------------

    def _conclude(self) -> Verdict:
        options, judge = self._options, self._judge
        crashes = sum(not worker.stop() for worker in self._workers if worker.running())
        crashes += sum(worker.crashes for worker in self._workers)
        with self._broker.client() as client:
            survived = judge.life(client, complete=True)
        self._disconnect()
        self._broker.stop()
        for life in self._broker.lives:
            old = ChaosBroker(life, options.broker_binary)
            try:
                with old.client() as client:
                    survived |= judge.life(client, complete=False)
            finally:
                old.stop()
        excused, unexcused = missing(self._tally.acknowledged, survived, self._losses_ms)
        proxies = sum((worker.proxy.counts for worker in self._workers), Counter[str]())
        for kind in ("cut-reply", "cut-request"):
            self._happened[kind] = proxies[kind]
        faults = {kind: self._happened[kind] for kind in options.kinds}
        judge.findings.told += [f"lost: acknowledged {i.decode()} of shard {p} is nowhere" for p, i in unexcused[:5]]
        return Verdict(
            seed=options.seed, seconds=options.seconds, duration_s=round(time.monotonic() - self._began, 1),
            workers=options.workers, streams=options.streams, findings=judge.findings, faults=faults,
            appended=len(self._tally.acknowledged), refused_full=self._tally.counts["full"],
            unknown=self._tally.counts["unknown"], torn_commands=self._torn, lost_by_broker=excused,
            lost_unexcused=len(unexcused), acquisitions=self._watch.acquisitions, blind=proxies["blind"],
            crashes=crashes,
            unseen=[kind for kind, times in faults.items() if not times and options.seconds >= PROOF_S],
        )  # fmt: skip

    def _connected(self) -> redis.Redis:
        if self._client is None:
            self._client = self._broker.client()
        return self._client

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None


def _before(first: str, rest: Iterator[str]) -> Iterator[str]:
    """`rest` with `first` put in after its next one."""
    yield next(rest)
    yield first
    yield from rest


def _now_ms() -> int:
    return int(time.time() * 1000)
