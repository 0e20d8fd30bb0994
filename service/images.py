"""What an image's bytes say of themselves: format, size, whether the end is there. Reads headers, never pixels.

JPEG (ISO/IEC 10918-1), PNG (W3C) and WebP (RFC 9649). The api looks no further than this; decode.py asks it first,
so that an image that would unpack to more pixels than allowed is refused before a byte of it is unpacked.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from service.errors import BadImage, UnsupportedMedia

ImageFormat = Literal["jpeg", "png", "webp"]

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"  # the IEND chunk: no data, fixed checksum
_JPEG_END: Final = b"\xff\xd9"  # cannot stand inside compressed data, where FF is followed by 00 or a restart mark
_START_OF_FRAME: Final = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_START_OF_SCAN: Final = 0xDA
_WITHOUT_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD9)))


class ImageInfo(NamedTuple):
    """`width` and `height` in pixels as stored (an EXIF orientation is not applied); `complete`: the end mark is there.

    Bytes after the end mark are allowed: cameras append previews and padding.
    """

    format: ImageFormat
    width: int
    height: int
    complete: bool


def inspect(data: bytes) -> ImageInfo:
    """Reads the header. Raises UnsupportedMedia for anything but JPEG, PNG, WebP; BadImage for a broken header."""
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == _PNG_SIGNATURE:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    begins = f"it begins with {data[:8].hex(' ')}" if data else "it is empty"
    raise UnsupportedMedia(f"not a JPEG, PNG or WebP image: {begins}")


def _jpeg(data: bytes) -> ImageInfo:
    """Walks the segments up to the first scan; the frame header on the way holds the size."""
    size: tuple[int, int] | None = None
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise BadImage(f"JPEG: expected a marker at byte {at}, found {data[at]:#04x}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker == 0xD9:
            raise BadImage("JPEG: ends before any picture")
        length = int.from_bytes(data[at + 2 : at + 4])
        if length < 2:
            raise BadImage(f"JPEG: segment {marker:#04x} at byte {at} has length {length}, expected at least 2")
        if marker in _START_OF_FRAME and at + 9 <= len(data):
            size = (int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7]))
        if marker == _START_OF_SCAN:
            if size is None:
                raise BadImage("JPEG: a scan without a frame header")
            return _info("jpeg", *size, data.rfind(_JPEG_END, at + 2 + length) >= 0)
        at += 2 + length
    if size is None:
        raise BadImage("JPEG: cut off before the frame header")
    return _info("jpeg", *size, False)


def _png(data: bytes) -> ImageInfo:
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImage("PNG: does not begin with a whole IHDR chunk")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return _info("png", width, height, data.rfind(_PNG_END) >= 33)


def _webp(data: bytes) -> ImageInfo:
    """The first chunk says which of the three kinds it is: VP8 (lossy), VP8L (lossless), VP8X (extended)."""
    if len(data) < 30:
        raise BadImage("WebP: cut off inside the header")
    complete = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return _info("webp", width, height, complete)
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")  # 14 bits width - 1, 14 bits height - 1
        return _info("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), complete)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return _info("webp", width, height, complete)
    raise BadImage(f"WebP: unknown first chunk {kind!r}")


def _info(image_format: ImageFormat, width: int, height: int, complete: bool) -> ImageInfo:
    if width < 1 or height < 1:
        raise BadImage(f"{image_format.upper()}: size {width}×{height}, expected at least 1×1")
    return ImageInfo(image_format, width, height, complete)
