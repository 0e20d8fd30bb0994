"""Subscriptions: server-sent events, and where a subscriber stands between two connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import httpx

from rollcast.bounds import ENDLESS, MAX_LINE
from rollcast.calls import quoted
from rollcast.entries import Logged, read_logged
from rollcast.results import Bye, Record, read_record

SILENCE_S: Final = 60.0  # the server says something every 15 s; longer silence is a lost connection
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
Item = TypeVar("Item", covariant=True)


class ServerEvent(NamedTuple):
    """`event` is `prediction`, `refused`, `dropped`, `duplicate`, `done`, `gap` or `bye`; `id` the cursor after it."""

    event: str
    id: str
    data: str

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.data) if self.data else {}
        return found


class EventReader:
    """Server-sent events out of lines (HTML Living Standard, 9.2). An unnamed event is a prediction."""

    def __init__(self) -> None:
        self.cursor = ""  # of the last whole event, also of one that is nothing but an id
        self._id = ""
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, line: str) -> ServerEvent | None:
        """The event that this line ends, if it does."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
                self._size += len(value)
                if self._size > MAX_LINE:
                    raise ValueError(f"an event of more than {MAX_LINE} characters")
            elif name == "event":
                self._event = value
            elif name == "id":
                self._id = value
            return None
        self.cursor = self._id
        event, data = self._event, self._data
        self._event, self._data, self._size = "", [], 0
        return ServerEvent(event or "prediction", self.cursor, "\n".join(data)) if data or event else None


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """
    >>> list(parse_events(["id: 17-0", 'data: {"label": "7"}', ""]))
    [ServerEvent(event='prediction', id='17-0', data='{"label": "7"}')]
    """
    reader = EventReader()
    for line in lines:
        if event := reader.feed(line):
            yield event


class Follows(Protocol[Item]):
    """One that goes on after a lost connection: what to ask for next, what its lines mean. It does no I/O."""

    begun: bool  # a lost connection is made again: it knows where it stands, or was heard before it did

    def request(self) -> dict[str, Any]:
        """Arguments of httpx's `stream`."""
        ...

    def feed(self, line: str) -> Item | None:
        """What this line ends, if it does."""
        ...

    def pause_s(self) -> float:
        """Before the next attempt."""
        ...


class Recording:
    """Where one who records the entries of a stream stands."""

    def __init__(self, stream: str, after: str, listening: Callable[[], None] | None) -> None:
        self.begun = True
        self._listening = listening or (lambda: None)
        self._stream, self._after = stream, after
        self._pauses = _Pauses()

    def request(self) -> dict[str, Any]:
        return {
            "method": "GET",
            "url": f"/v1/streams/{quoted(self._stream)}/entries",
            "params": {"after": self._after},
            "timeout": httpx.Timeout(SILENCE_S, connect=5.0),
            "extensions": {ENDLESS: True},
        }

    def feed(self, line: str) -> Logged | None:
        self._listening()
        if not line:
            return None
        entry = read_logged(line)
        self._after = entry.id
        self._pauses.begin()
        return entry

    def pause_s(self) -> float:
        return self._pauses.next_s()


class _Pauses:
    """Longer each time, until something comes."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S

    def begin(self) -> None:
        self._pause_s = _FIRST_PAUSE_S

    def next_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(_LONGEST_PAUSE_S, self._pause_s * 2)
        return pause_s


class Subscription:
    """Where one subscriber stands: what to ask for next, how long to wait before. It does no I/O."""

    def __init__(self, wanted: str | Sequence[str], after: str | None, when_full: str | None) -> None:
        self.many = not isinstance(wanted, str) or "*" in wanted or "?" in wanted
        self.cursor = after  # None: now
        self.begun = after is not None
        self._wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        self._when_full = when_full
        self._reader = EventReader()
        self._pauses = _Pauses()

    @property
    def stream(self) -> str:
        return self._wanted[0]

    def request(self) -> dict[str, Any]:
        self._reader = EventReader()
        path = "/v1/predictions" if self.many else f"/v1/streams/{quoted(self.stream)}/predictions"
        params: list[tuple[str, str]] = [("stream", one) for one in self._wanted] if self.many else []
        if self.cursor is not None:
            params.append(("after", self.cursor))
        if self._when_full is not None:
            params.append(("when_full", self._when_full))
        return {
            "method": "GET",
            "url": path,
            "params": params,
            "headers": {"Accept": "text/event-stream"},
            "timeout": httpx.Timeout(SILENCE_S, connect=5.0),
            "extensions": {ENDLESS: True},
        }

    def feed(self, line: str) -> Record | None:
        """The record or gap that this line ends, if it does. A `bye` is no more than a lost connection."""
        event = self._reader.feed(line)
        if self._reader.cursor:
            self.cursor, self.begun = self._reader.cursor, True
        if event is None:
            return None
        self._pauses.begin()
        record = read_record(event.data, event.id)
        return None if isinstance(record, Bye) else record

    def pause_s(self) -> float:
        return self._pauses.next_s()
