"""What a subscriber is given: records, and notices about them. Each record is encoded once, however many want it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec
from fastapi.sse import format_sse_event

from service.api.notices import Gap, Moved, Notice, Wait
from service.codec import id_number
from service.cursors import Place
from service.ports import OutRecord

_KEPT_FORMS: Final = 4  # of one record: under its own id, under the shared cursor, and who is just catching up


class Delivery:
    """One record on its way to subscribers. What it looks like on a wire is made once, by whoever asks first."""

    __slots__ = ("_events", "_packed", "cursor", "missing", "number", "place", "prev", "record", "shard", "stream")

    def __init__(
        self,
        stream: str,
        record: OutRecord,
        shard: int = 0,
        place: Place | None = None,
        cursor: str = "",
        missing: bool = False,
    ) -> None:
        self.stream, self.record = stream, record
        self.number, self.prev = id_number(record.id), id_number(record.prev)
        self.shard, self.place = shard, place  # after it, in its shard's feed; None: it did not come through the feed
        self.cursor = cursor  # over many streams, after it, of who has seen all that came before
        self.missing = missing  # it was trimmed before it could be read
        self._events: dict[str, bytes] = {}
        self._packed = b""

    def event(self, cursor: str) -> bytes:
        """As a server-sent event. A prediction is unnamed, so that `EventSource.onmessage` just works."""
        found = self._events.get(cursor)
        if found is None:
            name = None if self.record.type == "prediction" else self.record.type
            found = format_sse_event(data_str=self.record.body.decode(), event=name, id=cursor)
            if len(self._events) < _KEPT_FORMS:
                self._events[cursor] = found
        return found

    def packed(self) -> bytes:
        """As MessagePack."""
        if not self._packed:
            self._packed = msgspec.msgpack.encode(msgspec.json.decode(self.record.body))
        return self._packed


class Outgoing(NamedTuple):
    """One thing a subscriber is given, and its cursor after it (None: as before)."""

    what: Delivery | Notice
    cursor: str | None


def as_events(batch: Iterable[Outgoing]) -> bytes:
    """Server-sent events. An event of nothing but an id moves the cursor of an EventSource and calls nobody."""
    found = []
    for what, cursor in batch:
        if isinstance(what, Delivery):
            found.append(what.event(cursor or what.record.id))
        elif isinstance(what, Moved):
            found.append(b"id: %s\n: heartbeat\n\n" % cursor.encode() if cursor else b": heartbeat\n\n")
        elif isinstance(what, Wait):
            found.append(format_sse_event(comment=what.detail))
        else:
            text = msgspec.json.encode(what).decode()
            found.append(format_sse_event(data_str=text, event="gap" if isinstance(what, Gap) else "bye", id=cursor))
    return b"".join(found)
