"""The loop of a worker: receive, take, step, settle the commits before, commit.

One thread does everything but decoding frames. Steps of batch n + 1 run while the broker applies the commits of
batch n; their replies are read before the commits of n + 1 are sent. Any doubt about a shard throws away all that
is held of it, and the shard is acquired again: positions in the broker make that exact.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from service.batching import Scheduler
from service.codec import (
    NOWHERE,
    Position,
    decode_settings,
    id_number,
    last_honest,
    number_id,
    parse_entry,
    parse_position,
)
from service.contracts import NO_STREAM, Entry, FrameInput, Limits, StreamSettings
from service.decode import Tokenizer
from service.errors import BadHead, BrokerAway, CommitRefused, EntryError, Fenced, Stuck, TooLarge
from service.keys import shard_of
from service.metrics import WorkerMetrics
from service.ports import Commit, Committed, Engine, Loaded, Log, WorkerInfo
from service.state import restart_on_load
from service.worker import careful
from service.worker.decoding import Decoders, Unpack
from service.worker.inbox import Inbox, room_in
from service.worker.janitor import Janitor
from service.worker.model import ServedModel
from service.worker.residence import Pinned, Residence
from service.worker.shard import Item, Shard, Stream
from service.worker.sharing import share
from service.worker.silence import Silence
from service.worker.stepping import Call, Stepper
from service.worker.tally import Tally
from service.worker.told import tell

COMMIT_ENTRIES: Final = 1024
COMMIT_BYTES: Final = 8 << 20
READ_BYTES: Final = 8 << 20  # what one read should bring, over all shards
AHEAD_BYTES: Final = 64 << 20  # what may wait in memory
TRIM_EVERY_S: Final = 1.0
BEAT_S: Final = 0.25  # at most, between two heartbeats
SOONEST_S: Final = 0.005  # at least, however soon a lease ends
LAST_S: Final = 1.0  # that a stopping worker leaves to what it cannot end: an entry on trial, frames being decoded

Result = TypeVar("Result")
log = logging.getLogger("rollcast.worker")


class Worker:
    """Owns shards of a log and answers their entries. `run` is the only writer of everything in here."""

    def __init__(
        self,
        broker: Log,
        engines: Mapping[str, tuple[Engine, str]],  # by name: the engine and its package's schema
        metrics: WorkerMetrics,
        *,
        lease_s: float = 3.0,
        defaults: Mapping[str, str | None] | None = None,  # kind -> model
        state_ttl_s: float = 86_400.0,
        input_history_s: float = 0.0,
        output_history_s: float = 600.0,
        settings_ttl_s: float = 2_592_000.0,
        dead_history_s: float = 604_800.0,
        batch_entries: int = 1024,
        max_resident_streams: int = 16_384,
        tokenizers: Mapping[str, Tokenizer] | None = None,  # by name of the text models
        decode_threads: int = 2,
        limits: Limits | None = None,
        about: WorkerInfo | None = None,
        hung_s: float = 20.0,  # that one entry may take alone, in careful mode
        alive: Callable[[], None] = lambda: None,  # called with every heartbeat
        fault: Callable[[str], None] = lambda point: None,
        poison: Callable[[bytes], None] | None = None,  # given an entry's bytes where they are first looked into
    ) -> None:
        self._broker = broker
        self._models = {
            name: ServedModel(engine, schema, (tokenizers or {}).get(name))
            for name, (engine, schema) in engines.items()
        }
        self._limits = limits or Limits()
        self._pool = Decoders(decode_threads, self._limits)
        self._stepper = Stepper(self._models, defaults or {}, state_ttl_s, self._pool.decode)
        self._tally = Tally(metrics, self._models.values())
        self._lease_s = lease_s
        self._history_ms = int(input_history_s * 1000)
        self._cut_ms = int(output_history_s * 1000)
        share = max(1, max_resident_streams // 4)  # of what may be pinned: read ahead, just read, in a batch
        self._batch_entries = min(batch_entries, share)
        self._ahead_entries = min(batch_entries * 4, share)
        self._read_entries = min(2 * share, 4 * batch_entries)
        self._about = about or WorkerInfo("", {})
        self._hung_s, self._alive = hung_s, alive
        self._stop = threading.Event()
        self._fault, self._poison = fault, poison
        self._shards: dict[int, Shard] = {}
        self._doubts = careful.Doubts()
        self._scheduler: Scheduler[Item] = Scheduler()
        self._inbox = Inbox(self._scheduler, self._stepper.choose)
        self._residence = Residence(max_resident_streams, self._stepper.forget)
        self._janitor = Janitor(
            broker,
            self._residence,
            metrics,
            state_ttl_s=state_ttl_s,
            output_history_s=output_history_s,
            settings_ttl_s=settings_ttl_s,
            dead_history_s=dead_history_s,
        )
        self._silence = Silence(broker, self._models, state_ttl_s=state_ttl_s)
        self._entry_bytes = 65_536.0  # to size reads: a guess, then what was read; large entries count at once
        self._entry_s = 0.0  # to step one, to size batches: rises at once, falls slowly
        self._reading: dict[int, Shard] | None = None  # what the read under way was asked for
        self._next_beat = 0.0
        self._deadline = 0.0  # of the leases, by this process's clock
        self._renewed = 0.0  # when the leases last were
        self._share = 0  # shards this worker should own
        self._others = False  # are there other live workers?
        self._place = 0  # where it begins to look for free ones
        self._decoded: deque[Item] = deque()
        self._decoding = 0  # frames given to the pool and not yet collected
        self._held_back: set[Stream] = set()  # with frames that are not decoded before it is known for which model
        self._on_trial: Shard | None = None
        self._left = False  # in this trial it gave its other shards away, and left `workers`
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._clock_ms = 0.0  # how far the broker's clock is ahead of this process's monotonic one
        self._spoilt: dict[int, str] = {}  # shards that wait for their repair, and why
        self._away_for = ""  # why the broker was away when that was last said
        self.owned = 0  # shards; read by /readyz, as what follows
        self.away = True  # is the broker?
        self.idle = False  # no shard is to be had: there are more workers than shards
        self.trouble = ""  # why the broker takes no commits at present
        self.beat_at = time.monotonic()  # when it last had a heartbeat
        self.stuck = ""  # why a thread of this process may never end, once `run` is over

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; then finishes the batch in hand, commits it and gives the leases back.

        Ends by itself when what it works on does not come to an end. Then, and when a decoder does not return, `stuck`
        says so: the process should end without waiting for its threads."""
        backoff_s = 0.05
        self._stop = stop
        try:
            while not stop.is_set():
                try:
                    self._turn()
                    backoff_s = 0.05
                except BrokerAway as error:
                    if error.detail != self._away_for:
                        log.warning("broker away", extra={"detail": error.detail})
                    self.away, self._away_for = True, error.detail
                    self._lose(list(self._shards.values()), "the broker is away", "broker")
                    self._next_beat = 0.0
                    stop.wait(backoff_s)
                    backoff_s = min(1.0, backoff_s * 2)
                except CommitRefused as error:  # a read was refused: what it was to bring is read again
                    self._refused(error)
                    self._lose(list(self._shards.values()), "the broker refuses reads", "broker")
                    stop.wait(backoff_s)
                except Stuck as error:
                    log.warning("this worker ends", extra={"why": error.detail})
                    self.stuck = error.detail
                    break
            self._drain()
        finally:
            self._end()

    def wake(self) -> None:
        """Ends a wait for entries; may be called from any thread or signal handler."""
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it ended
            os.write(self._wake_write, b"\0")

    def _turn(self) -> None:
        if time.monotonic() >= self._next_beat:
            self._beat()
        self._receive()
        if len(self._doubts):
            self._try_doubtful()
        batch = self._scheduler.take(self._affordable())
        batch, bound = self._step(batch)
        if self._held_back:
            self._start_held_back(batch)
        self._settle()
        with contextlib.suppress(CommitRefused):  # they lie there until the broker takes them
            self._expel()
        for upkeep in (self._janitor, self._silence):
            if (now := time.monotonic()) >= upkeep.next_at:
                with contextlib.suppress(CommitRefused):  # it can wait
                    upkeep.sweep(self._shards.values(), now, self._pinned(item.key for item in batch))
        if batch:
            self._commit([item for item in batch if not item.key.shard.lost], bound)

    def _end(self) -> None:
        """Waits for the threads, but not for ever: a native decoder may never return."""
        self._broker.close()
        ending = threading.Thread(target=self._pool.shutdown, daemon=True)
        ending.start()
        ending.join(0.0 if self.stuck else LAST_S)
        if ending.is_alive():
            self.stuck = self.stuck or "a frame is still being decoded"
        if not self.stuck:  # else a thread may still write to it
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _drain(self) -> None:
        """Gives everything back: what others may do at once they need not wait a lease for."""
        try:
            self._settle()
            for shard in list(self._shards.values()):
                self._give_back(shard)
            self._broker.leave()
        except (BrokerAway, CommitRefused) as error:
            log.warning("leases not given back", extra={"detail": error.detail})
        self._shards.clear()

    # --- leases --------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Renews what is owned, takes its share of what is free. Clocks decide only when to try; head who commits.
        Raises Stuck."""
        self._live()
        if (hung := self._pool.hung(self._hung_s)) is not None:
            self._suspect(hung)
            raise Stuck("the decoding of a frame does not come to an end")
        before = time.monotonic()
        soonest_s = BEAT_S
        try:
            self._lose(self._renew(), "the lease is another's", "lease")
            soonest_s = self._balance()
            self.away, self.trouble = False, ""
            if self._away_for:
                log.info("the broker answers again")
                self._away_for = ""
        except CommitRefused as error:
            self._refused(error)
        self.owned, self.idle = len(self._shards), self._share == 0
        self._next_beat = before + max(SOONEST_S, min(BEAT_S, self._lease_s / 3, soonest_s))
        self._tally.residence(self._residence.evicted)
        self._tally.held(self.owned)
        self._commit_idle(before)

    def _live(self) -> None:
        """Says to this process that its loop goes on."""
        self.beat_at = time.monotonic()
        self._alive()

    def _renew(self) -> list[Shard]:
        """Says that this worker lives; learns how many shards it should have. Returns those that are another's now."""
        before = time.monotonic()
        due = before + SOONEST_S > self._renewed + self._lease_s / 3  # a heartbeat is cheap, a lease a script each
        about = msgspec.structs.replace(self._about, trouble=self.trouble)
        renewed = self._broker.renew(list(self._shards) if due else [], msgspec.json.encode(about))
        self._set_clock(renewed.now_ms)
        if due:
            self._renewed, self._deadline = before, before + self._lease_s
        self._others = renewed.workers > 1
        self._share = share(self._broker.shards, renewed.workers, renewed.place)
        self._place = renewed.place * self._broker.shards // renewed.workers
        return [self._shards[number] for number in renewed.lost]

    def _balance(self) -> float:
        """Gives one shard back when there are too many, or takes free ones. Returns when to look again, s."""
        wanted = self._share - len(self._shards)
        if wanted < 0:
            newest = next(reversed(self._shards.values()))  # its states are the fewest to load again
            self._give_back(newest)
            log.info("shard handed over", extra={"shard": newest.number, "owned": len(self._shards)})
        if wanted <= 0:
            return BEAT_S
        absent = [number for number in range(self._broker.shards) if number not in self._shards]
        free, soonest_s = self._broker.free(absent)
        free.sort(key=lambda number: (number - self._place) % self._broker.shards)  # not everybody the same ones
        acquired: list[int] = []
        until = time.monotonic() + self._lease_s / 6  # then what is owned already is to be renewed
        while free and len(acquired) < wanted and time.monotonic() < until:
            if self._acquire(number := free.pop(0)):
                acquired.append(number)
        if acquired:
            log.info("shards acquired", extra={"shards": acquired, "owned": len(self._shards)})
        if len(acquired) == wanted:
            return BEAT_S
        return 0.0 if free else soonest_s

    def _give_back(self, shard: Shard) -> None:
        """Hands a shard over: what it has in flight is committed first, what only waits is its next owner's."""
        self._settle_one(shard)
        if shard.repair and not shard.lost:  # its next owner would not know of it
            self._send(shard, [], {})
            self._settle_one(shard)
        if not shard.lost:
            self._forget([shard])
            self._broker.release(shard.number)

    def _acquire(self, number: int) -> bool:
        before = time.monotonic()
        try:
            head = self._broker.acquire(number)
        except BadHead as error:
            if self._spoilt.get(number) != error.detail:
                self._spoilt[number] = error.detail
                log.error(
                    "this shard is left alone: `rollcast doctor --repair` mends it",
                    extra={"shard": number, "detail": error.detail},
                )
            return False
        if head is None:
            return False
        self._spoilt.pop(number, None)
        if not self._shards:
            self._deadline = before + self._lease_s
        self._deadline = min(self._deadline, before + self._lease_s)
        shard = Shard(number, head, self._broker.behind(number))
        self._shards[number] = shard
        if careful.is_doubtful(shard, self._broker.suspected(number)):
            self._doubts.add(shard)
            log.warning("one entry at a time: this shard was lost too often", extra={"shard": number})
        log.debug(
            "shard acquired", extra={"shard": number, "commit": shard.head.n, "low": head.split(b" ")[3].decode()}
        )
        return True

    def _lose(self, shards: Sequence[Shard], why: str, reason: str = "fenced") -> None:
        """A doubt: these shards are acquired and read again."""
        if shards:
            if reason == "lease" and (tried := self._on_trial) in shards and tried is not None:
                self._broker.blame(tried.number)
            self._tally.lost(len(shards), reason)
            of_one = {"shard": shards[0].number, "commit": shards[0].head.n} if len(shards) == 1 else {}
            log.warning("shards lost", extra={**of_one, "shards": [shard.number for shard in shards], "why": why})
            self._forget(shards)

    def _forget(self, shards: Sequence[Shard]) -> None:
        """Everything that is held of these shards."""
        for shard in shards:
            shard.lost = True
            self._doubts.discard(shard)
            self._shards.pop(shard.number, None)
            self._broker.abandon(shard.number)
            for stream in shard.streams.values():
                self._stepper.forget(stream)
        self._inbox.drop_lost()
        self._inbox.bytes += sum([item.size for item in self._doubts])
        self._residence.drop_lost()
        self._held_back = {stream for stream in self._held_back if not stream.shard.lost}
        self.owned = len(self._shards)

    def _refused(self, error: CommitRefused) -> None:
        """The broker answers, but takes nothing: said, and shown by /readyz, until it does."""
        if self.trouble != error.detail:
            log.error("the broker refuses", extra={"detail": error.detail})
        self.trouble = error.detail or "the broker refuses"

    # --- receiving -----------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Takes what has arrived; waits for something only when there is nothing to do."""
        on_trial = len(self._doubts) > 0 and not self._decoding
        busy = self._scheduler.has_ready or on_trial or any(shard.in_flight for shard in self._shards.values())
        self._fault("before-read")
        self._ask()
        wait_s = 0.0 if busy else max(0.0, min(self._next_beat, self._janitor.next_at) - time.monotonic())
        began = time.perf_counter()
        answer = self._broker.poll(wait_s, self._wake_read)
        if answer is not None:
            asked, self._reading = self._reading or {}, None
            self._compare(asked)
            self._admit(answer, asked)
            self._tally.stage("read", time.perf_counter() - began if busy else 0.0)
            self._ask()
        for stream, entries, gone, after in [] if self._trial_waits else self._inbox.fetch(self._broker):
            if stream.shard.lost or (gone and not self._miss_held(stream, gone, after)):
                continue
            now = time.perf_counter()
            for entry_id, fields in entries:
                item = self._item(parse_entry(entry_id, fields), stream, now)
                stream.shard.holding[stream].fetched.append(self._offer(item))
        self._collect_decoded()

    @property
    def _trial_waits(self) -> bool:
        """Until nobody decodes: nothing more is read meanwhile."""
        return self._decoding > 0 and len(self._doubts) > 0

    def _ask(self) -> None:
        """Has one read under way whenever there is room for what it brings."""
        ahead = len(self._scheduler) + len(self._doubts)
        full = ahead >= self._ahead_entries or self._inbox.bytes >= AHEAD_BYTES
        if full or self._trial_waits or (self._reading is not None and self._reading == self._shards):
            return
        wanted = {number: shard for number, shard in self._shards.items() if room_in(shard)}
        current = self._reading is not None and wanted.items() <= self._reading.items()
        if not wanted or current:
            return
        budget = min(READ_BYTES / self._entry_bytes, self._read_entries) / len(wanted)
        count = int(max(1, min(budget, COMMIT_ENTRIES)))
        now = time.monotonic()
        look = [number for number, shard in wanted.items() if shard.account.look(now)]
        self._broker.ask({number: shard.cursor for number, shard in wanted.items()}, count, 1.0, look)
        self._reading = wanted

    def _compare(self, asked: Mapping[int, Shard]) -> None:
        """Finds out whether entries left the logs before they were read."""
        for number, seen in self._broker.looked().items():
            shard = self._shards.get(number)
            if shard is None or asked.get(number) is not shard:
                continue
            if missing := shard.compare(seen, time.monotonic()):
                self._missing(shard, missing, shard.cursor)

    def _miss_held(self, stream: Stream, entries: int, after: int) -> bool:
        """Entries of which only the ids were kept have left the log. Returns whether the shard is this worker's still:
        else its new owner answered them."""
        shard = stream.shard
        if not shard.lost and self._broker.extend([shard.number]):
            self._lose([shard], "the lease is another's", "lease")
        if shard.lost:
            return False
        stream.lose(entries, after)
        shard.account.gone(entries)
        self._missing(shard, entries, after)
        return True

    def _missing(self, shard: Shard, entries: int, after: int) -> None:
        self._tally.trimmed(entries)
        log.error(
            "entries left the log unanswered: somebody else trims it",
            extra={"shard": shard.number, "entries": entries, "after": number_id(after).decode()},
        )

    def _admit(self, answer: list[tuple[int, list[tuple[bytes, list[bytes]]]]], asked: Mapping[int, Shard]) -> None:
        arrived = []
        strangers: dict[int, dict[str, int]] = {}  # by shard and name, the last entry that was read
        for number, entries in answer:
            shard = self._shards.get(number)
            if shard is None or asked.get(number) is not shard:  # it was lost and acquired meanwhile: read again
                continue
            parsed = [parse_entry(entry_id, fields) for entry_id, fields in entries]
            if parsed[-1].number > (honest := self._last_honest(shard)):  # ids ascend
                shard.beyond = True
                parsed = [entry for entry in parsed if entry.number <= honest]
            for entry in parsed:
                if entry.stream not in shard.streams:
                    strangers.setdefault(number, {})[entry.stream] = entry.number
            arrived.append((shard, parsed))
        if strangers:
            coming = sum(map(len, strangers.values()))
            if len(self._residence) + coming > self._residence.limit:
                named = (shard.streams.get(entry.stream) for shard, parsed in arrived for entry in parsed)
                self._residence.make_room(coming, self._pinned(stream for stream in named if stream is not None))
            self._meet(strangers)
            for shard, parsed in arrived:
                if shard.holes:
                    met = strangers.get(shard.number, {})
                    for name, first in {e.stream: e.number for e in reversed(parsed) if e.stream in met}.items():
                        shard.meet(shard.streams[name], first)
        now = time.perf_counter()
        for shard, parsed in arrived:
            streams, unfinished, repeats = shard.streams, shard.unfinished, 0
            for entry in parsed:
                stream = streams[entry.stream]
                shard.cursor = entry.number
                if entry.number <= stream.last:  # finished before: a repeat, after a takeover
                    repeats += 1
                    continue
                if shard.careful:
                    item = self._item(entry, stream, now)
                    self._inbox.bytes += item.size
                    shard.trials.append(item)
                elif stream.held is not None and self._inbox.hold(stream.held, stream, entry):
                    continue
                else:
                    item = self._offer(self._item(entry, stream, now))
                unfinished.append(item)
            shard.kept += repeats
            shard.account.read(len(parsed) - repeats)
        if count := sum([len(parsed) for _, parsed in arrived]):
            average = 128 + sum([len(entry.data) for _, parsed in arrived for entry in parsed]) / count
            self._entry_bytes = max(average, (self._entry_bytes + average) / 2)
        self._fault("after-decode")

    def _set_clock(self, now_ms: int) -> None:
        self._clock_ms = now_ms - time.monotonic() * 1000

    def _last_honest(self, shard: Shard) -> int:
        """An id above it is no clock's, as far as this process can tell: `expel` asks the broker's own."""
        return last_honest(int(time.monotonic() * 1000 + self._clock_ms), shard.head.low)

    def _expel(self) -> None:
        """Shards in whose logs ids lie that no clock gives: these are taken out when all before them is finished."""
        for shard in [shard for shard in self._shards.values() if shard.beyond and shard.idle]:
            if shard.in_flight is not None or shard.repair:
                continue
            if shard.low() > shard.head.low:  # repeats were skipped: the head is to say so
                self._send(shard, [], {})
                continue
            try:
                found = self._broker.expel(shard.number, shard.written)
            except Fenced as error:
                self._tally.fenced()
                self._lose([shard], error.detail)
                continue
            self._set_clock(found.now_ms)
            shard.beyond = found.more
            if found.first:
                shard.kept = 0  # what was finished has left the log
                self._tally.expelled(found.refused)
                self._tally.dead_overflow(found.overflow)
                log.error(
                    "ids that no clock gives: a producer made them up",
                    extra={
                        "shard": shard.number, "first": found.first, "refused": found.refused, "moved": found.moved,
                    },
                )  # fmt: skip

    def _item(self, entry: Entry, stream: Stream, now: float) -> Item:
        item = Item(entry, stream, now)
        item.error = item.error or self._too_large(entry)
        return item

    def _offer(self, item: Item) -> Item:
        """Lets an entry wait for its turn, decoded meanwhile."""
        freshness = item.key.settings.freshness or item.key.usual
        if freshness is not None and freshness.mode == "latest":
            self._inbox.freshen(item, freshness)
        elif item.entry.kind == "control":
            item.key.newest = item  # a control before it may say `latest`, and nothing passes this one either
        if item.entry.kind == "frame" and item.error is None:
            waiting = self._scheduler.waiting(item.key)
            if waiting and (item.key.settings.model is None or any(one.entry.kind == "control" for one in waiting)):
                item.ready = False  # its model may be another one when its turn comes
                self._held_back.add(item.key)
            else:
                self._start(item)
        self._inbox.offer(item)
        return item

    def _start(self, item: Item) -> None:
        """Has a frame decoded for its model, unless it is refused in its turn."""
        form = self._form(item)
        item.ready = form is None
        if form is not None:
            self._decoding += 1
            self._pool.submit(self._decode, item, form)

    def _start_held_back(self, batch: list[Item]) -> None:
        """Frames whose model is settled by what of their streams was stepped in this batch."""
        for stream in self._held_back.intersection([item.key for item in batch]):
            for place, item in enumerate(self._scheduler.waiting(stream)):
                if item.entry.kind == "control" or (place and stream.settings.model is None):
                    break
                if not item.ready and not item.decoding:
                    self._start(item)
                    if item.ready:
                        self._scheduler.wake(item)
            else:
                self._held_back.discard(stream)

    def _pinned(self, busy: Iterable[Stream]) -> Pinned:
        """Those that `busy` names, and all of which something waits or is in flight."""
        flying = (item.key for s in self._shards.values() if s.in_flight is not None for item in s.answered)
        doubtful = (item.key for item in self._doubts)
        return Pinned(self._scheduler.waiting, {*busy, *flying, *doubtful})

    def _meet(self, strangers: Mapping[int, Mapping[str, int]]) -> None:
        """First touch of streams: position, state and settings by one round trip."""
        wanted = {number: list(streams) for number, streams in strangers.items()}
        for number, found in self._broker.load(wanted).items():
            shard = self._shards[number]
            for name, loaded in zip(wanted[number], found, strict=True):
                position, settings = _read_stream(name, number, loaded)
                stream = Stream(name, shard, position or NOWHERE, settings)
                home = shard_of(name, self._broker.shards)
                if name != NO_STREAM and home != shard.number:
                    stream.misplaced = home
                model = self._models.get(settings.model or "")
                row = model.layout.decode(loaded.state) if model is not None and loaded.state else None
                bound = settings.model is not None
                stream.restart = restart_on_load(position, loaded.state is not None, row is not None, bound)
                if model is not None:
                    stream.usual = model.freshness
                    if row is not None and stream.restart is None:
                        stream.model, stream.slot = model, model.table.put(row)
                        self._tally.loaded()
                self._residence.add(stream, strangers[number][name])

    def _too_large(self, entry: Entry) -> TooLarge | None:
        limit = self._limits.frame_bytes if entry.kind == "frame" else self._limits.entry_bytes
        if len(entry.data) <= limit:
            return None
        return TooLarge(f"{entry.kind} of {len(entry.data):,} bytes: expected at most {limit:,}")

    # --- decoding ------------------------------------------------------------------------------------------------

    def _form(self, item: Item) -> FrameInput | None:
        """What a frame is to be decoded for; None when it is refused in its turn."""
        if item.key.misplaced is not None:
            return None
        try:
            item.model = self._stepper.choose(item)
        except EntryError:
            return None
        item.decoding = item.model.manifest.frames is not None
        return item.model.manifest.frames

    def _decode(self, item: Item, form: FrameInput, unpack: Unpack) -> None:
        """In a thread of the pool: OpenCV releases the GIL."""
        self._decode_one(item, form, unpack)
        self._decoded.append(item)
        self.wake()

    def _decode_one(self, item: Item, form: FrameInput, unpack: Unpack) -> None:
        began = time.perf_counter()
        if self._poison is not None:
            self._poison(item.entry.data)
        if item.drop is None and 0 < item.fresh_until_ms < time.time() * 1000:
            item.drop = "stale"
        try:
            if item.drop is None:
                item.x = unpack(item.entry.data, form)
        except EntryError as error:
            item.error = error
        except Exception as error:  # whatever a decoder does to itself, it is this entry's fault alone
            item.error = EntryError(f"decoding failed: {error}")
        item.decode_s = time.perf_counter() - began

    def _collect_decoded(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 65_536)
        if not self._decoded:
            return
        spent = []
        while self._decoded:
            item = self._decoded.popleft()
            spent.append(item.decode_s)
            item.ready = True
            self._scheduler.wake(item)
        self._decoding -= len(spent)
        self._tally.decoded(spent)
        self._fault("after-decode")

    # --- careful mode ----------------------------------------------------------------------------------------------

    def _try_doubtful(self) -> None:
        """Entries of shards in doubt, each alone (careful.py)."""
        if self._decoding:
            return
        self._settle()
        for shard in self._doubts.each(lambda: self._decoding > 0):
            try:
                may = self._broker.attempt(shard.number, shard.written, shard.trials[0].entry.id)
                self._on_trial = shard
                self._try(shard, shard.trials.popleft(), may)
            except Fenced as error:
                self._tally.fenced()
                self._lose([shard], error.detail)
            except CommitRefused as error:
                self._refused(error)
                time.sleep(0.02)
                return
            finally:
                self._on_trial = None

    def _suspect(self, item: Item) -> None:
        """This process is about to end for an entry that is not on trial: that counts as its first try."""
        shard = item.key.shard
        log.error("given up", extra=_which(item))
        with contextlib.suppress(Fenced, CommitRefused):
            self._settle_one(shard)
            if not shard.lost:
                self._broker.attempt(shard.number, shard.written, item.entry.id)

    def _try(self, shard: Shard, item: Item, may: bool) -> None:
        if not may:
            careful.refuse(item)
            log.error("an entry ends its worker: refused", extra=_which(item))
        self._inbox.bytes -= item.size
        try:
            bound = self._work_alone(item)
        except Stuck:
            if self._stop.is_set():  # an orderly end is no failed try
                with contextlib.suppress(BrokerAway, CommitRefused):
                    self._broker.forgive(shard.number, shard.written, item.entry.id)
            else:
                log.error("given up", extra=_which(item))
            raise
        if shard.lost:
            return
        self._commit([item], bound)
        self._settle_one(shard)
        if not shard.lost and careful.is_over(shard, refused=not may):
            self._broker.acquit(shard.number, shard.written)
            self._doubts.discard(shard)
            while shard.trials:
                item = shard.trials.popleft()
                self._inbox.bytes -= item.size  # it waits in the inbox from here on
                self._offer(item)

    def _work_alone(self, item: Item) -> dict[Stream, bytes]:
        """Decodes and steps one entry, while this thread renews the leases. Raises Stuck."""
        shard, until = item.key.shard, time.monotonic() + self._hung_s
        if item.entry.kind == "frame" and item.error is None and (form := self._form(item)) is not None:
            self._wait_for(careful.in_thread(lambda: self._decode_one(item, form, self._pool.decode)), until)
        if shard.lost:
            return {}
        self._fault("before-step")
        batch, bound, calls = self._wait_for(careful.in_thread(lambda: self._step_alone(item)), until)
        if not shard.lost:
            self._tally.batch(time.perf_counter(), batch, calls)
            self._fault("after-step")
        return bound

    def _step_alone(self, item: Item) -> tuple[list[Item], dict[Stream, bytes], list[Call]]:
        if self._poison is not None and item.entry.kind != "frame" and item.error is None:
            self._poison(item.entry.data)
        return self._stepper.step([item], time.time() * 1000)

    def _wait_for(self, work: Future[Result], until: float) -> Result:
        """What comes of work on the entry on trial. What the work may touch stays as it is until then: shards that are
        lost or given away meanwhile are forgotten afterwards. Raises Stuck past `until`."""
        long_at, stopping, self._left = time.monotonic() + careful.LONG_S, False, False
        lost: set[Shard] = set()
        given: list[Shard] = []
        away: BrokerAway | None = None
        work.add_done_callback(lambda _: self.wake())
        while not work.done():
            now = time.monotonic()
            if self._stop.is_set() and not stopping:
                stopping, until = True, min(until, now + LAST_S)
            if now > until:
                self._forget(given)
                raise Stuck("an entry on trial does not come to an end")
            if now >= self._next_beat:
                self._next_beat = now + min(BEAT_S, self._lease_s / 3)
                self._live()
                try:
                    if away is None:
                        lost.update(self._renew_on_trial(given, long=now > long_at))
                except BrokerAway as error:
                    away = error
                except CommitRefused as error:
                    self._refused(error)
            select.select([self._wake_read], [], [], max(0.0, min(until, self._next_beat) - now))
            self._collect_decoded()
        self._forget(given)
        self._lose(list(lost), "the lease is another's", "lease")
        if away is not None:
            raise away
        return work.result()

    def _renew_on_trial(self, given: list[Shard], long: bool) -> list[Shard]:
        """Renews the leases. When the trial has become a `long` one, other workers get all shards but the entry's, and
        this worker leaves them. Returns the shards that are another's now."""
        if self._left:
            before, mine = time.monotonic(), [shard for shard in self._shards.values() if shard not in given]
            lost = self._broker.extend([shard.number for shard in mine])
            self._renewed, self._deadline = before, before + self._lease_s
            return [self._shards[number] for number in lost]
        gone = self._renew()
        if long and self._others:
            self._left = True
            given += [s for s in self._shards.values() if s is not self._on_trial and s not in gone and not s.repair]
            for shard in given:
                self._broker.release(shard.number)
            self._broker.leave()
            log.warning("an entry on trial takes long: the other shards are given away", extra={"shards": len(given)})
        return gone

    # --- stepping and committing -----------------------------------------------------------------------------------

    def _affordable(self) -> int:
        """Entries of a batch: so many that the leases are renewed in time, however slow the models are."""
        if self._entry_s == 0:
            return self._batch_entries
        return max(1, min(self._batch_entries, int(self._lease_s / 3 / self._entry_s)))

    def _step(self, batch: list[Item]) -> tuple[list[Item], dict[Stream, bytes]]:
        """Steps a batch, and more of the streams that lag where there is room. Returns all of them."""
        if not batch:
            return batch, {}
        self._fault("before-step")
        began, room = time.monotonic(), self._affordable() - len(batch)
        batch, bound, calls = self._stepper.step(batch, time.time() * 1000, self._scheduler, room)
        spent_s = (time.monotonic() - began) / len(batch)
        self._entry_s = max(spent_s, 0.8 * self._entry_s + 0.2 * spent_s)
        self._inbox.bytes -= sum([item.size for item in batch])
        if self._poison is not None:
            for item in batch:
                if item.entry.kind != "frame" and item.error is None:  # a frame was looked into when it was decoded
                    self._poison(item.entry.data)
        self._tally.batch(time.perf_counter(), batch, calls)
        self._fault("after-step")
        return batch, bound

    def _commit(self, items: list[Item], bound: dict[Stream, bytes]) -> None:
        """One transaction a shard, and more where one would be too large, the earlier entries first."""
        if time.monotonic() > self._deadline:
            self._renew_late()
            items = [item for item in items if not item.key.shard.lost]
        by_shard: dict[Shard, list[Item]] = {}
        for item in items:
            by_shard.setdefault(item.key.shard, []).append(item)
        while by_shard:
            rest: dict[Shard, list[Item]] = {}
            for shard, mine in by_shard.items():
                now, more = _split(mine)
                if more:
                    rest[shard] = more
                named = {item.key for item in now} if bound else ()
                self._send(shard, now, {stream.name: bound[stream] for stream in named if stream in bound})
            by_shard = rest
            if rest:
                self._settle()
                by_shard = {shard: mine for shard, mine in rest.items() if not shard.lost}

    def _renew_late(self) -> None:
        """After work that took longer than a lease: what nobody took meanwhile is this worker's still."""
        try:
            self._lose(self._renew(), "the lease is another's", "lease")
        except CommitRefused as error:
            self._refused(error)
            self._lose(list(self._shards.values()), "the leases ran out", "broker")

    def _commit_idle(self, now: float) -> None:
        """A commit without entries where the head's count of finished ones is old and no other commit comes to say it;
        or in an idle shard whose log still holds some, or of whose last commit an element waits for its repair."""
        for shard in list(self._shards.values()):
            if shard.in_flight is None:
                due = shard.repair or (shard.kept > 0 and now >= shard.next_trim)
                quiet = shard.idle or time.perf_counter() > shard.sent_at + BEAT_S
                if (shard.kept != shard.head.kept and quiet) or (due and shard.idle):
                    self._send(shard, [], {})

    def _send(self, shard: Shard, items: list[Item], settings: dict[str, bytes]) -> None:
        now = time.monotonic()
        trim = None
        if now >= shard.next_trim:
            shard.next_trim = now + max(TRIM_EVERY_S, self._history_ms / 10_000)
            trim = 1 << 200
            if self._history_ms:
                trim = id_number(b"%d-0" % max(0, int(time.time() * 1000) - self._history_ms))
        commit = shard.build(items, settings, self._cut_ms, trim)
        shard.sent_at = time.perf_counter()
        self._fault("before-commit")
        try:
            self._broker.send(commit)
        except Fenced as error:
            self._tally.fenced()
            self._lose([shard], error.detail)
        self._fault("after-send")

    def _settle(self) -> None:
        """Reads the replies of the commits in flight; none is believed before its whole reply was checked."""
        for shard in [shard for shard in self._shards.values() if shard.in_flight is not None]:
            self._settle_one(shard)
        self._tally.count()
        self._fault("after-commit")

    def _settle_one(self, shard: Shard) -> None:
        commit = shard.in_flight
        if commit is None or shard.lost:
            return
        try:
            done = self._await(shard, commit)
        except Fenced as error:
            self._tally.fenced()
            self._lose([shard] if not shard.lost else [], error.detail)
            return
        shard.in_flight = None
        shard.kept = max(0, shard.kept - done.trimmed)
        self.trouble = ""
        if shard.unwritten and done.repaired:
            self._tally.repaired(shard.unwritten)
        shard.unwritten = [shard.answered[at] for at in done.unwritten]
        self._tally.committed(shard.answered, time.perf_counter() - shard.sent_at, time.time(), shard.unwritten)
        if done.dead_overflow:
            self._tally.dead_overflow(done.dead_overflow)
        tell(shard, commit.n, shard.answered)
        shard.repair = bool(done.errors)
        for text in done.errors:
            self._tally.commit_error()
            log.error(
                "an element of a commit failed: somebody else writes to our keys; the next commit repairs it",
                extra={"shard": shard.number, "commit": commit.n, "detail": text},
            )

    def _await(self, shard: Shard, commit: Commit) -> Committed:
        """The reply of a commit. What the broker applied nothing of is sent again while the lease holds."""
        pause_s = 0.02
        refused: CommitRefused | None = None
        while True:
            try:
                if refused is not None:
                    self._broker.send_again(commit.shard)
                return self._broker.result(commit.shard)
            except CommitRefused as error:
                refused = error
                self._tally.commit_error()
                self._refused(error)
            self._live()
            with contextlib.suppress(CommitRefused):  # what refuses a commit may refuse these as well
                shard.kept = max(0, shard.kept - self._broker.make_room(commit))
                if time.monotonic() > self._renewed + self._lease_s / 3:
                    self._lose(self._renew(), "the lease is another's", "lease")
            if shard.lost or time.monotonic() + pause_s > self._deadline:
                raise Fenced(f"still refused when the lease ran out: {refused.detail}") from refused
            time.sleep(pause_s)  # not the hot loop: the broker takes nothing at present
            pause_s = min(0.5, self._lease_s / 3, pause_s * 2)


