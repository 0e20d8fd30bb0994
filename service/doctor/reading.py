"""What the broker says of itself, read once. Only commands that change nothing are ever sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import hiredis

from service.broker.wire import Argument, Wire, pack
from service.urls import safe_url

TIMEOUT_S: Final = 5.0
SETTLE_S: Final = 3.0  # that a part may be between two lives, and a shard between two owners: about a lease
AGAIN_S: Final = 0.25  # between two looks at it
_LOOKS: Final = 5  # at the broker's clock; the quickest answer is believed
_SCAN: Final = 1000  # fields of a hash, looked at in one command
Command = tuple[Argument, ...]


class Reading:
    """`info`: INFO's lines; None where the broker refuses it. `ahead_s`: how far its clock is ahead of ours, give or
    take `uncertain_s`; `busy`: a script holds it. Raises BrokerAway."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.where = safe_url(url)
        self._wire = Wire(url, TIMEOUT_S)
        try:
            (answer,) = self.ask(("PING",))
            self.loading, self.busy = _begins(answer, "LOADING", "MASTERDOWN"), _begins(answer, "BUSY")
            (said,) = self.ask(("INFO",))
            self.info = _lines(said) if isinstance(said, bytes) else None
            self.ahead_s, self.uncertain_s, self.round_trip_s, self._now_s = self._look_at_clock(clock)
            self._looked_at = time.monotonic()
        except BaseException:
            self._wire.close()
            raise

    @property
    def now_s(self) -> float:
        """By the broker's clock."""
        return self._now_s + time.monotonic() - self._looked_at

    @property
    def server(self) -> str:
        """`valkey 9.1.0`, `redis 7.0.15`."""
        info = self.info or {}
        if "valkey_version" in info:
            return f"valkey {info['valkey_version']}"
        return f"redis {info.get('redis_version', 'of an unknown version')}"

    def number(self, name: str) -> int:
        """Of INFO; 0 where it does not say."""
        text = (self.info or {}).get(name, "0")
        return int(text) if text.lstrip("-").isdecimal() else 0

    def setting(self, name: str) -> str | None:
        """By CONFIG GET; None where the broker refuses that, or knows no such setting."""
        (said,) = self.ask(("CONFIG", "GET", name))
        return said[1].decode() if isinstance(said, list) and len(said) == 2 else None

    def ask(self, *commands: Command) -> list[Any]:
        """The replies in one round trip, error replies among them. Raises BrokerAway."""
        if not commands:
            return []
        self._wire.send(b"".join(map(pack, commands)))
        return [self._wire.reply() for _ in commands]

    def values(self, key: bytes) -> Iterator[bytes]:
        """Every value of a hash, a little at a time: nobody else waits for it."""
        cursor: bytes = b"0"
        while True:
            (said,) = self.ask(("HSCAN", key, cursor, "COUNT", _SCAN))
            if not isinstance(said, list):
                return
            cursor, fields = said
            yield from fields[1::2]
            if cursor == b"0":
                return

    def close(self) -> None:
        self._wire.close()

    def _look_at_clock(self, clock: Callable[[], float]) -> tuple[float, float, float, float]:
        best = (0.0, float("inf"), float("inf"), 0.0)
        for _ in range(_LOOKS):
            before, began = clock(), time.perf_counter()
            (said,) = self.ask(("TIME",))
            took_s = time.perf_counter() - began
            if isinstance(said, list) and took_s < best[2]:
                now_s = int(said[0]) + int(said[1]) / 1e6
                best = (now_s - before - took_s / 2, took_s / 2, took_s, now_s)
        return best


def text(reply: Any) -> str:
    """A bulk reply as text; empty for none and for an error."""
    return reply.decode(errors="replace") if isinstance(reply, bytes) else ""


def count(reply: Any) -> int:
    """A number; 0 for an error."""
    return reply if isinstance(reply, int) else 0


def _begins(reply: Any, *words: str) -> bool:
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(words)


def _lines(said: bytes) -> dict[str, str]:
    pairs: Sequence[tuple[str, str, str]] = [line.partition(":") for line in said.decode(errors="replace").splitlines()]
    return {name: value for name, colon, value in pairs if colon}
