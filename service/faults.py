"""Faults on purpose, for tests: a process that kills itself at a named point of the worker's loop.

`ROLLCAST_TEST_FAULT=POINT:N` sends SIGKILL to this very process the N-th time it passes POINT, one of before-step,
after-step, before-commit, after-send, after-commit. Without the variable nothing is ever hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

from service.errors import BadSettings

VARIABLE: Final = "ROLLCAST_TEST_FAULT"
POINTS: Final = ("before-step", "after-step", "before-commit", "after-send", "after-commit")


def fault_from(environ: Mapping[str, str]) -> Callable[[str], None]:
    """What the worker calls at each point. Raises BadSettings when the variable cannot be read."""
    text = environ.get(VARIABLE, "")
    if not text:
        return _nothing
    point, _, count = text.partition(":")
    if point not in POINTS or not count.isdecimal() or int(count) < 1:
        raise BadSettings(f"{VARIABLE}={text!r}: expected POINT:N with POINT one of {', '.join(POINTS)} and N ≥ 1")
    left = int(count)

    def pass_by(here: str) -> None:
        nonlocal left
        if here == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return pass_by


def _nothing(here: str) -> None:
    pass
