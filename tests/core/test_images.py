"""service.images reads what an image says of itself: its size, and what decoding it costs."""

from __future__ import annotations

import contextlib
import re
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadImage, EntryError, UnsupportedMedia
from service.images import PngHeader, check, inspect
from service.pngs import prepared
from tests.pictures import (
    animation,
    chunk,
    deflated,
    moving_webp,
    picture_of_animation,
    picture_of_webp,
    png,
    said,
    scans,
    webp,
)

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
def test_a_cut_before_the_pixels_is_incomplete_or_refused(name: str) -> None:
    whole = IMAGES[name]
    pixels = {"jpeg": whole.find(b"\xff\xda"), "png": whole.find(b"IDAT") + 4, "webp": len(whole) - 1}
    for length in range(pixels[name.split(",")[0]]):
        try:
            assert not inspect(whole[:length]).complete, f"cut after {length} of {len(whole)} bytes"
        except EntryError:
            continue  # cut inside the header


@pytest.mark.parametrize("name", IMAGES)
def test_bytes_after_the_end_are_allowed(name: str) -> None:
    assert inspect(IMAGES[name] + b"\0" * 100).complete


def test_the_scan_of_an_embedded_preview_does_not_count() -> None:
    preview = IMAGES["jpeg"]
    application_data = b"\xff\xe1" + (len(preview) + 2).to_bytes(2) + preview
    whole = preview[:2] + application_data + preview[2:]
    assert inspect(whole).complete
    assert not inspect(whole[: whole.rfind(b"\xff\xda")]).complete


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


# --- what the structure says of the cost ---------------------------------------------------------------------------


LIMIT = 16_777_216


def refusal(data: bytes) -> str:
    with pytest.raises(EntryError) as caught:
        check(data, LIMIT)
    return f"{type(caught.value).__name__}: {caught.value.detail}"


@pytest.mark.parametrize("kind", [b"IDAT", b"fdAT", b"tEXt", b"zTXt", b"abCD"])
@pytest.mark.parametrize("length", [117, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF])
def test_a_png_chunk_ends_within_the_data(kind: bytes, length: int) -> None:
    assert f"says {length:,} bytes" in refusal(said(kind, length))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(8, 8, before=chunk(b"IHDR", bytes(13))), "second IHDR"),
        (png(8, 8, before=chunk(b"tEXt", b"") * 5000), "more than 5,000 chunks"),
        (png(8, 8, colour=3, depth=8)[:25] + b"\5" + png(8, 8)[26:], "colour type 5"),
        (png(8, 8, pixels=bytes(100_000)), "100,000 bytes in IDAT chunks, where 8×8 pixels need 72"),
        (scans(64, 64, 100), "more than 64 scans"),
        (scans(4096, 4096, 20), "TooLarge: JPEG image of 4096×4096 pixels that takes"),
        (scans(4096, 4096, 2, arithmetic=True), "20 times max_pixels"),
        (b"\xff\xd8" + b"\xff" * 20_000, "more than 10,000 segments"),
        (IMAGES["jpeg"][:2] + b"\xff\xe0\0\2" * 20_000 + IMAGES["jpeg"][2:], "more than 10,000 segments"),
        (png(1, 16_000_000), "TooLarge: PNG image of 1×16000000 pixels: the limit of a side is 1,000,000"),
        (png(8, 8, depth=4, colour=2), "colour type 2, 4 bits"),
        (webp(1, 1, picture_of_webp(80, 80)), "a picture of 80×80 where 1×1 was said"),
        (moving_webp(8, 8, picture_of_webp(8, 8), 16, 8), "a picture of 16×8 in an animation of 8×8"),
        (moving_webp(8, 8, picture_of_webp(16, 16), 8, 8), "a picture of 16×16 where 8×8 was said"),
        (moving_webp(8, 8, picture_of_webp(8, 8), 8, 8, 5000), "more than 5,000 chunks"),
        (webp(8, 8, b"VP8 \xff\xff\xff\xff" + bytes(16)), "says 4,294,967,295 bytes"),
        (IMAGES["webp, lossy"][:16] + b"\xff\xff\xff\x7f" + IMAGES["webp, lossy"][20:], "says 2,147,483,647 bytes"),
    ],
)  # fmt: skip
def test_what_a_decoder_would_spend_for_nothing_is_refused(data: bytes, expected: str) -> None:
    assert expected in refusal(data)


def test_a_second_frame_header_is_refused() -> None:
    whole = IMAGES["jpeg"]
    start = whole.find(b"\xff\xc0")
    header = whole[start : start + 2 + int.from_bytes(whole[start + 2 : start + 4])]
    assert "a second frame header" in refusal(whole[:start] + header + whole[start:])


