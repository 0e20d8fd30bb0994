"""Pictures, folders of frames and films of a user's own, decoded and resized as the server will do it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from export.data import DataError
from service.contracts import FrameInput
from service.decode import decode_frame, fit_frame
from service.errors import EntryError
from service.films import Film, FilmError, visible

MAX_PIXELS = 64 << 20
NEAR = 0.001  # by which the rates of two films may differ: 29.97 is written in several ways


def read_image(path: Path, form: FrameInput) -> np.ndarray:
    """(H, W, C) uint8. Raises DataError."""
    try:
        return decode_frame(path.read_bytes(), form, max_pixels=MAX_PIXELS)
    except (OSError, EntryError) as error:
        raise DataError(f"damaged file {path}: {error}") from None


def read_clip(path: Path, form: FrameInput) -> tuple[np.ndarray, float | None]:
    """(T, H, W, C) uint8, and its rate: of a folder the frames by their numbers, which say nothing of time; of a film
    those nearest to every 1/rate s of `form`, else all at its own rate. Raises DataError."""
    if path.is_dir():
        frames = [read_image(each, form) for each in visible(path)]
        hz = form.rate_hz
    else:
        try:
            film = Film.of(path)
            hz = form.rate_hz or film.hz
            frames = [_fitted(picture, form) for picture in film.pictures(hz)]
        except FilmError as error:
            raise DataError(f"damaged file {error}") from None
    if not frames:
        raise DataError(f"{path}: no frame in it can be read")
    return np.stack(frames), hz


def one_rate(path: Path, first: float | None, hz: float | None) -> float | None:
    """The rate of all clips: `first` of those before. Raises DataError where they differ."""
    if first is not None and hz is not None and abs(hz - first) > NEAR * first:
        raise DataError(f"{path}: {hz:g} frames a second, the first film has {first:g}; say --hz for all of them")
    return first if hz is None else first or hz


def _fitted(picture: np.ndarray, form: FrameInput) -> np.ndarray:
    code = cv2.COLOR_BGR2GRAY if form.colour == "gray" else cv2.COLOR_BGR2RGB
    return fit_frame(np.asarray(cv2.cvtColor(picture, code)), form)
