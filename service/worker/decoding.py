"""Where frames are decoded: small pictures in threads, all others in a lane of processes that can be killed.

What a picture costs at most follows from its structure (images.py). A small one, as nearly every frame of a camera is,
is decoded by a thread of this process: to hand it to another one would cost more than it saves. Any other goes to the
lane, whose decoders have a limit of CPU time and of memory each time. So a picture that takes seconds delays no small
picture, and never the worker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from service.contracts import FrameInput, Limits
from service.decode import unpack
from service.errors import BadImage, EntryError
from service.images import ImageInfo, check
from service.liveness import LOOK_S
from service.unpacking import DecoderDied, DecoderProcess
from service.worker.shard import Item

SMALL_WORK: Final = 4 << 20  # a JPEG of 2,048 × 2,048 in one scan: some 20 to 40 ms
REMARKS: Final = 10_000  # streams of which it is remembered that something was said of a picture
LANE_DECODERS: Final = 4  # processes of a lane, at most, and one more
START_PAUSES_S: Final = (0.1, 1.0, 5.0)  # after each failed start of a decoder, before the picture is refused
SPARE_MEMORY: Final = 32 << 20  # of a decoder, beyond what the picture says
Unpack = Callable[[bytes, FrameInput], np.ndarray]  # raises what `decode.decode_frame` raises
Work = Callable[[Item, FrameInput, Unpack], None]

log = logging.getLogger("rollcast.worker")


def is_small(info: ImageInfo) -> bool:
    """Whether its structure proves that no decoder can take long or much memory over it. (What a PNG unpacks to is not
    in its structure: `pngs.prepared` stops it soon after what its size needs.)"""
    return info.work <= SMALL_WORK


class Decoders:
    """The threads and the lane. `work` is called in one of them, with what decodes the item's picture there."""

    def __init__(self, threads: int, limits: Limits) -> None:
        self._max_pixels = limits.pixels
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._lane = Lane(min(threads, LANE_DECODERS) + 1, limits)
        self._began: dict[Item, float] = {}  # what is being decoded in the threads, and since when
        self._looked_at, self._passed_s = time.monotonic(), 0.0
        self._remarked: set[str] = set()  # streams

    def submit(self, work: Work, item: Item, form: FrameInput) -> None:
        self._threads.submit(self._sort, work, item, form)

    def decode(self, data: bytes, form: FrameInput) -> np.ndarray:
        """Decodes one picture while the caller waits. Raises EntryError."""
        info = check(data, self._max_pixels)
        if is_small(info):
            return unpack(data, form, info)
        done, answers = threading.Event(), deque[np.ndarray | Exception]()

        def run(decode: Unpack) -> None:
            try:
                answers.append(decode(data, form))
            except Exception as error:
                answers.append(error)
            done.set()

        self._lane.put(done, info.memory, run)
        while not done.wait(0.1):
            if self._lane.closed:
                raise EntryError("decoding was ended")
        if isinstance(answer := answers.popleft(), Exception):
            raise answer
        return answer

    def hung(self, limit_s: float) -> Item | None:
        """What a thread has been working on for longer than that; the lane's work comes to an end by itself.
        A pause between two looks counts as LOOK_S at most: this process may have been stopped."""
        now = time.monotonic()
        self._passed_s += min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        return next((item for item, began in list(self._began.items()) if self._passed_s - began > limit_s), None)

    @property
    def pids(self) -> list[int]:
        """Of the decoder processes that run."""
        return self._lane.pids

    def shutdown(self) -> None:
        """Ends all of it, what is being decoded in the lane too."""
        self._lane.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _sort(self, work: Work, item: Item, form: FrameInput) -> None:
        """In a thread: decodes it here, or hands it to the lane."""
        self._began[item] = self._passed_s
        try:
            self._sorted(work, item, form)
        finally:
            self._began.pop(item, None)

    def _sorted(self, work: Work, item: Item, form: FrameInput) -> None:
        try:
            info = check(item.entry.data, self._max_pixels)
        except Exception as error:
            return work(item, form, partial(_fail, error))
        if is_small(info):
            return work(item, form, lambda data, form: unpack(data, form, info, partial(self._remark, item)))
        return self._lane.put(item.key, info.memory, lambda decode: work(item, form, decode))

    def _remark(self, item: Item, said: str) -> None:
        """A line in the log, for the first such picture of a stream: a camera's pictures are all alike."""
        if item.key.name in self._remarked:
            return
        if len(self._remarked) >= REMARKS:
            self._remarked.clear()
        self._remarked.add(item.key.name)
        which = {"stream": item.key.name, "cursor": item.entry.id.decode(), "shard": item.key.shard.number}
        log.warning("a picture was taken that is not quite in order", extra=which | {"detail": said})


class _Job(NamedTuple):
    memory: int  # bytes it is allowed
    run: Callable[[Unpack], None]


