"""service.decode: the same bytes are the same pixels everywhere, and what is no image is refused."""

from __future__ import annotations

import struct
import threading
import zlib

import cv2
import numpy as np
import pytest

from service.contracts import FrameInput
from service.decode import decode_frame, fit_frame
from service.errors import BadImage, EntryError, TooLarge, UnsupportedMedia

GRAY = FrameInput(height=8, width=8, channels=1, colour="gray")
RGB = FrameInput(height=8, width=8, channels=3, colour="rgb")
LIMIT = 1_000_000


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", pixels, list(options))[1].tobytes()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours (BGR), which survive JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / width, y * 255 / height, 255 - x * 255 / width], -1).astype(np.uint8)


def test_a_frame_of_the_right_size_is_taken_as_it_is() -> None:
    pixels = noise(8, 8)
    frame = decode_frame(png(pixels), GRAY, max_pixels=LIMIT)
    assert (frame.shape, frame.dtype, frame.flags.c_contiguous) == ((8, 8, 1), np.uint8, True)
    assert np.array_equal(frame[..., 0], pixels)


def test_colours_come_as_red_green_blue() -> None:
    blue_green_red = np.zeros((8, 8, 3), np.uint8)
    blue_green_red[..., 2] = 200
    assert decode_frame(png(blue_green_red), RGB, max_pixels=LIMIT)[0, 0].tolist() == [200, 0, 0]


def test_grey_images_fill_three_channels_and_colour_images_one() -> None:
    assert np.ptp(decode_frame(png(noise(8, 8)), RGB, max_pixels=LIMIT), axis=-1).max() == 0
    assert decode_frame(png(noise(8, 8, 3)), GRAY, max_pixels=LIMIT).shape == (8, 8, 1)


def test_alpha_is_dropped_and_colours_stay() -> None:
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 0  # wholly transparent
    assert np.array_equal(decode_frame(png(pixels), RGB, max_pixels=LIMIT), pixels[..., 2::-1])


def test_sixteen_bits_become_their_high_eight() -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 8), np.uint16)
    assert np.array_equal(decode_frame(png(deep), GRAY, max_pixels=LIMIT)[..., 0], deep >> 8)


def with_orientation(image: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF block that says only this."""
    tiff = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return image[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + image[2:]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_frame_stands_as_its_exif_orientation_says(orientation: int, turns: int) -> None:
    image = jpeg(scene(16, 16), cv2.IMWRITE_JPEG_QUALITY, 100)
    spec = FrameInput(height=16, width=16, channels=3, colour="rgb")
    plain = decode_frame(image, spec, max_pixels=LIMIT)
    turned = decode_frame(with_orientation(image, orientation), spec, max_pixels=LIMIT)
    assert np.array_equal(turned, np.rot90(plain, turns))


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(40, 80), (80, 40), (9, 9), (3, 200), (1, 1)])
def test_every_fit_gives_the_size(fit: str, size: tuple[int, int]) -> None:
    spec = FrameInput(height=12, width=20, channels=3, colour="rgb", fit=fit)
    assert fit_frame(noise(*size, 3), spec).shape == (12, 20, 3)


def test_letterbox_keeps_proportions_between_black_bars() -> None:
    spec = FrameInput(height=10, width=10, channels=1, colour="gray", fit="letterbox")
    frame = fit_frame(np.full((20, 40), 255, np.uint8), spec)[..., 0]
    assert np.flatnonzero(frame.any(1)).tolist() == [2, 3, 4, 5, 6]
    assert (frame[2:7] == 255).all()


def test_crop_keeps_the_middle() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    spec = FrameInput(height=10, width=10, channels=1, colour="gray", fit="crop")
    assert (fit_frame(wide, spec) == 255).all()


def test_interpolation_is_the_manifests() -> None:
    pixels = noise(64, 64)
    frames = [
        fit_frame(pixels, FrameInput(height=8, width=8, channels=1, colour="gray", interpolation=way))
        for way in ("area", "linear")
    ]
    assert np.array_equal(frames[0][..., 0], cv2.resize(pixels, (8, 8), interpolation=cv2.INTER_AREA))
    assert np.array_equal(frames[1][..., 0], cv2.resize(pixels, (8, 8), interpolation=cv2.INTER_LINEAR))


def test_reduced_decoding_is_near_and_only_for_large_jpegs() -> None:
    plain = FrameInput(height=32, width=32, channels=3, colour="rgb")
    reduced = FrameInput(height=32, width=32, channels=3, colour="rgb", reduced_decoding=True)
    for size, same in ((480, False), (63, True)):
        image = jpeg(scene(size, size))
        one, other = (decode_frame(image, spec, max_pixels=LIMIT).astype(int) for spec in (plain, reduced))
        assert np.abs(one - other).max() <= 4
        assert np.array_equal(one, other) is same
    for image in (png(scene(480, 480)), jpeg(scene(480, 63)), jpeg(scene(63, 480))):  # their shorter side counts
        assert np.array_equal(*(decode_frame(image, spec, max_pixels=LIMIT) for spec in (plain, reduced)))


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_truncated_images_are_refused_at_every_length(extension: str) -> None:
    whole = cv2.imencode(extension, noise(16, 16, 3))[1].tobytes()
    for length in range(len(whole)):
        with pytest.raises(EntryError) as caught:
            decode_frame(whole[:length], RGB, max_pixels=LIMIT)
        assert isinstance(caught.value, (BadImage, UnsupportedMedia)), length


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    rows = zlib.compress(bytes(10_001) * 10_000, 9)  # 100 million black pixels in some 100 kB

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(TooLarge, match=r"10000×10000 pixels: the limit is 1000000"):
        decode_frame(bomb, GRAY, max_pixels=LIMIT)


def test_the_limit_itself_is_allowed() -> None:
    image = png(noise(10, 20))
    assert decode_frame(image, GRAY, max_pixels=200).shape == (8, 8, 1)
    with pytest.raises(TooLarge):
        decode_frame(image, GRAY, max_pixels=199)


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(20), bytes(1000)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        decode_frame(data, RGB, max_pixels=LIMIT)


def test_damaged_pixels_are_refused_or_decoded_but_never_crash() -> None:
    rng = np.random.default_rng(1)
    for extension in (".jpg", ".png", ".webp"):
        whole = bytearray(cv2.imencode(extension, noise(16, 16, 3))[1].tobytes())
        for _ in range(200):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(whole), 3):
                damaged[at] = rng.integers(256)
            try:
                frame = decode_frame(bytes(damaged), RGB, max_pixels=LIMIT)
            except EntryError:
                continue
            assert frame.shape == (8, 8, 3)


def test_a_png_whose_checksum_is_wrong_is_refused() -> None:
    image = bytearray(png(noise(8, 8)))
    image[-20] ^= 0xFF  # inside the compressed pixels or their checksum
    with pytest.raises(BadImage, match="damaged PNG"):
        decode_frame(bytes(image), GRAY, max_pixels=LIMIT)


def test_threads_decode_the_same() -> None:
    image = jpeg(scene(100, 100))
    expected = decode_frame(image, RGB, max_pixels=LIMIT)
    frames: list[np.ndarray] = []

    def work() -> None:
        frames.extend(decode_frame(image, RGB, max_pixels=LIMIT) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(frames) == 80
    assert all(np.array_equal(frame, expected) for frame in frames)
