"""Films and folders of frames: their pictures in order, at the rate that they say of themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

ENDINGS: Final = (".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm")
MOST_HZ: Final = 1000.0
LONGEST_S: Final = 60.0  # that one frame is shown; a time that lies further on is damaged
_CLOSE_S: Final = 1e-6  # a container's times are whole units of its own
_NUMBER: Final = re.compile(r"(\d+)")


class FilmError(ValueError):
    """The text names the file, what is wrong with it, and what was expected."""


def by_numbers(path: Path) -> tuple[list[tuple[int, str]], str]:
    """To sort files as people number them: frame2 before frame10.

    >>> sorted([Path("f10.png"), Path("f2.png"), Path("f01.png")], key=by_numbers)
    [PosixPath('f01.png'), PosixPath('f2.png'), PosixPath('f10.png')]
    """
    parts = _NUMBER.split(path.name)
    return [(int(part or "0"), "") if place % 2 else (0, part) for place, part in enumerate(parts)], path.name


def visible(folder: Path) -> list[Path]:
    """What lies in it, by numbers. Names that begin with a dot are the system's own notes."""
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=by_numbers)


class Film(NamedTuple):
    """What a film says of itself."""

    path: Path
    hz: float
    frames: int  # as announced; 0: it does not say

    @classmethod
    def of(cls, path: Path) -> Film:
        """Raises FilmError where it cannot be opened, or does not say how many frames it has a second."""
        import cv2  # here, since a command that meets no film need not wait for it

        film = _opened(path)
        hz, frames = film.get(cv2.CAP_PROP_FPS), film.get(cv2.CAP_PROP_FRAME_COUNT)
        film.release()
        if not 0.0 < hz <= MOST_HZ:
            raise FilmError(f"{path}: a film of {hz:g} frames a second; expected more than 0, at most {MOST_HZ:g}")
        return cls(path, hz, max(0, int(frames)))

    def pictures(self, hz: float) -> Iterator[np.ndarray]:
        """(h, w, 3) BGR uint8, those nearest to every 1/`hz` s: the same again where the film has fewer. Raises
        FilmError after the last one, where fewer could be read than are announced."""
        due = read = 0
        for (at_s, picture), (next_s, following) in pairwise(self._shown()):
            read += 1
            until_s = next_s if following is None else (at_s + next_s) / 2
            while due / hz < until_s - _CLOSE_S:
                if picture is not None:
                    yield picture
                due += 1
        if read < self.frames - 1:  # some containers count one too many
            raise FilmError(f"{self.path}: {read:,} of the {self.frames:,} frames that it announces can be read")

    def _shown(self) -> Iterator[tuple[float, np.ndarray | None]]:
        """When each picture is shown, s from the first one's; at last when the film is over."""
        import cv2

        film, first, at_s = _opened(self.path), None, -1 / self.hz
        try:
            while True:
                more, picture = film.read()
                if not more:
                    break
                said_s = film.get(cv2.CAP_PROP_POS_MSEC) / 1000
                first = said_s if first is None else first
                advance_s = said_s - first - at_s
                at_s += advance_s if 0.0 < advance_s <= LONGEST_S else 1 / self.hz
                yield at_s, np.asarray(picture)
        finally:
            film.release()
        yield at_s + 1 / self.hz, None


def _opened(path: Path) -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a decoder's own lines are for no terminal, and for no log
    import cv2

    film = cv2.VideoCapture(str(path))
    if not film.isOpened():
        raise FilmError(f"{path}: not a film that can be read; expected one of {', '.join(ENDINGS)}")
    return film
