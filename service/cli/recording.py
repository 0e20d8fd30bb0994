"""`rollcast record` and `rollcast replay`: the entries of a stream to a file (docs/formats.md), and back."""

from __future__ import annotations

import re
import signal
import sys
import time
from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, NamedTuple, TextIO

import msgspec
import typer
from rich.console import Console

from rollcast import Client, Gap, Logged, Prediction, Problem
from rollcast.client import DEFAULT_URL
from rollcast.entries import read_logged
from service.cli.reach import AsJson, Stream, Url, connect
from service.cli.shown import line
from service.errors import StartError
from service.urls import safe_url

FORMAT: Final = 1  # of a recording: docs/formats.md
PAGE: Final = 1000
MAX_LINE: Final = 64 << 20  # bytes
LATEST_MS: Final = 253_402_300_800_000  # the end of the year 9999
_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
HOPELESS: Final = ("bad-stream-id", "unknown-model", "other-model", "wrong-kind")  # so will be all that follow


class Head(msgspec.Struct, tag="recording", tag_field="type"):
    """The first line."""

    format: int
    stream: str


def add_to(app: typer.Typer) -> None:
    for command in (record, replay):
        app.command(rich_help_panel="Use")(command)


# --- record ------------------------------------------------------------------------------------------------------


def record(
    stream: Stream,
    file: Annotated[str, typer.Argument(help="Where to write: a line an entry; - for standard output.")],
    after: Annotated[
        str | None,
        typer.Option("--after", help="Begin after this entry; 0: with all the log holds; default: what is unanswered."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Stop after so many entries.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Stop after this long.", min=0.1)] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Record the entries of a stream as they come: frames, rows, texts, controls. Ctrl-C ends it.

    **rollcast record cam-1 cam-1.ndjson --seconds 60**, later **rollcast replay cam-1.ndjson --as cam-1-again**

    Exit status 1 when an entry was finished and gone before it could be read: the setting input_history_s keeps them.
    """
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    with connect(url) as client, _opened(file, sys.stdout, "wb") as out:
        begun = client.newest(stream) if after is None else after
        seen: list[str] = []
        size = 0
        head = [msgspec.json.encode(Head(FORMAT, stream)) + b"\n"]

        def listening() -> None:
            while head:
                out.write(head.pop())
                out.flush()
                status.update(f"recording {stream}; Ctrl-C ends")

        with told.status(f"connecting to {safe_url(url)}") as status, _ended(seconds):
            for entry in client.entries(stream, begun, listening=listening):
                written = msgspec.json.encode({"id": entry.id} | msgspec.to_builtins(entry)) + b"\n"
                out.write(written)
                out.flush()
                seen.append(entry.id)
                size += len(written)
                status.update(f"{stream}: {len(seen):,} entries, {_bytes(size)}; Ctrl-C ends")
                if len(seen) == count:
                    break
        gone = missing(client, stream, begun, seen)
    told.print(f"{len(seen):,} entries of {stream}, {_bytes(size)}")
    if gone:
        told.print(
            f"{len(gone):,} more were finished and gone before they could be read, the first one {gone[0]}; "
            "the setting input_history_s keeps finished entries longer"
        )
        raise typer.Exit(1)


def missing(client: Client, stream: str, after: str, seen: Iterable[str]) -> list[str]:
    """Every entry leaves a record: those up to the last one seen of which there is a record but nothing was seen."""
    ids = set(seen)
    last = max(map(_number, ids), default=(0, 0))
    gone: list[str] = []
    while True:
        page = client.history(stream, after=after, limit=PAGE, every_type=True)
        found = [one.id for one in page.records if not isinstance(one, Gap) and _number(one.id) <= last]
        gone += [one for one in found if one not in ids]
        if len(found) < PAGE:
            return gone
        after = page.next


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1_000_000 else f"{size / 1e3:,.1f} kB"


def _number(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq)


# --- replay ------------------------------------------------------------------------------------------------------


def replay(
    file: Annotated[str, typer.Argument(help="A recording; - for standard input.")],
    name: Annotated[
        str | None, typer.Option("--as", help="The stream to post to; default: the one it was recorded from.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Another model than that of the recording.")] = None,
    speed: Annotated[
        float, typer.Option("--speed", help="How many times faster than it was recorded; 0: as fast as it goes.", min=0)
    ] = 1.0,
    now: Annotated[
        bool, typer.Option("--now", help="Event times as of now; default: as recorded, for the same predictions.")
    ] = False,
    seq: Annotated[
        bool, typer.Option("--seq/--no-seq", help="Whether the producer's numbers are posted again.")
    ] = True,
    delete: Annotated[
        bool, typer.Option("--delete", help="Carry out deletions of the stream, too; default: they are left out.")
    ] = False,
    longest_pause: Annotated[
        float, typer.Option("--longest-pause", help="Seconds between two entries, at most.", min=0, max=86_400)
    ] = 60.0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for each prediction and print it.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Post a recording's entries again, in their order, at their pace.

    **rollcast replay cam-1.ndjson --as cam-1-again --speed 0 --wait**

    Exit status 1 when the server refused some; 2 at a line that is no entry, which the message names.
    """
    if not isfinite(speed):
        raise StartError(f"--speed {speed}: expected a number from 0")
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    with connect(url) as client, _opened(file, sys.stdin, "rb") as lines:
        entries = read_recording(lines, file)
        first = next(entries, None)
        if first is None:
            raise StartError(f"{file}: a recording without entries")
        stream = name or first.entry.stream
        if seq and first.entry.seq is not None:
            _check_numbers(client, stream, first.entry.seq)
        begun, due_s, came, posted, refused = time.monotonic(), 0.0, first.entry.came, 0, 0
        shift_s = time.time() - _time(first.entry) if now else 0.0
        for place, entry in chain([first], entries):
            pause_s = max(0.0, entry.came - came) / speed if speed else 0.0
            if pause_s > longest_pause:
                told.print(f"{place}: a pause of {pause_s:,.0f} s is cut to {longest_pause:g} s (--longest-pause)")
            due_s, came = due_s + min(pause_s, longest_pause), max(came, entry.came)
            time.sleep(max(0.0, begun + due_s - time.monotonic()))
            if not delete and entry.control is not None and entry.control["action"] == "delete":
                told.print(f"{place}: the deletion is left out (--delete carries it out)", markup=False)
                continue
            try:
                _post(client, _changed(entry, stream, model, seq, shift_s), wait, as_json)
                posted += 1
            except Problem as problem:
                if any(map(problem.is_a, HOPELESS)):
                    raise
                refused += 1
                told.print(f"{entry.id}: {problem.title}: {problem.detail}", markup=False)
    told.print(f"{posted:,} entries into {stream}" + (f", {refused:,} were refused" if refused else ""), markup=False)
    raise typer.Exit(1 if refused else 0)


def _post(client: Client, entry: Logged, wait: bool, as_json: bool) -> None:
    if entry.control is not None:
        client.control(entry.stream, entry.control)
        return
    answer = client.post_entry(entry, wait_s=10.0 if wait else None)
    if isinstance(answer, Prediction):
        print(answer.json if as_json else line(answer), flush=True)


def _changed(entry: Logged, stream: str, model: str | None, seq: bool, shift_s: float) -> Logged:
    changes: dict[str, Any] = {"stream": stream}
    if entry.control is None:
        changes |= {"time": _time(entry) + shift_s, "model": model or entry.model, "seq": entry.seq if seq else None}
    return msgspec.structs.replace(entry, **changes)


def _time(entry: Logged) -> float:
    """Event time: where none was given, it is when the entry came."""
    return entry.came if entry.time is None else entry.time


def _check_numbers(client: Client, stream: str, first: int) -> None:
    try:
        last = client.stream(stream)["seq"]
    except Problem as problem:
        if problem.status != 404:
            raise
        return
    if last is not None and last >= first:
        raise StartError(
            f"stream {stream} is at seq {last}, and the recording begins with {first}: its entries would be repeats; "
            "post to a new stream (--as NAME), or without numbers (--no-seq)"
        )


class Place(NamedTuple):
    """Where in a file something stands, for messages."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class Recorded(NamedTuple):
    """An entry that can be posted."""

    place: Place
    entry: Logged


def read_recording(lines: BinaryIO, file: str) -> Iterator[Recorded]:
    """The entries that can be posted, in turn; says which cannot. Raises StartError that names the line and what was
    expected of it."""
    number = 0
    while text := lines.readline(MAX_LINE + 1):
        number += 1
        place = Place(file, number)
        if len(text) > MAX_LINE:
            raise StartError(f"{place}: longer than {MAX_LINE} bytes; expected an entry as `rollcast record` writes it")
        if number == 1:
            _check_head(text, file)
        elif text.strip():
            entry = _read_entry(text, place)
            if entry.control is not None and entry.control["action"] == "silence":
                continue  # the worker's word, not the source's: the stream it is replayed into falls silent by itself
            if entry.fault is None:
                yield Recorded(place, entry)
            else:
                print(f"{entry.id}: left out, it could not be read: {entry.fault[:200]!r}", file=sys.stderr)
    if number == 0:
        raise StartError(f"{file}: not a recording of `rollcast record`: empty")


def _check_head(text: bytes, file: str) -> None:
    try:
        head = msgspec.json.decode(text, type=Head)
    except (msgspec.DecodeError, RecursionError):
        raise StartError(f"{file}: not a recording of `rollcast record`: expected its first line to say so") from None
    if head.format != FORMAT:
        raise StartError(f"{file}: a recording of format {head.format}; this version reads format {FORMAT}")


def _read_entry(text: bytes, place: Place) -> Logged:
    try:
        entry = read_logged(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise StartError(f"{place}: {error}"[:500]) from None
    except RecursionError:
        raise StartError(f"{place}: nested too deeply; expected an entry") from None
    if (wrong := _wrong(entry)) is not None:
        raise StartError(f"{place}: {wrong}")
    return entry


def _wrong(entry: Logged) -> str | None:
    """What of an entry would not be posted as it was recorded."""
    if _ID.fullmatch(entry.id) is None or max(_number(entry.id)) >= 2**64 or _number(entry.id)[0] > LATEST_MS:
        return f"id {entry.id[:50]!r}: expected MS-SEQ, milliseconds since 1970 up to the year 9999 and a count"
    if entry.fault is not None:
        return None
    if entry.control is not None:
        return _wrong_control(entry.control)
    content = {"frame": entry.data, "samples": entry.data or entry.samples, "text": entry.text}
    if entry.kind not in content:
        return f"kind {entry.kind[:50]!r}: expected frame, samples or text, or a control with `control`"
    if content[entry.kind] is None:
        wanted = {"frame": "`data`", "samples": "`data` or `samples`", "text": "`text`"}[entry.kind]
        return f"kind {entry.kind}: expected {wanted}"
    return None


def _wrong_control(said: dict[str, Any]) -> str | None:
    action = said.get("action")
    if action not in ("settings", "restore", "reset", "delete", "silence"):
        return f"control with action {str(action)[:50]!r}: expected settings, restore, reset or delete"
    if action == "settings" and not isinstance(said.get("settings", {}), dict | None):
        return "control settings: expected an object `settings`"
    if action == "restore":
        try:
            b64decode(said["state"], validate=True)
        except (KeyError, TypeError, ValueError):
            return "control restore: expected `state` in base64"
    return None


# --- small parts -------------------------------------------------------------------------------------------------


@contextmanager
def _ended(seconds: float | None) -> Iterator[None]:
    """Ends what is inside by Ctrl-C, and after so long."""

    def over(*_: object) -> None:
        raise KeyboardInterrupt

    was = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, was)


@contextmanager
def _opened(name: str, standard: TextIO, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        try:
            file = standard.buffer if name == "-" else stack.enter_context(Path(name).open(mode))
        except OSError as error:
            raise StartError(f"{name}: {error.strerror}") from None
        yield file
