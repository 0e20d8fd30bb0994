"""The rows of samples: as JSON, CSV or raw float32, brought into one shape. Messages count rows and columns from 1."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from service.codec import decimal_number
from service.contracts import MAX_ROWS, RowInput
from service.errors import Malformed, NonFinite, TooLarge, UnsupportedMedia, WrongShape
from service.turns import Turn

ROW_TYPES: Final = "application/json, text/csv or application/octet-stream"
MAX_NUMBERS: Final = 262_144  # of one block that is no raw float32: 64 columns of MAX_ROWS rows; 0.02 s to read as JSON
_FLOAT32_BYTES: Final = 4
_SHOWN_FEATURES: Final = 12
_CELLS: Final = 1024  # read in one go
_HEADER_CELLS: Final = 1024  # looked at, to know a header
_CSV: Final = "expected UTF-8, one row a line, commas between numbers"


class Block(NamedTuple):
    """Sample rows as they came: lists of numbers, or raw float32. What a row should hold is the model's to say."""

    rows: list[list[float]] | bytes
    header: list[str] | None = None  # of a CSV
    time: float | None = None

    @property
    def width(self) -> int | None:
        """Columns of the first row; None for raw bytes, which do not say."""
        return None if isinstance(self.rows, bytes) else len(self.rows[0])


class _Samples(msgspec.Struct, forbid_unknown_fields=True):
    samples: list[list[float]]
    time: float | None = None


_samples_decoder = msgspec.json.Decoder(_Samples)


async def read_block(media: str, body: bytes) -> Block:
    """Rows by content type, neither checked for shape nor for finiteness yet, but at least one row. Read in slices, and
    no more than a block may hold."""
    if media == "application/json":
        return await _read_json(body)
    if media == "text/csv":
        return await _read_csv(body)
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


def to_rows(block: Block, rows: RowInput) -> np.ndarray:
    """(T, F) float32, C-contiguous and finite, T from 1 to MAX_ROWS. Raises WrongShape and NonFinite."""
    features = rows.features
    if isinstance(block.rows, bytes):
        found = _from_bytes(block.rows, features)
    else:
        found = _from_lists(block.rows, features)
        if block.header is not None:
            found = np.ascontiguousarray(found[:, _columns(block.header, features)])
    if len(found) > MAX_ROWS:
        raise too_many_rows(str(len(found)))
    finite = np.isfinite(found)
    if not finite.all():
        row, column = (int(at) for at in np.argwhere(~finite)[0])
        raise NonFinite(
            f"row {row + 1}, column {column + 1} ({features[column]}): {found[row, column]}; "
            "expected a finite number of float32's range"
        )
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
    return Block(found.samples, None, found.time)


async def _with_constants(body: bytes, error: msgspec.DecodeError) -> _Samples:
    """JSON has no NaN and no Infinity, but producers write them: read them, so that the answer can say where."""
    expected = 'expected {"samples": [[number, …], …], "time": seconds}'
    if b"NaN" in body or b"Infinity" in body:
        await asyncio.sleep(0)
        try:
            said = json.loads(body)
            await asyncio.sleep(0)
            return msgspec.convert(said, _Samples)
        except (ValueError, RecursionError, msgspec.ValidationError) as second:
            raise Malformed(f"{second}; {expected}") from None
    raise Malformed(f"{error}; {expected}") from None


async def _read_csv(body: bytes) -> Block:
    """A row ends with LF, CR or both, and with nothing else."""
    check_numbers(body.count(b","))
    try:
        lines = io.StringIO(body.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise Malformed(f"CSV: {error}; {_CSV}") from None
    await asyncio.sleep(0)
    turn = Turn()
    header: list[str] | None = None
    rows: list[list[float]] = []
    numbers = blank = 0
    for text in lines:
        line = text.rstrip("\r\n")
        if turn.due():
            await turn.over()
        if not line:
            blank += 1
            if blank > MAX_ROWS:
                raise Malformed(f"CSV: more than {MAX_ROWS} blank lines; {_CSV}")
            continue
        if len(rows) == MAX_ROWS:
            raise too_many_rows(f"more than {MAX_ROWS}")
        check_numbers(numbers + 1 + line.count(","))
        cells = _cells(line)
        numbers += len(cells)
        if header is None and not rows and not any(map(_is_number, cells[:_HEADER_CELLS])):
            header = [cell.strip() for cell in cells]
            continue
        row: list[float] = []
        rows.append(row)
        for start in range(0, len(cells), _CELLS):
            row += _numbers(cells, start, len(rows))
            if turn.due():
                await turn.over()
    if not rows:
        raise WrongShape("CSV: no rows; expected at least one")
    return Block(rows, header)


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        (cells,) = csv.reader([line], strict=True)
    except csv.Error as error:
        raise Malformed(f"CSV: {error}; {_CSV}") from None
    return cells


def _numbers(cells: list[str], start: int, row: int) -> list[float]:
    """Those of some cells of a row."""
    part = cells[start : start + _CELLS]
    try:
        return [decimal_number(cell) for cell in part]
    except ValueError:
        column, cell = next((n, cell) for n, cell in enumerate(part, start + 1) if not _is_number(cell))
        raise Malformed(f"CSV: row {row}, column {column}: {cell[:40]!r} is not a number") from None


def _is_number(cell: str) -> bool:
    try:
        decimal_number(cell)
    except ValueError:
        return False
    return True


def too_many_rows(count: str) -> WrongShape:
    return WrongShape(f"block of {count} rows: expected 1 to {MAX_ROWS}; cut it into several entries")


def _from_lists(rows: list[list[float]], features: Sequence[str]) -> np.ndarray:
    width = len(features)
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise WrongShape(f"row {number} has {len(row)} columns, expected {_expected(features)}")
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is named as such
        return np.array(rows, np.float64).astype("<f4")


def _from_bytes(data: bytes, features: Sequence[str]) -> np.ndarray:
    row_bytes = len(features) * _FLOAT32_BYTES
    if not data or len(data) % row_bytes:
        raise WrongShape(
            f"{len(data)} bytes: expected whole rows of {row_bytes} bytes, "
            f"little-endian float32 for {_expected(features)}"
        )
    return np.frombuffer(data, "<f4").reshape(-1, len(features))


def _columns(header: list[str], features: Sequence[str]) -> list[int]:
    """Where each feature stands in the CSV: by name, in any order."""
    if len(header) != len(features) or sorted(header) != sorted(features):
        raise WrongShape(f"CSV header {', '.join(header[:100])[:300]}: expected {_expected(features)}")
    return [header.index(name) for name in features]


def _expected(features: Sequence[str]) -> str:
    more = "" if len(features) <= _SHOWN_FEATURES else ", …"
    return f"{len(features)}: {', '.join(features[:_SHOWN_FEATURES])}{more}"
