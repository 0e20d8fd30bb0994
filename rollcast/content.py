"""What is posted, as bytes: images, rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

JSON: Final = "application/json"
ROWS: Final = "application/octet-stream"
TABLE: Final = "text/csv; header=present"


class Frame(Protocol):
    """An array of pixels: (H, W) or (H, W, 3) uint8, as numpy has it."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Table(Protocol):
    """Rows and columns that numpy can make an array of: a DataFrame, a polars frame, an array."""

    def __array__(self) -> Any: ...


def image_of(image: bytes | str | Path | Frame) -> bytes:
    """Its bytes; of an array as PNG, which needs OpenCV."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    import cv2
    import numpy as np

    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))):
        raise ValueError(f"frame of shape {pixels.shape}, {pixels.dtype}: expected (H, W) or (H, W, 3) uint8")
    encoded = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1]
    return bytes(encoded.tobytes())


def body_of(rows: Sequence[Sequence[float]] | Table) -> tuple[bytes, str]:
    """Rows as a body, and its content type."""
    if (names := names_of(rows)) is not None:
        lines = [",".join(map(_cell, row)) for row in _cells_of(rows)]
        header = ",".join(map(_cell, names))
        return "\n".join([header, *lines, ""]).encode(), TABLE
    if hasattr(rows, "__array__"):
        return rows_of(rows).astype("<f4").tobytes(), ROWS
    return msgspec.json.encode({"samples": [list(map(float, row)) for row in rows]}), JSON


def names_of(rows: Any) -> list[str] | None:
    """Of a DataFrame's columns; None where they have none but their numbers, as pandas gives them."""
    columns = getattr(rows, "columns", None)
    if columns is None or list(columns) == list(range(len(columns))):
        return None
    return [str(name) for name in columns]


def rows_of(rows: Any) -> Any:
    """(T, F) float64."""
    import numpy as np

    found = np.asarray(rows, np.float64)
    if found.ndim != 2:
        raise ValueError(f"rows of shape {found.shape}: expected (T, F)")
    return found


def _cells_of(rows: Any) -> Any:
    """(T, F): numbers, but where a column has times."""
    import numpy as np

    try:
        return rows_of(rows)
    except (TypeError, ValueError):
        found = np.asarray(rows)
        if found.ndim != 2:
            raise
        return found


def _cell(value: Any) -> str:
    """A number, or a name or time in quotes."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return '"' + " ".join(str(value).splitlines()).replace('"', '""') + '"'
    return repr(float(value))


def media_type(image: bytes) -> str:
    """By its first bytes; the server says what it makes of anything else.

    >>> media_type(bytes([0xFF, 0xD8, 0xFF]))
    'image/jpeg'
    """
    if image[:2] == b"\xff\xd8":
        return "image/jpeg"
    if image[:4] == b"\x89PNG":
        return "image/png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"
