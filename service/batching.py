"""Who goes next. One item of each stream in a batch, in log order per stream, the oldest first; then, where there is
room, more of the streams that lag (`take_more`).

The batch is what waited while the engine was busy: no timer, no target size. An item whose decoding is not over
holds back its own stream only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the scheduler needs of an item."""

    @property
    def number(self) -> int:
        """Place in the log; grows within a stream."""
        ...

    @property
    def key(self) -> Hashable:
        """Its stream."""
        ...

    @property
    def ready(self) -> bool:
        """Decoded, or refused: may be taken."""
        ...


Item = TypeVar("Item", bound=Waiting)


class Scheduler(Generic[Item]):
    """Queues, one a stream. Written only by Worker.run; bounded by what the worker reads ahead."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Item]] = {}
        self._ready: dict[Hashable, Item] = {}  # streams whose first item may be taken, and that item
        self._size = 0
        self.lagging: list[Item] = []  # of the last batch: those behind which another of their stream may be taken

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        """Every waiting item, in no order between streams."""
        return (item for queue in self._queues.values() for item in queue)

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def waiting(self, key: Hashable) -> Sequence[Item]:
        """What waits of one stream, in order."""
        return self._queues.get(key, ())

    def offer(self, item: Item) -> int:
        """Queues an item behind the others of its stream. Offers of one stream come in log order.

        Returns how many of the stream wait now.
        """
        self._size += 1
        key = item.key
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque((item,))
            if item.ready:
                self._ready[key] = item
            return 1
        queue.append(item)
        return len(queue)

    def wake(self, item: Item) -> None:
        """Says that `item` has become ready."""
        queue = self._queues.get(item.key)
        if queue and queue[0] is item:
            self._ready[item.key] = item

    def take(self, limit: int) -> list[Item]:
        """The next batch, in log order: the first ready item of up to `limit` streams, the oldest ones."""
        batch = list(self._ready.values())
        batch.sort(key=_number)
        del batch[limit:]
        self.lagging = lagging = []
        for item in batch:
            key = item.key
            queue = self._queues[key]
            queue.popleft()
            if not queue:
                del self._queues[key], self._ready[key]
            elif queue[0].ready:
                self._ready[key] = queue[0]
                lagging.append(item)
            else:
                del self._ready[key]
        self._size -= len(batch)
        return batch

    def take_more(self, key: Hashable, joins: Callable[[Item], bool], limit: int) -> list[Item]:
        """The next ready items of one stream, up to `limit`, as long as `joins` says yes to one after the other."""
        queue = self._queues.get(key)
        taken: list[Item] = []
        while queue and len(taken) < limit and queue[0].ready and joins(queue[0]):
            taken.append(queue.popleft())
        if taken and queue is not None:
            self._size -= len(taken)
            self._ready.pop(key, None)
            if not queue:
                del self._queues[key]
            elif queue[0].ready:
                self._ready[key] = queue[0]
        return taken

    def drop(self, gone: Callable[[Item], bool]) -> None:
        """Forgets the items of which `gone` is true (their shard was lost)."""
        for key, queue in list(self._queues.items()):
            kept = deque(item for item in queue if not gone(item))
            self._size -= len(queue) - len(kept)
            if len(kept) == len(queue):
                continue
            self._ready.pop(key, None)
            if not kept:
                del self._queues[key]
            else:
                self._queues[key] = kept
                if kept[0].ready:
                    self._ready[key] = kept[0]


_number = attrgetter("number")
