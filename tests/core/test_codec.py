"""Bytes to values and back; what is wrong with an entry is said, never raised."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.query import read_cursor
from service.codec import (
    NOWHERE,
    Head,
    Position,
    decode_record,
    encode_feed,
    encode_record,
    entry_fields,
    id_number,
    is_id,
    kept_fields,
    last_honest,
    number_id,
    parse_entry,
    parse_feed,
    parse_head,
    parse_position,
    read_head,
    read_position,
)
from service.contracts import Event, Prediction, Refused, Rolling
from service.controls import decode_control
from service.errors import BadCursor, Malformed

ids = st.builds("{}-{}".format, st.integers(0, 2**53), st.integers(0, 2**64 - 1))


@given(ids, ids)
def test_ids_compare_as_pairs_of_numbers(one: str, other: str) -> None:
    def pair(text: str) -> tuple[int, int]:
        ms, seq = text.split("-")
        return int(ms), int(seq)

    assert (id_number(one) < id_number(other)) == (pair(one) < pair(other))
    assert number_id(id_number(one)).decode() == one


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "1-2-3", "a-b", "1 -2", "+1-2", "1-99999999999999999999999", "٣-1"]
)
def test_what_is_not_an_id_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not an id"):
        id_number(text)


def parse(**fields: bytes) -> object:
    flat = [part for name, value in fields.items() for part in (name.encode(), value)]
    return parse_entry(b"17-3", flat)


@given(
    seq=st.none() | st.integers(0, 2**63 - 1),
    time=st.none() | st.floats(0, 1e11),
    start=st.booleans(),
    end=st.booleans(),
    rows=st.integers(1, 5),
    interval=st.none() | st.floats(0, 86_400),
)
def test_an_entry_reads_back_as_it_was_written(
    seq: int | None, time: float | None, start: bool, end: bool, rows: int, interval: float | None
) -> None:
    data = bytes(4 * 3 * rows)
    fields = entry_fields(
        "cam-1", "samples", data, model="m", time=time, seq=seq, start=start, end=end, shape=(rows, 3),
        interval_s=interval, traceparent="00-1-2-3",
    )  # fmt: skip
    entry = parse_entry(b"17-3", [part for name, value in fields.items() for part in (name.encode(), value)])
    assert entry.fault is None
    assert (entry.id, entry.ms, number_id(entry.number)) == (b"17-3", 17, b"17-3")
    assert (entry.stream, entry.kind, entry.data, entry.model) == ("cam-1", "samples", data, "m")
    assert (entry.time, entry.seq, entry.start, entry.end) == (time, seq, start, end)
    assert (entry.shape, entry.interval_s, entry.traceparent) == ((rows, 3), interval, "00-1-2-3")


GOOD = {"stream": b"a", "kind": b"samples", "shape": b"1,2", "data": bytes(8)}
BAD: list[tuple[dict[str, bytes], str, str]] = [
    ({"stream": b""}, "bad_stream", "stream"),
    ({"stream": b"-a"}, "bad_stream", "'-a'"),
    ({"stream": b"a b"}, "bad_stream", "'a b'"),
    ({"stream": b"\xff"}, "bad_stream", "expected 1 to 128"),
    ({"stream": b"x" * 129}, "bad_stream", "expected 1 to 128"),
    ({"kind": b"movie"}, "malformed", "'movie': expected one of frame, samples, text, control"),
    ({"shape": b""}, "malformed", "expected T,F"),
    ({"shape": b"1"}, "malformed", "expected T,F"),
    ({"shape": b"1,2,3"}, "malformed", "expected T,F"),
    ({"shape": b"0,2"}, "wrong_shape", "1 to 4096 rows"),
    ({"shape": b"5000,2"}, "wrong_shape", "1 to 4096 rows"),
    ({"shape": b"1,3"}, "wrong_shape", "needs 12 bytes"),
    ({"time": b"noon"}, "malformed", "time 'noon'"),
    ({"time": b"nan"}, "malformed", "time 'nan'"),
    ({"time": b"-1"}, "malformed", "time '-1'"),
    ({"time": b"1e99"}, "malformed", "time '1e99'"),
    ({"interval_s": b"-0.1"}, "malformed", "interval_s '-0.1'"),
    ({"seq": b"-1"}, "malformed", "seq '-1'"),
    ({"seq": b"1.5"}, "malformed", "seq '1.5'"),
    ({"seq": b"99999999999999999999"}, "malformed", "seq"),
    ({"start": b"yes"}, "malformed", "start 'yes': expected 1 or 0"),
    ({"model": b"\xff", "seq": b"1"}, "malformed", "expected a package's name"),
    ({"model": b"\xff"}, "malformed", "expected a package's name"),
    ({"model": b"m" * 129}, "malformed", "expected a package's name"),
    ({"model": b"a b"}, "malformed", "'a b': expected a package's name"),
    ({"traceparent": b"0" * 513}, "malformed", "expected at most 512 ASCII characters"),
    ({"traceparent": b"\xff"}, "malformed", "expected at most 512 ASCII characters"),
    ({"retry_of": b"yesterday"}, "malformed", "retry_of 'yesterday': expected an id"),
    ({"retry_of": b"1" * 5000 + b"-0"}, "malformed", "expected an id"),
    ({"shape": b"1" * 9 + b"," * 5000}, "malformed", "expected T,F"),
    ({"stream": b"a" * 1_000_000}, "bad_stream", "expected 1 to 128"),
]


@pytest.mark.parametrize(("change", "reason", "text"), BAD)
def test_a_faulty_field_is_named_with_what_was_expected(change: dict[str, bytes], reason: str, text: str) -> None:
    fields = GOOD | change
    entry = parse_entry(b"17-3", [part for name, value in fields.items() for part in (name.encode(), value)])
    assert entry.fault is not None
    assert entry.fault.reason == reason
    assert text in entry.fault.detail
    assert entry.data == fields["data"], "the bytes are kept for the quarantine"


@given(st.lists(st.binary(max_size=20), max_size=12).filter(lambda parts: len(parts) % 2 == 0))
def test_no_fields_whatever_make_parsing_raise(parts: list[bytes]) -> None:
    entry = parse_entry(b"1-0", parts)
    assert entry.id == b"1-0"
    assert entry.fault is not None or entry.stream in {part.decode(errors="replace") for part in parts}


NUMBERS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**53, 2**63, 2**64 - 1]))
NO_IDS = [
    b"", b"-", b"1", b"1-", b"-1", b"1-2-3", b"a-0", b" 1-0", b"1-0 ", b"+1-0", b"1_0-0", "\u0663-0".encode(),
    b"18446744073709551616-0", b"0-18446744073709551616", b"1" * 5000 + b"-0", b"\xff-0",
]  # fmt: skip


@given(NUMBERS, NUMBERS)
def test_every_reader_of_an_id_takes_two_numbers_of_64_bits(ms: int, seq: int) -> None:
    text, number = b"%d-%d" % (ms, seq), ms << 64 | seq
    assert (id_number(text), number_id(number), is_id(text)) == (number, text, True)
    entry = parse_entry(text, [b"stream", b"a"])
    assert (entry.number, entry.ms) == (number, ms)
    assert parse_head(Head("life", "token", 7, number, 2, 1).encode()).low == number
    assert parse_position(text).last == number
    assert read_cursor(text.decode(), "after") == number


@pytest.mark.parametrize("text", NO_IDS)
def test_no_reader_of_an_id_takes_anything_else(text: bytes) -> None:
    assert not is_id(text)
    assert read_head(b"life token 7 %b 2 1" % text) is None
    for position in (text, b"17-4 %b - - =" % text, b"17-4 = 7 %b =" % text, b"17-4 = - - %b" % text):
        if text not in (b"-", b""):
            assert read_position(position) is None
    with pytest.raises(BadCursor):
        read_cursor(text.decode(errors="replace"), "after")


@pytest.mark.parametrize(
    "head", [b"", b"life", b"a b c 1-0 0 0", b"a b 1 1-0 0", b"a b 1 1-0 0 0 0", b"\xff b 1 1-0 0 0"]
)
def test_what_is_no_head_is_told(head: bytes) -> None:
    with pytest.raises(ValueError, match="is not a head"):
        parse_head(head)


def test_an_id_is_honest_up_to_a_day_beyond_the_clock() -> None:
    now, day = 1_763_860_000_000, 86_400_000
    assert last_honest(now, 0) == last_honest(now, id_number(f"{now + day}-0")) == id_number(f"{now + day}-{2**64 - 1}")
    put_back = id_number(f"{now + day + 1}-0")
    assert last_honest(now, put_back) == id_number(f"{now + 2 * day + 1}-{2**64 - 1}"), "the clock was put back"


def test_a_head_and_a_position_read_back() -> None:
    head = Head("life", "token", 7, id_number("17-3"), 2, 1)
    assert head.encode() == b"life token 7 17-3 2 1"
    assert parse_head(head.encode()) == head
    position = Position(id_number("17-3"), b"17-3", 9, b"16-0", b"17-3")
    assert parse_position(position.encode()) == position
    assert parse_position(NOWHERE.encode()) == NOWHERE


@given(
    last=st.sampled_from([b"17-3", b"17-4"]),
    record=st.sampled_from([b"17-3", b"17-4"]),
    seq_id=st.sampled_from([b"-", b"17-4", b"3-0"]),
    stepped=st.sampled_from([b"-", b"reset", b"17-4", b"9-9"]),
)
def test_a_position_reads_the_same_whether_its_ids_are_spelt_out_or_not(
    last: bytes, record: bytes, seq_id: bytes, stepped: bytes
) -> None:
    spelt = b" ".join((last, record, b"-" if seq_id == b"-" else b"5", seq_id, stepped))  # as versions before did
    position = parse_position(spelt)
    assert position == Position(id_number(last), record, None if seq_id == b"-" else 5, seq_id, stepped)
    assert parse_position(position.encode()) == position
    assert position.encode().count(last) == 1, "an id that is `last` is not spelt twice"


def test_a_feed_reads_back() -> None:
    assert parse_feed(encode_feed([b"cam-1", b"17-0", b"cam-2", b"18-0"])) == [("cam-1", "17-0"), ("cam-2", "18-0")]
    assert parse_feed(b"") == []


def test_a_record_is_the_json_of_the_documentation_and_reads_back() -> None:
    event = Event("enter", "7", "17-0", 42, 1.5, 1.0, 0.9, 0.9)
    record = Prediction("17-0", "cam-1", "m", 1, 1.5, 42, "7", 0.9, [0.1, 0.9], Rolling("7", 0.8, [0.2, 0.8]), [event])
    body = encode_record(record)
    assert body.startswith(b'{"type":"prediction","id":"17-0","stream":"cam-1"')
    assert body.endswith(b'"restarted":null}')
    assert decode_record(body) == record
    refused = Refused("17-0", "cam-1", "bad_image", "not a picture")
    assert decode_record(encode_record(refused)) == refused


@pytest.mark.parametrize("data", [b"", b"{}", b"reset", b'{"action": 1}', b"\xff"])
def test_a_control_that_cannot_be_read_says_what_one_looks_like(data: bytes) -> None:
    with pytest.raises(Malformed, match="action"):
        decode_control(data)


@pytest.mark.parametrize("name", ["model", "shape", "time", "seq", "traceparent", "retry_of"])
def test_of_a_field_that_no_entry_has_quarantine_keeps_1024_bytes(name: str) -> None:
    fields = {"stream": b"a", "kind": b"samples", "shape": b"1,3", "data": bytes(12), name: b"7" * 1_000_000}
    entry = parse_entry(b"17-3", [part for key, value in fields.items() for part in (key.encode(), value)])
    assert entry.fault is not None
    kept = dict(kept_fields(entry))
    assert kept == {b"shape": b"1,3", name.encode(): b"7" * 1024}


def test_times_are_written_so_that_they_read_back_exactly() -> None:
    fields = entry_fields("a", "samples", bytes(4), time=math.pi * 1e8, shape=(1, 1))
    assert float(fields["time"]) == math.pi * 1e8
