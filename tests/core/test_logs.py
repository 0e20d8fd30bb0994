"""Logs: one line an event, for people or for machines."""

from __future__ import annotations

import json
import logging
import sys

from service.logs import ConsoleFormatter, JsonFormatter


def record(event: str, **values: object) -> logging.LogRecord:
    fields = {"name": "rollcast.worker", "levelname": "INFO", "levelno": logging.INFO, "msg": event, "created": 0.25}
    return logging.makeLogRecord(fields | values)


def test_a_line_for_people_has_the_process_the_event_and_its_values() -> None:
    line = ConsoleFormatter("worker 0").format(record("shard acquired", shard=3, low="17-0", why="it was free"))
    assert line.endswith("info    worker 0  shard acquired  shard=3 low=17-0 why='it was free'")


def test_a_line_for_machines_is_one_json_object() -> None:
    line = JsonFormatter("worker 0").format(record("shard acquired", shard=3))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "info",
        "process": "worker 0",
        "logger": "worker",
        "event": "shard acquired",
        "shard": 3,
    }


def test_an_error_is_told_with_its_traceback_and_stays_one_line_of_json() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        line = JsonFormatter("api").format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: a\nb" in json.loads(line)["exception"]
