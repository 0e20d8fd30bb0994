"""Pictures out of a pipe, whatever a camera puts between them."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np
import pytest

from service.cli import pictures
from service.cli.pictures import Pictures, images

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
JPEG, PROGRESSIVE, RESTARTS, PNG, WEBP = PICTURES = [
    cv2.imencode(extension, PIXELS, options)[1].tobytes()
    for extension, options in [
        (".jpg", []), (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        (".png", []), (".webp", []),
    ]
]  # fmt: skip
WITH_PREVIEW = JPEG[:2] + b"\xff\xe1" + (len(JPEG) + 8).to_bytes(2) + b"Exif\0\0" + JPEG + JPEG[2:]
HEAD = b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 3\r\n\r\n"


class Dripping(io.BytesIO):
    """Gives a little at a time, as pipes do."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(random.Random(self.tell()).choice([1, 2, 3, 50, 1000]))


@pytest.mark.parametrize("kind", [io.BytesIO, Dripping])
@pytest.mark.parametrize(
    "filler",
    [
        b"", b"\0\0\0", b"\xff\xd9", b"\xff\xff", b"\xff", b"dhav\x59\x19\x01\0", b"\n", HEAD,
        b"RIFF", b"\x89PNG", b"\xff\xd8",
    ],
)  # fmt: skip
def test_a_picture_is_found_whatever_lies_before_it(filler: bytes, kind: type[io.BytesIO]) -> None:
    expected = [*PICTURES, WITH_PREVIEW] * 2
    told: list[str] = []
    assert list(Pictures(kind(filler + filler.join(expected)), told.append)) == expected
    assert told == ([f"skipped {len(filler) * len(expected)} bytes between pictures"] if filler else [])


@pytest.mark.parametrize("picture", [*PICTURES, WITH_PREVIEW])
def test_a_picture_is_given_when_its_last_byte_is_there(picture: bytes) -> None:
    """The pipe stays open, and nothing more comes."""
    given: Iterator[bytes]
    out, into = os.pipe()
    with os.fdopen(out, "rb") as file:
        given = images(file)
        for _ in range(2):
            os.write(into, picture + b"\0\0")
            assert next(given) == picture
        os.close(into)


@pytest.mark.parametrize("picture", PICTURES)
def test_the_next_picture_is_whole_where_the_end_of_one_was_lost(picture: bytes) -> None:
    """Wherever it was cut; of a WebP at least four bytes."""
    ends = range(len(picture) - 14, len(picture) - (3 if picture == WEBP else 0))
    for cut in [*range(20, len(picture) - 14, 41), *ends]:
        found = list(images(Dripping(picture[:cut] + picture * 2)))
        assert found == [picture[:cut], picture, picture], cut


def test_a_preview_inside_a_picture_is_none_by_itself_and_where_it_was_cut_the_next_is_whole() -> None:
    for cut in range(20, len(WITH_PREVIEW) - 1, 97):
        found = list(images(io.BytesIO(WITH_PREVIEW[:cut] + WITH_PREVIEW * 3)))
        assert found[-2:] == [WITH_PREVIEW] * 2, cut


def test_a_length_that_lies_does_not_hold_up_what_follows() -> None:
    lying = PNG[:33] + (2**31).to_bytes(4) + PNG[37:]
    told: list[str] = []
    assert list(Pictures(io.BytesIO(lying + PNG), told.append)) == [PNG]
    assert told[-1] == "left out 1 pictures of more than 64 MiB"


class Endless:
    """Noise without a start, and how much of it was read."""

    def __init__(self, begin: bytes, most: int) -> None:
        self.left, self.data = most, begin

    def read1(self, size: int) -> bytes:
        self.left -= size
        data, self.data = self.data or b"\0" * size * (self.left > 0), b""
        return data


@pytest.mark.parametrize("begin", [b"x", JPEG[:-2], PNG[:40]])
def test_what_is_kept_of_a_pipe_is_bounded(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 1 << 20)
    told: list[str] = []
    file: BinaryIO = Endless(begin, 8 << 20)  # type: ignore[assignment]
    found = Pictures(file, told.append)
    given = iter(found)
    for _ in given:
        pass
    assert len(found._pipe.data) <= 1 << 20
    assert any("still looking" in said for said in told)
    assert sum("still looking" in said for said in told) == 1


def test_padding_between_pictures_is_no_silence_however_much_it_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SILENT_BYTES", 100)
    told: list[str] = []
    assert len(list(Pictures(io.BytesIO((WEBP + b"\0" * 30) * 10), told.append))) == 10
    assert told == ["skipped 300 bytes between pictures"]
