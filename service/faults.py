"""Faults on purpose, for tests: a process that kills itself at a named point of the worker's loop, or at an entry.

`ROLLCAST_TEST_FAULT=POINT:N` sends SIGKILL to this very process the N-th time it passes POINT, one of before-read,
after-decode, before-step, after-step, before-commit, after-send (inside a commit's round trip), after-commit.
`ROLLCAST_TEST_FAULT=poison:TEXT` does when it looks into an entry whose bytes hold TEXT.
`ROLLCAST_TEST_FAULT=slow:TEXT:SECONDS` makes that look take so long.
Without the variable nothing is ever hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from service.errors import BadSettings

VARIABLE: Final = "ROLLCAST_TEST_FAULT"
POISON: Final = "poison:"
SLOW: Final = "slow:"
POINTS: Final = (
    "before-read",
    "after-decode",
    "before-step",
    "after-step",
    "before-commit",
    "after-send",
    "after-commit",
)


def fault_from(environ: Mapping[str, str]) -> Callable[[str], None]:
    """What the worker calls at each point. Raises BadSettings when the variable cannot be read."""
    text = environ.get(VARIABLE, "")
    if not text or text.startswith((POISON, SLOW)):
        return _nothing
    point, _, count = text.partition(":")
    if point not in POINTS or not count.isdecimal() or int(count) < 1:
        raise BadSettings(
            f"{VARIABLE}={text!r}: expected poison:TEXT, slow:TEXT:SECONDS or POINT:N "
            f"with POINT one of {', '.join(POINTS)} and N ≥ 1"
        )
    left = int(count)

    def pass_by(here: str) -> None:
        nonlocal left
        if here == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return pass_by


def poison_from(environ: Mapping[str, str]) -> Callable[[bytes], None] | None:
    """What the worker gives an entry's bytes to before it looks into them; None: nothing to fear."""
    kind, _, text = environ.get(VARIABLE, "").partition(":")
    if f"{kind}:" == SLOW:
        slow, _, seconds = text.rpartition(":")
        return lambda data: time.sleep(float(seconds)) if slow.encode() in data else None
    if f"{kind}:" != POISON:
        return None
    poison = text.encode()

    def swallow(data: bytes) -> None:
        if poison in data:
            os.kill(os.getpid(), signal.SIGKILL)

    return swallow


def _nothing(here: str) -> None:
    pass
