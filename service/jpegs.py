"""JPEG by libjpeg-turbo, strictly: a picture that has a hole is refused, where decoders would pad it with grey.

Whether all of it is there, only decoding can tell: an end mark may follow a hole, and a whole picture may lack it. What
else the decoder complains of (ISO/IEC 10918-1, JFIF, Adobe's marker) does no harm to the pixels: the picture is taken,
and the complaint is told. Nothing is written to the process's stderr.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Final

import cv2
import numpy as np
import simplejpeg

from service.errors import BadImage
from service.images import ImageInfo

END: Final = b"\xff\xd9"  # cannot stand inside compressed data, where FF is followed by 00 or a restart mark
_EXIF: Final = b"Exif\0\0"
_ORIENTATION: Final = 0x0112  # the tag
_TURNS: Final[dict[int, Callable[[np.ndarray], np.ndarray]]] = {  # by orientation; 1 stands as it is
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
_CMYK: Final = 4  # components
_PROGRESSIVE: Final = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_FIRST_SCAN: Final = 0xDA
_LAST_COEFFICIENT: Final = 63
_PADDED: Final = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PADDING: Final = (
    0x00,
    0xFF,
)  # what encoders fill up with; other bytes there are pixels, of which some before are lost
_MOST_REMARKS: Final = 4  # of one head


def decode_jpeg(data: bytes, info: ImageInfo, gray: bool, scale: int, remark: Callable[[str], None]) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB uint8, as its EXIF orientation says, at 1/`scale` (1, 2, 4, 8) of its size. `remark` is
    told what the decoder complains of where the picture is whole all the same. Raises BadImage."""
    segments = list(_segments(data))
    whole, image = bytearray(_ended(data, segments, info.channels)), None
    for _ in range(_MOST_REMARKS):
        try:
            image = _decoded(whole, info, gray, scale, strict=True)
            break
        except ValueError as error:
            said = str(error)
        if _is_padded(whole, segments[-1][2], said):
            image = _decoded(whole, info, gray, scale, strict=False)
            remark(said)
            break
        if not _corrected(whole, segments, said):
            raise BadImage(f"damaged JPEG image: pixels are missing, or wrong: {said}")
        remark(said)
    if image is None:
        raise BadImage(f"damaged JPEG image: {said}")
    turn = _TURNS.get(_orientation(data, segments))
    return image if turn is None else np.ascontiguousarray(turn(image))


def _decoded(data: bytearray, info: ImageInfo, gray: bool, scale: int, strict: bool) -> np.ndarray:
    """Raises ValueError with libjpeg's first complaint: any where `strict`, else only what leaves no picture."""
    size = {} if scale == 1 else {"min_height": -(-info.height // scale), "min_width": -(-info.width // scale)}
    if info.channels == _CMYK:
        four = simplejpeg.decode_jpeg(data, "CMYK", strict=strict, **size).astype(np.uint16)
        black = four[..., 3:]
        image = (black - ((255 - four[..., :3]) * black >> 8)).astype(np.uint8)
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) if gray else image
    image = simplejpeg.decode_jpeg(data, "GRAY" if gray else "RGB", strict=strict, **size)
    return np.asarray(image[..., 0] if gray else image)


def _is_padded(data: bytearray, scan: int, said: str) -> bool:
    """Whether what the decoder left between the pixels and the end mark is padding."""
    left = _PADDED.search(said)
    end = data.find(END, scan)
    return left is not None and all(octet in _PADDING for octet in data[max(scan, end - int(left[1])) : end])


# --- the head ----------------------------------------------------------------------------------------------------


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of the bodies up to the first scan, its head with them. `inspect` has walked them."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield marker, at + 4, end
        if marker == _FIRST_SCAN:
            return
        at = end


def _ended(data: bytes, segments: list[tuple[int, int, int]], components: int) -> bytes:
    """With its end mark, where it lacks that. Raises BadImage where scans may be missing with it, or a component is."""
    _, begin, end = segments[-1]
    ended = data.find(END, end) >= 0
    exact = not ended and any(marker in _PROGRESSIVE for marker, _, _ in segments)
    looked = exact or data[begin] < components  # else one scan has all of them
    if looked and not _has_all_scans(data, begin - 4, components, to_the_last_bit=exact):
        raise BadImage(f"truncated JPEG image: scans are missing{'' if ended else ', and the end mark with them'}")
    return data if ended else data + END


def _corrected(data: bytearray, segments: list[tuple[int, int, int]], said: str) -> bool:
    """Whether `said` is a complaint about the head that does no harm. It is mended, so that what comes behind is heard:
    libjpeg says only the first of its complaints."""
    for marker, begin, end in segments:
        body = bytes(data[begin:end])
        if "JFIF revision" in said and marker == 0xE0 and body[:5] == b"JFIF\0":
            data[begin + 5 : begin + 7] = b"\1\1"
            return True
        if "Adobe color transform" in said and marker == 0xEE and body[:5] == b"Adobe":
            data[begin + 11] = (
                2 if any(data[at + 5] == _CMYK for kind, at, _ in segments if 0xC0 <= kind <= 0xC2) else 1
            )
            return True
        if "SOS parameters" in said and marker == _FIRST_SCAN:
            data[end - 3 : end] = bytes((0, _LAST_COEFFICIENT, 0))
            return True
    return False


def _has_all_scans(data: bytes, at: int, components: int, to_the_last_bit: bool) -> bool:
    """Whether every component has a scan; `to_the_last_bit`: whether the last bits of its first and last coefficient
    have begun. `at`: the first scan's mark."""
    first, last = set[int](), set[int]()
    named = set[int]()
    while (at := data.find(bytes((0xFF, _FIRST_SCAN)), at)) >= 0:
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4])]
        at += 2
        if len(body) < 6:
            continue
        mine, (begin, end, bits) = set(body[1:-3:2]), body[-3:]
        named |= mine
        if bits & 15 == 0:
            first |= mine if begin == 0 else set()
            last |= mine if end == _LAST_COEFFICIENT else set()
    return len(named) >= components and (not to_the_last_bit or first == last == named)


def _orientation(data: bytes, segments: list[tuple[int, int, int]]) -> int:
    """1 to 8, of the first EXIF block (CIPA DC-008); 1 where there is none, or none that can be read."""
    tiff = next((data[b + 6 : e] for marker, b, e in segments if marker == 0xE1 and data[b : b + 6] == _EXIF), b"")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    if at + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return int(value)
    return 1
