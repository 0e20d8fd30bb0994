"""An entry as a map: as it is posted, and as it stands in the log."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from service.codec import MAX_INTERVAL_S, MAX_SEQ, MAX_TIME_S

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=MAX_TIME_S)]


class PostedEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of any stream, as a map: of a WebSocket's message, a line of NDJSON. In JSON bytes are base64."""

    kind: Literal["frame", "samples", "text"]
    stream: str = ""  # may be left out where a WebSocket is of one stream
    data: bytes | None = None  # a frame: JPEG, PNG, WebP; samples: little-endian float32 rows
    samples: list[list[float | None]] | None = None  # instead of data; null is refused with its place
    text: str | None = None
    shape: tuple[int, int] | None = None  # T, F of samples in data
    model: str | None = None
    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)] | None = None
    time: Seconds | None = None  # event time, s since 1970; of the last row of a block
    start: bool | Literal[0, 1] = False
    end: bool | Literal[0, 1] = False
    interval_s: Annotated[float, msgspec.Meta(ge=0.0, le=MAX_INTERVAL_S)] | None = None  # between rows


class LoggedEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry as it stands in the log: an entry as it is posted, and its `id`. A control has `control` instead of
    content. `fault`: it cannot be read, and was or will be refused; its bytes are as they came."""

    id: str
    stream: str
    kind: str
    data: bytes | None = None
    text: str | None = None
    control: dict[str, Any] | None = None
    shape: tuple[int, int] | None = None
    model: str | None = None
    seq: int | None = None
    time: float | None = None
    start: bool = False
    end: bool = False
    interval_s: float | None = None
    fault: str | None = None
    retry_of: str | None = None
