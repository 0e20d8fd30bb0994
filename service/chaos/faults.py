"""What goes wrong in a run, and when. Each fault is counted when it was seen to happen, not when it was ordered."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Final

import redis

from service.chaos.broker import ChaosBroker
from service.chaos.check import HeadWatch
from service.chaos.proxy import FaultProxy
from service.chaos.traffic import Tally
from service.chaos.workers import ChaosWorker
from service.keys import ShardKeys

LOST_BY_A_KILL_MS: Final = 4_000  # `appendfsync everysec` may put off a write while an fsync is under way


class Faults:
    """Called from the main thread: `make` now and then, `tend` often, `end` once. Faults last on while others come."""

    def __init__(
        self,
        kinds: Sequence[str],
        dice: random.Random,
        broker: ChaosBroker,
        workers: Sequence[ChaosWorker],
        *,
        tally: Tally,
        watch: HeadWatch,
        shards: int,
        lease_s: float,
    ) -> None:
        self.happened: Counter[str] = Counter()
        self.torn = 0  # commands of the broker's log
        self.losses_ms: list[tuple[int, int]] = []  # from when to when entries may be gone with the broker's data
        self._kinds, self._dice, self._broker, self._workers = kinds, dice, broker, workers
        self._tally, self._watch, self._lease_s = tally, watch, lease_s
        self._owner_keys = [ShardKeys("rollcast", shard).owner for shard in range(shards)]
        self._order_of_kinds = self._rounds()
        self._later: list[tuple[float, int, Callable[[], None]]] = []  # what ends, and when
        self._numbers = count()
        self._life_began_ms = _now_ms()
        self._ending = False

    def unseen(self) -> list[str]:
        """Kinds that have not happened."""
        return [kind for kind in self._kinds if not self.happened[kind]]

    def make(self, kind: str | None = None) -> bool:
        """The next fault, or one of this kind. False when there was nobody to hurt: another kind comes first then."""
        chosen = next(self._order_of_kinds) if kind is None else kind
        done: bool = getattr(self, "_" + chosen.replace("-", "_"))()
        if not done and kind is None:
            self._order_of_kinds = _before(chosen, self._order_of_kinds)
        return done

    def tend(self) -> None:
        """Ends what is over."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def end(self) -> None:
        """Everything, now."""
        self._ending = True
        while self._later:
            heapq.heappop(self._later)[2]()
        for worker in self._workers:
            worker.thaw()
            worker.proxy.release()
            worker.proxy.delay_s = 0.0
        self._broker.feed()

    def owners(self) -> set[str]:
        """Names of the workers that hold a lease."""
        try:
            found: Any = self._broker.asked().mget(self._owner_keys)
        except (redis.RedisError, OSError):
            self._broker.hang_up()
            return set()
        return {value.split()[0].decode() for value in found if value}

    def _rounds(self) -> Iterator[str]:
        """Rounds of every kind, in another order each; an empty broker, which ends everything, in every fourth."""
        for number in count():
            kinds = [kind for kind in self._kinds if kind != "empty" or number % 4 == 0]
            kinds += [kind for kind in ("kill", "cut-reply") if kind in kinds and number]
            self._dice.shuffle(kinds)
            yield from kinds

    # --- each returns whether it could be done -----------------------------------------------------------------------

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
        self._after(leases * self._lease_s, worker.thaw)
        return self._count(kind, True)

    def _cut_reply(self) -> bool:
        return self._order("cut-reply", FaultProxy.cut_reply, lambda _: self.happened.update(["cut-reply"]))

    def _cut_request(self) -> bool:
        return self._order("cut-request", FaultProxy.cut_request, lambda _: self.happened.update(["cut-request"]))

    def _order(self, kind: str, order: Callable[[FaultProxy], None], done: Callable[[FaultProxy], None]) -> bool:
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

        self._after(2.5 * self._lease_s, end)

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
        self._after(self._dice.choice([0.5, 1.0, 2.0]) * self._lease_s, end)
        return True

    def _restart(self) -> bool:
        killed_ms = self._break_broker(lambda: None)
        self.losses_ms.append((killed_ms - LOST_BY_A_KILL_MS, killed_ms))
        return self._count("restart", True)

    def _tear(self) -> bool:
        torn = 0

        def tear() -> None:
            nonlocal torn
            torn = self._broker.tear(self._dice).commands

        killed_ms = self._break_broker(tear)
        self.torn += torn
        self.losses_ms.append((self._life_began_ms, killed_ms))
        return self._count("tear", torn > 0)

    def _empty(self) -> bool:
        killed_ms = self._break_broker(self._broker.replace_by_an_empty_one)
        self.losses_ms.append((killed_ms - LOST_BY_A_KILL_MS, killed_ms))
        self._life_began_ms = killed_ms
        return self._count("empty", True)

    def _break_broker(self, meanwhile: Callable[[], None]) -> int:
        """Returns when it was killed, ms."""
        self._broker.kill()
        killed_ms = _now_ms()
        meanwhile()
        self._broker.start()
        self._watch.forget()
        return killed_ms

    def _victim(self) -> ChaosWorker | None:
        """A running worker, most often one that owns a shard: the others have little to lose."""
        running = [w for w in self._workers if w.running() and not w.stopped and w.proxy.flowing]
        owners = [w for w in running if w.name in self.owners()]
        return self._dice.choice(owners or running) if running else None

    def _count(self, kind: str, happened: bool) -> bool:
        self.happened[kind] += happened
        return happened

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), act))


def _before(first: str, rest: Iterator[str]) -> Iterator[str]:
    """`rest` with `first` put in after its next one."""
    yield next(rest)
    yield first
    yield from rest


def _now_ms() -> int:
    return int(time.time() * 1000)
