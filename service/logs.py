"""Structured logs: one line an event, a few words and named values, for people or as JSON.

    log = logging.getLogger("rollcast.worker")
    log.info("shard acquired", extra={"shard": 3, "low": "17-0"})

becomes, with `log_format` console and json:

    12:00:01.250 info    worker 0  shard acquired  shard=3 low=17-0
    {"time": "2025-11-23T12:00:01.250+00:00", "level": "info", "process": "worker 0", "logger": "worker", "event": …}

Names that mean the same everywhere: `stream`, `cursor` (an entry's id), `model`, `shard`, `commit` (its number). A
value of None is left out. What readers of logs must not see is not written, whatever the caller gives: bytes, values
named like a secret, and passwords in URLs (urls.py). An event that repeats is written a few times, then once a
second, with `more`, the number of lines that were left out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from service.urls import safe_text

BURST: Final = 20  # lines of one event, before they are rationed
EVERY_S: Final = 1.0  # then one so often
EVENTS: Final = 1000  # that are remembered
LONGEST: Final = 1000  # characters of a value
MOST: Final = 40  # items of a list
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SECRET: Final = re.compile(r"pass|secret|token|api_?key|authorization|cookie|credential", re.IGNORECASE)
_BEARER: Final = re.compile(r"\b(bearer|basic)\s+[^\s'\",]+", re.IGNORECASE)


class ConsoleFormatter(logging.Formatter):
    """`time level process  event  name=value …`; values with spaces are quoted."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        values = "".join(f" {name}={_shown(value)}" for name, value in _values(record).items())
        line = f"{when} {record.levelname.lower():<7} {self._process:<8}  {_one_line(_safe_text(record.getMessage()))}"
        line += f" {values}" if values else ""
        return f"{line}\n{_safe_text(self.formatException(record.exc_info))}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name.removeprefix("rollcast.").removeprefix("service."),
            "event": _safe_text(record.getMessage()),
            **_values(record),
        }
        if record.exc_info:
            line["exception"] = _safe_text(self.formatException(record.exc_info))
        return json.dumps(line, default=str, ensure_ascii=False)


class Ration(logging.Filter):
    """Lets BURST lines of one event through, then one every EVERY_S; each says how many were left out before it.

    An event is a logger, a level and the words, without the values. Called with the handler's lock held.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._events: dict[tuple[str, int, str], _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, key = self._clock(), (record.name, record.levelno, str(record.msg))
        bucket = self._events.get(key)
        if bucket is None:
            if len(self._events) >= EVENTS:
                del self._events[next(iter(self._events))]
            bucket = self._events[key] = _Bucket(now)
        left_out = bucket.take(now)
        if left_out is None:
            return False
        if left_out:
            record.more = left_out
        return True


class _Bucket:
    """Lines that one event may still write; one more every EVERY_S."""

    def __init__(self, now: float) -> None:
        self._left, self._at, self._left_out = float(BURST), now, 0

    def take(self, now: float) -> int | None:
        """How many were left out before this one, or None: it is left out, too."""
        self._left = min(float(BURST), self._left + (now - self._at) / EVERY_S)
        self._at = now
        if self._left < 1.0:
            self._left_out += 1
            return None
        self._left -= 1.0
        left_out, self._left_out = self._left_out, 0
        return left_out


def set_up_logs(log_format: str, level: str, process: str) -> None:
    """Sends every logger's lines, and an uncaught exception, to standard error. Called once, when a process starts.

    Of libraries only warnings: below that some tell what they were given.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else ConsoleFormatter(process))
    handler.addFilter(Ration())
    root, ours = logging.getLogger(), logging.getLogger("rollcast")
    root.handlers[:] = [handler]
    ours.setLevel(level.upper())
    root.setLevel(max(logging.WARNING, ours.level))
    sys.excepthook = _log_uncaught


def catch_libraries() -> None:
    """What libraries in C write to standard error becomes a log line, rationed like any other: a bad image makes libpng
    write one, and child processes inherit it. Called once, before `set_up_logs`; lines go where they went."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    ours, theirs = os.pipe()
    os.dup2(theirs, 2)
    os.close(theirs)
    threading.Thread(target=_relay, args=(ours,), name="libraries", daemon=True).start()


def _relay(fd: int) -> None:
    with os.fdopen(fd, "rb") as lines:
        while line := lines.readline(LONGEST):
            logging.getLogger("rollcast.libraries").warning(
                "a library says", extra={"text": line.decode(errors="replace").strip()}
            )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("rollcast").critical("ended by an error", exc_info=(kind, error, trace))


# --- what is written of a value ------------------------------------------------------------------------------------


def _values(record: logging.LogRecord) -> dict[str, Any]:
    given = {name: value for name, value in vars(record).items() if name not in _PLAIN and value is not None}
    return {name: "***" if _SECRET.search(name) else _safe(value) for name, value in given.items()}


def _safe(value: Any) -> Any:
    """
    >>> _safe(b"payload"), _safe("redis://:hunter2@broker:6379/0")
    ('<7 bytes>', 'redis://broker:6379/0')
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return _cut(_safe_text(value))
    if isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        return [_safe(item) for item in items[:MOST]] + ([f"… ({len(items)})"] if len(items) > MOST else [])
    if isinstance(value, dict):
        return {str(name): "***" if _SECRET.search(str(name)) else _safe(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(_safe_text(str(value)))


def _safe_text(text: str) -> str:
    return _BEARER.sub(r"\1 ***", safe_text(text))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return repr(text) if not text or " " in text or not text.isprintable() else text


def _one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)
