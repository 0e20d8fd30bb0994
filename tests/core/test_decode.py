"""service.decode: the same bytes are the same pixels everywhere, and what is no image is refused."""

from __future__ import annotations

import contextlib
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest

from service.contracts import FrameInput
from service.decode import decode_frame, fit_frame, unpack
from service.errors import BadImage, EntryError, TooLarge, UnsupportedMedia
from service.images import check
from tests import pictures

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


def with_orientation(image: bytes, orientation: int, order: str = "<") -> bytes:
    """The JPEG with an EXIF block that says only this."""
    tiff = struct.pack(
        f"{order}2sHIHHHIHHI", b"II" if order == "<" else b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0
    )
    body = b"Exif\0\0" + tiff
    return image[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + image[2:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_frame_stands_as_its_exif_orientation_says(orientation: int, order: str) -> None:
    image = with_orientation(jpeg(scene(16, 24), cv2.IMWRITE_JPEG_QUALITY, 100), orientation, order)
    as_shown = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert as_shown is not None
    spec = FrameInput(height=as_shown.shape[0], width=as_shown.shape[1], channels=3, colour="rgb")
    assert np.array_equal(decode_frame(image, spec, max_pixels=LIMIT), as_shown)


def test_an_exif_block_that_cannot_be_read_turns_nothing() -> None:
    image = jpeg(scene(16, 24))
    expected = decode_frame(image, RGB, max_pixels=LIMIT)
    for body in (b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        block = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        assert np.array_equal(decode_frame(image[:2] + block + image[2:], RGB, max_pixels=LIMIT), expected)


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


ENCODED = {
    "jpeg": jpeg(noise(48, 40, 3)),
    "jpeg, gray": jpeg(noise(48, 40)),
    "jpeg, progressive": jpeg(noise(48, 40, 3), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg, restart marks": jpeg(noise(48, 40, 3), cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "png": png(noise(16, 16, 3)),
    "webp": cv2.imencode(".webp", noise(16, 16, 3))[1].tobytes(),
}


@pytest.mark.parametrize("name", ENCODED)
def test_a_cut_image_is_refused_unless_all_its_pixels_are_there(name: str) -> None:
    whole = ENCODED[name]
    expected = decode_frame(whole, RGB, max_pixels=LIMIT)
    taken = []
    for length in range(len(whole)):
        try:
            frame = decode_frame(whole[:length], RGB, max_pixels=LIMIT)
        except (BadImage, UnsupportedMedia):
            continue
        assert np.array_equal(frame, expected), f"{length} of {len(whole)} bytes"
        taken.append(len(whole) - length)
    lacking = {"j": (1, 2), "p": (1, 12), "w": ()}[name[0]]  # bytes of the end mark
    assert set(taken) >= set(lacking)
    assert max(taken, default=0) <= 12


@pytest.mark.parametrize("name", [name for name in ENCODED if name.startswith("jpeg")])
@pytest.mark.parametrize("filler", ["nothing", "zeros", "fill bytes"])
@pytest.mark.parametrize("share", [0.55, 0.7, 0.85])
def test_a_jpeg_with_a_hole_is_refused_though_its_end_mark_is_there(name: str, filler: str, share: float) -> None:
    whole = ENCODED[name]
    begin, length = round(share * len(whole)), len(whole) // 8
    between = {"nothing": b"", "zeros": bytes(length), "fill bytes": b"\xff" * length}[filler]
    with pytest.raises(BadImage, match="damaged JPEG image: pixels are missing, or wrong"):
        decode_frame(whole[:begin] + between + whole[begin + length :], RGB, max_pixels=LIMIT)


def test_the_first_part_of_a_jpeg_with_an_end_mark_is_refused() -> None:
    for name, whole in ENCODED.items():
        if name.startswith("jpeg"):
            for share in (0.6, 0.9, 0.99):
                cut = whole[: int(share * len(whole))].rstrip(b"\xff") + b"\xff\xd9"
                with pytest.raises(BadImage):
                    decode_frame(cut, RGB, max_pixels=LIMIT)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_lacks_a_component_is_refused(end: bytes) -> None:
    """Its colours would be others."""
    head, *each = pictures.scan_by_scan(noise(48, 40))
    decode_frame(head + b"".join(each) + end, RGB, max_pixels=LIMIT)
    for scans in (1, 2):
        with pytest.raises(BadImage, match="scans are missing"):
            decode_frame(head + b"".join(each[:scans]) + end, RGB, max_pixels=LIMIT)


def with_adobe(image: bytes, transform: int) -> bytes:
    """Adobe's marker instead of JFIF's, which would be believed first."""
    body = b"Adobe\0\x64\0\0\0\0" + bytes((transform,))
    return image[:2] + b"\xff\xee" + struct.pack(">H", len(body) + 2) + body + image[20:]


def without_sos_parameters(image: bytes) -> bytes:
    at = image.find(b"\xff\xda")
    end = at + 2 + int.from_bytes(image[at + 2 : at + 4])
    return image[: end - 3] + bytes(3) + image[end:]


UNUSUAL = {
    "padded": (lambda image: image[:-2] + bytes(7) + image[-2:], "extraneous bytes before marker 0xd9"),
    "another JFIF": (lambda image: image.replace(b"JFIF\0\1", b"JFIF\0\3"), "unknown JFIF revision"),
    "another Adobe": (lambda image: with_adobe(image, 7), "Unknown Adobe color transform code 7"),
    "no parameters": (without_sos_parameters, "Invalid SOS parameters"),
    "followed": (lambda image: image + b"a preview \xff\xd9 of its own", None),
    "a second end mark": (lambda image: image + b"\xff\xd9", None),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_does_no_harm_to_the_pixels_is_taken_and_told(name: str) -> None:
    change, expected = UNUSUAL[name]
    whole, remarks = ENCODED["jpeg"], list[str]()
    changed = change(whole)
    frame = unpack(changed, RGB, check(changed, LIMIT), remarks.append)
    assert np.array_equal(frame, decode_frame(whole, RGB, max_pixels=LIMIT))
    assert len(remarks) == (expected is not None)
    assert expected is None or expected in remarks[0]
    middle = len(whole) * 3 // 4
    with pytest.raises(BadImage):  # and a hole is found behind it
        decode_frame(changed[:middle] + changed[middle + 200 :], RGB, max_pixels=LIMIT)


def test_colours_are_those_of_opencv() -> None:
    for name, whole in ENCODED.items():
        for spec, flag in ((RGB, cv2.IMREAD_COLOR_RGB), (GRAY, cv2.IMREAD_GRAYSCALE)):
            plain = cv2.imdecode(np.frombuffer(whole, np.uint8), flag)
            assert plain is not None
            assert np.array_equal(decode_frame(whole, spec, max_pixels=LIMIT), fit_frame(plain, spec)), name


DAMAGED = {
    "jpeg, cut": lambda: ENCODED["jpeg"][: len(ENCODED["jpeg"]) // 2] + b"\xff\xd9",
    "jpeg, padded": lambda: UNUSUAL["padded"][0](ENCODED["jpeg"]),
    "jpeg, no end mark": lambda: ENCODED["jpeg"][:-2],
    "jpeg, Huffman": lambda: ENCODED["jpeg"].replace(b"\xff\xc4", b"\xff\xc5", 1),
    "png, checksum": lambda: ENCODED["png"][:-20] + b"????" + ENCODED["png"][-16:],
    "png, no end": lambda: ENCODED["png"][:-12],
    "png, profile": lambda: pictures.png(8, 8, before=pictures.chunk(b"iCCP", b"a\0\0" + bytes(9))),
    "png, srgb": lambda: pictures.png(8, 8, before=pictures.chunk(b"sRGB", bytes(9))),
    "png, filter": lambda: pictures.png(8, 8, pixels=zlib.compress(b"\5" + bytes(71))),
    "png, palette": lambda: pictures.png(
        8, 8, colour=3, before=pictures.chunk(b"PLTE", bytes(3)), pixels=zlib.compress(bytes((0, *range(8))) * 8)
    ),
    "png, critical": lambda: pictures.png(8, 8, before=pictures.chunk(b"ABCD", b"")),
    "webp, cut": lambda: ENCODED["webp"][:-9],
}  # fmt: skip


def test_no_decoder_writes_to_the_process_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """The worker's log stands there, a line an event."""
    rng = np.random.default_rng(2)
    several = [make() for make in DAMAGED.values()]
    for whole in ENCODED.values():
        for _ in range(40):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(whole), 3):
                damaged[at] = rng.integers(256)
            several.append(bytes(damaged))
    for data in several:
        with contextlib.suppress(EntryError):
            decode_frame(data, RGB, max_pixels=LIMIT)
    assert capfd.readouterr().err == ""


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
