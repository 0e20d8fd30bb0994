"""Pressure returns through here: what waits in each shard, how fast it drains, how full the broker is, and how many
streams there are.

Measured from the broker ten times a second, own appends added meanwhile. A shard that has too much waiting refuses its
own entries only. Nothing is ever dropped here: an entry that was taken stays in the log until it is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Final, NamedTuple

from service.api.census import Census
from service.api.follower import Follower
from service.errors import BacklogFull, BrokerFull, RollcastError
from service.keys import shard_of
from service.ports import Predictions, ShardBacklog

POLL_S: Final = 0.1
MEMORY_SHARE: Final = 0.85  # of the broker's limit: the rest is for commits, which free what they finish
RESUME_SHARE: Final = 0.9  # of a bound: Retry-After aims there, so that not everybody comes back to a full shard
ENTRY_BYTES: Final = 200  # what an entry takes in the broker beside its data
WINDOW_S: Final = 5.0  # of busy time, over which a rate is measured
STALE_S: Final = 60.0  # a rate measured longer ago says nothing
LATE_S: Final = 1.0  # of a poll: then this process or the broker stood still, and nothing was measured
UNKNOWN_RETRY_S: Final = 5.0
log = logging.getLogger("rollcast.api")


class Bounds(NamedTuple):
    """Of what may wait in one shard, and of all streams."""

    bytes: int = 64 << 20
    seconds: float = 30.0
    streams: int = 100_000


class Drain:
    """How fast one shard drains: entries finished a second, while there was always something to do.

    A worker that keeps up shows how much comes, not how much it could do: such times count only where they show that
    it is faster than was measured. Time without progress is `stalled_s` until there is a commit. It counts for the rate
    only if the same worker held the shard all the while and then finished something: that is how long it took. A stop,
    in which nobody worked, says nothing about the rate.
    """

    def __init__(self) -> None:
        self.stalled_s = 0.0
        self._samples: deque[tuple[float, float, int]] = deque()  # (when, s it took, entries finished)
        self._working_s = 0.0  # of one worker, since it finished something
        self._last = ShardBacklog(0, 0, "")

    @property
    def rate(self) -> float | None:
        """Entries a second; None when it was never measured, or too long ago."""
        seconds = sum(took for _, took, _ in self._samples)
        return sum(finished for _, _, finished in self._samples) / seconds if seconds else None

    def sample(self, now: float, took_s: float, finished: int, shard: ShardBacklog) -> None:
        """`finished` entries in the last `took_s`; `shard` as it is now."""
        was, self._last = self._last, shard
        busy = was.entries > finished  # some of those that waited at its beginning still wait at its end
        worked = shard.token != "" and shard.token == was.token
        while self._samples and now - self._samples[0][0] > STALE_S:
            self._samples.popleft()
        self._working_s = self._working_s + took_s if worked else 0.0
        if finished == 0 and busy:
            self.stalled_s = self.stalled_s + took_s if shard.commits == was.commits else 0.0
            return
        spent_s, rate = self._working_s, self.rate
        self.stalled_s = self._working_s = 0.0
        faster = not busy and rate is not None and finished > rate * spent_s
        if worked and faster:
            self._samples.clear()
        if worked and (busy or faster):
            self._samples.append((now, spent_s, finished))
            while len(self._samples) > 1 and sum(took for _, took, _ in self._samples) > WINDOW_S:
                self._samples.popleft()

    def skip(self, shard: ShardBacklog) -> None:
        """What was finished since the last sample is not known."""
        self._last, self._working_s = shard, 0.0

    def seconds(self, entries: int) -> float:
        """How long these entries would take, and how long nothing has moved."""
        rate = self.rate
        return self.stalled_s + (entries / rate if rate else 0.0)


class Backlog:
    """Written by its own task, `run`, and by `admit`; all on one event loop."""

    def __init__(self, predictions: Predictions, follower: Follower, bounds: Bounds) -> None:
        self._predictions, self._follower, self._bounds = predictions, follower, bounds
        self.census = Census(predictions, follower, bounds.streams)
        shards = predictions.shards
        self._entries, self._bytes = [0] * shards, [0] * shards
        self._added: list[tuple[int, int]] = [(0, 0)] * shards  # own appends since the last poll was sent
        self._drains = [Drain() for _ in range(shards)]
        self._revisions = [""] * shards
        self._memory = 0, 0
        self._finished: list[int] | None = None
        self._polled_at = 0.0
        self._connections = 0  # of the follower, at the last poll

    async def run(self) -> None:
        while True:
            try:
                await self.poll()
            except RollcastError:
                self._finished = None  # what was finished meanwhile is not known: the next sample is no sample
            except Exception:
                log.exception("measuring the backlog failed")
            await asyncio.sleep(POLL_S)

    async def poll(self) -> None:
        before = list(self._added)  # counted here until the answer is, which has them
        finished, heard, now = list(self._follower.finished), self.census.heard(), time.monotonic()
        followed = self._follower.away is None and self._follower.connections == self._connections
        self._connections = self._follower.connections
        pressure = await self._predictions.pressure()
        self._added = [(a - c, b - d) for (a, b), (c, d) in zip(self._added, before, strict=True)]
        self._memory = pressure.memory_bytes, pressure.memory_limit
        self.census.count(sum(shard.streams for shard in pressure.shards), heard)
        was, took_s = self._finished, now - self._polled_at
        self._finished, self._polled_at = finished, now
        for p, shard in enumerate(pressure.shards):
            self._entries[p], self._bytes[p], self._revisions[p] = shard.entries, shard.bytes, shard.revision
            if was is None or not followed or took_s > LATE_S:
                self._drains[p].skip(shard)
            else:
                self._drains[p].sample(now, took_s, finished[p] - was[p], shard)

    def admit(self, stream: str, size: int, new: bool = False) -> None:
        """Counts an entry of `size` bytes that is about to be appended; `new`: the first of its stream, as the census
        says. Raises BacklogFull, BrokerFull and TooManyStreams."""
        used, limit = self._memory
        if limit and used + size > MEMORY_SHARE * limit:
            raise BrokerFull(
                f"nothing was appended: the broker uses {used:,} of {limit:,} bytes, "
                f"and the last {1 - MEMORY_SHARE:.0%} are kept for answers",
                retry_after_s=UNKNOWN_RETRY_S,
            )
        p = shard_of(stream, len(self._entries))
        entries, waiting = self.entries(p), self._bytes[p] + self._added[p][1]
        drain, (most_bytes, most_s, _) = self._drains[p], self._bounds
        size += ENTRY_BYTES
        if entries and waiting + size > most_bytes:
            over = entries * (1 - RESUME_SHARE * most_bytes / (waiting + size))
            raise BacklogFull(
                f"shard {p}: {entries:,} unfinished entries of about {waiting:,} bytes, "
                f"and at most {most_bytes:,} bytes may wait",
                retry_after_s=self._retry_after(over, drain),
            )
        if entries and (seconds := drain.seconds(entries + 1)) > most_s:
            over = entries - RESUME_SHARE * most_s * (drain.rate or 0.0)
            raise BacklogFull(
                f"shard {p}: {entries:,} unfinished entries, {seconds:.0f} s of work; at most {most_s:g} s may wait",
                retry_after_s=self._retry_after(over, drain),
            )
        if new:
            self.census.admit(stream)
        added, its_bytes = self._added[p]
        self._added[p] = added + 1, its_bytes + size

    def entries(self, shard: int) -> int:
        """Unfinished entries of a shard, own appends of the last moment with them."""
        return self._entries[shard] + self._added[shard][0]

    def waiting_bytes(self, shard: int) -> int:
        """About what they take in the broker."""
        return self._bytes[shard] + self._added[shard][1]

    def revision(self, stream: str) -> str:
        """Changes when the settings of some stream of this one's shard were changed by a control."""
        return self._revisions[shard_of(stream, len(self._revisions))]

    def _retry_after(self, over: float, drain: Drain) -> float:
        """How long `over` entries take, s; nobody knows while nothing moves. Never longer than what may wait takes."""
        rate = drain.rate
        retry_s = UNKNOWN_RETRY_S if not rate or drain.stalled_s > WINDOW_S else over / rate
        return max(1.0, min(self._bounds.seconds, retry_s))
