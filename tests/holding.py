"""What holds up an event loop, by the CPU time of its thread: a busy machine changes nothing in it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Held:
    """`longest_s`: the longest that one callback ran on any event loop of this process, in CPU seconds."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.longest = ""


@contextmanager
def watching_callbacks() -> Iterator[Held]:
    held = Held()
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun = time.thread_time()
        try:
            run(handle)
        finally:
            took_s = time.thread_time() - begun
            if took_s > held.longest_s:
                held.longest_s, held.longest = took_s, repr(handle)[:300]

    with pytest.MonkeyPatch.context() as patch, no_collections():
        patch.setattr(asyncio.Handle, "_run", timed)
        yield held


@contextmanager
def no_collections() -> Iterator[None]:
    """A collection of what thousands of tests have left takes a second, and says nothing of the product."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
