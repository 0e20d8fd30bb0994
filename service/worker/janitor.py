"""Removes what idle streams leave in the broker: a little at a time, and only while the shard is ours (by its head).

A stream silent for longer than records are kept loses its records; one silent for longer than its state lives, too,
loses records, state, position and the model that its first entry bound. Settings that somebody set stay for longer.
What has been in quarantine for too long leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import takewhile
from typing import Final

from service.codec import parse_position
from service.metrics import WorkerMetrics
from service.ports import Idle, Log
from service.worker.residence import Residence
from service.worker.shard import Shard, Stream

PORTION: Final = 100  # streams of one shard at once
PAUSE_S: Final = 0.01  # between two shards
AGAIN_S: Final = 1.0  # after a full portion
COUNT_EVERY_S: Final = 5.0


class Janitor:
    """One shard a call. Used by Worker.run only, when no commit of the shard is in flight."""

    def __init__(
        self,
        broker: Log,
        residence: Residence,
        metrics: WorkerMetrics,
        *,
        state_ttl_s: float,
        output_history_s: float,
        settings_ttl_s: float = 2_592_000.0,
        dead_history_s: float = 604_800.0,
    ) -> None:
        self._broker, self._residence, self._metrics = broker, residence, metrics
        self._history_ms = int(output_history_s * 1000)
        self._idle_ms = int(max(output_history_s, state_ttl_s) * 1000)
        self._settings_ms = int(max(output_history_s, state_ttl_s, settings_ttl_s) * 1000)
        self._dead_ms = int(dead_history_s * 1000)
        self._every_s = min(60.0, max(0.2, min(output_history_s, state_ttl_s, settings_ttl_s, dead_history_s) / 10))
        self._swept = {what: metrics.swept.labels(what) for what in ("records", "streams", "settings", "quarantine")}
        self._stored = metrics.streams.labels("stored")
        self._count_at = 0.0
        self.next_at = 0.0  # by this process's clock

    def sweep(self, shards: Collection[Shard], now: float, pinned: Callable[[Stream], bool]) -> None:
        """Looks after the shard whose turn it is. Raises CommitRefused when the broker takes nothing at present."""
        self.next_at = now + PAUSE_S
        if shards and now >= self._count_at:
            self._count_at = now + COUNT_EVERY_S
            known = self._broker.known([shard.number for shard in shards])
            self._stored.set(max(0, known - len(self._residence)))
            self._broker.look_at_memory()
        due = [shard for shard in shards if shard.in_flight is None and now >= shard.sweep.next_at]
        if due:
            shard = min(due, key=lambda one: one.sweep.next_at)
            shard.sweep.next_at = now + self._every_s  # also where the broker refuses what comes now
            # settings last: to date them needs memory, which a full broker refuses, and the others free some
            parts = self._streams(shard, pinned), self._quarantine(shard), self._settings(shard, pinned)
            if any(parts):
                shard.sweep.next_at = now + min(AGAIN_S, self._every_s)
        self.next_at = max(now + PAUSE_S, min([self._count_at, *(shard.sweep.next_at for shard in shards)]))

    # --- each says whether there may be more to do at once ---------------------------------------------------------

    def _streams(self, shard: Shard, pinned: Callable[[Stream], bool]) -> bool:
        look, kept_ms = self._broker.idle, self._history_ms
        idle = look(shard.number, 0, self._idle_ms, PORTION, kept_ms=kept_ms)
        gone = [one for one in idle if _finished(one, shard) and not _stays(one.stream, shard, pinned)]
        sweep = shard.sweep
        found = look(shard.number, sweep.score_ms, kept_ms, PORTION, sweep.skip, kept_ms=kept_ms)
        silent = list(takewhile(lambda one: not one.young, found))
        if not gone and not silent:
            return False
        streams = [one.stream for one in gone]
        stay = [one for one in silent if one.stream not in set(streams)]
        bare = [one.stream for one in stay]
        if not self._broker.remove(shard.number, shard.written, bare, streams):
            return False  # the shard is another's: the next commit finds out
        self._forget(shard, streams)
        self._swept["records"].inc(len(bare))
        self._swept["streams"].inc(len(streams))
        if silent:
            last_ms = silent[-1].last_ms
            if len(silent) == len(found) < PORTION:
                sweep.score_ms, sweep.skip = last_ms + 1, 0
            else:  # more may be of the same millisecond
                seen = sum(one.last_ms == last_ms for one in stay)
                sweep.skip = seen + (sweep.skip if last_ms == sweep.score_ms else 0)
                sweep.score_ms = last_ms
        return len(idle) == PORTION or len(silent) == PORTION

    def _quarantine(self, shard: Shard) -> bool:
        tidied = self._broker.tidy_dead(shard.number, shard.written, self._dead_ms)
        self._swept["quarantine"].inc(tidied.aged)
        self._metrics.dead_overflow.inc(tidied.overflow)
        return tidied.more

    def _settings(self, shard: Shard, pinned: Callable[[Stream], bool]) -> bool:
        """Those that were set, of streams that are gone for long. What is in memory of such a stream goes as well, or
        it would count on settings that the broker does not have."""
        sweep, more = shard.sweep, False
        if sweep.adopting is not None:
            sweep.adopting = self._broker.adopt(shard.number, shard.written, sweep.adopting)
            if sweep.adopting == b"0":
                sweep.adopting = None
            more = sweep.adopting is not None
        found = self._broker.unsettled(shard.number, self._settings_ms, PORTION)
        names = [name for name in found if not _stays(name, shard, pinned)]
        if names and self._broker.unsettle(shard.number, shard.written, names):
            self._forget(shard, names)
            self._swept["settings"].inc(len(names))
        return more or (len(found) == PORTION and bool(names))

    def _forget(self, shard: Shard, names: Iterable[str]) -> None:
        for name in names:
            if (stream := shard.streams.get(name)) is not None:
                self._residence.remove(stream)


def _finished(one: Idle, shard: Shard) -> bool:
    """Whether nothing would be stepped again without the stream's position: all it answered lies at or below low. And
    whether all is told of it: its exits, and for as long as records are kept."""
    if one.inside or one.young:
        return False
    try:
        return one.position is None or parse_position(one.position).last <= shard.head.low
    except ValueError:
        return False  # somebody else wrote there: it is said when the stream is met


def _stays(name: str, shard: Shard, pinned: Callable[[Stream], bool]) -> bool:
    stream = shard.streams.get(name)
    return stream is not None and pinned(stream)
