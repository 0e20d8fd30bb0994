"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_AGAIN_S: Final = 0.05


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels, and again until each has ended: before Python 3.12 `asyncio.wait_for`, which redis-py sends with, loses
    a cancellation that comes as its inner call ends (CPython issue 86296)."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_AGAIN_S)
