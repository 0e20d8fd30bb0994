"""A PNG as it may be given to a decoder: only what its picture needs, unpacked, whole and checked.

PNG, third edition (W3C, 2025). A decoder writes to the process's stderr what it does not like, pads what is missing,
and unpacks texts and colour profiles that no model sees. So it gets neither: the pixels are unpacked here with a bound,
and put back uncompressed, so that the decoder need not unpack them again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from service.errors import BadImage
from service.images import KEPT_BYTES, PNG_SIGNATURE, ImageInfo, PngHeader

SPARE_BYTES: Final = 8 << 20  # that may unpack beyond what the pixels need
_PART: Final = 1 << 18  # bytes unpacked at a time
_LAST_FILTER: Final = 4
_PALETTE: Final = 3  # the colour type
_PALETTE_BYTES: Final = 768  # 256 colours
_LOWER_CASE: Final = 32  # the bit that is set in the first letter of a chunk which a decoder may pass over
_KNOWN: Final = (b"IHDR", b"IEND")
_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_CHUNK: Final = struct.Struct(">I4s")


def prepared(data: bytes, info: ImageInfo) -> bytes:
    """The image with its size, palette, orientation and pixels, and nothing else. `info`: what `check` said of it.

    An image that lacks only what stands behind its pixels is whole. Not for an event loop. Raises BadImage: pixels are
    missing, do not unpack, or unpack to far more than the size needs; a checksum is wrong.
    """
    header, packed, palette, orientation = PngHeader.read(data), list[memoryview](), b"", b""
    for at, kind, body, intact in _chunks(data):
        needed = not kind[0] & _LOWER_CASE
        if needed and not intact:
            raise BadImage(f"damaged PNG image: the checksum of chunk {kind!r} at byte {at} is wrong")
        if kind == b"IDAT":
            packed.append(body)
        elif kind == b"PLTE":
            palette = palette or bytes(body)
        elif kind == b"eXIf" and intact:
            orientation = bytes(body)
        elif needed and kind not in _KNOWN:
            raise BadImage(f"PNG: chunk {kind!r} at byte {at} is not in the standard, and marked as needed")
    pixels = _pixels(packed[0] if len(packed) == 1 else b"".join(packed), header, info)
    parts = [data[:33]]
    if header.colour == _PALETTE:
        parts.append(_written(b"PLTE", _whole_palette(palette, header)))
    if orientation:
        parts.append(_written(b"eXIf", orientation))
    return b"".join([*parts, _written(b"IDAT", pixels), _END])


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, memoryview, bool]]:
    """(where, kind, body, whether its checksum is right), of an image that `inspect` has walked; as far as whole."""
    view, at = memoryview(data), len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        size, kind = _CHUNK.unpack_from(data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            return
        intact = zlib.crc32(view[at + 4 : end]) == int.from_bytes(view[end : end + 4])
        yield at, kind, view[at + 8 : end], intact
        if kind == b"IEND":
            return
        at = end + 4


def _written(kind: bytes, body: bytes | memoryview) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def _whole_palette(palette: bytes, header: PngHeader) -> bytes:
    """Black for what is not in it: a pixel may name a colour that is not there."""
    if not palette or len(palette) % 3 or len(palette) > _PALETTE_BYTES:
        raise BadImage(f"PNG: a palette of {len(palette)} bytes, expected three a colour, of 1 to 256 colours")
    return palette[: 3 << header.depth].ljust(3 << header.depth, b"\0")


def _pixels(packed: bytes | memoryview, header: PngHeader, info: ImageInfo) -> bytes | memoryview:
    """What stands in IDAT: as it came where it is too large to be kept, else stored without compression."""
    stream, keep = zlib.decompressobj(), header.raw <= KEPT_BYTES
    try:
        pixels = stream.decompress(packed, header.raw if keep else _PART)
        total = len(pixels)
        while not keep and total < header.raw and not stream.eof and stream.unconsumed_tail:
            total += len(stream.decompress(stream.unconsumed_tail, _PART))
        more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, SPARE_BYTES + 1)
    except zlib.error as error:
        raise BadImage(f"damaged PNG image: its pixels do not unpack: {error}") from None
    total += len(more)
    if total < header.raw:
        raise BadImage(
            f"truncated PNG image: its pixels are {header.raw:,} bytes, of which {header.raw - total:,} are missing"
        )
    if len(more) > SPARE_BYTES:
        raise BadImage(
            f"PNG: its IDAT chunks unpack to more than {header.raw + SPARE_BYTES:,} bytes; "
            f"{info.width}×{info.height} pixels need {header.raw:,}"
        )
    if not keep:
        return packed
    _check_filters(pixels, header)
    return zlib.compress(pixels, 0)


def _check_filters(pixels: bytes, header: PngHeader) -> None:
    """Each row begins with the number of its filter."""
    at = 0
    for rows, row_bytes in header.passes():
        highest = max(pixels[at : at + rows * row_bytes : row_bytes])
        if highest > _LAST_FILTER:
            raise BadImage(f"damaged PNG image: a row of filter {highest}, expected at most {_LAST_FILTER}")
        at += rows * row_bytes
