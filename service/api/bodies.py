"""The bodies of entries, read within a bound: images, texts, lines. rows.py reads rows, forms.py the part of a form."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from starlette.requests import Request

from service.api.doors import LET_GO
from service.api.forms import FORM_BYTES, read_part
from service.errors import Malformed, TooLarge, UnsupportedMedia, WrongShape
from service.turns import Turn

FRAME_TYPES: Final = "image/jpeg, image/png or image/webp, or multipart/form-data with one part named frame"
TEXT_TYPES: Final = "text/plain (UTF-8) or application/json"


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


def let_go(request: Request, size: int | None = None) -> None:
    """So many bytes of the body, or all, are not in memory any more: others have their room, while its answer is
    waited for."""
    tell = request.scope.get("extensions", {}).get(LET_GO)
    if tell is not None:
        tell(size)


async def read_frame(request: Request, limit: int) -> bytes:
    """The bytes of one image: the body itself, or the part `frame`."""
    media = media_type(request)
    if media.startswith("image/"):
        return await read_body(request, limit)
    if media == "multipart/form-data":
        image = read_part(request.headers["content-type"], await read_body(request, limit + FORM_BYTES))
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


async def read_lines(request: Request, limit: int) -> AsyncGenerator[bytes | TooLarge | None]:
    """The lines of a body as they come, blank ones left out; TooLarge instead of one of more than `limit` bytes; None
    at the end of each piece that came."""
    line, turn = _Line(limit), Turn()
    async for chunk in request.stream():
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
        let_go(request, before + len(chunk) - line.held)
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
