"""Pictures that ask for more than they are: each is refused, by the api or in its turn, and harms nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import httpx
import numpy as np

from tests.deployment import Up
from tests.hostile.watching import Bounds
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

AT_THE_DOOR = {
    "an IDAT of 4 GB": said(b"IDAT", 0xFFFFFFF0),
    "an IDAT of 2 GB": said(b"IDAT", 0x7FFFFFFF),
    "an fdAT of 4 GB": png(8, 8, before=animation(2) + picture_of_animation(0, 8, 8))[:-12] + b"\xff\xff\xff\xf0fdAT"
    + bytes(100) + chunk(b"IEND", b""),
    "100 kB of scans": scans(4096, 4096, 2000),
    "540 kB of scans": scans(4096, 4096, 12_000),
    "scans, arithmetic": scans(4096, 4096, 10, arithmetic=True),
    "256 MB in an IDAT": png(8, 8, pixels=deflated(256 << 20)),
    "16 million rows": png(1, 16_000_000),
    "20,000 chunks": png(8, 8, before=chunk(b"tEXt", b"a\0b") * 20_000),
    "a canvas of 1×1": webp(1, 1, picture_of_webp(800, 800)),
    "60,000 pictures": moving_webp(8, 8, b"", 8, 8, 60_000),
    "a WebP chunk of 4 GB": webp(8, 8, b"VP8 \xff\xff\xff\xff" + bytes(16)),
}  # fmt: skip
IN_ITS_TURN = {
    "pixels for 500 MB": png(2000, 2000, size=500 << 20),
    "no pixels": png(8, 8, pixels=b"x\x9cjunkjunk"),
}
NEVER_UNPACKED = {
    "an acTL of no bytes": png(8, 8, before=chunk(b"acTL", b"")),
    "an APNG of 16 bits": png(2048, 2048, depth=16, colour=6, before=animation(2)),
    "a part outside the canvas": png(8, 8, before=animation(2) + picture_of_animation(0, 4096, 4096)),
    "texts for 800 MB": png(8, 8, before=chunk(b"zTXt", b"a\0\0" + deflated(7_900_000)) * 100),
    "a profile for 256 MB": png(8, 8, before=chunk(b"iCCP", b"a\0\0" + deflated(256 << 20))),
}


def post(up: Up, stream: str, image: bytes) -> httpx.Response:
    url = f"{up.url}/v1/streams/{stream}/frames?model=digits-cnn&wait=60"
    return httpx.post(url, content=image, headers={"Content-Type": "image/png"}, timeout=90, trust_env=False)


def test_costly_pictures_are_refused_and_cost_nothing(target: Up, bounded: Bounds) -> None:
    with bounded():
        for name, image in AT_THE_DOOR.items():
            answer = post(target, "hostile-image", image)
            assert answer.status_code in (413, 422), f"{name}: {answer.status_code} {answer.text}"
            assert answer.json()["type"].rpartition(":")[2] in ("bad-image", "too-large"), f"{name}: {answer.text}"
        for name, image in IN_ITS_TURN.items():
            answer = post(target, "hostile-image", image)
            assert (answer.status_code, answer.json()["reason"]) == (422, "bad_image"), f"{name}: {answer.text}"
        for name, image in NEVER_UNPACKED.items():
            assert post(target, "hostile-image", image).status_code == 200, name
        assert post(target, "hostile-image", png(8, 8)).status_code == 200
    assert not [line for line in target.lines if line["process"] == "?"]  # libpng's own words


def test_heavy_pictures_of_many_streams_hold_nobody(target: Up, bounded: Bounds) -> None:
    grey = np.full((2048, 2048), 90, np.uint8)
    heavy = [
        png(2048, 2048, depth=16, colour=6),
        cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    ]
    with bounded(), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: post(target, f"heavy-{n}", heavy[n % 2]), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
