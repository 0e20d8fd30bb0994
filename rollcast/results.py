"""What the service answers, typed. Fields that a newer server adds are ignored."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Accepted(msgspec.Struct, frozen=True):
    """An entry is in the log: its `id` is that of its record to come."""

    id: str
    stream: str
    model: str


class Rolling(msgspec.Struct, frozen=True):
    """Smoothed over time: what the stream shows, rather than its last step."""

    label: str
    score: float
    probabilities: list[float]


class Event(msgspec.Struct, frozen=True):
    """`enter`, `update` or `exit` of a label. `event` is the cursor of its `enter`; times are event time, seconds."""

    type: str
    label: str
    event: str
    step: int
    time: float
    start: float
    score: float
    peak: float


class Answer(msgspec.Struct, frozen=True, tag_field="type"):
    """One record of a stream, or a `Gap` between them. `cursor` is where a subscriber stands after it, `json` the text
    that the server gave."""

    cursor: str = msgspec.field(default="", name="-cursor")  # these two are never in the JSON
    json: str = msgspec.field(default="", name="-json")

    type: ClassVar[str] = ""

    def __repr__(self) -> str:
        fields = [name for name in self.__struct_fields__ if name not in ("cursor", "json")]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"


class Prediction(Answer, frozen=True, tag="prediction", kw_only=True):
    """The record of an entry that was stepped: its last step. Rolling is folded over every step."""

    id: str
    stream: str
    model: str
    version: int
    time: float
    step: int
    label: str
    score: float
    probabilities: list[float]
    rolling: Rolling
    events: list[Event] = []
    restarted: str | None = None  # why the state began anew, if it did
    missed: int = 0  # numbers between the stream's last `seq` and this one; without: entries lost unread, at most
    retry_of: str | None = None

    type: ClassVar[str] = "prediction"


class Refused(Answer, frozen=True, tag="refused", kw_only=True):
    """The entry was at fault; it is kept in quarantine."""

    id: str
    stream: str
    reason: str
    detail: str = ""
    model: str | None = None
    retry_of: str | None = None

    type: ClassVar[str] = "refused"


class Dropped(Answer, frozen=True, tag="dropped", kw_only=True):
    """The entry came too late, or was too old for a stream that wants the latest."""

    id: str
    stream: str
    reason: str
    detail: str = ""
    events: list[Event] = []  # exits, where it began or ended the state
    retry_of: str | None = None

    type: ClassVar[str] = "dropped"


class Duplicate(Answer, frozen=True, tag="duplicate", kw_only=True):
    """The entry repeats the one with id `of`, which has the prediction."""

    id: str
    stream: str
    of: str
    seq: int | None = None

    type: ClassVar[str] = "duplicate"


class Done(Answer, frozen=True, tag="done", kw_only=True):
    """A control was carried out."""

    id: str
    stream: str
    action: str
    events: list[Event] = []
    retry_of: str | None = None

    type: ClassVar[str] = "done"


class Gap(Answer, frozen=True, tag="gap", kw_only=True):
    """Records that cannot be delivered: `trimmed`, `lost` with the log's tail, or dropped as reading was too `slow`."""

    reason: str
    stream: str | None = None
    id: str | None = None
    shard: int | None = None
    records: int | None = None  # how many, where that is known

    type: ClassVar[str] = "gap"


class Bye(Answer, frozen=True, tag="bye", kw_only=True):
    """The server ends the subscription; come back with the cursor."""

    reason: str = ""

    type: ClassVar[str] = "bye"


Record = Prediction | Refused | Dropped | Duplicate | Done | Gap
_record_decoder = msgspec.json.Decoder(Record | Bye)


class History(msgspec.Struct, frozen=True):
    """A page of kept records, oldest first. `next` is the `after` of the next page; `gap`: some before are gone."""

    records: list[Record]
    next: str
    gap: bool


def read_record(text: str, cursor: str = "") -> Record | Bye:
    """Raises msgspec.DecodeError.

    >>> read_record('{"type": "dropped", "id": "17-0", "stream": "cam-1", "reason": "late"}', "17-0").reason
    'late'
    """
    found: Record | Bye = msgspec.structs.replace(_record_decoder.decode(text), cursor=cursor, json=text)
    return found
