"""What an image's bytes say of themselves: format, size, whether the end is there, and what decoding it will cost.

JPEG (ISO/IEC 10918-1), PNG (W3C) and WebP (RFC 9649). Only the structure is walked, never a pixel: chunks, segments,
scans. `check` is asked by the api before an entry is appended and by decode.py before a byte is unpacked, so that what
takes more memory or time than its size explains is refused without being decoded. Its time is bounded for any bytes: it
runs on the api's event loop.
"""

from __future__ import annotations

import struct
from typing import Final, Literal, NamedTuple

import numpy as np

from service.errors import BadImage, TooLarge, UnsupportedMedia

ImageFormat = Literal["jpeg", "png", "webp"]

WORK_PER_PIXEL: Final = 20  # of `max_pixels`: a progressive JPEG of that size may have as many scans
MOST_SCANS: Final = 64  # of a JPEG of any size; encoders write 1 to 16
MOST_CHUNKS: Final = 5_000  # of a PNG or WebP; an image of 8 MB by libpng has 1,024
MOST_SEGMENTS: Final = 10_000  # of a JPEG before its first scan, fill bytes with them
MOST_SIDE: Final = 1_000_000  # pixels of a PNG's row or column: no decoder takes more
KEPT_BYTES: Final = 16 << 20  # of a PNG's pixels that are unpacked only once

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_CHUNK: Final = struct.Struct(">I4s")  # length, kind; then data and a checksum
_PNG_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits, by colour type
_ADAM7: Final = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
_PNG_SLACK: Final = 1 << 16  # bytes by which an encoder may make pixels larger than twice what they are
_ROW_WORK: Final = 32  # what a row costs besides its bytes

_START_OF_FRAME: Final = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_ARITHMETIC: Final = frozenset((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_SEQUENTIAL: Final = frozenset((0xC0, 0xC1, 0xC9))
_START_OF_SCAN: Final = 0xDA
_SCAN_HEADS: Final = frozenset(bytes((0, 6 + 2 * n, n)) for n in range(5))  # length and number of components
_WITHOUT_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD9)))
_MOST_MARKS: Final = 1000  # that may be a scan's: 8 MB of random bytes have 128
_BLOCK: Final = 1 << 19  # bytes looked at together: they stay in the cache


class ImageInfo(NamedTuple):
    """`width` and `height` in pixels as stored (an EXIF orientation is not applied); `complete`: pixels begin, and no
    length says that some of them are missing. Whether all are there, only decoding can tell.

    Bytes after the end mark are allowed: cameras append previews and padding.
    """

    format: ImageFormat
    width: int
    height: int
    complete: bool
    work: int  # what decoding costs at most: bytes unpacked, pixels passed over; 1 to 10 ns each
    memory: int  # bytes that decoding takes, about
    channels: int = 3  # of a JPEG


def check(data: bytes, max_pixels: int) -> ImageInfo:
    """What api and worker ask of an image before they take it. Raises UnsupportedMedia, TooLarge, BadImage."""
    info = inspect(data)
    if info.width * info.height > max_pixels:
        raise TooLarge(f"image of {info.width}×{info.height} pixels: the limit is {max_pixels} pixels")
    if not info.complete:
        raise BadImage(f"truncated {info.format.upper()} image: pixels are missing from its {len(data)} bytes")
    if info.work > WORK_PER_PIXEL * max_pixels:
        raise TooLarge(
            f"{info.format.upper()} image of {info.width}×{info.height} pixels that takes {info.work:,} passes over a "
            f"pixel: the limit is {WORK_PER_PIXEL * max_pixels:,}, {WORK_PER_PIXEL} times max_pixels"
        )
    return info


def inspect(data: bytes) -> ImageInfo:
    """Walks the structure. Raises UnsupportedMedia for anything but JPEG, PNG, WebP; BadImage where it is broken."""
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == PNG_SIGNATURE:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    begins = f"it begins with {data[:8].hex(' ')}" if data else "it is empty"
    raise UnsupportedMedia(f"not a JPEG, PNG or WebP image: {begins}")


# --- JPEG --------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> ImageInfo:
    """Walks the segments up to the first scan, where the frame header is; then counts scans."""
    frame: _JpegFrame | None = None
    at = 2
    for _ in range(MOST_SEGMENTS):
        if at + 4 > len(data):
            break
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
            if frame is not None:
                raise BadImage(f"JPEG: a second frame header at byte {at}")
            frame = _JpegFrame.read(marker, data[at + 4 : at + 2 + length])
        if marker == _START_OF_SCAN:
            if frame is None:
                raise BadImage("JPEG: a scan without a frame header")
            return frame.info(
                len(data) > at + 2 + length, 1 if frame.is_one_scan(data[at + 4 : at + 5]) else _scans(data, at)
            )
        at += 2 + length
    else:
        raise BadImage(f"JPEG: more than {MOST_SEGMENTS:,} segments before the first scan")
    if frame is None:
        raise BadImage("JPEG: cut off before the frame header")
    return frame.info(False, 0)


