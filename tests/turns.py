"""How long work on an event loop goes on without letting others run."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

from service.errors import RollcastError

LONGEST_S = 0.05  # of CPU time, in which a request may hold up all others
# A slice is a call or two of C over some megabytes: on a machine whose memory is busy it takes a few times as long.
BUSY = 3


def in_slices(work: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
    """What became of work that awaits nothing but its next turn: its result or its error; and the longest slice, in CPU
    seconds of this thread."""
    longest_s = 0.0
    while True:
        begun = time.thread_time()
        try:
            waits_for = work.send(None)
        except StopIteration as end:
            return end.value, longest_s
        except RollcastError as error:
            return error, longest_s
        finally:
            longest_s = max(longest_s, time.thread_time() - begun)
        assert waits_for is None, "it waits for something else"


async def at_once(function: Any, *arguments: Any) -> Any:
    return function(*arguments)
