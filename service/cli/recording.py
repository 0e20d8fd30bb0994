"""`rollcast record` and `rollcast replay`: the entries of a stream to a file (docs/formats.md), and back."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, TextIO

import msgspec
import typer
from rich.console import Console

from rollcast import Client, Gap, Logged, Prediction, Problem
from rollcast.client import DEFAULT_URL
from rollcast.entries import read_logged
from service.cli.reach import AsJson, Stream, Url, connect
from service.cli.shown import line
from service.urls import safe_url

FORMAT: Final = 1  # of a recording: docs/formats.md
PAGE: Final = 1000
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
    wait: Annotated[bool, typer.Option("--wait", help="Wait for each prediction and print it.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Post a recording's entries again, in their order, at their pace.

    **rollcast replay cam-1.ndjson --as cam-1-again --speed 0 --wait**

    Exit status 1 when the server refused some.
    """
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    with connect(url) as client, _opened(file, sys.stdin, "rb") as lines:
        entries = _entries(lines, file)
        first = next(entries, None)
        if first is None:
            raise typer.BadParameter(f"{file}: a recording without entries")
        stream = name or first.stream
        if seq and first.seq is not None:
            _check_numbers(client, stream, first.seq)
        begun, posted, refused = time.monotonic(), 0, 0
        shift_s = time.time() - _time(first) if now else 0.0
        for entry in _chained(first, entries):
            if speed:
                time.sleep(max(0.0, begun + (entry.came - first.came) / speed - time.monotonic()))
            try:
                _post(client, _changed(entry, stream, model, seq, shift_s), wait, as_json)
                posted += 1
            except Problem as problem:
                if any(map(problem.is_a, HOPELESS)):
                    raise
                refused += 1
                told.print(f"{entry.id}: {problem.title}: {problem.detail}", markup=False)
    told.print(f"{posted:,} entries into {stream}" + (f", {refused:,} were refused" if refused else ""))
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
        raise typer.BadParameter(
            f"stream {stream} is at seq {last}, and the recording begins with {first}: its entries would be repeats; "
            "post to a new stream (--as NAME), or without numbers (--no-seq)"
        )


def _entries(lines: BinaryIO, name: str) -> Iterator[Logged]:
    """Those that can be posted; says which cannot. Raises BadParameter."""
    try:
        head = msgspec.json.decode(lines.readline(), type=Head)
    except msgspec.DecodeError:
        raise typer.BadParameter(f"{name}: not a recording of `rollcast record`") from None
    if head.format != FORMAT:
        raise typer.BadParameter(f"{name}: a recording of format {head.format}; this version reads format {FORMAT}")
    for number, text in enumerate(lines, start=2):
        if not text.strip():
            continue
        try:
            entry = read_logged(text)
        except msgspec.DecodeError as error:
            raise typer.BadParameter(f"{name}, line {number}: {error}") from None
        if entry.fault is None:
            yield entry
        else:
            print(f"{entry.id}: left out, it could not be read: {entry.fault}", file=sys.stderr)


def _chained(first: Logged, rest: Iterator[Logged]) -> Iterator[Logged]:
    yield first
    yield from rest


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
            raise typer.BadParameter(f"{name}: {error.strerror}") from None
        yield file