@pytest.mark.parametrize("name", IMAGES)
def test_what_encoders_write_costs_what_its_size_says(name: str) -> None:
    info = check(IMAGES[name], LIMIT)
    assert 0 < info.work < 40 * info.width * info.height + 40 * 48 * 48
    assert 0 < info.memory < 40 * info.width * info.height + 40 * 48 * 48


@pytest.mark.parametrize("quality", [1, 50, 100])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (640, 480), (1024, 1024)])
@pytest.mark.parametrize("options", [(), PROGRESSIVE, RESTARTS, (*PROGRESSIVE, *RESTARTS)])
def test_jpegs_of_every_form_pass(options: tuple[int, ...], size: tuple[int, int], quality: int) -> None:
    pixels = np.full((*size, 3), (10, 200, 90), np.uint8)
    data = cv2.imencode(".jpg", pixels, [*options, cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    assert check(data, max(size[0] * size[1], 500_000)).complete


def test_scans_of_previews_and_of_what_is_appended_do_not_make_an_image_too_costly() -> None:
    preview = IMAGES["jpeg, progressive"]
    application_data = b"\xff\xe1" + (len(preview) + 2).to_bytes(2) + preview
    whole = preview[:2] + application_data * 20 + preview[2:]
    alone = check(preview, LIMIT).work
    assert check(whole, LIMIT).work == alone
    video = np.random.default_rng(0).bytes(6_000_000)  # FF DA stands in it some 90 times
    assert check(preview + video, LIMIT).work == alone


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (8, 8), (9, 17), (100, 1)])
@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (8, 0), (16, 6), (4, 3), (8, 2)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_the_bytes_that_a_png_unpacks_to_follow_from_its_header(
    width: int, height: int, depth: int, colour: int, interlaced: bool
) -> None:
    """libpng takes exactly so many: one less, and it has too few."""
    palette = chunk(b"PLTE", bytes(48)) if colour == 3 else b""
    empty = png(width, height, depth=depth, colour=colour, interlaced=interlaced, size=0)
    needed = PngHeader.read(empty).raw
    for size, whole in ((needed, True), (needed - 1, False)):
        data = png(width, height, depth=depth, colour=colour, interlaced=interlaced, before=palette, size=size)
        assert (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None) is whole


BOMB = png(2000, 2000, size=100_000_000)
NOT_UNPACKED = {
    "a text": {"before": chunk(b"zTXt", b"a\0\0" + deflated(7_900_000)) * 3},
    "a text behind": {"after": chunk(b"zTXt", b"a\0\0" + deflated(7_900_000)) * 3},
    "an international text": {"before": chunk(b"iTXt", b"a\0\1\0en\0b\0" + deflated(7_900_000)) * 3},
    "a colour profile": {"before": chunk(b"iCCP", b"a\0\0" + deflated(64_000_000))},
    "an animation": {"before": animation(2) + picture_of_animation(0, 2**31, 2**31), "after": chunk(b"fdAT", b"abc")},
    "a gamma": {"before": chunk(b"gAMA", bytes(3))},
    "a chunk whose checksum is wrong": {"before": chunk(b"tEXt", b"abc")[:-1] + b"?"},
}


def test_a_png_whose_pixels_unpack_to_more_than_it_needs_is_refused() -> None:
    with pytest.raises(BadImage, match=r"unpack to more than [\d,]+ bytes"):
        prepared(BOMB, check(BOMB, LIMIT))


@pytest.mark.parametrize("name", NOT_UNPACKED)
def test_what_no_model_sees_of_a_png_no_decoder_sees(name: str) -> None:
    data, plain = png(8, 8, **NOT_UNPACKED[name]), png(8, 8)  # type: ignore[arg-type]
    assert prepared(data, check(data, LIMIT)) == prepared(plain, check(plain, LIMIT))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_what_was_unpacked_and_put_back_is_the_same_picture(channels: int, kind: type) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (200, 300, channels), kind)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    same = prepared(data, check(data, LIMIT))
    assert same != data
    for flag in (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR, cv2.IMREAD_UNCHANGED):
        one, other = (cv2.imdecode(np.frombuffer(each, np.uint8), flag) for each in (data, same))
        assert np.array_equal(one, other)


