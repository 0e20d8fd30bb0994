"""The bodies of entries: read within a bound, rows brought into one shape. Messages count rows and columns from 1."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.contracts import MAX_ROWS, RowInput
from service.errors import Malformed, NonFinite, TooLarge, UnsupportedMedia, WrongShape

FRAME_TYPES: Final = "image/jpeg, image/png or image/webp, or multipart/form-data with one part named frame"
ROW_TYPES: Final = "application/json, text/csv or application/octet-stream"
TEXT_TYPES: Final = "text/plain (UTF-8) or application/json"
_FLOAT32_BYTES: Final = 4
_SHOWN_FEATURES: Final = 12


class Block(NamedTuple):
    """Sample rows as they came: lists of numbers, or raw float32. What a row should hold is the model's to say."""

    rows: list[list[float]] | bytes
    header: list[str] | None = None  # of a CSV
    time: float | None = None

    @property
    def width(self) -> int | None:
        """Columns of the first row; None for raw bytes, which do not say."""
        return None if isinstance(self.rows, bytes) else len(self.rows[0])


# --- reading within a bound --------------------------------------------------------------------------------------


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to exceed `limit` bytes."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limit:
        raise TooLarge(f"body of {said} bytes: the limit is {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"body of more than {limit} bytes: the limit is {limit} bytes")
    return bytes(body)


async def read_frame(request: Request, limit: int) -> bytes:
    """The bytes of one image: the body itself, or the part `frame`."""
    media = media_type(request)
    if media.startswith("image/"):
        return await read_body(request, limit)
    if media == "multipart/form-data":
        return await _read_part(request, limit)
    raise UnsupportedMedia(f"Content-Type {media or 'is missing'}: expected {FRAME_TYPES}")


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_part(request: Request, limit: int) -> bytes:
    overhead = 64 * 1024  # boundaries and headers of the parts
    body = await read_body(request, limit + overhead)

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, once(), max_files=2).parse()
    except (MultiPartException, KeyError) as error:
        raise Malformed(f"multipart body: {getattr(error, 'message', 'no boundary in Content-Type')}") from None
    try:
        parts = form.multi_items()
        if len(parts) != 1 or parts[0][0] != "frame" or not isinstance(parts[0][1], UploadFile):
            names = ", ".join(repr(name) for name, _ in parts) or "none"
            raise Malformed(f"multipart body: expected one part, a file named 'frame'; found {names}")
        image = await parts[0][1].read()
    finally:
        await form.close()
    if len(image) > limit:
        raise TooLarge(f"image of {len(image)} bytes: the limit is {limit} bytes")
    return image


# --- text --------------------------------------------------------------------------------------------------------


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of text: whole words. `time` is that of its last word."""

    text: str
    time: float | None = None


_text_decoder = msgspec.json.Decoder(Text)


def read_text(media: str, body: bytes) -> Text:
    """By content type. At least one character that is no whitespace; what its words are is the model's to say."""
    if media == "application/json":
        try:
            found = _text_decoder.decode(body)
        except msgspec.DecodeError as error:
            raise Malformed(f'{error}; expected {{"text": "…", "time": seconds}}') from None
    elif media == "text/plain":
        try:
            found = Text(body.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise Malformed(f"text: byte {error.start} is {body[error.start]:#04x}; expected UTF-8") from None
    else:
        raise UnsupportedMedia(f"Content-Type {media or 'is missing'}: expected {TEXT_TYPES}")
    check_text(found)
    return found


def check_text(text: Text) -> None:
    """Raises WrongShape."""
    if not text.text.strip():
        raise WrongShape("text without a word: expected at least one")


# --- rows --------------------------------------------------------------------------------------------------------


class _Samples(msgspec.Struct, forbid_unknown_fields=True):
    samples: list[list[float]]
    time: float | None = None


_samples_decoder = msgspec.json.Decoder(_Samples)


def read_block(media: str, body: bytes) -> Block:
    """Rows by content type, neither checked for shape nor for finiteness yet, but at least one row."""
    if media == "application/json":
        return _read_json(body)
    if media == "text/csv":
        return _read_csv(body)
    if media == "application/octet-stream":
        return Block(body)
    raise UnsupportedMedia(f"Content-Type {media or 'is missing'}: expected {ROW_TYPES}")


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
        raise WrongShape(f"block of {len(found)} rows: expected 1 to {MAX_ROWS}; cut it into several entries")
    finite = np.isfinite(found)
    if not finite.all():
        row, column = (int(at) for at in np.argwhere(~finite)[0])
        raise NonFinite(
            f"row {row + 1}, column {column + 1} ({features[column]}): {found[row, column]}; "
            "expected a finite number of float32's range"
        )
    return found


def _read_json(body: bytes) -> Block:
    try:
        found = _samples_decoder.decode(body)
    except msgspec.DecodeError as error:
        found = _with_constants(body, error)
    if not found.samples:
        raise WrongShape("samples: no rows; expected at least one")
    return Block(found.samples, None, found.time)


def _with_constants(body: bytes, error: msgspec.DecodeError) -> _Samples:
    """JSON has no NaN and no Infinity, but producers write them: read them, so that the answer can say where."""
    expected = 'expected {"samples": [[number, …], …], "time": seconds}'
    if b"NaN" in body or b"Infinity" in body:
        try:
            return msgspec.convert(json.loads(body), _Samples)
        except (ValueError, RecursionError, msgspec.ValidationError) as second:
            raise Malformed(f"{second}; {expected}") from None
    raise Malformed(f"{error}; {expected}") from None


def _read_csv(body: bytes) -> Block:
    try:
        lines = [line for line in csv.reader(body.decode("utf-8-sig").splitlines(), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Malformed(f"CSV: {error}; expected UTF-8, one row a line, commas between numbers") from None
    header = None
    if lines and not any(_is_number(cell) for cell in lines[0]):
        header = [cell.strip() for cell in lines.pop(0)]
    if not lines:
        raise WrongShape("CSV: no rows; expected at least one")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append([float(cell) for cell in line])
        except ValueError:
            column, cell = next((n, cell) for n, cell in enumerate(line, 1) if not _is_number(cell))
            raise Malformed(f"CSV: row {number}, column {column}: {cell[:40]!r} is not a number") from None
    return Block(rows, header)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


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
    if sorted(header) != sorted(features):
        raise WrongShape(f"CSV header {', '.join(header)[:300]}: expected {_expected(features)}")
    return [header.index(name) for name in features]


def _expected(features: Sequence[str]) -> str:
    more = "" if len(features) <= _SHOWN_FEATURES else ", …"
    return f"{len(features)}: {', '.join(features[:_SHOWN_FEATURES])}{more}"


# --- lines -------------------------------------------------------------------------------------------------------


async def read_lines(request: Request, limit: int) -> AsyncGenerator[bytes | TooLarge | None]:
    """The lines of a body as they come, blank ones left out; TooLarge instead of one of more than `limit` bytes; None
    at the end of each piece that came."""
    rest, skipping = b"", False
    async for chunk in request.stream():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if skipping:
                skipping = False
            elif len(line) > limit:
                yield _long_line(limit)
            elif line.strip():
                yield line
        if len(rest) > limit:
            if not skipping:
                yield _long_line(limit)
            rest, skipping = b"", True
        yield None
    if rest.strip() and not skipping:
        yield rest


def _long_line(limit: int) -> TooLarge:
    return TooLarge(f"line of more than {limit} bytes")
