"""Structured logs: one line an event, a few words and named values, for people or as JSON.

    log = logging.getLogger("rollcast.worker")
    log.info("shard acquired", extra={"shard": 3, "low": "17-0"})

becomes, with `log_format` console and json:

    12:00:01.250 info    worker 0  shard acquired  shard=3 low=17-0
    {"time": "2025-11-23T12:00:01.250+00:00", "level": "info", "process": "worker 0", "logger": "worker", "event": …}
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class ConsoleFormatter(logging.Formatter):
    """`time level process  event  name=value …`; values with spaces are quoted."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        values = "".join(f" {name}={_shown(value)}" for name, value in _values(record).items())
        line = f"{when} {record.levelname.lower():<7} {self._process:<8}  {record.getMessage()}"
        line += f" {values}" if values else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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
            "event": record.getMessage(),
            **_values(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up_logs(log_format: str, level: str, process: str) -> None:
    """Sends every logger's lines, and an uncaught exception, to standard error. Called once, when a process starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else ConsoleFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("rollcast").critical("ended by an error", exc_info=(kind, error, trace))


def _values(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return repr(text) if not text or " " in text or "\n" in text else text
