"""What a subscriber is told that is no record. docs/streams.md is made from these types."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

GapReason = Literal["trimmed", "lost", "slow"]
ByeReason = Literal["closing", "too_slow"]


class Gap(msgspec.Struct, frozen=True, tag="gap", tag_field="type", kw_only=True):
    """Records that cannot be delivered. `trimmed`: they are not kept any more; `lost`: the log lost its tail, or began
    anew; `slow`: they were dropped, as this reader chose. Of one stream they lie between `after` and `next`. Over many
    streams it is one record, `id` of `stream`; or whatever fits in a `shard`; or so many `records`."""

    reason: GapReason
    stream: str | UnsetType = UNSET
    id: str | UnsetType = UNSET  # of one stream: the cursor after it
    after: str | UnsetType = UNSET
    next: str | UnsetType | None = UNSET  # id of the record that follows, if one does
    shard: int | UnsetType = UNSET
    records: int | UnsetType = UNSET


class Bye(msgspec.Struct, frozen=True, tag="bye", tag_field="type", kw_only=True):
    """The end: come back with the cursor. `closing`: the server stops; `too_slow`: as this reader chose."""

    reason: ByeReason
    stream: str | UnsetType = UNSET
    id: str | UnsetType = UNSET  # WebSocket of one stream: the cursor


class Wait(msgspec.Struct, frozen=True, tag="wait", tag_field="type"):
    """The broker does not answer; nothing is lost. As a server-sent event it is a comment."""

    detail: str


class Cursor(msgspec.Struct, frozen=True, tag="cursor", tag_field="type"):
    """Over many streams: where to go on after this message."""

    cursor: str


class Moved(msgspec.Struct, frozen=True):
    """Nothing but where the subscriber stands; never sent by itself."""


Notice = Gap | Bye | Wait | Moved