def test_a_palette_is_filled_up_with_black() -> None:
    rows = b"".join(b"\0" + bytes(range(8)) for _ in range(8))
    data = png(8, 8, colour=3, before=chunk(b"PLTE", b"\1\2\3" * 4), pixels=zlib.compress(rows))
    image = cv2.imdecode(np.frombuffer(prepared(data, check(data, LIMIT)), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image[0, :, 0].tolist() == [3, 3, 3, 3, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(8, 8, size=71), "are 72 bytes, of which 1 are missing"),
        (png(8, 8, pixels=deflated(72)[:-4] + b"abcd"), "do not unpack"),
        (png(8, 8, pixels=b"no zlib"), "do not unpack"),
        (png(8, 8, pixels=zlib.compress(b"\5" + bytes(71))), "a row of filter 5"),
        (png(8, 8, interlaced=True, pixels=zlib.compress(bytes(10) + b"\7" + bytes(100))), "a row of filter 7"),
        (png(8, 8, colour=3), "a palette of 0 bytes"),
        (png(8, 8, colour=3, before=chunk(b"PLTE", bytes(4))), "a palette of 4 bytes"),
        (png(8, 8, before=chunk(b"CgBI", bytes(4))), "chunk b'CgBI' at byte 33 is not in the standard"),
        (png(8, 8)[:-14] + b"??" + png(8, 8)[-12:], "checksum of chunk b'IDAT' at byte 33"),
    ],
)
def test_a_damaged_png_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=re.escape(said)):
        prepared(data, check(data, LIMIT))


@pytest.mark.parametrize(
    "data",
    [
        png(8, 8)[:-12],  # no IEND
        png(8, 8)[:-3],
        png(8, 8, pixels=deflated(72)[:-4]),  # the checksum of the pixels is not there
        png(8, 8, size=80),  # more than there are rows
    ],
)
def test_a_png_that_has_all_its_pixels_is_whole(data: bytes) -> None:
    plain = png(8, 8)
    assert prepared(data, check(data, LIMIT)) == prepared(plain, check(plain, LIMIT))


MEGABYTES = 8 << 20
PROGRESSIVE_HEAD = IMAGES["jpeg, progressive"][: IMAGES["jpeg, progressive"].find(b"\xff\xda") + 12]


def filled(head: bytes, part: bytes, end: bytes = b"\xff\xd9") -> bytes:
    return (head + part * (MEGABYTES // len(part)))[: MEGABYTES - len(end)] + end


SLOW = {
    "stuffed bytes": lambda: filled(PROGRESSIVE_HEAD, b"\xff\0"),
    "fill bytes": lambda: filled(PROGRESSIVE_HEAD, b"\xff"),
    "heads of scans": lambda: filled(PROGRESSIVE_HEAD, PROGRESSIVE_HEAD[-12:]),
    "a few heads of scans": lambda: filled(PROGRESSIVE_HEAD, b"\xff\xda" + bytes(9000)),
    "no end": lambda: filled(PROGRESSIVE_HEAD, b"\0", b""),
    "fill bytes before the frame": lambda: filled(b"\xff\xd8", b"\xff"),
    "restart marks": lambda: filled(b"\xff\xd8", b"\xff\xd0"),
    "segments": lambda: filled(b"\xff\xd8", b"\xff\xe0\0\2"),
    "chunks of PNG": lambda: png(8, 8, before=chunk(b"tEXt", b"") * (MEGABYTES // 12)),
    "pictures of an APNG": lambda: png(8, 8, before=picture_of_animation(0, 8, 8) * 4990),
    "chunks of WebP": lambda: webp(8, 8, b"ABCD\0\0\0\0" * (MEGABYTES // 8)),
    "pictures of a WebP": lambda: moving_webp(8, 8, b"", 8, 8, 4990),
}


@pytest.mark.parametrize("name", SLOW)
def test_the_walk_is_short_for_any_bytes(name: str) -> None:
    """It runs on the api's event loop. CPU time, since machines are busy; the best of three."""
    data = SLOW[name]()
    spent = []
    for _ in range(3):
        began = time.thread_time()
        with contextlib.suppress(EntryError):
            check(data, LIMIT)
        spent.append(time.thread_time() - began)
    assert min(spent) < 0.05


parts = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([*IMAGES.values(), said(b"IDAT", 2**32 - 1), scans(8, 8, 3), BOMB]),
    st.sampled_from(
        [b"\xff\xd8", b"\xff\xda\0\x08\1", b"\xff\xd9", b"RIFF", b"WEBPVP8X", b"ANMF", b"IDAT", b"\0\0\0\0IEND"]
    ),
)


@given(st.lists(parts, max_size=5), st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_whatever_comes_is_taken_or_refused(several: list[bytes], at: int, damage: bytes) -> None:
    data = b"".join(several)
    data = data[:at] + damage + data[at + len(damage) :]
    try:
        info = check(data, LIMIT)
        assert 0 < info.width * info.height <= LIMIT
        if info.format == "png":
            prepared(data, info)
    except EntryError:
        return
