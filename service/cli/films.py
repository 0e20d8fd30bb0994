"""Films as `rollcast post` takes them: their frames in order, each as a picture without loss, and how many a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import typer

ENDINGS: Final = (".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm")
MOST_HZ: Final = 1000.0
_CLOSE_S: Final = 1e-6  # a container's times are whole units of its own
LONGEST_S: Final = 60.0  # that one frame is shown; a time that lies further on is damaged
LARGE_BYTES: Final = 8 << 20  # as PNG, above which a frame is sent as JPEG: servers take no more unless told


class Film(NamedTuple):
    """What a film says of itself."""

    path: Path
    hz: float
    frames: int  # as announced; 0: it does not say

    @classmethod
    def of(cls, path: Path) -> Film:
        """Raises BadParameter where it cannot be opened, or does not say how many frames it has a second."""
        film = _opened(path)
        try:
            import cv2

            hz, frames = film.get(cv2.CAP_PROP_FPS), film.get(cv2.CAP_PROP_FRAME_COUNT)
        finally:
            film.release()
        if not 0.0 < hz <= MOST_HZ:
            raise typer.BadParameter(f"{path}: a film of {hz:g} frames a second; expected more than 0, at most 1,000")
        return cls(path, hz, max(0, int(frames)))

    def pictures(self, hz: float) -> Iterator[bytes]:
        """Those nearest to every 1/`hz` s. Raises BadParameter after the last where there are fewer than announced."""
        import cv2

        due, read = 0, 0
        for (at_s, frame), (next_s, next_frame) in pairwise(self._frames()):
            read += 1
            encoded = b""
            until_s = next_s if next_frame is None else (at_s + next_s) / 2
            while due / hz < until_s - _CLOSE_S:
                encoded = encoded or _encoded(cv2, frame)
                yield encoded
                due += 1
        if read < self.frames - 1:  # some containers count one too many
            raise typer.BadParameter(
                f"{self.path}: {read:,} of the {self.frames:,} frames that it announces could be read; they were posted"
            )

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """When each is shown, s from the first one's, and its pixels; at last when the film is over."""
        import cv2

        film = _opened(self.path)
        first: float | None = None
        at_s = -1 / self.hz
        try:
            while True:
                more, frame = film.read()
                if not more:
                    break
                said_s = film.get(cv2.CAP_PROP_POS_MSEC) / 1000
                first = said_s if first is None else first
                advance_s = said_s - first - at_s
                at_s += advance_s if 0.0 < advance_s <= LONGEST_S else 1 / self.hz
                yield at_s, frame
        finally:
            film.release()
        yield at_s + 1 / self.hz, None


def _opened(path: Path) -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its complaints are not for the terminal
    import cv2

    film = cv2.VideoCapture(str(path))
    if not film.isOpened():
        raise typer.BadParameter(f"{path}: not a film that can be read; expected one of {', '.join(ENDINGS)}")
    return film


def _encoded(cv2: Any, frame: Any) -> bytes:
    data = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    if len(data) > LARGE_BYTES:
        data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return bytes(data)
