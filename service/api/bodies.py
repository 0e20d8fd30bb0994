"""The bodies of entries, read within a bound: images, texts, lines. rows.py reads rows, forms.py the part of a form."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Final

import msgspec
from starlette.requests import Request

from service.api.context import LARGE_BYTES
from service.api.doors import HOLD
from service.api.encodings import Unpacker, read_coding
from service.api.forms import FORM_BYTES, read_part
from service.errors import Malformed, RollcastError, TooLarge, UnsupportedMedia, WrongShape
from service.turns import Gate, Turn

FRAME_TYPES: Final = "image/jpeg, image/png or image/webp, or multipart/form-data with one part named frame"
TEXT_TYPES: Final = "text/plain (UTF-8) or application/json"
LINES_BYTES: Final = 64 * 2**20  # that one packed request of lines may hold, unless one line may have more
LINES: Final = 200_000  # of it, blank ones among them: a kilobyte may hold a million


# --- reading within a bound --------------------------------------------------------------------------------------


async def read_body(request: Request, limit: int, gate: Gate) -> bytes:
    """The whole body, unpacked; `gate`: in front of what is dear to unpack. Raises TooLarge as soon as it is known to
    exceed `limit` bytes, packed or not."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limit:
        raise TooLarge(f"body of {said} bytes: the limit is {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"body of more than {limit} bytes: the limit is {limit} bytes")
    coding = read_coding(request.scope.get("headers", ()))
    return await _unpacked(request, coding, bytes(body), limit, gate) if coding else bytes(body)


async def _unpacked(request: Request, coding: str, packed: bytes, limit: int, gate: Gate) -> bytes:
    body, unpacker, turn, gated = bytearray(), Unpacker(coding), Turn(), False
    async with AsyncExitStack() as stack:
        for piece in unpacker.pieces(packed):
            body += piece
            if len(body) > limit:
                raise TooLarge(f"body of more than {limit} bytes, unpacked: the limit is {limit} bytes")
            if not gated and max(len(packed), len(body)) > LARGE_BYTES:
                await stack.enter_async_context(gate)
                gated = True
            if turn.due():
                await turn.over()
    unpacker.end()
    hold(request, len(body) - len(packed))
    return bytes(body)


def hold(request: Request, more: int | None) -> None:
    """The body takes so many bytes more in memory, or less; None: nothing, and others have its room while its answer is
    waited for. Raises Crowded where there is no room for more."""
    tell = request.scope.get("extensions", {}).get(HOLD)
    if tell is not None:
        tell(more)


async def read_frame(request: Request, limit: int, gate: Gate) -> bytes:
    """The bytes of one image: the body itself, or the part `frame`."""
    media = media_type(request)
    if media.startswith("image/"):
        return await read_body(request, limit, gate)
    if media == "multipart/form-data":
        image = read_part(request.headers["content-type"], await read_body(request, limit + FORM_BYTES, gate))
        if len(image) > limit:
            raise TooLarge(f"image of {len(image)} bytes: the limit is {limit} bytes")
        return image
    raise UnsupportedMedia(f"Content-Type {media or 'is missing'}: expected {FRAME_TYPES}")


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def said_of_heading(request: Request) -> bool | None:
    """What `text/csv; header=present` or `header=absent` (RFC 4180) says of the first line; None: nothing."""
    parameters = request.headers.get("content-type", "").lower().split(";")[1:9]
    pairs = (each.partition("=") for each in parameters)
    said = [value.strip(' "') for name, _, value in pairs if name.strip() == "header"]
    if not said:
        return None
    if said[0] not in ("present", "absent"):
        raise Malformed(f"Content-Type with header={said[0][:40]}: expected present or absent")
    return said[0] == "present"


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
        except (msgspec.DecodeError, RecursionError) as error:
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


# --- lines -------------------------------------------------------------------------------------------------------


async def read_lines(request: Request, limit: int) -> AsyncGenerator[bytes | RollcastError | None]:
    """The lines of a body as they come, unpacked, blank ones left out; TooLarge instead of one of more than `limit`
    bytes; None at the end of each piece that came. What ends a packed body early is raised where no line came before
    it, and is the last line else."""
    begun = False
    try:
        async for line in _lines(_stream(request, max(limit, LINES_BYTES)), request, limit):
            begun = begun or line is not None
            yield line
    except RollcastError as error:
        if not begun:
            raise
        yield error


async def _stream(request: Request, limit: int) -> AsyncGenerator[bytes]:
    """The body as it comes; where it is packed, unpacked, LINES and `limit` bytes of it at most."""
    coding = read_coding(request.scope.get("headers", ()))
    if not coding:
        async for chunk in request.stream():
            yield chunk
        return
    unpacker, turn, size, lines = Unpacker(coding), Turn(), 0, 0
    async for packed in request.stream():
        for piece in unpacker.pieces(packed):
            size, lines = size + len(piece), lines + piece.count(b"\n")
            if size > limit or lines > LINES:
                most = f"{limit} bytes" if size > limit else f"{LINES} lines"
                raise TooLarge(f"body of more than {most}, unpacked: nothing was appended from here on")
            hold(request, len(piece))
            yield piece
            if turn.due():
                await turn.over()
        hold(request, -len(packed))
    unpacker.end()


async def _lines(
    chunks: AsyncGenerator[bytes], request: Request, limit: int
) -> AsyncGenerator[bytes | RollcastError | None]:
    line, turn = _Line(limit), Turn()
    async for chunk in chunks:
        before = line.held
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if not piece and line.is_empty:
                continue
            line.add(piece)
            if (found := line.end()) is not None:
                yield found
            if turn.due():
                await turn.over()
        line.add(rest)
        yield None
        hold(request, line.held - before - len(chunk))
    if (found := line.end()) is not None:
        yield found


class _Line:
    """A line that comes in pieces. What is longer than `limit` is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def is_empty(self) -> bool:
        return self._size == 0

    @property
    def held(self) -> int:
        """Bytes."""
        return self._size if self._size <= self._limit else 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def end(self) -> bytes | TooLarge | None:
        """The line, None for a blank one; then another begins."""
        found, long = b"".join(self._pieces), self._size > self._limit
        self._pieces.clear()
        self._size = 0
        if long:
            return TooLarge(f"line of more than {self._limit} bytes")
        return found if found.strip() else None
