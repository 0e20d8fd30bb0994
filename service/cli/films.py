"""Films as `rollcast post` takes them: each frame as a picture without loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import typer

from service.films import Film, FilmError

LARGE_BYTES: Final = 8 << 20  # as PNG, above which a frame is sent as JPEG: servers take no more unless told


def film_of(path: Path) -> Film:
    """Raises BadParameter."""
    try:
        return Film.of(path)
    except FilmError as error:
        raise typer.BadParameter(str(error)) from None


def pictures(film: Film, hz: float) -> Iterator[bytes]:
    """Those nearest to every 1/`hz` s. Raises BadParameter after the last where there are fewer than announced."""
    last, encoded = None, b""
    try:
        for frame in film.pictures(hz):
            if frame is not last:
                last, encoded = frame, _encoded(frame)
            yield encoded
    except FilmError as error:
        raise typer.BadParameter(f"{error}; they were posted") from None


def _encoded(frame: np.ndarray) -> bytes:
    import cv2

    data = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    if len(data) > LARGE_BYTES:
        data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return bytes(data)