class Lane:
    """Decoder processes, each with its thread; started when they are first needed.

    Streams take turns, and one stream never has all decoders: one's heavy pictures delay its own. Pictures begin in
    that order, each when the memory that it is allowed is free.
    """

    def __init__(self, decoders: int, limits: Limits) -> None:
        self._decoders, self._most_of_one = decoders, max(1, decoders - 1)
        self._limits = limits
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: dict[Hashable, deque[_Job]] = {}  # by stream, the next one first
        self._running: dict[Hashable, int] = {}  # by stream, its decoders that work
        self._memory = 0  # that they are allowed
        self._queued = self._idle = 0  # pictures that wait; threads that do
        self._threads: list[threading.Thread] = []
        self._processes: set[DecoderProcess] = set()
        self.closed = False

    def put(self, key: Hashable, memory: int, run: Callable[[Unpack], None]) -> None:
        """`run` is called in a thread of the lane, in its turn among those of the same `key`."""
        with self._changed:
            if self.closed:
                return
            self._waiting.setdefault(key, deque()).append(_Job(memory + SPARE_MEMORY, run))
            self._queued += 1
            of_one = len({*self._waiting, *self._running}) == 1
            if self._queued > self._idle and len(self._threads) < (self._most_of_one if of_one else self._decoders):
                thread = threading.Thread(target=self._work, name=f"lane_{len(self._threads)}")
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    @property
    def pids(self) -> list[int]:
        with self._changed:
            return [process.pid for process in self._processes]

    def close(self) -> None:
        """Ends its decoders; what waits is forgotten."""
        with self._changed:
            self.closed = True
            self._waiting.clear()
            for process in self._processes:
                process.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """A thread of the lane, with a decoder of its own that is started anew when it died."""
        own: list[DecoderProcess] = []
        while (taken := self._take()) is not None:
            key, job = taken
            try:
                job.run(partial(self._decode, own, job.memory))
            except Exception:
                log.exception("a decoder's thread failed")
            finally:
                with self._changed:
                    self._memory -= self._allowed(job)
                    self._running[key] -= 1
                    if not self._running[key]:
                        del self._running[key]
                    self._changed.notify_all()
        for process in own:
            process.close()

    def _take(self) -> tuple[Hashable, _Job] | None:
        """The next picture, when it may begin; None at the end."""
        with self._changed:
            self._idle += 1
            try:
                while not self.closed:
                    key = next((key for key in self._waiting if self._may(key)), None)
                    if key is not None:
                        allowed = self._allowed(self._waiting[key][0])
                        if not self._running or self._memory + allowed <= self._limits.decode_memory_bytes:
                            return key, self._begin(key, allowed)
                    self._changed.wait()
                return None
            finally:
                self._idle -= 1

    def _may(self, key: Hashable) -> bool:
        return self._running.get(key, 0) < self._most_of_one

    def _begin(self, key: Hashable, allowed: int) -> _Job:
        jobs = self._waiting.pop(key)
        job = jobs.popleft()
        self._queued -= 1
        if jobs:
            self._waiting[key] = jobs  # behind the other streams
        self._memory += allowed
        self._running[key] = self._running.get(key, 0) + 1
        return job

    def _allowed(self, job: _Job) -> int:
        """Bytes to be kept for it: none for one that is refused at once."""
        return job.memory if job.memory <= self._limits.decode_memory_bytes else 0

    def _decode(self, own: list[DecoderProcess], memory: int, data: bytes, form: FrameInput) -> np.ndarray:
        limit_s, most = self._limits.decode_s, self._limits.decode_memory_bytes
        if memory > most:
            raise BadImage(f"decoding may take {memory:,} bytes of memory: the limit is {most:,} (decode_memory_bytes)")
        if own and not own[0].lives():  # somebody ended it between two pictures: this one has no part in that
            self._forget(own)
        try:
            if not own:
                own.append(self._start())
            return own[0].decode(data, form, max_pixels=self._limits.pixels, limit_s=limit_s, memory_bytes=memory)
        except DecoderDied as error:
            self._forget(own)
            if not self.closed:
                log.warning("a decoder ended", extra={"why": str(error), "bytes": len(data)})
            raise BadImage(
                f"decoding was ended: {error}; it may take {limit_s:g} s of CPU (decode_s), {memory:,} bytes of memory"
            ) from None

    def _forget(self, own: list[DecoderProcess]) -> None:
        with self._changed:
            self._processes.difference_update(own)
        for process in own:
            process.close()
        own.clear()

    def _start(self) -> DecoderProcess:
        """Tries again for a while: the picture has no part in it. Raises OSError or DecoderDied."""
        for pause_s in START_PAUSES_S:
            try:
                process = DecoderProcess()
                break
            except (OSError, DecoderDied) as error:
                log.warning("a decoder cannot be started", extra={"why": str(error), "again_in_s": pause_s})
                with self._changed:
                    self._changed.wait_for(lambda: self.closed, pause_s)
        else:
            process = DecoderProcess()
        with self._changed:
            self._processes.add(process)
            if self.closed:
                process.kill()
        return process


def _fail(error: Exception, data: bytes, form: FrameInput) -> np.ndarray:
    raise error
