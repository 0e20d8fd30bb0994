"""How `rollcast post` outlives a short outage: what it waits for, what it says, and the numbers that double nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from rollcast import Client, Problem, RollcastError, ServerAway
from rollcast.errors import BadAnswer
from service.errors import StartError

FILES_S: Final = 60.0  # that files are patient; a pipe's producer is not asked to come again
SAID_S: Final = 1.0  # an outage of less is not worth a line
SETTLED_S: Final = 30.0
ASK_S: Final = 0.2  # between two looks at what a stream's number is
PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0


class Waiting:
    """Says once that the server is waited for, and once that it goes on. Called before each pause with the reason and
    its seconds, and with None when the server has answered."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._since: float | None = None
        self._said = False

    def __call__(self, why: RollcastError | None, pause_s: float = 0.0) -> None:
        if why is None:
            if self._said:
                self._tell("the server answers again: it goes on")
            self._since, self._said = None, False
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not self._said and now + pause_s - self._since >= SAID_S:
            self._said = True
            self._tell(f"waiting for the server: {why}")


def reached(client: Client, patience_s: float, waiting: Waiting) -> list[dict[str, Any]]:
    """The server's models, as soon as there is a server. Raises ServerAway where there is none for so long."""
    give_up, pause_s = time.monotonic() + patience_s, PAUSE_S
    while True:
        try:
            found: list[Any] = client.models()["models"]
        except ServerAway as away:
            if isinstance(away, BadAnswer) or time.monotonic() >= give_up:
                raise
            waiting(away, pause_s)
            time.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        else:
            waiting(None)
            return found


def settled(client: Client, stream: str) -> dict[str, Any] | None:
    """The stream when all of its entries are answered; None where none was. Raises StartError where that takes long."""
    give_up = time.monotonic() + SETTLED_S
    while True:
        found = look(client, stream)
        if found is None or not found["backlog"]["entries"]:
            return found
        if time.monotonic() >= give_up:
            raise StartError(
                f"{found['backlog']['entries']:,} entries of stream {stream} still wait after {SETTLED_S:g} s: what "
                "follows them is not known yet; `rollcast doctor` says what they wait for"
            )
        time.sleep(PAUSE_S)


def look(client: Client, stream: str) -> dict[str, Any] | None:
    try:
        return dict(client.stream(stream))
    except Problem as problem:
        if problem.status != 404:
            raise
        return None


class Numbers:
    """The `seq` of each entry, one above the stream's last. That is known when nothing of the stream waits: `asked`
    waits for it; else entries before that have none, and are not posted again where they may be in the log."""

    def __init__(self, client: Client, stream: str, *, asked: bool) -> None:
        self._client, self._stream, self._asked = client, stream, asked
        self._next: int | None = None
        self._look_again = 0.0

    def take(self) -> int | None:
        if self._next is None:
            self._find()
        if self._next is None:
            return None
        self._next += 1
        return self._next - 1

    def give_back(self) -> None:
        """The one that was taken last: its entry is not in the log."""
        if self._next is not None:
            self._next -= 1

    def _find(self) -> None:
        if self._asked:
            found = settled(self._client, self._stream) or {"seq": None}
        elif time.monotonic() < self._look_again:
            return
        else:
            self._look_again = time.monotonic() + ASK_S
            found = look(self._client, self._stream) or {}
            if not found or found["backlog"]["entries"]:
                return
        self._next = 0 if found["seq"] is None else found["seq"] + 1
