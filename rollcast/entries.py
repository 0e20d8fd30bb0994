"""Entries as values: to be posted many at once, recorded, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from rollcast.content import Frame, Table, image_of, names_of, rows_of


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of a stream. `frame`, `samples` and `text` make them."""

    stream: str
    kind: str
    data: bytes | None = None  # a frame, or little-endian float32 rows
    samples: list[list[float]] | None = None  # instead of data
    text: str | None = None
    shape: tuple[int, int] | None = None  # T, F of rows in data
    model: str | None = None
    seq: int | None = None
    time: float | None = None  # event time, s; of the last row
    start: bool = False
    end: bool = False
    interval_s: float | None = None  # between rows


class Logged(Entry, frozen=True, omit_defaults=True, kw_only=True):
    """An entry as it stood in the log. A control has `control` instead of content, what cannot be read a `fault`."""

    id: str
    control: dict[str, Any] | None = None
    fault: str | None = None
    retry_of: str | None = None

    @property
    def came(self) -> float:
        """When, s since 1970."""
        return int(self.id.partition("-")[0]) / 1000


def frame(stream: str, image: bytes | str | Path | Frame, **more: Any) -> Entry:
    """Of an image as `post_frame` takes it. `more`: model, seq, time, start, end."""
    return Entry(stream=stream, kind="frame", data=image_of(image), **more)


def samples(stream: str, rows: Sequence[Sequence[float]] | Table, **more: Any) -> Entry:
    """Of rows (T, F): an array, or lists. `more`: model, seq, time, start, end, interval_s.

    An entry has no names: raises ValueError for a DataFrame that has some; `post_samples` sends them.
    """
    if (names := names_of(rows)) is not None:
        raise ValueError(
            f"columns {', '.join(names)[:200]}: an entry has no names; give rows[NAMES].to_numpy() with the model's "
            "names in its order, or use post_samples"
        )
    if hasattr(rows, "__array__"):
        found = rows_of(rows)
        return Entry(stream=stream, kind="samples", data=found.astype("<f4").tobytes(), shape=found.shape, **more)
    return Entry(stream=stream, kind="samples", samples=[list(map(float, row)) for row in rows], **more)


def text(stream: str, words: str, **more: Any) -> Entry:
    """Of whole words. `more`: model, seq, time, start, end."""
    return Entry(stream=stream, kind="text", text=words, **more)


_logged = msgspec.json.Decoder(Logged)


def read_logged(line: str | bytes) -> Logged:
    """Raises msgspec.DecodeError.

    >>> read_logged('{"id": "17-0", "stream": "talk-1", "kind": "text", "text": "funny"}').came
    0.017
    """
    return _logged.decode(line)
