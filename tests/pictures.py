"""Pictures built by hand: those that no encoder writes."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deflated(size: int) -> bytes:
    """Zeros, a thousand times smaller."""
    return zlib.compress(bytes(size), 9)


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 0, interlaced: bool = False,
    before: bytes = b"", pixels: bytes | None = None, after: bytes = b"", size: int | None = None,
) -> bytes:  # fmt: skip
    """Black, unless `pixels` (compressed) say otherwise; `size`: of the uncompressed ones. `before` and `after` are
    chunks on either side of IDAT."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if pixels is None:
        pixels = deflated(height * (1 + (width * depth * channels + 7) // 8) if size is None else size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return PNG + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def scan_by_scan(grey: np.ndarray) -> list[bytes]:
    """A sequential JPEG of three components that are alike: its head, and a scan of each."""
    one = cv2.imencode(".jpg", grey)[1].tobytes()
    frame, scan = one.find(b"\xff\xc0"), one.find(b"\xff\xda")
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    head = one[:frame] + b"\xff\xc0\0\x11" + one[frame + 4 : frame + 9] + b"\3" + components
    begins = scan + 2 + int.from_bytes(one[scan + 2 : scan + 4])
    scans = [b"\xff\xda\0\x08\1" + bytes((number, 0, 0, 63, 0)) + one[begins:-2] for number in (1, 2, 3)]
    return [head + one[frame + 13 : scan], *scans]


def said(kind: bytes, length: int, body: bytes = bytes(100)) -> bytes:
    """A PNG of 8×8 with a chunk that says it is `length` bytes long, and has `body`."""
    return PNG + png(8, 8)[8:33] + struct.pack(">I", length) + kind + body + chunk(b"IEND", b"")


def animation(pictures: int) -> bytes:
    """acTL."""
    return chunk(b"acTL", struct.pack(">II", pictures, 0))


def picture_of_animation(number: int, width: int, height: int, left: int = 0, top: int = 0) -> bytes:
    """fcTL."""
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, top, 1, 10, 0, 0))


def scans(width: int, height: int, count: int, *, arithmetic: bool = False) -> bytes:
    """A gray JPEG whose last scan comes `count` times more."""
    grey = np.full((height, width), 90, np.uint8)
    whole = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = whole.rfind(b"\xff\xda")
    begins = whole.rfind(b"\xff\xc4", 0, last)
    repeated = whole[:begins] + whole[begins:-2] + whole[last:-2] * count + whole[-2:]
    if arithmetic:
        start = repeated.find(b"\xff\xc2")
        repeated = repeated[: start + 1] + b"\xca" + repeated[start + 2 :]
    return repeated


def webp(width: int, height: int, chunks: bytes, flags: int = 0) -> bytes:
    """An extended one: VP8X, then `chunks`."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + riff(b"VP8X", bytes((flags, 0, 0, 0)) + size) + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)


def picture_of_webp(width: int, height: int) -> bytes:
    """Its chunk VP8."""
    return cv2.imencode(".webp", np.zeros((height, width, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()[
        12:
    ]


def moving_webp(width: int, height: int, picture: bytes, wide: int, high: int, count: int = 1) -> bytes:
    """An animation of `count` times the same picture, said to be `wide` × `high`."""
    size = (wide - 1).to_bytes(3, "little") + (high - 1).to_bytes(3, "little")
    part = riff(b"ANMF", bytes(6) + size + bytes((100, 0, 0, 0)) + picture)
    return webp(width, height, riff(b"ANIM", bytes(6)) + part * count, 2)
