"""Entries and answers of a WebSocket, as MessagePack and as JSON; one line of NDJSON is one map of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from service.api.delivery import Delivery, Notice, Outgoing
from service.api.posted import PostedEntry
from service.api.problems import describe_error
from service.errors import Malformed, RollcastError

MAX_ENTRIES: Final = 1024  # of one message


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="type", forbid_unknown_fields=True):
    """The first message. `streams`: whose records are wanted; none given: those of the streams posted to here.
    `after`: from this cursor on; none: from now. `when_full`: what happens when this reader is too slow."""

    key: str | None = None
    after: str | None = None
    streams: list[str] | None = None
    when_full: Literal["catch_up", "drop_oldest", "disconnect"] = "catch_up"


class Ack(msgspec.Struct, frozen=True, tag="ack", tag_field="type"):
    """An entry is in the log. Answers come in the order of the entries of a message."""

    id: str
    stream: str
    model: str
    seq: int | None = None


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
    except msgspec.DecodeError as error:
        raise Malformed(f'first message: {error}; expected {{"type": "hello", …}}') from None


def split_message(message: Message) -> list[msgspec.Raw]:
    """The maps of a message: an array of them. Raises Malformed."""
    try:
        found = _list_json.decode(message) if isinstance(message, str) else _list_packed.decode(message)
    except msgspec.DecodeError as error:
        raise Malformed(f"message: {error}; expected an array of entries") from None
    if len(found) > MAX_ENTRIES:
        raise Malformed(f"message of {len(found)} entries: expected at most {MAX_ENTRIES}")
    return found


def read_entry(data: msgspec.Raw | bytes, packed: bool) -> PostedEntry:
    """Raises Malformed."""
    try:
        return _entry_packed.decode(data) if packed else _entry_json.decode(data)
    except msgspec.DecodeError as error:
        raise Malformed(f"entry: {error}") from None


def problem_of(error: RollcastError, **more: object) -> dict[str, object]:
    """As an RFC 9457 problem, which says by `type` that it is one; its own type is `problem`."""
    described = describe_error(error)
    return {"type": "problem", "problem": described.pop("type"), **described, **more}


def encode_answers(answers: Iterable[Ack | dict[str, object]], packed: bool) -> Message:
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
        elif what.type in ("gap", "bye", "wait"):
            parts.append(_encode(_placed(what, where, many), packed))
    if many and cursor is not None:
        parts.append(_encode({"type": "cursor", "cursor": cursor}, packed))
    if not parts:
        return None
    if packed:
        return _array_head(len(parts)) + b"".join(parts)
    return (b"[" + b",".join(parts) + b"]").decode()


def _placed(notice: Notice, where: str | None, many: bool) -> dict[str, object]:
    """A notice of one stream says the cursor after it as its `id`."""
    return notice.body if many or where is None else notice.body | {"id": where}


def _encode(value: dict[str, object], packed: bool) -> bytes:
    return msgspec.msgpack.encode(value) if packed else msgspec.json.encode(value)


def _array_head(count: int) -> bytes:
    """MessagePack's head of an array: fixarray, array 16, array 32."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 65_536 else b"\xdd" + count.to_bytes(4, "big")
