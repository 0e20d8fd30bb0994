"""Turns on an event loop: work on it is done in slices, and what is dear waits for its turn in front of a gate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

from service.errors import Busy

SLICE_S: Final = 0.005  # of work in one go: twenty such pieces of work at once still delay nobody by more than 0.1 s


class Turn:
    """The turn of one piece of work. After each small step: `if turn.due(): await turn.over()`."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to let others run."""
        return time.monotonic() - self._begun >= SLICE_S

    async def over(self) -> None:
        """Lets whatever is ready run, then begins a new turn."""
        await asyncio.sleep(0)
        self._begun = time.monotonic()


class Gate:
    """`async with gate:` lets `at_once` in. Others wait in their order; at most `waiting` of them, and no longer than
    `within_s`: then Busy is raised, and `refused` called."""

    def __init__(
        self, what: str, refused: Callable[[], object], *, at_once: int, waiting: int, within_s: float
    ) -> None:
        self._what, self._refused, self._most, self._within_s = what, refused, waiting, within_s
        self._waiting = 0
        self._free = asyncio.Semaphore(at_once)

    async def __aenter__(self) -> None:
        if self._free.locked() and self._waiting >= self._most:
            raise self._busy(f"{self._waiting} wait already, and no more may")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._within_s):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy(f"no turn within {self._within_s:g} s") from None
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._free.release()

    def _busy(self, why: str) -> Busy:
        self._refused()
        return Busy(f"{self._what}: {why}", retry_after_s=self._within_s)

    def above(self, size: int, small: int) -> AbstractAsyncContextManager[None]:
        """The gate for what is larger than `small`; what is not goes past it."""
        return self if size > small else nullcontext()
