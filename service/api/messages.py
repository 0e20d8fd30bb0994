"""Entries and answers of a WebSocket, as MessagePack and as JSON; one line of NDJSON is one map of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from service.api.delivery import Delivery, Outgoing
from service.api.doors import HELLO_BYTES
from service.api.notices import Bye, Cursor, Moved, Notice
from service.api.posted import PostedEntry
from service.api.problems import TYPE_PREFIX
from service.api.rows import check_numbers, check_samples, too_many_rows
from service.contracts import MAX_ROWS
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


class _Map(msgspec.Struct, frozen=True):
    """Any map; what it holds is passed over."""


class _Sampled(msgspec.Struct, frozen=True):
    """Of a map only whether it has samples."""

    samples: msgspec.Raw = msgspec.Raw()


_maps_json = msgspec.json.Decoder(list[_Map])
_sampled_json = msgspec.json.Decoder(_Sampled)
_fields_packed = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_LARGE: Final = 64 * 1024  # bytes of what is looked at before it is read
_BRACES: Final = 8 * MAX_ENTRIES  # of a large message; an entry has one, and whatever its text has
_ARRAY: Final = (0x90, 0xDC, 0xDD)  # first bytes: fixarray, array 16, array 32
_MAP: Final = (0x80, 0xDE, 0xDF)
_LONGEST_HEAD: Final = 5  # bytes of an array's head
_LONGEST_NUMBER: Final = 9
_MENDED: Final = 1 << 20  # size of JSON in which NaN and Infinity are looked for
_CONSTANT: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|:\s*+(?:NaN|-?Infinity)|NaN|-?Infinity', re.DOTALL)
_AS_NUMBER: Final = {"NaN": "null", "Infinity": "1e308", "-Infinity": "-1e308"}
_FIELDS: Final = len(PostedEntry.__struct_fields__)


def read_hello(message: Message) -> Hello:
    """Raises Malformed."""
    if len(message) > HELLO_BYTES:
        raise Malformed(f"first message of {len(message)} bytes: expected hello, of at most {HELLO_BYTES}")
    try:
        return _hello_json.decode(message) if isinstance(message, str) else _hello_packed.decode(message)
    except UNREADABLE as error:
        raise Malformed(f'first message: {error}; expected {{"type": "hello", …}}') from None


def split_message(message: Message) -> list[msgspec.Raw]:
    """The maps of a message: an array of them. Raises Malformed, before it is split into very many parts."""
    try:
        if isinstance(message, str):
            if len(message) > _LARGE:
                _check_maps(message)
            if len(message) <= _MENDED and ("NaN" in message or "Infinity" in message):
                message = _numbers_only(message)
            found = _list_json.decode(message)
        else:
            _check_entries(packed_length(message) or 0)
            found = _list_packed.decode(message)
    except UNREADABLE as error:
        raise Malformed(f"message: {error}; expected an array of entries") from None
    _check_entries(len(found))
    return found


def _check_entries(count: int) -> None:
    if count > MAX_ENTRIES:
        raise Malformed(f"message of {count} entries: expected at most {MAX_ENTRIES}")


def _check_maps(message: str) -> None:
    """What may be said of a large message before it is split: that it has maps, and not too many."""
    if (braces := message.count("{")) > _BRACES:
        raise Malformed(
            f"message with {braces} braces: expected at most {MAX_ENTRIES} entries; send such text as MessagePack"
        )
    _maps_json.decode(message)  # ends at the first part that is no map


def read_entry(data: msgspec.Raw | bytes, packed: bool) -> PostedEntry:
    """Raises Malformed, and TooLarge before very many numbers are read."""
    body = bytes(data)
    try:
        if len(body) > _LARGE:
            if packed:
                _check_packed(body)
            elif _sampled_json.decode(body).samples:
                check_samples(body, _FIELDS)
        if not packed and len(body) <= _MENDED and (b"NaN" in body or b"Infinity" in body):
            body = _numbers_only(body.decode()).encode()
        return _entry_packed.decode(body) if packed else _entry_json.decode(body)
    except UNREADABLE as error:
        raise Malformed(f"entry: {error}") from None


def _check_packed(body: bytes) -> None:
    """The lengths that MessagePack says before what it counts. Twice the same field would hide one of them."""
    count = packed_length(body, _MAP)
    if count is None or count > _FIELDS:
        raise Malformed(f"entry: expected a map of at most {_FIELDS} fields")
    fields = _fields_packed.decode(body)
    if len(fields) != count:
        raise Malformed("entry: a field is given twice")
    samples = bytes(fields.get("samples", b""))
    if (rows := packed_length(samples)) is not None:
        if rows > MAX_ROWS:
            raise too_many_rows(str(rows))
        check_numbers((len(samples) - _LONGEST_HEAD * (rows + 1)) // _LONGEST_NUMBER)
        check_numbers(sum(packed_length(bytes(row)) or 0 for row in _list_packed.decode(samples)))


def _numbers_only(text: str) -> str:
    """JSON has no NaN and no Infinity, but producers write them. In an array they become null and numbers beyond
    float32, so that the answer can say where."""
    return _CONSTANT.sub(lambda found: _AS_NUMBER.get(found[0], found[0]), text)


def packed_length(data: bytes, heads: tuple[int, int, int] = _ARRAY) -> int | None:
    """Of a MessagePack array (or map), as its head says; None of anything else.

    >>> packed_length(msgspec.msgpack.encode([0] * 70_000))
    70000
    """
    fixed, short, long = heads
    head = data[0] if data else 0
    if head & 0xF0 == fixed:
        return head & 0x0F
    return int.from_bytes(data[1 : 3 if head == short else 5], "big") if head in (short, long) else None


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
