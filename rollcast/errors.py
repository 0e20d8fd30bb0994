"""What a call may raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import httpx
import msgspec

Answer = TypeVar("Answer")
Result = TypeVar("Result")

OURS: Final = "urn:rollcast:problem:"


class RollcastError(Exception):
    """Base of what the client raises."""


class Problem(RollcastError):
    """The server answered with an error (RFC 9457): `status`, the stable `type`, `title` and `detail`."""

    def __init__(self, status: int, body: dict[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.type = str(body.get("type", "about:blank"))
        self.title = str(body.get("title", ""))
        self.detail = str(body.get("detail", ""))
        self.body = body
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {self.title}: {self.detail}")

    def is_a(self, kind: str) -> bool:
        """Is it of this type, such as `unknown-stream`? docs/problems.md lists them."""
        return self.type.rpartition(":")[2] == kind

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later: the server says so, or a proxy found no server."""
        return self.status in (408, 429, 503) or self._is_a_proxys

    @property
    def unknown(self) -> bool:
        """Whether what was posted may be in the log all the same."""
        return self.is_a("append-unknown") or self._is_a_proxys

    @property
    def stopped(self) -> bool:
        """Whether the server stopped while a record was waited for. What it answers is in the log, and will come."""
        return self.is_a("wait-timeout") and self.body.get("stopping") is True

    @property
    def is_ours(self) -> bool:
        """Whether a server of rollcast said it."""
        return self.type.startswith(OURS)

    @property
    def _is_a_proxys(self) -> bool:
        return self.status in (502, 504) and not self.is_ours


class ServerAway(RollcastError):
    """No server answers at this URL, or the connection was lost before the answer."""


class BadAnswer(ServerAway):
    """Something answers at this URL, but not as rollcast does."""


_NONSENSE: Final = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, RecursionError,
    msgspec.MsgspecError,
)  # fmt: skip


def understood(url: str, read: Callable[[Answer], Result], answer: Answer) -> Result:
    """What an answer says. Raises BadAnswer where it says nothing that a server of rollcast would."""
    try:
        return read(answer)
    except _NONSENSE as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadAnswer(f"what answers at {_shown(url)} is not rollcast, or of another version ({said})") from error


def to_problem(response: httpx.Response) -> Problem:
    """Of an answer that was read."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        body = {"title": response.reason_phrase, "detail": response.text[:200].strip() or "no explanation was given"}
    retry_after = response.headers.get("Retry-After", "")
    return Problem(response.status_code, body, float(retry_after) if retry_after.isdecimal() else None)


def away(url: str, error: Exception) -> ServerAway:
    return ServerAway(f"no server answers at {_shown(url)} ({error or type(error).__name__})")


def _shown(url: str) -> str:
    """What stands before an @ may be a password."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
