"""What a call may raise."""

from __future__ import annotations

from typing import Any

import httpx


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


class ServerAway(RollcastError):
    """No server answers at this URL, or the connection was lost before the answer."""


def to_problem(response: httpx.Response) -> Problem:
    """Of an answer that was read."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"title": response.reason_phrase, "detail": response.text[:200].strip() or "no explanation was given"}
    retry_after = response.headers.get("Retry-After", "")
    return Problem(response.status_code, body, float(retry_after) if retry_after.isdecimal() else None)


def away(url: str, error: Exception) -> ServerAway:
    scheme, mark, rest = url.partition("://")  # what stands before an @ may be a password
    return ServerAway(f"no server answers at {scheme}{mark}{rest.rpartition('@')[2]} ({error or type(error).__name__})")
