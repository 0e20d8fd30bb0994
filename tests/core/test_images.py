"""service.images reads what an image says of itself, and only that."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadImage, EntryError, UnsupportedMedia
from service.images import inspect

SIZE = (37, 23)  # width, height


def encoded(extension: str, *options: int, channels: int = 3) -> bytes:
    width, height = SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.imencode(extension, pixels, list(options))[1].tobytes()


PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
IMAGES = {
    "jpeg": encoded(".jpg"),
    "jpeg, gray": encoded(".jpg", channels=1),
    "jpeg, progressive": encoded(".jpg", *PROGRESSIVE),
    "jpeg, restart marks": encoded(".jpg", *RESTARTS),
    "png": encoded(".png"),
    "png, alpha": encoded(".png", channels=4),
    "webp, lossy": encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 50),
    "webp, lossless": encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "webp, alpha": encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 50, channels=4),
}


@pytest.mark.parametrize("name", IMAGES)
def test_format_size_and_end_are_read(name: str) -> None:
    info = inspect(IMAGES[name])
    assert (info.format, info.width, info.height, info.complete) == (name.split(",")[0], *SIZE, True)


@pytest.mark.parametrize("name", IMAGES)
def test_every_cut_is_incomplete_or_refused(name: str) -> None:
    whole = IMAGES[name]
    for length in range(len(whole)):
        try:
            assert not inspect(whole[:length]).complete, f"cut after {length} of {len(whole)} bytes"
        except EntryError:
            continue  # cut inside the header


@pytest.mark.parametrize("name", IMAGES)
def test_bytes_after_the_end_are_allowed(name: str) -> None:
    assert inspect(IMAGES[name] + b"\0" * 100).complete


def test_the_end_mark_of_an_embedded_preview_does_not_count() -> None:
    preview = IMAGES["jpeg"]
    application_data = b"\xff\xe1" + (len(preview) + 2).to_bytes(2) + preview
    whole = preview[:2] + application_data + preview[2:]
    assert inspect(whole).complete
    assert not inspect(whole[:-10]).complete


@pytest.mark.parametrize(
    "data", [b"", b"x", b"GIF89a\1\0\1\0", b"BM" + bytes(60), b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"\x89PNG\r\n"]
)
def test_other_formats_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="JPEG, PNG or WebP"):
        inspect(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xd8", "cut off"),
        (b"\xff\xd8\x00\x00\x00\x00", "expected a marker at byte 2"),
        (b"\xff\xd8\xff\xe0\x00\x01\x00\x00", "length 1"),
        (b"\xff\xd8\xff\xd9\x00\x00", "before any picture"),
        (b"\xff\xd8\xff\xda\x00\x02\x00\x00\x00\x00", "without a frame header"),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x10\x01\xff\xda\x00\x02\x00\x00", "size 16×0"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "IHDR"),
        (IMAGES["png"][:16] + bytes(4) + IMAGES["png"][20:], "size 0×23"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "cut off"),
        (b"RIFF\0\0\0\0WEBPABCD" + bytes(20), "unknown first chunk"),
    ],
)
def test_a_broken_header_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        inspect(data)


@given(st.sampled_from(sorted(IMAGES)), st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_damage_never_raises_anything_else(name: str, at: int, damage: bytes) -> None:
    data = IMAGES[name]
    with_damage = data[:at] + damage + data[at + len(damage) :]
    try:
        info = inspect(with_damage)
    except EntryError:
        return
    assert info.width >= 1
    assert info.height >= 1
