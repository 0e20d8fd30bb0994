"""URLs as they may be shown: never with a password, however the URL is written. The one place that hides them.

A URL that cannot be told apart for certain loses more than its password: `redis://***`.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, unquote_plus

HIDDEN: Final = "***"
_WEB: Final = ("http", "https", "ws", "wss")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_PLACE: Final = re.compile(r"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")  # host and port
_PAIR: Final = re.compile(r"([^=&#?]*(?:pass|secret|token|key|auth|user)[^=&]*=)[^&#]*", re.IGNORECASE)
# A password may hold spaces: what stands before the last @ of a line belongs to the URL.
_IN_TEXT: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}://(?:[^\n]{0,1000}@)?[^\s]*")
_CLOSING: Final = ".,:;)]}>'\"`"
_LEAST: Final = 3  # characters: a shorter password is found in every second word


def safe_url(url: str) -> str:
    """The URL's scheme, host, port and path, for messages.

    >>> safe_url("redis://user:hunter2@broker:6379/0"), safe_url("redis://broker?password=hunter2")
    ('redis://broker:6379/0', 'redis://broker')
    >>> safe_url("unix://user:hunter2@/run/broker.sock"), safe_url("redis://user:hunter2")
    ('unix:///run/broker.sock', 'redis://***')
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url if _PLACE.fullmatch(url) else HIDDEN
    if not _SCHEME.fullmatch(scheme):
        return HIDDEN
    hidden = f"{scheme}://{HIDDEN}"
    head, query = _cut(rest)
    if "@" in query:  # of a password with a ? in it, or of one in the query: nobody can tell
        return hidden
    place = head.rpartition("@")[2]
    if scheme.lower() == "unix":
        return f"{scheme}://{place}" if place.startswith("/") else hidden
    host, slash, path = place.partition("/")
    if not _PLACE.fullmatch(host):
        return hidden
    if scheme.lower() in _WEB:
        return f"{scheme}://{host}{slash}{path}" + _PAIR.sub(rf"\1{HIDDEN}", query)
    return f"{scheme}://{host}/{path}" if path.isascii() and path.isdecimal() else f"{scheme}://{host}"


def safe_text(text: str) -> str:
    """A text in which every URL is shown as by `safe_url`.

    >>> safe_text("lost redis://:hunter2@broker/0: try again")
    'lost redis://broker/0: try again'
    """
    return _IN_TEXT.sub(_shown, text) if "://" in text else text


def without_password(text: str, url: str) -> str:
    """`text` without the password of `url`: a server's error may repeat what it was sent.

    >>> without_password("ERR unknown command 'AUTH', with args 'hunter2'", "redis://:hunter2@broker")
    "ERR unknown command 'AUTH', with args '***'"
    """
    for word in sorted(_passwords(url), key=len, reverse=True):
        text = text.replace(word, HIDDEN)
    return safe_text(text)


def _cut(rest: str) -> tuple[str, str]:
    """What stands before the query or fragment, and these."""
    at = min((at for mark in "?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    return rest[:at], rest[at:]


def _shown(found: re.Match[str]) -> str:
    url = found[0].rstrip(_CLOSING)
    return safe_url(url) + found[0][len(url) :]


def _passwords(url: str) -> set[str]:
    rest = url.partition("://")[2]
    raw = {rest.rpartition("@")[0].partition(":")[2], _cut(rest)[0].rpartition("@")[0].partition(":")[2]}
    for pair in re.split(r"[?&#]", rest)[1:]:
        name, _, value = pair.partition("=")
        if "pass" in name.lower():
            raw.add(value)
    return {word for one in raw for word in (one, unquote(one), unquote_plus(one)) if len(word) >= _LEAST}
