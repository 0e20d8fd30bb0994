"""Entries and answers of a WebSocket, as MessagePack and as JSON; one line of NDJSON is one map of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from service.api.delivery import Delivery, Outgoing
from service.api.notices import Bye, Cursor, Moved, Notice
from service.api.posted import PostedEntry
from service.api.problems import TYPE_PREFIX
from service.errors import Malformed, RollcastError, Unavailable

MAX_ENTRIES: Final = 1024  # of one message
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeError)  # what a decoder says of a client's bytes


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="type", forbid_unknown_fields=True):
    """The first message. `streams`: whose records are wanted; none given: those of the streams posted to here.
    `posted`: and of these, which were posted to before the connection was lost. `after`: from this cursor on; none:
    from now, which is before `welcome`. `when_full`: what happens when this reader is too slow."""

    key: str | None = None
    after: str | None = None
    streams: list[str] | None = None
    posted: list[str] = []
    when_full: Literal["catch_up", "drop_oldest", "disconnect"] = "catch_up"


class Ack(msgspec.Struct, frozen=True, tag="ack", tag_field="type"):
    """An entry is in the log. Answers come in the order of the entries of a message."""

    id: str
    stream: str
    model: str
    seq: int | None = None


class Welcome(msgspec.Struct, frozen=True, tag="hello", tag_field="type"):
    """The answer to the first message."""


class ProblemSaid(msgspec.Struct, frozen=True, tag="problem", tag_field="type"):
    """Why an entry is not in the log, or what is wrong with a message: RFC 9457, whose `type` is `problem` here.
    `index`: which entry of the message, from 0. `retry_after_s`: it is worth trying again after so long."""

    problem: str
    title: str
    status: int
    detail: str
    index: int | UnsetType = UNSET
    retry_after_s: float | UnsetType = UNSET


Answer = Welcome | Ack | ProblemSaid
_hello_json = msgspec.json.Decoder(Hello)
_hello_packed = msgspec.msgpack.Decoder(Hello)
_list_json = msgspec.json.Decoder(list[msgspec.Raw])
_list_packed = msgspec.msgpack.Decoder(list[msgspec.Raw])
_entry_json = msgspec.json.Decoder(PostedEntry)
_entry_packed = msgspec.msgpack.Decoder(PostedEntry)
Message = str | bytes  # text: JSON; binary: MessagePack


def read_hello(message: Message) -> Hello:
    """Raises Malformed."""
    try:
        return _hello_json.decode(message) if isinstance(message, str) else _hello_packed.decode(message)
    except UNREADABLE as error:
        raise Malformed(f'first message: {error}; expected {{"type": "hello", …}}') from None


def split_message(message: Message) -> list[msgspec.Raw]:
    """The maps of a message: an array of them. Raises Malformed."""
    try:
        found = _list_json.decode(message) if isinstance(message, str) else _list_packed.decode(message)
    except UNREADABLE as error:
        raise Malformed(f"message: {error}; expected an array of entries") from None
    if len(found) > MAX_ENTRIES:
        raise Malformed(f"message of {len(found)} entries: expected at most {MAX_ENTRIES}")
    return found


def read_entry(data: msgspec.Raw | bytes, packed: bool) -> PostedEntry:
    """Raises Malformed."""
    try:
        return _entry_packed.decode(data) if packed else _entry_json.decode(data)
    except UNREADABLE as error:
        raise Malformed(f"entry: {error}") from None


def problem_of(error: RollcastError, index: int | UnsetType = UNSET) -> ProblemSaid:
    retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else UNSET
    return ProblemSaid(TYPE_PREFIX + error.type, error.title, error.status, error.detail, index, retry_after_s)


def encode_answers(answers: Iterable[Answer], packed: bool) -> Message:
    found = list(answers)
    return msgspec.msgpack.encode(found) if packed else msgspec.json.encode(found).decode()


def encode_batch(batch: Iterable[Outgoing], packed: bool, many: bool) -> Message | None:
    """Records and notices as one array; over many streams it ends with the cursor after them. None: nothing to say."""
    parts: list[bytes] = []
    cursor: str | None = None
    for what, where in batch:
        cursor = where or cursor
        if isinstance(what, Delivery):
            parts.append(what.packed() if packed else what.record.body)
        elif isinstance(what, Bye) and where is not None and not many:
            parts.append(_encode(msgspec.structs.replace(what, id=where), packed))
        elif not isinstance(what, Moved):
            parts.append(_encode(what, packed))
    if many and cursor is not None:
        parts.append(_encode(Cursor(cursor), packed))
    if not parts:
        return None
    if packed:
        return _array_head(len(parts)) + b"".join(parts)
    return (b"[" + b",".join(parts) + b"]").decode()


def _encode(value: Notice | Cursor, packed: bool) -> bytes:
    return msgspec.msgpack.encode(value) if packed else msgspec.json.encode(value)


def _array_head(count: int) -> bytes:
    """MessagePack's head of an array: fixarray, array 16, array 32."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 65_536 else b"\xdd" + count.to_bytes(4, "big")
