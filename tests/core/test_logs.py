"""Logs: one line an event, for people or for machines."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from service.logs import BURST, EVENTS, EVERY_S, ConsoleFormatter, JsonFormatter, Ration


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


# --- what is not written -----------------------------------------------------------------------------------------

FORMATTERS = pytest.mark.parametrize("formatter", [ConsoleFormatter("api"), JsonFormatter("api")])


@FORMATTERS
@pytest.mark.parametrize(
    "values",
    [
        {"data": b"hunter2"},
        {"data": memoryview(b"hunter2")},
        {"password": "hunter2"},
        {"api_key": "hunter2", "token": "hunter2", "Authorization": "hunter2", "broker_password": "hunter2"},
        {"headers": {"Authorization": "Bearer hunter2", "Cookie": "hunter2", "x": b"hunter2"}},
        {"broker": "redis://:hunter2@broker:6379/0", "other": "unix://user:hunter2@/run/broker.sock"},
        {"detail": "cannot connect to rediss://user:hunter2@broker/0 at all", "why": "Bearer hunter2 is not known"},
        {"fields": [b"data", b"hunter2"], "nested": [{"secret": "hunter2"}, ("redis://:hunter2@broker",)]},
        {"error": ValueError("redis://:hunter2@broker")},
    ],
)
def test_payloads_and_secrets_are_never_written(formatter: logging.Formatter, values: dict[str, object]) -> None:
    line = formatter.format(record("something", **values))
    assert "hunter2" not in line
    assert all(name in line for name in values)


@FORMATTERS
def test_nor_in_words_and_tracebacks(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("redis://:hunter2@broker: no")
    except ValueError:
        line = formatter.format(record("lost redis://:hunter2@broker", exc_info=sys.exc_info()))
    assert "hunter2" not in line
    assert line.count("redis://broker") >= 2


def test_what_is_long_is_cut_and_what_is_none_is_left_out() -> None:
    values = {"detail": "x" * 5000, "shards": list(range(5000)), "model": None}
    line = json.loads(JsonFormatter("api").format(record("something", **values)))
    assert line["detail"].endswith("x… (5000 characters)")
    assert len(line["detail"]) < 1100
    assert line["shards"] == [*range(40), "… (5000)"]
    assert "model" not in line


def test_no_value_breaks_a_line_for_people() -> None:
    line = ConsoleFormatter("api").format(record("said\nthings", stream="a\r\nb", why="\x1b[2J"))
    assert line.isprintable()


# --- repetition --------------------------------------------------------------------------------------------------


def test_an_event_that_repeats_is_rationed_and_says_how_many_lines_were_left_out() -> None:
    now = [0.0]
    ration = Ration(lambda: now[0])
    same = [record("entry refused", stream=f"cam-{n}") for n in range(1000)]
    assert sum(ration.filter(one) for one in same) == BURST
    assert ration.filter(record("another event"))
    assert ration.filter(record("entry refused", levelno=logging.ERROR))
    now[0] += EVERY_S * 1.5
    late = record("entry refused")
    assert ration.filter(late)
    assert vars(late)["more"] == 1000 - BURST
    assert not ration.filter(record("entry refused"))
    now[0] += 3600.0
    quiet = [record("entry refused") for _ in range(BURST + 1)]
    assert [ration.filter(one) for one in quiet] == [True] * BURST + [False]
    assert [vars(one).get("more") for one in quiet[:2]] == [1, None]


def test_a_thousand_kinds_of_events_are_remembered_at_most() -> None:
    ration = Ration(lambda: 0.0)
    for n in range(5000):
        assert ration.filter(record(f"event {n}"))
    assert len(ration._events) == EVENTS
