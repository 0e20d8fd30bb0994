"""Bodies and messages are read within bounds: the right ones whole, the worst ones without holding anybody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.requests import Request

from service.api.bodies import read_lines
from service.api.doors import HELLO_BYTES
from service.api.forms import read_part
from service.api.messages import MAX_ENTRIES, read_entry, read_hello, split_message
from service.api.rows import MAX_NUMBERS, Block, read_block, to_rows
from service.codec import decimal_number
from service.contracts import MAX_ROWS, RowInput
from service.errors import Malformed, NonFinite, RollcastError, TooLarge, WrongShape
from tests.turns import BUSY, LONGEST_S, at_once, in_slices

MB8 = 8 << 20
CSV, JSON = "text/csv", "application/json"
pack = msgspec.msgpack.encode
NUMBER = b"0.12345678901234567"
ROW = b",".join([NUMBER] * 64)


def features(count: int) -> RowInput:
    return RowInput([f"x{n}" for n in range(count)], 1.0, [], [], [], [])


async def _rows(media: str, body: bytes, width: int) -> np.ndarray:
    return (await to_rows(await read_block(media, body), features(width))).values


def read(media: str, body: bytes, width: int = 2) -> Any:
    """As rows of a model with so many features, or why not."""
    found, longest_s = in_slices(_rows(media, body, width))
    assert longest_s < BUSY * LONGEST_S
    return found


# --- rows --------------------------------------------------------------------------------------------------------


LARGEST = {CSV: b"\n".join([ROW] * MAX_ROWS), JSON: b'{"samples":[[' + b"],[".join([ROW] * MAX_ROWS) + b"]]}"}


@pytest.mark.parametrize(("media", "body"), LARGEST.items())
def test_the_largest_block_of_text_is_taken(media: str, body: bytes) -> None:
    rows = read(media, body, 64)
    assert rows.shape == (MAX_ROWS, 64)
    assert (rows == np.float32(NUMBER)).all()


@pytest.mark.parametrize(
    ("media", "body", "error", "words"),
    [
        (CSV, b"," * (MAX_NUMBERS - 1), WrongShape, f"row 1 has {MAX_NUMBERS} columns"),
        (CSV, b"NA;" * (MAX_NUMBERS - 1) + b"?", WrongShape, f"row 1 has {MAX_NUMBERS} columns"),
        (CSV, b"1," * (MAX_NUMBERS - 1) + b"x", WrongShape, f"row 1 has {MAX_NUMBERS} columns"),
        (CSV, b"a;" * (MB8 // 2), TooLarge, f"more than {MAX_NUMBERS} numbers"),
        (CSV, b"#\n" * (MB8 // 2), Malformed, "blank lines"),
        (CSV, b"a," * (MAX_NUMBERS // 2) + b"b\n1,2", WrongShape, "heading a, a"),
        (CSV, b"time," * 100_000 + b"b\n1,2", WrongShape, "heading time, time"),
        (CSV, b"a," * (MB8 // 2), TooLarge, f"more than {MAX_NUMBERS} numbers"),
        (CSV, b"1,2\n" * (MB8 // 4), TooLarge, f"more than {MAX_NUMBERS} numbers"),
        (CSV, b"1,2\n" * 5000, WrongShape, f"more than {MAX_ROWS} rows"),
        (CSV, b"\n" * MB8, Malformed, "blank lines"),
        (CSV, b"1" * MB8, WrongShape, "heading 1111"),
        (CSV, b'"' * MB8, Malformed, "field limit"),
        (CSV, b" " * MB8, WrongShape, "no rows"),
        (JSON, b'{"samples":[[' + b"1," * (MB8 // 2) + b"1]]}", TooLarge, f"more than {MAX_NUMBERS} numbers"),
        (JSON, b'{"samples":[' + b"[]," * (MB8 // 3) + b"[]]}", TooLarge, "numbers"),
        (JSON, b'{"samples":[' + b"[]," * 5000 + b"[]]}", WrongShape, f"more than {MAX_ROWS} rows"),
        (JSON, b'{"samples":' + b"[" * MB8, WrongShape, "rows"),
        (JSON, b'{"samples":{"NaN":' + b'{"":' * (MB8 // 4), Malformed, "recursion"),
        (JSON, b'{"samples":[[' + b"1" * MB8 + b"]]}", Malformed, "out of range"),
    ],
)
def test_a_body_that_is_dear_to_read_is_refused_early(
    media: str, body: bytes, error: type[RollcastError], words: str
) -> None:
    found = read(media, body)
    assert isinstance(found, error)
    assert words in found.detail


def test_many_numbers_that_are_none_are_found_without_holding_anybody_up() -> None:
    found = read(JSON, b'{"samples":[[' + b"NaN," * (MAX_NUMBERS - 1) + b"1]]}", MAX_NUMBERS)
    assert isinstance(found, NonFinite)


def test_a_long_row_is_read_in_slices_and_its_fault_found() -> None:
    assert read(CSV, b"1," * 19_999 + b"2", 20_000).sum() == 20_001
    found = read(CSV, b"1," * 19_999 + b"x", 20_000)
    assert isinstance(found, Malformed)
    assert "row 1, column 20000: 'x' is not a number" in found.detail


@pytest.mark.parametrize("body", [b"0", b"0\n", b" 0.0\r\n", b"\n0\n"])
def test_a_body_of_one_number_is_a_row_though_it_is_zero(body: bytes) -> None:
    assert read(CSV, body, 1).tolist() == [[0.0]]
    assert isinstance(read(CSV, body.strip() + b"\n0.5\n", 1), Malformed), "of two lines the first may be a heading"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_rows_of_csv_end_with_a_line_end(end: bytes) -> None:
    assert read(CSV, b"1,2" + end + end + b"3,4" + end).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("within", ["\u2028", "\v", "\f", "\x1c", "\x85"])
def test_nothing_else_ends_a_row(within: str) -> None:
    found = read(CSV, f"1,2{within}3,4".encode(), 3)
    assert isinstance(found, Malformed)
    assert "row 1, column 2" in found.detail


@pytest.mark.parametrize("cell", ["1_0", "١", "１", "1\v", "0x1", "1e", "1" * 2000])
def test_what_only_python_takes_for_a_number_is_none(cell: str) -> None:
    with pytest.raises(ValueError):
        decimal_number(cell)
    assert isinstance(read(CSV, f"1,{cell}".encode()), Malformed)


# --- messages ----------------------------------------------------------------------------------------------------


def large(samples: Any) -> bytes:
    return pack({"kind": "samples", "samples": samples})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("[" + "1," * (MB8 // 2) + "1]", "expected an array of entries"),
        ("[" + "{}," * (MB8 // 3) + "{}]", f"at most {MAX_ENTRIES}"),
        ("[" + '{"kind":0},' * 8000 + "{}]" + " " * MB8, f"8001 entries: expected at most {MAX_ENTRIES}"),
        ("[" * MB8, "expected an array of entries"),
        ("[" + '{"a":' * 5000 + " " * MB8, "recursion"),
        ("[" + "NaN," * 250_000 + "1]", "expected an array"),
        ('["' + '\\"' * 500_000 + "NaN", "truncated"),
        (pack([1] * MB8), f"{MB8} entries"),
        (b"\xdd\xff\xff\xff\xff", f"{2**32 - 1} entries"),
        (b"\x91" * MB8, "recursion"),
    ],
)
def test_a_message_that_is_dear_to_split_is_refused_early(message: str | bytes, words: str) -> None:
    found, longest_s = in_slices(at_once(split_message, message))
    assert isinstance(found, Malformed)
    assert words in found.detail
    assert longest_s < BUSY * LONGEST_S


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (large([[1] * MB8]), f"more than {MAX_NUMBERS} numbers"),
        (large([[1]] * (MB8 // 2)), f"{MB8 // 2} rows"),
        (large([[1] * 1000] * 1000), f"more than {MAX_NUMBERS} numbers"),
        (pack({"kind": "samples", "x": [1] * MB8}), "unknown field"),
        (pack({"kind": "samples", "shape": [1] * MB8}), "length 2"),
        (pack({f"k{n}": n for n in range(100_000)}), "a map of at most"),
        (b"\x83\xa4kind\xa7samples\xa7samples" + pack([[1] * MB8]) + b"\xa7samples" + pack([[1]]), "given twice"),
        (b'{"kind":"samples","samples":[[' + b"1," * (MB8 // 2) + b"1]]}", "numbers"),
        (b'{"kind":"samples","samples":[' + b"1," * (MB8 // 2) + b'1],"samples":[[1]]}', "numbers"),
        (b'{"kind":"samples","x":[' + b"1," * (MB8 // 2) + b"1]}", "unknown field"),
        (b'{"kind":' * 100_000, "recursion"),
    ],
)
def test_an_entry_that_is_dear_to_read_is_refused_early(entry: bytes, words: str) -> None:
    found, longest_s = in_slices(at_once(read_entry, entry, entry[0] >= 0x80))
    assert isinstance(found, RollcastError)
    assert words in found.detail
    assert longest_s < BUSY * LONGEST_S


def test_values_that_are_none_are_found_in_whatever_way_they_come() -> None:
    said = {
        read(CSV, b"1,2\n3,nan\n").detail,
        read(CSV, b"1,2\n3,NA\n").detail,
        read(CSV, b"1,2\n3,\n").detail,
        read(JSON, b'{"samples": [[1, 2], [3, NaN]]}').detail,
        read(JSON, b'{"samples": [[1, 2], [3, null]]}').detail,
        read("application/octet-stream", np.float32([[1, 2], [3, np.nan]]).tobytes()).detail,
    }
    for message in (
        '[{"kind":"samples","samples":[[1,2],[3,NaN]]}]',
        pack([{"kind": "samples", "samples": [[1, 2], [3, None]]}]),
    ):
        (part,) = split_message(message)
        found, _ = in_slices(to_rows(Block(read_entry(part, isinstance(message, bytes)).samples or b""), features(2)))
        said.add(found.detail)
    assert said == {"row 2, column 2 (x1): nan; expected a finite number of float32's range"}


def test_only_numbers_may_be_none() -> None:
    entry = b'{"kind":"samples","samples":[[1,-Infinity]],"model":"a NaN, \\" [NaN"}'
    assert read_entry(entry, False).model == 'a NaN, " [NaN'
    for wrong in (b'{"kind":"samples","samples":[[1]],"time": NaN}', b'{"kind":"samples","samples":[[1,"NaN"]]}'):
        with pytest.raises(Malformed):
            read_entry(wrong, False)


def test_the_largest_entries_are_read() -> None:
    rows = [[0.5] * 64] * MAX_ROWS
    for found in (
        read_entry(large(rows), True),
        read_entry(msgspec.json.encode({"kind": "samples", "samples": rows}), False),
    ):
        assert found.samples == rows  # fmt: skip
    frame = {"kind": "frame", "data": bytes(MB8)}
    assert read_entry(pack(frame), True).data == read_entry(msgspec.json.encode(frame), False).data == bytes(MB8)
    (part,) = split_message(pack([frame]))
    assert read_entry(part, True).data == bytes(MB8)
    (part,) = split_message(msgspec.json.encode([frame]).decode())
    assert read_entry(part, False).data == bytes(MB8)


def test_a_first_message_is_short() -> None:
    with pytest.raises(Malformed, match=f"at most {HELLO_BYTES}"):
        read_hello('{"type":"hello","streams":[' + '"a",' * MB8 + '"a"]}')


# --- forms and lines ---------------------------------------------------------------------------------------------

FORM = "multipart/form-data; boundary=xx"
HEAD = b'Content-Disposition: form-data; name="frame"; filename="x"\r\n\r\n'


def test_the_part_of_a_form_is_found_byte_for_byte() -> None:
    image = b"\r\n--x\r\n\r\n--" + bytes(range(256)) * 4
    for before in (b"", b"a word before\r\n"):
        body = before + b"--xx\r\nContent-Type: image/png\r\n" + HEAD + image + b"\r\n--xx--\r\nafter"
        assert read_part(FORM, body) == image
    assert read_part('multipart/form-data; boundary="x x"', b"--x x\r\n" + HEAD + image + b"\r\n--x x--") == image


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        (FORM, b"\r\n" * (MB8 // 2), "end is missing"),
        (FORM, b"\r\n--x" * (MB8 // 5), "end is missing"),
        (FORM, b"\r\n--xx" * (MB8 // 6), "headers"),
        (FORM, b"--xx\r\n" + b"A: b\r\n" * 1_000_000 + b"\r\n--xx--", "headers"),
        (FORM, b"--xx\r\n" + HEAD + b"x", "end is missing"),
        (FORM, b"--xx--", "found none"),
        (FORM, b"--xx\r\n\r\nx\r\n--xx--", "found ''"),
        ("multipart/form-data" + ";" * 60_000, b"", "header of"),
        ("multipart/form-data; charset=undefined", b"x", "boundary"),
    ],
)
def test_a_form_without_its_part_is_refused_early(content_type: str, body: bytes, words: str) -> None:
    found, longest_s = in_slices(at_once(read_part, content_type, body))
    assert isinstance(found, Malformed)
    assert words in found.detail
    assert longest_s < BUSY * LONGEST_S


def lines_of(*chunks: bytes, limit: int = 10) -> list[Any]:
    async def receive() -> Any:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def read() -> list[Any]:
        found: AsyncIterator[Any] = read_lines(Request({"type": "http"}, receive), limit)
        return [line async for line in found if line is not None]

    waiting = list(chunks)
    return asyncio.run(read())


def test_lines_are_the_same_however_they_are_cut() -> None:
    body = b"one\n\n  \ntwo\r\n" + b"x" * 25 + b"\n" + b"y" * 10 + b"\nlast"
    for size in (1, 2, 3, 7, len(body)):
        found = lines_of(*(body[at : at + size] for at in range(0, len(body), size)))
        assert [one if isinstance(one, bytes) else one.detail for one in found] == [
            b"one", b"two\r", "line of more than 10 bytes", b"y" * 10, b"last",
        ]  # fmt: skip
