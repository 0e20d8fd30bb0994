"""Frames that cannot be decoded at any price are refused in their turn; a frame is decoded once, for its own model."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import service.worker.decoding
from service.contracts import FrameInput
from tests.doubles import BrightnessEngine, tiny_manifest
from tests.pictures import chunk, deflated, png, said, scans
from tests.worlds import World, wait_until, working

HOSTILE = {
    "a chunk of 4 GB": said(b"IDAT", 0xFFFFFFF0),
    "scans": scans(64, 64, 200),
    "pixels": png(1000, 1000, size=100_000_000),
    "no pixels": png(8, 8, before=chunk(b"zTXt", b"a\0\0" + deflated(7_900_000)) * 3, size=71),
}


def append(world: World, stream: str, picture: bytes, **more: bytes) -> str:
    return world.append(stream, {"stream": stream.encode(), "kind": b"frame", "data": picture, **more})


def test_costly_pictures_in_the_log_are_refused_and_the_stream_goes_on(world: World) -> None:
    good = cv2.imencode(".png", np.full((8, 8), 255, np.uint8))[1].tobytes()
    large = cv2.imencode(".png", np.full((2100, 2100), 255, np.uint8))[1].tobytes()
    for picture in (good, *HOSTILE.values(), large, good):
        append(world, "cam", picture)
    with working(world.new_log(), BrightnessEngine()):
        wait_until(lambda: len(world.records("cam")) == 7, 60, "all are answered")
    records = world.records("cam")
    assert [kind for _, kind, _, _ in records] == ["prediction", *["refused"] * 4, "prediction", "prediction"]
    bodies = [json.loads(body) for _, kind, body, _ in records if kind == "refused"]
    assert {body["reason"] for body in bodies} == {"bad_image"}


def test_a_frame_waits_until_its_model_is_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first entry binds its stream: the next one is decoded for that model, and for no other."""
    small, large = BrightnessEngine(), BrightnessEngine()
    large.manifest = tiny_manifest(
        "large", kind="frame", labels=["dark", "bright"], states=[], rows=None, frames=FrameInput(16, 16, 1, "gray")
    )
    sizes: list[int] = []
    unpack = service.worker.decoding.unpack

    def noted(data: bytes, form: FrameInput, *rest: object) -> np.ndarray:
        sizes.append(form.height)
        return unpack(data, form, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(service.worker.decoding, "unpack", noted)
    picture = cv2.imencode(".png", np.full((8, 8), 255, np.uint8))[1].tobytes()
    append(world, "cam", picture, model=b"large")
    for _ in range(5):
        append(world, "cam", picture)
    with working(world.new_log(), small, large, defaults={"frame": small.manifest.name}):
        wait_until(lambda: len(world.records("cam")) == 6, 60, "all are answered")
    assert {kind for _, kind, _, _ in world.records("cam")} == {"prediction"}
    assert sizes == [16] * 6
