"""Which streams a worker has in memory: at most so many, and those that were used least recently leave.

Nothing is written when a stream leaves: what was committed of it lies in the broker. It comes back with its next entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container

from service.worker.shard import Stream


class Residence:
    """Streams in the order in which they were looked at last. Written only by Worker.run.

    Using a stream costs nothing here: what was used since it was last looked at (its last entry is another one) gets a
    second chance at the end of the queue.
    """

    def __init__(self, limit: int, forget: Callable[[Stream], None]) -> None:
        self.limit = limit
        self.evicted = 0  # since the start
        self._forget = forget  # frees a stream's row
        self._queue: deque[Stream] = deque()
        self._gone = 0  # of the queue: left by another door

    def __len__(self) -> int:
        return len(self._queue) - self._gone

    def add(self, stream: Stream, entry: int) -> None:
        """`entry`: the number of the one that brings it."""
        stream.seen = max(stream.last, entry)
        stream.shard.streams[stream.name] = stream
        self._queue.append(stream)

    def make_room(self, coming: int, pinned: Callable[[Stream], bool]) -> None:
        """Lets streams leave until `coming` more fit in, or only pinned ones are left."""
        for _ in range(2 * len(self._queue)):
            if len(self) + coming <= self.limit:
                return
            stream = self._queue.popleft()
            if stream.shard.streams.get(stream.name) is not stream:
                self._gone -= 1
            elif stream.last > stream.seen or pinned(stream):
                stream.seen = max(stream.last, stream.seen)
                self._queue.append(stream)
            else:
                self._leave(stream)
                self.evicted += 1

    def remove(self, stream: Stream) -> None:
        """One that is to leave now."""
        self._leave(stream)
        self._gone += 1

    def drop_lost(self) -> None:
        """Forgets the streams of shards that were lost."""
        self._queue = deque(
            stream
            for stream in self._queue
            if not stream.shard.lost and stream.shard.streams.get(stream.name) is stream
        )
        self._gone = 0

    def _leave(self, stream: Stream) -> None:
        del stream.shard.streams[stream.name]
        self._forget(stream)


class Pinned:
    """Says which streams must stay: something of them waits, is being stepped, or is not yet known to be committed."""

    def __init__(self, waits: Callable[[Stream], object], busy: Container[Stream]) -> None:
        self._waits, self._busy = waits, busy

    def __call__(self, stream: Stream) -> bool:
        return stream.held is not None or stream in self._busy or bool(self._waits(stream))
