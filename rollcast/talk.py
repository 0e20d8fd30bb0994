"""What goes over a gateway's WebSocket, and what is remembered between two connections. It does no I/O."""

from __future__ import annotations

import re
import time as clock
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from rollcast.entries import Entry
from rollcast.errors import Problem, RollcastError, away
from rollcast.results import Accepted, Bye, Done, Dropped, Duplicate, Gap, Prediction, Record, Refused

MAX_ENTRIES: Final = 1024  # of one message
MESSAGE_BYTES: Final = 4 * 2**20  # of one message of several entries; the server takes four times as much
HELLO_BYTES: Final = 64 * 2**10  # of the first message, at most; the server takes no more
_STREAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # any other name was refused, and would be here
_NAMES_BYTES: Final = 512  # of an entry besides its content, at most
KEPT: Final = 65_536  # records that wait to be read
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class _Ack(msgspec.Struct, tag="ack", tag_field="type"):
    id: str
    stream: str
    model: str


class _Problem(msgspec.Struct, tag="problem", tag_field="type"):
    problem: str
    title: str
    status: int
    detail: str
    index: int | None = None  # of the entry; None: of the whole message
    retry_after_s: float | None = None


class _Cursor(msgspec.Struct, tag="cursor", tag_field="type"):
    cursor: str


class _Hello(msgspec.Struct, tag="hello", tag_field="type", omit_defaults=True):
    key: str | None = None
    after: str | None = None
    streams: list[str] | None = None
    posted: list[str] = []
    when_full: str = "catch_up"


class _Wait(msgspec.Struct, tag="wait", tag_field="type"):
    detail: str = ""


_Said = _Ack | _Problem | _Cursor | _Hello | _Wait | Prediction | Refused | Dropped | Duplicate | Done | Gap | Bye
_decoder = msgspec.msgpack.Decoder(list[_Said])
Answer = Accepted | Problem


class Talk:
    """One gateway's side of it. `streams`: whose records are wanted; None: of those posted to; none at all: ()."""

    def __init__(
        self, key: str | None, streams: Sequence[str] | None, after: str | None, when_full: str | None
    ) -> None:
        self.records: deque[Record] = deque()
        self.said: deque[Answer] = deque()  # answers to entries, in their order
        self.over = False  # the server says bye
        self.placed = after is not None  # a connection that is lost now loses nothing
        self.key = key
        self._streams, self._when_full = streams, when_full or "catch_up"
        self._cursor = after
        self._posted: dict[str, None] = {}
        self._sifts = False  # all records come, and those of streams that were not posted to are left out here
        self._awaited = 1  # answers to the last message

    def hello(self) -> bytes:
        """The first message of a connection; a later one goes on where the one before it was lost."""
        self.over, self._awaited = False, 1
        self.said.clear()
        streams = None if self._streams is None else list(self._streams)
        posted = list(self._posted) if streams is None and self._cursor is not None else []
        hello = msgspec.msgpack.encode(_Hello(self.key, self._cursor, streams, posted, self._when_full))
        self._sifts = bool(posted) and len(hello) > HELLO_BYTES
        if self._sifts:
            return msgspec.msgpack.encode(_Hello(self.key, self._cursor, ["*"], [], self._when_full))
        return hello

    def check_welcome(self) -> None:
        """After the answer to hello. Raises Problem, and ConnectionError where it is worth coming back."""
        if self.said and isinstance(problem := self.said.popleft(), Problem):
            raise ConnectionError(str(problem)) if problem.passes else problem

    def check(self) -> None:
        """Raises ConnectionError where the answers that are missing will not come any more."""
        if self.over:
            raise ConnectionError("the server stops")

    def answers(self) -> list[Answer]:
        """Those to the last message."""
        found = list(self.said)
        self.said.clear()
        return found

    def posting(self, entries: Sequence[Entry]) -> None:
        """The records of their streams are wanted, also after a lost connection."""
        self._posted.update(dict.fromkeys(entry.stream for entry in entries if _STREAM.fullmatch(entry.stream)))

    def sending(self, batch: Batch) -> bytes:
        """The message of what is left of it."""
        self._awaited = len(batch)
        return batch.message()

    def take(self, message: bytes) -> None:
        """One message of the server."""
        before, found = self._cursor or "", _decoder.decode(message)
        records: list[Record] = []
        for one in found:
            if isinstance(one, _Ack):
                self.said.append(Accepted(one.id, one.stream, one.model))
            elif isinstance(one, _Problem):
                body = {"type": one.problem, "title": one.title, "status": one.status, "detail": one.detail}
                self.said += [Problem(one.status, body, one.retry_after_s)] * (
                    1 if one.index is not None else self._awaited
                )
            elif isinstance(one, _Cursor):
                self._cursor, self.placed = one.cursor, True
            elif isinstance(one, Bye):
                self.over = True
            elif isinstance(one, _Wait):
                self.placed = True  # the broker is away: nothing can be posted that might be missed
            elif not isinstance(one, _Hello) and not (self._sifts and one.stream and one.stream not in self._posted):
                records.append(msgspec.structs.replace(one, cursor=before))
        if records:  # who goes on after one but the last of a message gets the others of it again
            records[-1] = msgspec.structs.replace(records[-1], cursor=self._cursor or "")
        self._keep(records)

    def _keep(self, records: list[Record]) -> None:
        self.records += records
        if len(self.records) > KEPT:
            lost = 0
            while len(self.records) >= KEPT:
                gone = self.records.popleft()
                lost += (gone.records or 1) if isinstance(gone, Gap) else 1
            self.records.appendleft(Gap(reason="slow", records=lost, cursor=self.records[0].cursor))


