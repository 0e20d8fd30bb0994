"""How a call is carried out: numbered, tried again where that is safe. It does no I/O: Client and AsyncClient do."""

from __future__ import annotations

import re
import time as clock
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Final, TypeVar

import httpx
import msgspec

from rollcast import calls
from rollcast.calls import Call
from rollcast.errors import OURS, Problem, RollcastError, away, to_problem, understood
from rollcast.results import Dropped, Prediction

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_NOTHING_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
Result = TypeVar("Result")
Steps = Generator[Call[object] | float, httpx.Response | None, Result]  # send this, or sleep so many seconds
Waits = Callable[[RollcastError | None, float], None]  # before a pause why and how long, s; None: it is over


def unsaid(_why: RollcastError | None, _pause_s: float) -> None:
    """Nothing is said of a wait."""


class Flow:
    """What one client remembers between calls."""

    def __init__(self, url: str, *, retry_s: float, numbered: bool, waiting: Waits = unsaid) -> None:
        self._url, self._retry_s, self._numbered, self._waiting = url, retry_s, numbered, waiting
        self._next_seq: dict[str, int] = {}
        self._reached = False  # a server has answered here before

    def steps(self, call: Call[Result]) -> Steps[Result]:
        """Raises Problem and ServerAway. What might append an entry twice is tried again only with a `seq`."""
        if call.entry is not None and self._numbered and "seq" not in call.query and call.path[-6:] != "/retry":
            seq = yield from self.number(call.entry)
            call = replace(call, query={**call.query, "seq": str(seq)})
        return (yield from self._tried(call))

    def _tried(self, call: Call[Result]) -> Steps[Result]:
        repeatable = call.entry is None or "seq" in call.query
        give_up = clock.monotonic() + self._retry_s
        pause_s, tries = _FIRST_PAUSE_S, 0
        while True:
            tries, asked = tries + 1, clock.monotonic()
            try:
                response = yield call
                assert response is not None
            except httpx.TransportError as error:
                failure: RollcastError = away(self._url, error)
                again, wait_s = self._reached and (repeatable or isinstance(error, _NOTHING_SENT)), pause_s
            else:
                self._reached = True
                problem = to_problem(response) if response.status_code >= 400 else None
                if tries > 1 and (problem is None or not problem.passes):
                    self._waiting(None, 0.0)
                if problem is None:
                    return understood(self._url, call.read, response)
                of = str(problem.body.get("of"))
                if tries > 1 and problem.is_a("duplicate") and call.entry is not None and _ID.fullmatch(of):
                    return (yield from self._first_answer(call, problem))
                failure = problem
                again = repeatable if problem.stopped else problem.passes and (repeatable or not problem.unknown)
                wait_s = problem.retry_after_s or pause_s
            now = clock.monotonic()
            give_up += min(call.wait_s, now - asked)  # a server that was asked to wait did so: that took no patience
            left_s = give_up - now
            if not again or left_s <= 0:
                raise failure
            self._waiting(failure, min(wait_s, left_s))
            yield min(wait_s, left_s)  # what the server asks for is an estimate: the last try is when patience ends
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _first_answer(self, call: Call[Result], problem: Problem) -> Steps[Result]:
        """The entry was in the log after all, under another id: its record is the answer. Raises Problem where that is
        none that was stepped, or is not kept any more."""
        ms, _, seq = str(problem.body["of"]).partition("-")
        before = f"{ms}-{int(seq) - 1}" if int(seq) else f"{int(ms) - 1}-{2**64 - 1}"
        assert call.entry is not None
        page = yield from self._tried(calls.history(call.entry, after=before, limit=1, every_type=True))
        first = page.records[0] if page.records else None
        if isinstance(first, Dropped) and first.id == problem.body["of"]:
            told = {"id": first.id, "stream": first.stream, "reason": first.reason, "detail": first.detail}
            raise Problem(410, {"type": f"{OURS}dropped", "title": "The entry was dropped", "status": 410, **told})
        if not isinstance(first, Prediction) or first.id != problem.body["of"]:
            raise problem
        return msgspec.structs.replace(first, cursor=first.id)  # type: ignore[return-value]

    def number(self, stream: str) -> Steps[int]:
        """The next `seq` of a stream, one above its last: this client is its only producer."""
        if stream not in self._next_seq:
            last = None
            try:
                last = (yield from self._tried(calls.stream(stream))).get("seq")
            except Problem as problem:
                if problem.status != 404:
                    raise
            self._next_seq[stream] = 0 if last is None else last + 1
        seq = self._next_seq[stream]
        self._next_seq[stream] = seq + 1
        return seq
