"""The tree of errors. Every error of rollcast is one of these; adapters translate foreign errors into them.

RollcastError
├── EntryError             the entry is at fault; as a record: `refused`, with `reason`
│   ├── Malformed              400  fields missing, unreadable or out of range
│   ├── BadStreamId            400  not a legal stream id
│   ├── WrongShard             400  an entry in a shard that is not its stream's
│   ├── BadId                  400  an entry under an id that no broker's clock gives
│   ├── UnknownModel           404  no package of that name
│   ├── ModelNeeded            422  several packages fit; names them
│   ├── WrongKind              422  the model takes another kind of entry
│   ├── OtherModel             409  the stream is bound to another model
│   ├── OtherSchema            409  a state whose schema is not that of the package
│   ├── WrongShape             422  columns, ragged rows, too many rows
│   ├── NonFinite              422  NaN or infinity in the input, or in what a step would leave behind
│   ├── BadImage               422  an image that cannot be decoded
│   ├── TooLarge               413  bytes or pixels above the limit
│   ├── UnsupportedMedia       415  a content type or image format we do not take
│   ├── StepFailed             422  the model failed on this entry
│   └── Crashed                422  the entry ended the process that worked on it, again and again
├── RequestError           the call is at fault
│   ├── BadCursor              400
│   ├── UnknownStream          404
│   ├── NoFsync                501  `ack=fsync` on a broker that cannot promise it
│   ├── NoState                404  the stream has none
│   ├── NotInQuarantine        404
│   ├── ForeignHost            421  called by a name that is not the api's
│   ├── ForeignOrigin          403  a page of another site calls
│   ├── UnsupportedEncoding    415  a body that is packed in a way that is not taken
│   ├── HeadTooLarge           431  URL, headers or trailers
│   └── TooSlow                408  a head or a body that does not come
├── NotAnswered            what `wait` reports instead of a prediction
│   ├── EntryRefused           422
│   ├── EntryDropped           410
│   ├── EntryDuplicate         409
│   └── WaitTimeout            504
├── Unavailable            try again later; carries Retry-After
│   ├── BrokerAway             503
│   ├── BrokerFull             503  nothing was appended: the broker is out of memory
│   ├── AppendUnknown          503  the reply of an append was lost
│   ├── BacklogFull            429
│   ├── TooManyStreams         429  a new stream, and the deployment has as many as it may
│   ├── Busy                   503  too many such calls at once
│   ├── NoWorker               503
│   └── Crowded                503  too many connections, or too many bytes of unfinished bodies
├── Fenced                 the shard was lost, or the broker forgot: drop everything and acquire again
├── CommitRefused          nothing applied; the same commit may be sent again
├── BadHead                a shard whose head no worker may go on from
├── Stuck                  what a worker works on does not end: its process has to
└── StartError             the program cannot start; says what to change
    ├── BadSettings  ├── PackageRefused  ├── HomeInUse  ├── HomeRefused  ├── PortInUse
    ├── BrokerFailed  └── Disagreement
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class RollcastError(Exception):
    """Base. `status` is the HTTP status, `type` the stable problem type, `reason` the label in metrics and records."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    reason: ClassVar[str] = "internal"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail


class EntryError(RollcastError):
    """The entry is at fault: over HTTP an answer, in the log a `refused` record with `reason`."""


class Malformed(EntryError):
    status, type, title, reason = 400, "malformed", "Malformed entry", "malformed"


class BadStreamId(EntryError):
    status, type, title, reason = 400, "bad-stream-id", "Not a legal stream id", "bad_stream"


class WrongShard(EntryError):
    status, type, title, reason = 400, "wrong-shard", "Entry in a shard that is not its stream's", "wrong_shard"


class BadId(EntryError):
    status, type, title, reason = 400, "bad-id", "An id that no clock gives", "bad_id"


class UnknownModel(EntryError):
    status, type, title, reason = 404, "unknown-model", "Unknown model", "unknown_model"


class ModelNeeded(EntryError):
    status, type, title, reason = 422, "model-needed", "Several models fit, or none", "model_needed"


class WrongKind(EntryError):
    status, type, title, reason = 422, "wrong-kind", "The model takes another kind of entry", "wrong_kind"


class OtherModel(EntryError):
    status, type, title, reason = 409, "other-model", "The stream is bound to another model", "other_model"


class OtherSchema(EntryError):
    status, type, title, reason = 409, "other-schema", "A state of another schema", "other_schema"


class WrongShape(EntryError):
    status, type, title, reason = 422, "wrong-shape", "Input of the wrong shape", "wrong_shape"


class NonFinite(EntryError):
    status, type, title, reason = 422, "non-finite", "Values that are not finite", "non_finite"


class BadImage(EntryError):
    status, type, title, reason = 422, "bad-image", "An image that cannot be decoded", "bad_image"


class TooLarge(EntryError):
    status, type, title, reason = 413, "too-large", "Above a limit", "too_large"


class UnsupportedMedia(EntryError):
    status, type, title, reason = 415, "unsupported-media", "A format that is not taken", "unsupported_media"


class StepFailed(EntryError):
    status, type, title, reason = 422, "step-failed", "The model failed on this entry", "step_failed"