def messages(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """The entries in parts that fit into a message each. An entry that is larger than a message should be is alone."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        own = _size(entry)
        if part and (len(part) == MAX_ENTRIES or size + own > MESSAGE_BYTES):
            yield part
            part, size = [], 0
        part.append(entry)
        size += own
    if part:
        yield part


def _size(entry: Entry) -> int:
    """About its bytes in a message; a number takes nine."""
    numbers = sum(len(row) + 1 for row in entry.samples or ())
    return len(entry.data or b"") + 9 * numbers + len((entry.text or "").encode(errors="replace")) + _NAMES_BYTES


class Batch:
    """Entries on their way. Those of a stream stay in order: one is sent again only if none behind it was taken."""

    def __init__(self, url: str, entries: Sequence[Entry], retry_s: float) -> None:
        self.answers: list[Answer] = []
        self._url, self._entries = url, entries
        self._todo = list(range(len(entries)))
        self._found: dict[int, Answer] = {}
        self._give_up = clock.monotonic() + retry_s
        self._pause_s = _FIRST_PAUSE_S

    def __len__(self) -> int:
        """How many answers the message will have; 0: all is answered."""
        return len(self._todo)

    def message(self) -> bytes:
        return msgspec.msgpack.encode([self._entries[at] for at in self._todo])

    def settle(self, found: Sequence[Answer]) -> float:
        """The answers to the message. Returns how long to wait before the next one, which holds what is left."""
        self._found |= dict(zip(self._todo, found, strict=True))
        taken: set[str] = set()
        again: list[int] = []
        for at in reversed(self._todo):
            stream, answer = self._entries[at].stream, self._found[at]
            if isinstance(answer, Accepted):
                taken.add(stream)
            elif stream not in taken and self._may_repeat(at, answer):
                again.append(at)
        wait_s = max((_retry_s(self._found[at]) for at in again), default=0.0) or self._pause()
        left_s = self._give_up - clock.monotonic()
        if not again or left_s <= 0:
            self._todo = []
            self.answers = [self._found[at] for at in range(len(self._entries))]
            return 0.0
        self._todo = again[::-1]
        return min(wait_s, left_s)

    def lost(self, error: Exception, sent: bool, reached: bool) -> float:
        """The connection was. Returns how long to wait before the next one; raises ServerAway."""
        wait_s, unknown = self._pause(), [at for at in self._todo if self._entries[at].seq is None]
        if sent and unknown:
            raise away(
                self._url, RollcastError(f"{error}; {len(unknown)} entries without seq may be in the log or not")
            )
        left_s = self._give_up - clock.monotonic()
        if not (sent or reached) or left_s <= 0:
            raise away(self._url, error)
        return min(wait_s, left_s)

    def _may_repeat(self, at: int, problem: Problem) -> bool:
        return problem.passes and (self._entries[at].seq is not None or not problem.unknown)

    def _pause(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(_LONGEST_PAUSE_S, self._pause_s * 2)
        return pause_s


def _retry_s(answer: Answer) -> float:
    return (answer.retry_after_s or 0.0) if isinstance(answer, Problem) else 0.0
