"""The one part of a form (RFC 7578). By hand: what reads a form byte by byte takes seconds over a hostile one."""

from __future__ import annotations

from email.message import Message
from typing import Final

from service.errors import Malformed

FORM_BYTES: Final = 64 * 1024  # of boundaries and headers of parts
_HEADER_CHARACTERS: Final = 1024
_HEAD_BYTES: Final = 8 * 1024  # headers of one part
_PARTS: Final = 3  # looked at: one more than are told apart


def read_part(content_type: str, body: bytes) -> bytes:
    """The content of the only part, a file named `frame`. Raises Malformed."""
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        raise Malformed("multipart body: no boundary in Content-Type")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    _, *parts = (b"\r\n" + body).split(delimiter, _PARTS)
    found = []
    for part in parts:
        if part.startswith(b"--"):
            break
        found.append(part)
    else:
        if len(parts) < _PARTS:
            raise Malformed("multipart body: its end is missing")
    named = [_read_head(part) for part in found]
    if len(found) != 1 or named[0][:2] != ("frame", True):
        names = ", ".join(repr(name) for name, _, _ in named) or "none"
        raise Malformed(f"multipart body: expected one part, a file named 'frame'; found {names}")
    return found[0][named[0][2] :]


def _read_head(part: bytes) -> tuple[str, bool, int]:
    """A part's name, whether it is a file, and where its content begins."""
    end = part.find(b"\r\n\r\n", 0, _HEAD_BYTES)
    if end < 0:
        raise Malformed(f"multipart body: a part without an end of its headers in its first {_HEAD_BYTES} bytes")
    for line in part[:end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            said = value.strip().decode(errors="replace")
            return _parameter(said, "name"), _parameter(said, "filename") != "", end + 4
    return "", False, end + 4


def _parameter(header: str, name: str) -> str:
    """A parameter of a header, empty where it has none."""
    if len(header) > _HEADER_CHARACTERS:
        raise Malformed(f"multipart body: a header of {len(header)} characters, expected at most {_HEADER_CHARACTERS}")
    message = Message()
    message["content-type"] = header
    value = message.get_param(name, "")
    return value[2] if isinstance(value, tuple) else value
