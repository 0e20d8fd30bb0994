"""Pictures out of a pipe: JPEG, PNG and WebP one behind the other, whatever a camera puts between them.

A picture begins with its format's mark and is walked to its end: segments and scans of a JPEG, chunks of a PNG, the
length that a WebP says. It is given as soon as its last byte is there. What lies outside pictures (padding, a second
end mark, trailers, heads of a multipart answer) is skipped, counted and said once. Where bytes were lost, a picture
ends where the next one begins, and is given as it is: the server judges it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, BinaryIO, Final

MOST_BYTES: Final = 64 << 20  # of one picture, and so of what is kept of a pipe; a server takes 8 MiB unless told
SILENT_BYTES: Final = 1 << 20  # without a picture, after which that is said
PNG: Final = b"\x89PNG\r\n\x1a\n"
START: Final = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP", re.DOTALL)
_IEND: Final = b"\0\0\0\0IEND\xaeB`\x82"
_READ_BYTES: Final = 1 << 16
_START_BYTES: Final = 12  # of the longest
_CUT_START: Final = re.compile(rb"\xff\xd8\xff|\x89PN|RIF")  # where nothing more comes
_BEHIND_SCAN: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # 0 and restart marks are a scan's own
_WITHOUT_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD8)))


class Pictures:
    """Iterates over the pictures of a pipe. What they are not is said to `tell`: once at the end how much it was, and
    once when there is nothing else for long."""

    def __init__(self, file: BinaryIO, tell: Callable[[str], None] = lambda _: None) -> None:
        self.given = self.skipped = 0  # pictures; bytes outside of them
        self._pipe, self._tell = _Pipe(file), tell
        self._too_large = self._silent = 0  # pictures; bytes since the last one
        self._said_silent = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            while self._find():
                try:
                    size = _size(self._pipe)
                except _TooLargeError:
                    self._too_large += 1
                    self._skip(3)
                    continue
                if size == 2:  # a JPEG's mark, and the next one's
                    self._skip(size)
                    continue
                picture = self._pipe.take(size)
                self.given += 1
                self._silent = 0
                yield picture
        finally:
            if self.given and self.skipped:
                self._tell(f"skipped {self.skipped:,} bytes between pictures")
            if self._too_large:
                self._tell(f"left out {self._too_large:,} pictures of more than {MOST_BYTES >> 20} MiB")

    def _find(self) -> bool:
        """Skips up to the next picture; False where there is none any more."""
        pipe = self._pipe
        while (found := START.search(pipe.data)) is None:
            self._skip(max(0, len(pipe.data) - _START_BYTES))
            if not pipe.has(len(pipe.data) + 1):
                found = _CUT_START.search(pipe.data)
                break
        self._skip(len(pipe.data) if found is None else found.start())
        return found is not None

    def _skip(self, count: int) -> None:
        self.skipped += count
        self._silent += count
        self._pipe.take(count)
        if self._silent > SILENT_BYTES and not self._said_silent:
            self._said_silent = True
            self._tell(f"no JPEG, PNG or WebP in {self._silent:,} bytes: still looking")


def images(file: BinaryIO) -> Iterator[bytes]:
    """The pictures of a pipe."""
    return iter(Pictures(file))


class _TooLargeError(Exception):
    """A picture has more than MOST_BYTES."""


class _Pipe:
    """What was read and is not given yet."""

    def __init__(self, file: Any, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self._read = file.read1  # what is there, without waiting for more
        self._ended = False

    def has(self, count: int) -> bool:
        """Waits until so many bytes are there; False where the pipe ends before. Raises _TooLargeError."""
        if count > MOST_BYTES:
            raise _TooLargeError
        while len(self.data) < count and not self._ended:
            more = self._read(_READ_BYTES)
            self.data += more
            self._ended = not more
        return len(self.data) >= count

    def take(self, count: int) -> bytes:
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken


# --- where a picture ends; it begins with the pipe's data ----------------------------------------------------------


def _size(pipe: _Pipe) -> int:
    """Up to its end, to the next picture where its own end was lost, or to the end of the pipe."""
    if pipe.data[:1] == b"\xff":
        return _size_of_jpeg(pipe)
    return _size_of_png(pipe) if pipe.data[:1] == b"\x89" else _size_of_webp(pipe)


def _size_of_jpeg(pipe: _Pipe) -> int:
    at = body = 2  # a mark; the last segment, which bytes that were lost make longer than it is
    preview = False
    while pipe.has(at + 2):
        mark = pipe.data[at + 1]
        if pipe.data[at] != 0xFF or mark == 0x00:
            return _next_start(pipe, body, at if preview else 0)
        if mark == 0xFF:  # it only fills
            at += 1
        elif mark == 0xD9:
            return at + 2
        elif mark == 0xD8:
            return at
        elif mark in _WITHOUT_LENGTH:
            at += 2
        elif not pipe.has(at + 4):
            break
        else:
            length = max(2, int.from_bytes(pipe.data[at + 2 : at + 4]))
            body, at = at + 2, at + 2 + length
            preview = 0xE0 <= mark <= 0xEF
            pipe.has(at + 2)
            if not preview and (other := START.search(pipe.data, body, at + 2)):
                return other.start()
            if mark == 0xDA:
                at = _behind_scan(pipe, at)
    return len(pipe.data)


def _behind_scan(pipe: _Pipe, at: int) -> int:
    """The mark behind a scan's data."""
    while (found := _BEHIND_SCAN.search(pipe.data, at)) is None:
        at = max(at, len(pipe.data) - 1)
        if not pipe.has(len(pipe.data) + 1):
            return len(pipe.data)
    return found.start()