class _JpegFrame(NamedTuple):
    marker: int
    width: int
    height: int
    components: int
    sampling: tuple[int, int]  # the largest factors: a decoder works on whole blocks of 8 times as many pixels

    @classmethod
    def read(cls, marker: int, body: bytes) -> _JpegFrame:
        height, width = struct.unpack(">HH", body[1:5])
        components = body[5] if len(body) > 5 else 0
        factors = [(one >> 4, one & 15) for one in body[7 : 6 + 3 * components : 3]]
        across, down = (max(1, min(4, max((factor[k] for factor in factors), default=4))) for k in (0, 1))
        return cls(marker, width, height, components, (across, down))

    def is_one_scan(self, components: bytes) -> bool:
        """Whether a decoder takes no other one: unless it is progressive, a scan of all components is the whole."""
        return self.marker in _SEQUENTIAL and components == bytes((self.components,))

    def info(self, complete: bool, scans: int) -> ImageInfo:
        _check_size("jpeg", self.width, self.height)
        if complete and self.components not in (1, 3, 4):
            raise BadImage(f"JPEG: {self.components} components, expected 1, 3 or 4")
        if scans > MOST_SCANS:
            raise BadImage(f"JPEG: more than {MOST_SCANS} scans")
        across, down = (8 * factor for factor in self.sampling)
        pixels = -(-self.width // across) * across * (-(-self.height // down) * down)
        kept = 0 if scans <= 1 and self.marker in _SEQUENTIAL else 2 * self.components  # coefficients of all scans
        passes = max(1, scans) * (4 if self.marker in _ARITHMETIC else 1)
        return ImageInfo(
            "jpeg", self.width, self.height, complete, pixels * passes, pixels * (12 + kept), self.components
        )


def _scans(data: bytes, start: int) -> int:
    """At least as many scans as a decoder can find from `start` on: heads of scans, also of an appended preview. More
    than MOST_SCANS means just that.

    Inside compressed data FF is never followed by DA; in whatever else a camera appends, it is once in 65,536 bytes.
    """
    octets = np.frombuffer(data, np.uint8)
    found: list[int] = []
    for begin in range(start, len(data) - 1, _BLOCK):
        for first in (begin, begin + 1):  # pairs of bytes that begin at an even place, and at an odd one
            pairs = octets[first : first + (min(_BLOCK, len(data) - first) & ~1)].view("<u2") == 0xDAFF
            if pairs.any():
                found += [first + 2 * int(hit) for hit in np.flatnonzero(pairs)]
        if len(found) > _MOST_MARKS:
            return MOST_SCANS + 1
    if len(found) <= 1:
        return len(found)
    return sum(data[at + 2 : at + 5] in _SCAN_HEADS for at in found)


# --- PNG ---------------------------------------------------------------------------------------------------------


class PngHeader(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    @classmethod
    def read(cls, data: bytes) -> PngHeader:
        width, height, depth, colour, packing, filters, interlace = struct.unpack(">IIBBBBB", data[16:29])
        if depth not in _PNG_DEPTHS.get(colour, ()) or interlace > 1 or packing or filters:
            raise BadImage(f"PNG: colour type {colour}, {depth} bits, interlace {interlace}: not in the standard")
        return cls(width, height, depth, colour, interlace == 1)

    def passes(self) -> list[tuple[int, int]]:
        """Rows, and bytes of each, its filter's with them: of the picture, or of each pass of an interlaced one."""
        bits = self.depth * _PNG_CHANNELS[self.colour]
        if not self.interlaced:
            return [(self.height, 1 + (self.width * bits + 7) // 8)]
        sizes = [
            (-(-(self.height - top) // down), -(-(self.width - left) // across)) for left, across, top, down in _ADAM7
        ]
        return [(rows, 1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0]

    @property
    def raw(self) -> int:
        """Bytes that IDAT unpacks to."""
        return sum(rows * row_bytes for rows, row_bytes in self.passes())


def _png(data: bytes) -> ImageInfo:
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImage("PNG: does not begin with a whole IHDR chunk")
    header = PngHeader.read(data)
    _check_size("png", header.width, header.height)
    if max(header.width, header.height) > MOST_SIDE:
        raise TooLarge(f"PNG image of {header.width}×{header.height} pixels: the limit of a side is {MOST_SIDE:,}")
    pixels, at = 0, 33  # compressed bytes
    for _ in range(MOST_CHUNKS):
        if at + 12 > len(data):
            break
        size, kind = _CHUNK.unpack_from(data, at)
        if kind == b"IHDR":
            raise BadImage("PNG: a second IHDR chunk")
        if at + 12 + size > len(data):
            raise BadImage(f"PNG: chunk {kind!r} at byte {at} says {size:,} bytes, {len(data) - at - 12:,} follow")
        if kind == b"IDAT":
            pixels += size
        elif kind == b"IEND":
            break
        at += 12 + size
    else:
        raise BadImage(f"PNG: more than {MOST_CHUNKS:,} chunks")
    if pixels > 2 * header.raw + _PNG_SLACK:
        raise BadImage(
            f"PNG: {pixels:,} bytes in IDAT chunks, where {header.width}×{header.height} pixels need {header.raw:,} "
            "uncompressed"
        )
    raw, passes = header.raw, 7 if header.interlaced else 1
    work = raw * (2 if header.interlaced else 1) + header.height * passes * _ROW_WORK
    memory = 12 * header.width * header.height + 16 * header.height + (3 * raw if raw <= KEPT_BYTES else 0)
    return ImageInfo("png", header.width, header.height, pixels > 0, work, memory)


# --- WebP --------------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> ImageInfo:
    """The first chunk says which of the three kinds it is: VP8 (lossy), VP8L (lossless), VP8X (extended)."""
    if len(data) < 30:
        raise BadImage("WebP: cut off inside the header")
    end = 8 + int.from_bytes(data[4:8], "little")
    complete = len(data) >= end
    kind = data[12:16]
    if kind != b"VP8X":
        size = _webp_size(kind, data[20:30])
        if size is None:
            raise BadImage(f"WebP: unknown first chunk {kind!r}")
        said = int.from_bytes(data[16:20], "little")
        if complete and 20 + said > end:
            raise BadImage(f"WebP: chunk {kind!r} says {said:,} bytes, {end - 20:,} follow")
        return _webp_info(*size, complete, kind == b"VP8L", False)
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    _check_size("webp", width, height)
    lossless = complete and _webp_parts(data, end, width, height)
    return _webp_info(width, height, complete, lossless, bool(data[20] & 2))


def _webp_parts(data: bytes, end: int, width: int, height: int) -> bool:
    """Walks the chunks of a whole extended image: each lies within it, each picture within the canvas. Returns whether
    a part of it is compressed without loss."""
    at, lossless, part = 12, False, (width, height)
    for _ in range(MOST_CHUNKS):
        if at + 8 > end:
            return lossless
        kind, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 24]
        if at + 8 + size > end:
            raise BadImage(f"WebP: chunk {kind!r} at byte {at} says {size:,} bytes, {end - at - 8:,} follow")
        lossless = lossless or kind in (b"VP8L", b"ALPH")
        if kind == b"ANMF" and size >= 16:
            low_left, left, low_top, top, low_wide, wide, low_high, high = struct.unpack_from("<HBHBHBHB", body)
            left, top = low_left | left << 16, low_top | top << 16
            part = (low_wide | wide << 16) + 1, (low_high | high << 16) + 1
            if 2 * left + part[0] > width or 2 * top + part[1] > height:
                raise BadImage(f"WebP: a picture of {part[0]}×{part[1]} in an animation of {width}×{height}")
            at += 24  # its chunks follow
            continue
        found = _webp_size(kind, body)
        if found is not None and found != part:
            raise BadImage(f"WebP: a picture of {found[0]}×{found[1]} where {part[0]}×{part[1]} was said")
        at += 8 + size + (size & 1)
    raise BadImage(f"WebP: more than {MOST_CHUNKS:,} chunks")


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Width and height that a chunk VP8 or VP8L begins with; None for anything else."""
    if kind == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")  # 14 bits width - 1, 14 bits height - 1
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return width, height
    return None


def _webp_info(width: int, height: int, complete: bool, lossless: bool, animated: bool) -> ImageInfo:
    _check_size("webp", width, height)
    pixels = width * height
    work, memory = pixels * (8 if animated else 4), pixels * (24 if animated else 20 if lossless else 16)
    return ImageInfo("webp", width, height, complete, work, memory)


def _check_size(image_format: ImageFormat, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"{image_format.upper()}: size {width}×{height}, expected at least 1×1")
