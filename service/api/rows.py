"""The rows of samples: as JSON, CSV or raw float32, brought into one shape. Messages count rows and columns from 1."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import numpy as np

from service.cells import is_blank, is_number
from service.columns import expected, not_finite
from service.contracts import MAX_ROWS, RowInput
from service.errors import Malformed, TooLarge, UnsupportedMedia, WrongShape
from service.tables import Table, signals_in
from service.turns import Turn

ROW_TYPES: Final = "application/json, text/csv or application/octet-stream"
MAX_NUMBERS: Final = 262_144  # of one block that is no raw float32: 64 columns of MAX_ROWS rows; 0.02 s to read as JSON
_FLOAT32_BYTES: Final = 4
_ONE_NUMBER: Final = 64  # bytes that it may have
_CSV: Final = "expected UTF-8, one row a line, commas between numbers"


class Csv(NamedTuple):
    """A table, read when the model's names are known. `heading`: what the sender says of its first line."""

    text: str
    heading: bool | None = None

    @property
    def width(self) -> int | None:
        """Columns that may be signals, by its first two lines. Raises Malformed."""
        lines = (line for line in islice(_lines(self.text), MAX_ROWS) if not is_blank(line))
        first = next(lines, None)
        return None if first is None else signals_in(first, next(lines, first))


class Block(NamedTuple):
    """Sample rows as they came: lists of numbers (None: a missing one), raw float32, or a CSV. What a row should hold
    is the model's to say."""

    rows: list[list[float | None]] | bytes | Csv
    time: float | None = None

    @property
    def width(self) -> int | None:
        """Columns; None for raw bytes, which do not say."""
        if isinstance(self.rows, list):
            return len(self.rows[0])
        return self.rows.width if isinstance(self.rows, Csv) else None


class Rows(NamedTuple):
    """Rows as a model takes them."""

    values: np.ndarray  # (T, F) float32, C-contiguous and finite, T from 1 to MAX_ROWS
    time: float | None = None  # of the last row, s, as a column of the table has it
    interval_s: float | None = None  # between rows, as that column has it
    left_out: str = ""  # columns of the table that are no signal, in words


class _Samples(msgspec.Struct, forbid_unknown_fields=True):
    samples: list[list[float | None]]
    time: float | None = None


_samples_decoder = msgspec.json.Decoder(_Samples)


async def read_block(media: str, body: bytes, heading: bool | None = None) -> Block:
    """Rows by content type, neither checked for shape nor for finiteness yet. Read in slices, and no more than a block
    may hold. `heading`: what the content type says of a CSV's first line."""
    if media == "application/json":
        return await _read_json(body)
    if media == "text/csv":
        return _read_csv(body, heading)
    if media == "application/octet-stream":
        return Block(body)
    raise UnsupportedMedia(f"Content-Type {media or 'is missing'}: expected {ROW_TYPES}")


def check_numbers(count: int) -> None:
    """Of a block that is no raw float32. Raises TooLarge."""
    if count > MAX_NUMBERS:
        raise TooLarge(
            f"block of more than {MAX_NUMBERS} numbers: the limit of JSON, CSV and MessagePack is {MAX_NUMBERS}; send "
            "float32 bytes (application/octet-stream, or data), or cut it into several entries"
        )


async def to_rows(block: Block, spec: RowInput) -> Rows:
    """A CSV's in slices. Raises Malformed, TooLarge, WrongShape and NonFinite."""
    names = spec.features
    if isinstance(block.rows, Csv):
        found = await _from_csv(block.rows, names)
    else:
        found = Rows(
            _from_bytes(block.rows, names) if isinstance(block.rows, bytes) else _from_lists(block.rows, names)
        )
    if len(found.values) > MAX_ROWS:
        raise too_many_rows(str(len(found.values)))
    if (error := not_finite(found.values, names)) is not None:
        raise error
    return found


