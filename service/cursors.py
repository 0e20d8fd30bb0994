"""Where a subscriber of many streams stands: a place in every shard's feed. To its holder an opaque text."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Sequence
from typing import Final, NamedTuple

from service.errors import BadCursor


class Place(NamedTuple):
    """After the first `i` records of commit `n`, which was made under a token that begins with these 4 hex digits."""

    n: int
    i: int
    token: str


BEGINNING: Final = Place(0, 0, "0000")

# A cursor is URL-safe base64 without padding of: the version (1 byte), the number of shards (2 bytes, little-endian),
# and for each shard n and i (unsigned LEB128) and the first two bytes of the token.
VERSION: Final = 1
_LONGEST: Final = 32_768  # characters of a cursor that is looked at, where this deployment gives none that is longer
_PLACE_BYTES: Final = 22  # of one shard, at most: two numbers of 64 bits, two bytes of the token


def encode_place(place: Place) -> bytes:
    return _number(place.n) + _number(place.i) + bytes.fromhex(place.token)


def join_places(chunks: Sequence[bytes]) -> str:
    """The cursor of encoded places, one a shard in their order: what changed is all that must be encoded again."""
    head = bytes([VERSION]) + len(chunks).to_bytes(2, "little")
    return urlsafe_b64encode(head + b"".join(chunks)).rstrip(b"=").decode()


def encode_cursor(places: Sequence[Place]) -> str:
    """
    >>> encode_cursor([Place(300, 2, "ab12"), BEGINNING])
    'AQIArAICqxIAAAAA'
    """
    return join_places([encode_place(place) for place in places])


def decode_cursor(text: str, shards: int, where: str) -> list[Place]:
    """Raises BadCursor, also for a cursor of a deployment with another number of shards. `0`: before everything.

    >>> decode_cursor("AQIArAICqxIAAAAA", 2, "after")
    [Place(n=300, i=2, token='ab12'), Place(n=0, i=0, token='0000')]
    """
    if text == "0":
        return [BEGINNING] * shards
    expected = f"{where}: {text[:40]!r} is not a cursor over many streams; expected an id that this call gave, or 0"
    try:
        if len(text) > max(_LONGEST, 4 * (shards * _PLACE_BYTES + 5) // 3) or not text.isascii():
            raise ValueError
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if data[0] != VERSION:
            raise ValueError
        found, at = int.from_bytes(data[1:3], "little"), 3
        places = []
        for _ in range(found):
            n, at = _read_number(data, at)
            i, at = _read_number(data, at)
            places.append(Place(n, i, data[at : at + 2].hex()))
            at += 2
        if at != len(data):
            raise ValueError
    except (ValueError, IndexError, NotBase64):
        raise BadCursor(expected) from None
    if found != shards:
        raise BadCursor(f"{where}: a cursor of a deployment with {found} shards; this one has {shards}")
    return places


def _number(value: int) -> bytes:
    """Unsigned LEB128 (DWARF 5, 7.6): seven bits a byte, the lowest first, the high bit says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if value >> 64 or (byte >= 0x80 and shift > 63):
            raise ValueError("a number of more than 64 bits")
        if byte < 0x80:
            return value, at
