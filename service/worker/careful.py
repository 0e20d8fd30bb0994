"""Careful mode: how an entry that ends the process is found, refused, and stops nothing else.

A shard that was acquired three times while its oldest entry stayed unfinished, or that was left with a suspect, is
worked on with care.
One entry after the other is first noted in the broker as the suspect, then decoded, stepped and committed, alone: while
it is on trial nothing else is decoded or stepped in this process, so that no other entry is blamed for its end.
Shards that are not in doubt have the turns between.

The entry is decoded and stepped in other threads than the worker's, which renews the leases meanwhile. When a trial
lasts longer than a second, other workers get all other shards until it is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Final, TypeVar

import msgspec

from service.errors import Crashed
from service.worker.shard import Item, Shard

TRIES: Final = 3  # acquisitions without an end of the oldest entry between, before a shard is in doubt
GOOD_COMMITS: Final = 100  # after so many it is in doubt no more
SLICE_S: Final = 0.05  # of trials, before the other shards have their turn
LONG_S: Final = 1.0  # a trial that lasts longer keeps no shard but its own from other workers
Result = TypeVar("Result")


class Doubts:
    """The owned shards that are in doubt. Written only by Worker.run."""

    def __init__(self) -> None:
        self._shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        """Entries that wait for their trial."""
        return sum(len(shard.trials) for shard in self._shards.values())

    def __iter__(self) -> Iterator[Item]:
        """Those entries."""
        return (item for shard in self._shards.values() for item in shard.trials)

    def add(self, shard: Shard) -> None:
        shard.careful = True
        self._shards[shard.number] = shard

    def discard(self, shard: Shard) -> None:
        shard.careful = False
        self._shards.pop(shard.number, None)

    def each(self, decoding: Callable[[], bool]) -> Iterator[Shard]:
        """The shard of the oldest waiting entry, again and again for a slice of time, while nothing else decodes."""
        until = time.monotonic() + SLICE_S
        while len(self) and not decoding() and time.monotonic() < until:
            yield min((s for s in self._shards.values() if s.trials), key=lambda shard: shard.trials[0].number)


def in_thread(work: Callable[[], Result]) -> Future[Result]:
    """Does it in a thread of its own. That keeps no process alive: it may never end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever waits for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name="trial", daemon=True).start()
    return future


def refuse(item: Item) -> None:
    """The verdict: the entry is answered in its turn like any other that cannot be stepped."""
    fault = Crashed(
        f"{item.entry.kind} of {item.size:,} bytes: whoever worked on it ended, or did not come to an end, twice alone"
    )
    item.entry, item.error = msgspec.structs.replace(item.entry, fault=fault), fault


def is_doubtful(shard: Shard, suspected: bool) -> bool:
    return suspected or shard.head.tries >= TRIES


def is_over(shard: Shard, refused: bool) -> bool:
    """After each trial that was committed."""
    shard.good += 1
    return refused or shard.good >= GOOD_COMMITS
