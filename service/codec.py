"""Bytes to values and back: entries, positions, heads, feeds, records. docs/formats.md shows each with an example.

Numbers in Redis are decimal text, lists are separated by one space, `-` stands for none; records are JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from service.contracts import (
    KINDS,
    MAX_ROWS,
    NO_STREAM,
    STREAM_ID,
    Entry,
    Record,
    StreamSettings,
)
from service.errors import BadStreamId, EntryError, Malformed, WrongShape
from service.ports import Behind

ZERO_ID: Final = b"0-0"
MAX_TIME_S: Final = 253_402_300_800.0  # the end of the year 9999
MAX_INTERVAL_S: Final = 86_400.0
MAX_SEQ: Final = 2**63 - 1
MAX_MS: Final = int(MAX_TIME_S) * 1000  # of an id that is a time
AHEAD_MS: Final = 86_400_000  # how far an id may lie beyond the clock that gave it: clocks are wrong, and put right
_MAX_DIGITS: Final = 1024  # of a number as text
_SEQ_BITS: Final = 64
_LARGEST: Final = 2**64 - 1  # of either number of an id, as brokers have it
_MAX_TRACEPARENT: Final = 512  # bytes
_MAX_MODEL: Final = 128  # characters: more than a package's name has


# --- ids ---------------------------------------------------------------------------------------------------------


def id_number(entry_id: bytes | str) -> int:
    """`MS-SEQ` as one integer that compares like the pair of numbers: two of 64 bits, as brokers have them. Raises
    ValueError.

    >>> id_number(b"17-10") > id_number(b"17-9")
    True
    """
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, dash, seq = text.partition("-")
    if not (dash and ms.isascii() and ms.isdecimal() and seq.isascii() and seq.isdecimal()) or len(text) > 41:
        raise ValueError(f"{text[:60]!r} is not an id: expected MS-SEQ, two decimal numbers")
    number = int(ms) << _SEQ_BITS | int(seq)
    if int(seq) > _LARGEST or int(ms) > _LARGEST:
        raise ValueError(f"{text[:60]!r} is not an id: a number in it is above 64 bits")
    return number


def number_id(number: int) -> bytes:
    """The inverse of `id_number`.

    >>> number_id(id_number("17-9"))
    b'17-9'
    """
    return b"%d-%d" % (number >> _SEQ_BITS, number & _LARGEST)


def predecessor(number: int) -> int:
    """The largest id below this one.

    >>> number_id(predecessor(id_number("17-0")))
    b'16-18446744073709551615'
    """
    return number - 1


def is_id(word: bytes) -> bool:
    """
    >>> is_id(b"17-9"), is_id(b"reset")
    (True, False)
    """
    try:
        id_number(word)
    except ValueError:
        return False
    return True


def last_honest(now_ms: int, low: int) -> int:
    """The largest id that a broker's clock may have given by `now_ms`, in a shard that is finished up to `low`.

    An id above it was made by a producer. Where `low` itself lies above, the clock was put back: a broker goes on
    counting from its last id then.

    >>> number_id(last_honest(1_763_860_000_000, id_number("1763860000000-4")))
    b'1763946400000-18446744073709551615'
    """
    soonest = now_ms + AHEAD_MS
    low_ms = low >> _SEQ_BITS
    return (soonest if low_ms <= soonest else low_ms + AHEAD_MS) << _SEQ_BITS | _LARGEST


# --- entries -----------------------------------------------------------------------------------------------------

_MODEL: Final = re.compile(rb"[A-Za-z0-9._-]{0,%d}" % _MAX_MODEL)
_KINDS_BYTES: Final = {kind.encode(): kind for kind in KINDS}


def parse_entry(entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    """One item of the log: `fields` alternate names and values. Never raises: what is wrong becomes `fault`."""
    ms_text, _, seq_text = entry_id.partition(b"-")
    ms = int(ms_text)
    number = ms << _SEQ_BITS | int(seq_text)
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    data = values.get(b"data", b"")
    kind = _KINDS_BYTES.get(values.get(b"kind", b""), "")
    fault: EntryError | None = None
    name = values.get(b"stream", b"")
    stream = _stream_of(name) if len(name) <= 128 else ""  # what is remembered is short
    if not stream:
        stream = NO_STREAM
        fault = BadStreamId(
            f"field stream {_show(values.get(b'stream'))}: expected 1 to 128 characters of A-Z a-z 0-9 . _ : -"
        )
    try:
        if not kind:
            raise Malformed(f"field kind {_show(values.get(b'kind'))}: expected one of {', '.join(KINDS)}")
        shape = _parse_shape(values.get(b"shape"), len(data)) if kind == "samples" else None
        if len(values) <= 5 and not (values.keys() & _OPTIONAL):  # the common case: stream, kind, data, model, shape
            model = values.get(b"model")
            return Entry(
                entry_id, ms, number, stream, kind, data,
                _parse_model(model) if model else None, None, None, False, False, shape, None, None, fault,
                None, values if fault else None,
            )  # fmt: skip
        return Entry(
            id=entry_id,
            ms=ms,
            number=number,
            stream=stream,
            kind=kind,
            data=data,
            model=_parse_model(values.get(b"model", b"")),
            time=_parse_float(values, b"time", 0.0, MAX_TIME_S),
            seq=_parse_int(values, b"seq", 0, MAX_SEQ),
            start=_parse_flag(values, b"start"),
            end=_parse_flag(values, b"end"),
            shape=shape,
            interval_s=_parse_float(values, b"interval_s", 0.0, MAX_INTERVAL_S),
            traceparent=_parse_traceparent(values),
            fault=fault,
            retry_of=_parse_retry_of(values),
            raw=values if fault else None,
        )
    except EntryError as error:
        return Entry(entry_id, ms, number, stream, kind, data, fault=fault or error, raw=values)


_OPTIONAL: Final = frozenset((b"time", b"seq", b"start", b"end", b"interval_s", b"traceparent", b"retry_of"))
_KEPT_FIELDS: Final = (b"model", b"shape", *sorted(_OPTIONAL))  # of a refused entry, beside stream, kind and data
_KEPT_BYTES: Final = 1024  # of each of them: a producer may have put anything there


def entry_fields(
    stream: str,
    kind: str,
    data: bytes,
    *,
    model: str | None = None,
    time: float | None = None,
    seq: int | None = None,
    start: bool = False,
    end: bool = False,
    shape: tuple[int, int] | None = None,
    interval_s: float | None = None,
    traceparent: str | None = None,
    retry_of: str | None = None,
) -> dict[str, bytes]:
    """The fields of an XADD into the log; what `parse_entry` reads back."""
    fields: dict[str, bytes] = {"stream": stream.encode(), "kind": kind.encode(), "data": data}
    if model is not None:
        fields["model"] = model.encode()
    if time is not None:
        fields["time"] = repr(float(time)).encode()
    if seq is not None:
        fields["seq"] = b"%d" % seq
    if start:
        fields["start"] = b"1"
    if end:
        fields["end"] = b"1"
    if shape is not None:
        fields["shape"] = b"%d,%d" % shape
    if interval_s is not None:
        fields["interval_s"] = repr(float(interval_s)).encode()
    if traceparent is not None:
        fields["traceparent"] = traceparent.encode()
    if retry_of is not None:
        fields["retry_of"] = retry_of.encode()
    return fields


def kept_fields(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    """What `dead` keeps of an entry beside its stream, kind and data: the known fields, as they came."""
    if entry.raw is not None:
        return tuple((name, entry.raw[name][:_KEPT_BYTES]) for name in _KEPT_FIELDS if name in entry.raw)
    fields = entry_fields(
        entry.stream, entry.kind, b"",
        model=entry.model, time=entry.time, seq=entry.seq, start=entry.start, end=entry.end, shape=entry.shape,
        interval_s=entry.interval_s, traceparent=entry.traceparent, retry_of=entry.retry_of,
    )  # fmt: skip
    return tuple((name.encode(), value) for name, value in fields.items() if name.encode() in _KEPT_FIELDS)


@lru_cache(maxsize=1 << 14)  # a process meets the same streams again and again
def _stream_of(value: bytes) -> str:
    """The stream id, or nothing when it is not a legal one."""
    try:
        stream = value.decode()
    except UnicodeDecodeError:
        return ""
    return stream if STREAM_ID.fullmatch(stream) else ""


@lru_cache(maxsize=1 << 10)
def _numbers_of(value: bytes) -> tuple[int, int] | None:
    parts = value.split(b",")
    if len(parts) != 2 or not all(part.isdigit() and len(part) < 10 for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _parse_shape(value: bytes | None, data_bytes: int) -> tuple[int, int]:
    shape = _numbers_of(value) if value and len(value) < 20 else None
    if shape is None:
        raise Malformed(f"field shape {_show(value)}: expected T,F, two decimal numbers")
    rows, columns = shape
    if not 1 <= rows <= MAX_ROWS or columns < 1:
        raise WrongShape(f"shape {rows},{columns}: expected 1 to {MAX_ROWS} rows of at least one column")
    if rows * columns * 4 != data_bytes:
        raise WrongShape(
            f"shape {rows},{columns} needs {rows * columns * 4} bytes of little-endian float32, data has {data_bytes}"
        )
    return shape


@lru_cache(maxsize=1 << 10)  # what is refused is not remembered
def _parse_model(value: bytes) -> str | None:
    if not _MODEL.fullmatch(value):
        raise Malformed(f"field model {_show(value)}: expected a package's name")
    return value.decode() or None


def _parse_traceparent(values: dict[bytes, bytes]) -> str | None:
    value = values.get(b"traceparent", b"")
    if len(value) > _MAX_TRACEPARENT or not value.isascii():
        raise Malformed(f"field traceparent {_show(value)}: expected at most {_MAX_TRACEPARENT} ASCII characters")
    return value.decode() or None


def _parse_retry_of(values: dict[bytes, bytes]) -> str | None:
    value = values.get(b"retry_of", b"")
    if value and not is_id(value):
        raise Malformed(f"field retry_of {_show(value)}: expected an id, MS-SEQ")
    return value.decode() or None


def _parse_float(values: dict[bytes, bytes], name: bytes, low: float, high: float) -> float | None:
    value = values.get(name)
    if not value:
        return None
    try:
        number = decimal_number(value.decode("latin-1"))
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise Malformed(f"field {name.decode()} {_show(value)}: expected seconds from {low:g} to {high:g}")
    return number


def decimal_number(text: str) -> float:
    """A number in decimal digits, with spaces around it or not; `nan` and `inf` as well, so that they can be named.
    What else Python takes for a number is none. Raises ValueError.

    >>> decimal_number(" -1.5e3 ")
    -1500.0
    """
    found = text.strip(" \t") if len(text) <= _MAX_DIGITS else ""
    if not found or not (found.isascii() and found.isprintable()) or "_" in found:
        raise ValueError(text[:60])
    return float(found)


def _parse_int(values: dict[bytes, bytes], name: bytes, low: int, high: int) -> int | None:
    value = values.get(name)
    if not value:
        return None
    if not value.isdigit() or len(value) > 19 or not low <= int(value) <= high:
        raise Malformed(f"field {name.decode()} {_show(value)}: expected a whole number from {low} to {high}")
    return int(value)


def _parse_flag(values: dict[bytes, bytes], name: bytes) -> bool:
    value = values.get(name, b"")
    if value in (b"", b"0"):
        return False
    if value == b"1":
        return True
    raise Malformed(f"field {name.decode()} {_show(value)}: expected 1 or 0")


def _show(value: bytes | None) -> str:
    return "is missing" if value is None else repr(value[:60].decode("latin-1"))


# --- head: the fence ---------------------------------------------------------------------------------------------


_HEAD: Final = re.compile(rb"([!-~]+) ([!-~]+) (\d{1,19}) (\d+-\d+) (\d{1,19}) (\d{1,19})")


class Head(NamedTuple):
    """`life token n low kept tries`; see docs/formats.md."""

    life: str
    token: str
    n: int
    low: int  # as id_number
    kept: int
    tries: int

    def encode(self) -> bytes:
        return b"%b %b %d %b %d %d" % (
            self.life.encode(),
            self.token.encode(),
            self.n,
            number_id(self.low),
            self.kept,
            self.tries,
        )


def parse_head(value: bytes) -> Head:
    """Raises ValueError when `value` is not a head."""
    words = _HEAD.fullmatch(value)
    if words is None:
        raise ValueError(f"{value[:60]!r} is not a head: expected life token n low kept tries")
    life, token, n, low, kept, tries = words.groups()
    return Head(life.decode(), token.decode(), int(n), id_number(low), int(kept), int(tries))


def read_head(value: bytes | None) -> Head | None:
    """None as well where somebody else wrote there."""
    try:
        return parse_head(value) if value else None
    except ValueError:
        return None


# --- pos: positions ----------------------------------------------------------------------------------------------


class Position(NamedTuple):
    """Where a stream stands: `last record seq seq_id stepped`. Outside the state, so that it outlives it.

    Stored, `=` is the same id as `last`, and an id alone is `id = - - =`, as it usually is: 36 bytes less a stream.
    Spelt out it is read as well.
    `stepped` is the id of the last entry whose state is kept; `-`: there is none, the next one is `first`;
    `reset`: a reset dropped it; `version`: another model did; `deleted`: the stream was, and nothing came since. An id
    with `+` behind it is that of a restore after which nothing was stepped yet.
    """

    last: int  # last finished entry, as id_number
    record: bytes  # id of the stream's last record
    seq: int | None  # producer's last counter, and the id of the entry that carried it
    seq_id: bytes
    stepped: bytes

    def encode(self) -> bytes:
        return encode_position(number_id(self.last), self.record, self.seq, self.seq_id, self.stepped)


RESTORED: Final = b"+"
_STEPPED: Final = (b"=", b"-", b"reset", b"start", b"version", b"deleted")
NOWHERE: Final = Position(0, ZERO_ID, None, b"-", b"-")


def encode_position(last: bytes, record: bytes, seq: int | None, seq_id: bytes, stepped: bytes) -> bytes:
    """What `pos` holds of a stream; `last` as an id.

    >>> encode_position(b"17-4", b"17-4", 7, b"17-0", b"17-4")
    b'17-4 = 7 17-0 ='
    """
    if seq is None and record == stepped == last and seq_id == b"-":
        return last
    return b"%b %b %b %b %b" % (
        last,
        b"=" if record == last else record,
        b"-" if seq is None else b"%d" % seq,
        b"=" if seq_id == last else seq_id,
        b"=" if stepped == last else stepped,
    )


def parse_position(value: bytes) -> Position:
    """Raises ValueError when `value` is not a position.

    >>> parse_position(b"17-4") == parse_position(b"17-4 17-4 - - 17-4")
    True
    """
    last, record, seq, seq_id, stepped = value.split(b" ") if b" " in value else (value, b"=", b"-", b"-", b"=")
    state_of = stepped.removesuffix(RESTORED)
    if not (_is_word(record, b"=") and _is_word(seq_id, b"=", b"-") and _is_word(state_of, *_STEPPED)):
        raise ValueError(f"{value[:60]!r} is not a position: expected last record seq seq_id stepped")
    return Position(
        id_number(last),
        last if record == b"=" else record,
        None if seq == b"-" else int(seq),
        last if seq_id == b"=" else seq_id,
        last if stepped == b"=" else stepped,
    )


def _is_word(word: bytes, *words: bytes) -> bool:
    return word in words or is_id(word)


def read_position(value: bytes | None) -> Position | None:
    """None as well where somebody else wrote there: the worker that meets the stream says so.

    >>> read_position(b"17") is None
    True
    """
    try:
        return parse_position(value) if value else None
    except ValueError:
        return None


# --- feed --------------------------------------------------------------------------------------------------------


def encode_feed(pairs: Iterable[bytes]) -> bytes:
    """Streams and ids in turn, separated by a space: `cam-1 17-0 cam-2 18-0`."""
    return b" ".join(pairs)


def parse_feed(value: bytes) -> list[tuple[str, str]]:
    """[(stream, id), …] in commit order.

    >>> parse_feed(b"cam-1 17-0 cam-2 18-0")
    [('cam-1', '17-0'), ('cam-2', '18-0')]
    """
    words = value.decode().split(" ") if value else []
    return list(zip(words[::2], words[1::2], strict=True))


def encode_behind(behind: Behind | None, last: bytes) -> bytes:
    """`ENTRIES ID`, or `ENTRIES` alone where that is the id of the item's last record, `last`.

    >>> encode_behind(Behind(42, id_number("17-0")), b"17-0"), encode_behind(None, b"")
    (b'42', b'-')
    """
    if behind is None:
        return b"-"
    read = number_id(behind.read)
    return b"%d" % behind.entries if read == last else b"%d %b" % (behind.entries, read)


def read_behind(value: bytes | None, records: bytes) -> Behind | None:
    """None where nothing is known, as after a commit of an earlier version, or where somebody else wrote.

    >>> read_behind(b"42", b"cam-1 17-0") == read_behind(b"42 17-0", b"") == Behind(42, id_number("17-0"))
    True
    """
    entries, _, read = (value or b"").partition(b" ")
    try:
        return Behind(int(entries), id_number(read or records.rpartition(b" ")[2]))
    except ValueError:
        return None


# --- records and settings ----------------------------------------------------------------------------------------

_json = msgspec.json.Encoder()
_record_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_settings_decoder = msgspec.json.Decoder(StreamSettings)


def encode_record(record: Record) -> bytes:
    """JSON: the `body` of an out record, the data of an SSE event."""
    return _json.encode(record)


def decode_record(body: bytes) -> Record:
    """Raises msgspec.DecodeError."""
    return _record_decoder.decode(body)


def encode_settings(settings: StreamSettings) -> bytes:
    return _json.encode(settings)


def decode_settings(body: bytes) -> StreamSettings:
    return _settings_decoder.decode(body)


def read_settings(body: bytes | None) -> StreamSettings:
    """None set as well where somebody else wrote there: the worker that meets the stream says so."""
    try:
        return _settings_decoder.decode(body) if body else StreamSettings()
    except msgspec.DecodeError:
        return StreamSettings()
