"""An entry as a map."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from service.codec import MAX_INTERVAL_S, MAX_SEQ, MAX_TIME_S

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=MAX_TIME_S)]


class PostedEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of any stream, as a map: of a WebSocket's message, a line of NDJSON. In JSON bytes are base64."""

    kind: Literal["frame", "samples", "text"]
    stream: str = ""  # may be left out where a WebSocket is of one stream
    data: bytes | None = None  # a frame: JPEG, PNG, WebP; samples: little-endian float32 rows
    samples: list[list[float]] | None = None  # instead of data
    text: str | None = None
    shape: tuple[int, int] | None = None  # T, F of samples in data
    model: str | None = None
    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)] | None = None
    time: Seconds | None = None  # event time, s since 1970; of the last row of a block
    start: bool | Literal[0, 1] = False
    end: bool | Literal[0, 1] = False
    interval_s: Annotated[float, msgspec.Meta(ge=0.0, le=MAX_INTERVAL_S)] | None = None  # between rows
