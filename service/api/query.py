"""Queries, read by hand: an unknown or repeated name is an error, not silence, and no call pays for a schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from starlette.datastructures import QueryParams

from service.codec import MAX_INTERVAL_S, MAX_SEQ, MAX_TIME_S, decimal_number, id_number
from service.errors import BadCursor, Malformed, RequestError

MAX_WAIT_S: Final = 60.0
MAX_RECORDS: Final = 1000  # in one JSON answer
Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=str)


class PostQuery(NamedTuple):
    """The query of every POST of an entry."""

    model: str | None
    seq: int | None
    time: float | None  # event time, s
    start: bool
    end: bool
    wait_s: float | None
    interval_s: float | None  # between rows; samples only
    fsync: bool  # answer only when the entry is on disk


class Query:
    """The parameters of one request; `take_*` read one of them, or its default when it is absent or empty."""

    def __init__(self, params: QueryParams, allowed: tuple[str, ...], repeated: tuple[str, ...] = ()) -> None:
        self._values: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {name: [] for name in repeated}
        for name, value in params.multi_items():
            if name in repeated:
                self._lists[name].append(value)
                continue
            if name not in allowed:
                known = ", ".join((*repeated, *allowed)) or "none"
                raise RequestError(f"query: unknown parameter {name[:60]!r}; known are: {known}")
            if name in self._values:
                raise RequestError(f"query: {name} is given more than once")
            self._values[name] = value

    def text(self, name: str) -> str | None:
        return self._values.get(name) or None

    def texts(self, name: str) -> list[str]:
        """Of a parameter that may be given more than once."""
        return [value for value in self._lists[name] if value]

    def number(self, name: str, low: float, high: float) -> float | None:
        def read(text: str) -> float:
            value = decimal_number(text)
            if not low <= value <= high:  # NaN as well
                raise ValueError
            return value

        return self._read(name, read, f"seconds from {low:g} to {high:g}")

    def whole(self, name: str, low: int, high: int) -> int | None:
        def read(text: str) -> int:
            if not (text.isascii() and text.isdecimal() and len(text) <= 19 and low <= int(text) <= high):
                raise ValueError
            return int(text)

        return self._read(name, read, f"a whole number from {low} to {high}")

    def flag(self, name: str) -> bool:
        return bool(self._read(name, lambda text: ("0", "1").index(text), "1 or 0"))

    def one_of(self, name: str, choices: tuple[Choice, ...], default: Choice) -> Choice:
        def read(text: str) -> Choice:
            return {str(choice): choice for choice in choices}[text]

        return self._read(name, read, f"one of {', '.join(choices)}") or default

    def _read(self, name: str, read: Callable[[str], Value], expected: str) -> Value | None:
        text = self._values.get(name)
        if not text:
            return None
        try:
            return read(text)
        except (ValueError, KeyError):
            raise Malformed(f"query: {name}={text[:60]!r}, expected {expected}") from None


def read_post_query(params: QueryParams, *, rows: bool) -> PostQuery:
    names = ("model", "seq", "time", "start", "end", "wait", "ack", *(("interval_s",) if rows else ()))
    query = Query(params, names)
    return PostQuery(
        model=query.text("model"),
        seq=query.whole("seq", 0, MAX_SEQ),
        time=query.number("time", 0.0, MAX_TIME_S),
        start=query.flag("start"),
        end=query.flag("end"),
        wait_s=query.number("wait", 0.0, MAX_WAIT_S),
        interval_s=query.number("interval_s", 0.0, MAX_INTERVAL_S),
        fsync=read_ack(query),
    )


def read_ack(query: Query) -> bool:
    """Whether an entry is to be on disk before it is acknowledged."""
    return query.one_of("ack", ("log", "fsync"), "log") == "fsync"


def read_cursor(text: str, where: str) -> int:
    """`MS-SEQ`, or `0` for "before everything", as one comparable integer. Raises BadCursor."""
    if text == "0":
        return 0
    try:
        return id_number(text)
    except ValueError as error:
        raise BadCursor(f"{where}: {error}, or 0 for all that is kept") from None
