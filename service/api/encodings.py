"""Bodies that a client packed (RFC 9110, 8.4): which packings are taken; how they are unpacked, a piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from service.errors import Malformed, UnsupportedEncoding

PIECE: Final = 64 * 2**10  # unpacked bytes at once, at most: a fifth of a millisecond
_FED: Final = 4096  # packed bytes at once: what follows the end of a stream within them is copied
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's `wbits`
_NAMES: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_SHOWN: Final = 100  # characters of a header, in a message


def read_coding(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """How the body is packed: `gzip` or `deflate`; empty: it is not. Raises UnsupportedEncoding.

    >>> read_coding([(b"content-encoding", b"identity, X-GZIP")])
    'gzip'
    """
    said: list[str] = []
    for name, value in headers:
        if name == b"content-encoding":
            said += value.decode("latin-1").lower().split(",")
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            shown = value.decode("latin-1")[:_SHOWN]
            raise UnsupportedEncoding(f"Transfer-Encoding {shown!r}: expected chunked; Content-Encoding may be gzip")
    found = [coding for one in said if (coding := one.strip()) not in ("", "identity")]
    if not found:
        return ""
    if len(found) > 1 or found[0] not in _NAMES:
        shown = ", ".join(found)[:_SHOWN]
        raise UnsupportedEncoding(f"Content-Encoding {shown!r}: expected one of {UnsupportedEncoding.taken}, or none")
    return _NAMES[found[0]]


class Unpacker:
    """One packed body. `gzip`: one member or several (RFC 1952); `deflate`: zlib's format (RFC 1950), or without its
    frame, as some send it. Raises Malformed where it is not that."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._head = b""  # too few bytes to tell the formats apart
        self._stream: zlib._Decompress | None = None

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        """What the next bytes hold, up to PIECE at once, and empty where nothing is ready: the caller has a turn."""
        if self._stream is None:
            packed, self._head = self._head + packed, b""
            if len(packed) < 2:
                self._head = packed
                return
        for at in range(0, len(packed), _FED):
            yield from self._fed(packed[at : at + _FED])

    def end(self) -> None:
        """Nothing more comes."""
        if self._stream is None or not self._stream.eof:
            raise Malformed(f"body: its {self._coding} stream is cut off before its end")

    def _fed(self, rest: bytes) -> Iterator[bytes]:
        while True:
            stream = self._begun(rest)
            try:
                piece = stream.decompress(rest, PIECE)
            except zlib.error as error:
                raise Malformed(f"body: not what Content-Encoding {self._coding} says: {error}") from None
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
            yield piece
            if not rest and (stream.eof or len(piece) < PIECE):
                return

    def _begun(self, rest: bytes) -> zlib._Decompress:
        """The stream that `rest` goes on with, or begins."""
        if self._stream is None or self._stream.eof:
            if self._stream is not None and self._coding != "gzip":
                raise Malformed(f"body: bytes behind the end of its {self._coding} stream")
            framed = rest[0] & 15 == zlib.DEFLATED and int.from_bytes(rest[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(_GZIP if self._coding == "gzip" else _ZLIB if framed else _RAW)
        return self._stream