def _read_stream(name: str, shard: int, loaded: Loaded) -> tuple[Position | None, StreamSettings]:
    """A stream's position and settings. What somebody else wrote there is said, and does not stop the shard."""
    position, settings = None, _NO_SETTINGS
    try:
        position = parse_position(loaded.position) if loaded.position else None
        if loaded.settings and name != NO_STREAM:  # whose field in `settings` is a revision
            settings = _settings_of(loaded.settings)
    except (ValueError, msgspec.DecodeError):  # whose words quote the value: no line does
        log.error("foreign value among a stream's keys", extra={"stream": name, "shard": shard})
    return position, settings


def _which(item: Item) -> dict[str, str | int]:
    """What a line in the log says of an entry."""
    return {"stream": item.key.name, "cursor": item.entry.id.decode(), "shard": item.key.shard.number}


def _split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """What fits one commit, and the rest. What was stepped of one stream together is committed together: the position
    after its last entry goes with the state after it."""
    size, cut = 0, 0
    for at, item in enumerate(items):
        if at and item.key is not items[at - 1].key:
            cut = at  # the last place where it may be cut
        size += len(item.body) + len(item.state or b"") + (item.size if item.dead else 0) + 256
        if (at >= COMMIT_ENTRIES or size > COMMIT_BYTES) and cut:
            return items[:cut], items[cut:]
    return items, []


_NO_SETTINGS = StreamSettings()
_settings_of = lru_cache(maxsize=1024)(decode_settings)  # most streams of a model have the same