def check_samples(body: bytes, more: int) -> None:
    """Of JSON that holds samples and at most `more` other fields, before it is read: neither very many numbers nor very
    many rows. Raises TooLarge and WrongShape."""
    check_numbers(body.count(b",") - more)  # one before each number but the first, and one before each field
    if body.count(b"[") - 1 > MAX_ROWS + more:
        raise too_many_rows(f"more than {MAX_ROWS}")


async def _read_json(body: bytes) -> Block:
    check_samples(body, 1)
    try:
        found = _samples_decoder.decode(body)
    except msgspec.DecodeError as error:
        found = await _with_constants(body, error)
    await asyncio.sleep(0)
    if not found.samples:
        raise WrongShape("samples: no rows; expected at least one")
    return Block(found.samples, found.time)


async def _with_constants(body: bytes, error: msgspec.DecodeError) -> _Samples:
    """JSON has no NaN and no Infinity, but producers write them: read them, so that the answer can say where."""
    wanted = 'expected {"samples": [[number, …], …], "time": seconds}'
    if b"NaN" in body or b"Infinity" in body:
        await asyncio.sleep(0)
        try:
            said = json.loads(body)
            await asyncio.sleep(0)
            return msgspec.convert(said, _Samples)
        except (ValueError, RecursionError, msgspec.ValidationError) as second:
            raise Malformed(f"{second}; {wanted}") from None
    raise Malformed(f"{error}; {wanted}") from None


def _read_csv(body: bytes, heading: bool | None) -> Block:
    check_numbers(max(body.count(mark) for mark in (b",", b";", b"\t")))
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"CSV: {error}; {_CSV}") from None
    if heading is None and len(body) <= _ONE_NUMBER and is_number(text.strip()):
        heading = False  # one number alone is a row, 0 too: a heading without rows would bring nothing
    return Block(Csv(text, heading))


async def _from_csv(given: Csv, names: Sequence[str]) -> Rows:
    await asyncio.sleep(0)
    turn = Turn()
    table = Table(names, given.heading)
    blank = numbers = 0
    try:
        for line in _lines(given.text):
            if is_blank(line):
                blank += 1
                if blank > MAX_ROWS:
                    raise Malformed(f"more than {MAX_ROWS} blank lines; {_CSV}")
            else:
                if len(table.rows) == MAX_ROWS:
                    raise too_many_rows(f"more than {MAX_ROWS}")
                numbers += 1 + max(line.count(","), line.count(";"), line.count("\t"))
                check_numbers(numbers)
            for _ in table.feed(line):
                if turn.due():
                    await turn.over()
            if turn.due():
                await turn.over()
        for _ in table.end():
            if turn.due():
                await turn.over()
        if not table.rows:
            raise WrongShape("no rows; expected at least one")
        time, interval_s = table.span(table.beside)
    except (Malformed, WrongShape) as error:
        raise type(error)(f"CSV: {error.detail}") from None
    return Rows(_float32(table.rows), time, interval_s, ", ".join(table.left_out))


def _lines(text: str) -> Iterator[str]:
    """A row ends with LF, CR or both, and with nothing else."""
    return io.StringIO(text, newline="")


def too_many_rows(count: str) -> WrongShape:
    return WrongShape(f"block of {count} rows: expected 1 to {MAX_ROWS}; cut it into several entries")


def _from_lists(rows: Sequence[Sequence[float | None]], names: Sequence[str]) -> np.ndarray:
    width = len(names)
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise WrongShape(f"row {number} has {len(row)} columns, expected {expected(names)}")
    return _float32(rows)


def _float32(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is named as such
        return np.array(rows, np.float64).astype("<f4")


def _from_bytes(data: bytes, names: Sequence[str]) -> np.ndarray:
    row_bytes = len(names) * _FLOAT32_BYTES
    if not data or len(data) % row_bytes:
        raise WrongShape(
            f"{len(data)} bytes: expected whole rows of {row_bytes} bytes, little-endian float32 for {expected(names)}"
        )
    return np.frombuffer(data, "<f4").reshape(-1, len(names))