class Crashed(EntryError):
    status, type, title, reason = 422, "crash", "The entry ends the process that works on it", "crash"


class RequestError(RollcastError):
    """The call is at fault, not an entry."""

    status, type, title, reason = 400, "bad-request", "Bad request", "bad_request"


class BadCursor(RequestError):
    status, type, title, reason = 400, "bad-cursor", "Not a cursor", "bad_cursor"


class UnknownStream(RequestError):
    status, type, title, reason = 404, "unknown-stream", "Unknown stream", "unknown_stream"


class NoFsync(RequestError):
    status, type, title, reason = 501, "no-fsync", "The broker does not promise that it is on disk", "no_fsync"


class NoState(RequestError):
    status, type, title, reason = 404, "no-state", "The stream has no state", "no_state"


class NotInQuarantine(RequestError):
    status, type, title, reason = 404, "not-in-quarantine", "No such entry in quarantine", "not_in_quarantine"


class ForeignHost(RequestError):
    status, type, title, reason = 421, "foreign-host", "Not a name of this server", "host"


class ForeignOrigin(RequestError):
    status, type, title, reason = 403, "foreign-origin", "A page of another site", "origin"


class UnsupportedEncoding(RequestError):
    status, type, title, reason = 415, "unsupported-encoding", "A packing that is not taken", "encoding"
    taken: ClassVar[str] = "gzip, deflate"  # as a header Accept-Encoding says it


class HeadTooLarge(RequestError):
    status, type, title, reason = 431, "head-too-large", "The head of the request is too large", "head_bytes"


class TooSlow(RequestError):
    status, type, title, reason = 408, "too-slow", "The request did not come in time", "too_slow"


class NotAnswered(RollcastError):
    """What `wait` reports when the entry's record is not a prediction, or has not come.

    `members` are added to the problem: the entry's id and stream, and what its record says.
    """

    def __init__(self, detail: str = "", members: Mapping[str, object] | None = None) -> None:
        super().__init__(detail)
        self.members = dict(members or {})


class EntryRefused(NotAnswered):
    status, type, title, reason = 422, "refused", "The entry was refused", "refused"


class EntryDropped(NotAnswered):
    status, type, title, reason = 410, "dropped", "The entry was dropped", "dropped"


class EntryDuplicate(NotAnswered):
    status, type, title, reason = 409, "duplicate", "The entry repeats an earlier one", "duplicate"


class WaitTimeout(NotAnswered):
    status, type, title, reason = 504, "wait-timeout", "No record yet", "wait_timeout"


class Unavailable(RollcastError):
    """Try again after `retry_after_s` seconds."""

    status, type, title, reason = 503, "unavailable", "Unavailable", "unavailable"

    def __init__(self, detail: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class BrokerAway(Unavailable):
    status, type, title, reason = 503, "broker-away", "The broker cannot be reached", "broker_away"


class BrokerFull(Unavailable):
    status, type, title, reason = 503, "broker-full", "The broker is out of memory", "broker_full"


class AppendUnknown(Unavailable):
    status, type, title, reason = 503, "append-unknown", "The broker's answer was lost", "append_unknown"


class BacklogFull(Unavailable):
    status, type, title, reason = 429, "backlog-full", "Too much is waiting", "backlog_full"


class TooManyStreams(Unavailable):
    status, type, title, reason = 429, "too-many-streams", "Too many streams", "too_many_streams"


class Busy(Unavailable):
    """Too many calls of one dear kind at once."""

    status, type, title, reason = 503, "busy", "Too many such calls at once", "busy"


class NoWorker(Unavailable):
    status, type, title, reason = 503, "no-worker", "No worker serves this model", "no_worker"


class Crowded(Unavailable):
    status, type, title, reason = 503, "crowded", "Too many at once", "crowded"


class Fenced(RollcastError):
    """The shard was lost, the broker rolled back, or a reply was lost: its states and batch must be thrown away."""

    reason = "fenced"


class CommitRefused(RollcastError):
    """The broker answers, but takes nothing at present (out of memory, disk full, …): the same may be sent again."""

    reason = "commit_refused"


class BadHead(RollcastError):
    """The head of a shard cannot be read, or stands at an id that no clock gives: the shard waits for its repair."""

    reason = "bad_head"


class Stuck(RollcastError):
    """What a worker works on does not come to an end. A thread cannot be ended, so the process has to."""

    reason = "stuck"


class StartError(RollcastError):
    """The program cannot start. The text says what was wrong, what was expected, and where."""

    exit_code: ClassVar[int] = 2


class BadSettings(StartError):
    type = "bad-settings"


class PackageRefused(StartError):
    """A model package is wrong. `check` names the failing check."""

    type = "package-refused"

    def __init__(self, detail: str = "", check: str = "") -> None:
        super().__init__(detail)
        self.check = check


class HomeInUse(StartError):
    type = "home-in-use"


class HomeRefused(StartError):
    """The folder `home` is not this user's own, or holds what may be somebody else's."""

    type = "home-refused"


class PortInUse(StartError):
    type = "port-in-use"


class BrokerFailed(StartError):
    type = "broker-failed"


class Disagreement(StartError):
    """This process and the deployment disagree (shards, format)."""

    type = "disagreement"