def _size_of_png(pipe: _Pipe) -> int:
    """A chunk: length, kind, data, checksum. A whole signature cannot stand in one but by chance."""
    at = body = len(PNG)
    while pipe.has(at + 8):
        length, kind = int.from_bytes(pipe.data[at : at + 4]), bytes(pipe.data[at + 4 : at + 8])
        if not kind.isalpha():
            return _next_start(pipe, body)
        body, at = at, at + 12 + length
        whole = pipe.has(at)
        if (other := pipe.data.find(PNG, body, at)) >= 0:
            return other
        if kind == b"IEND" and whole and not pipe.data.startswith(_IEND, body):
            return _next_start(pipe, body)
        if kind == b"IEND" or not whole:
            return min(at, len(pipe.data))
    return len(pipe.data)


def _size_of_webp(pipe: _Pipe) -> int:
    """Its length says it, unless bytes were lost and the next one begins inside."""
    if not pipe.has(_START_BYTES):
        return len(pipe.data)
    end = 8 + int.from_bytes(pipe.data[4:8], "little")
    pipe.has(end)
    if (other := START.search(pipe.data, _START_BYTES, end)) and other[0].startswith(b"RIFF"):
        return other.start()
    cut = pipe.data.rfind(b"RIFF", max(_START_BYTES, end - _START_BYTES), end)
    return cut if cut >= 0 else min(end, len(pipe.data))


def _next_start(pipe: _Pipe, at: int, preview_until: int = 0) -> int:
    """Where the next picture begins, from `at` on. One that ends before `preview_until` may be a JPEG's own preview."""
    while (found := START.search(pipe.data, at)) is None:
        at = max(at, len(pipe.data) - _START_BYTES)
        if not pipe.has(len(pipe.data) + 1):
            return len(pipe.data)
    if found.start() < preview_until and (size := _whole(bytes(pipe.data[found.start() : preview_until]))):
        return _next_start(pipe, found.start() + size)
    return found.start()


def _whole(data: bytes) -> int:
    """The size of the picture that data begin with; 0 where it does not end in them."""
    size = _size(_Pipe(BytesIO(), data))
    return size if data[:size].endswith((b"\xff\xd9", _IEND)) else 0
