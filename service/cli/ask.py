"""Commands that talk to a running api over HTTP: post, watch, models, streams."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.table import Column, Table

from rollcast import Client, Problem, StreamRecord
from rollcast.client import DEFAULT_URL, media_type

Url = Annotated[
    str, typer.Option("--url", envvar="ROLLCAST_URL", help="Where the api listens.", rich_help_panel="Connection")
]
Stream = Annotated[str, typer.Argument(help="A stream's id, such as cam-1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
STREAM_COLUMNS = ("stream", "model", "steps", "label", "score", "last_entry")
RETRIES_S = 30.0  # how long `post` tries again when the server asks it to wait


def add_to(app: typer.Typer) -> None:
    for command in (post, watch, models, streams):
        app.command(rich_help_panel="Use")(command)


def post(
    stream: Stream,
    files: Annotated[
        list[str],
        typer.Argument(help="Images (JPEG, PNG, WebP), CSV files, or texts (.txt), a line each; - for standard input."),
    ],
    model: Annotated[str | None, typer.Option("--model", help="The stream's model; needed if several fit.")] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Images, rows or texts a second; default: as fast as it goes.", min=0.001),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Rows of a CSV file in one entry.", min=1, max=4096)] = 1,
    start: Annotated[bool, typer.Option("--start", help="The stream's state begins anew before the first.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for each prediction and print it.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Post images, rows or texts to a stream, in the order given.

    **rollcast post door-7 seven.png eight.png --model digits-cnn --wait**

    **rollcast post belt-1 recording.csv --model activity-lstm --rate 4**

    **ffmpeg … -f image2pipe -c:v png - | rollcast post cam-1 -** (one image)
    """
    with Client(url) as client:
        begun, posted = time.monotonic(), 0
        for content in _contents(files, rows):
            if rate is not None:
                _sleep_until(begun + posted / rate)
            more: dict[str, Any] = {"model": model, "start": start and posted == 0, "wait_s": 10.0 if wait else None}
            if isinstance(content, bytes):
                answer = _patiently(lambda c=content, m=more: client.post_frame(stream, c, **m))
                posted += 1
            elif isinstance(content, str):
                answer = _patiently(lambda c=content, m=more: client.post_text(stream, c, **m))
                posted += 1
            else:
                answer = _patiently(lambda c=content, m=more: client.post_samples(stream, c, **m))
                posted += len(content)
            _print_answer(answer, as_json)


def watch(
    stream: Stream,
    after: Annotated[
        str | None, typer.Option("--after", help="Begin after this entry's id; 0: with all that is kept; default: now.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Stop after so many records.", min=1)] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow a stream's records live. A lost connection is taken up again where it stopped; Ctrl-C ends it."""
    seen = 0
    with Client(url) as client, _ended_by_ctrl_c():
        for record in client.follow(stream, after=after):
            print(json.dumps(record.body) if as_json else _line(record), flush=True)
            seen += record.event != "gap"
            if seen == count:
                return


def models(as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List the model packages a server has."""
    with Client(url) as client:
        found = client.models()["models"]
    if as_json:
        _print_json(found)
        return
    table = Table("model", "version", "kind", "labels")
    for model in found:
        table.add_row(model["name"], str(model["version"]), model["kind"], ", ".join(model["labels"]))
    Console().print(table)


def streams(as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List the streams a server knows."""
    with Client(url) as client:
        found = list(client.streams())
    if as_json:
        _print_json(found)
        return
    table = Table(*(Column(name.replace("_", " "), no_wrap=True) for name in STREAM_COLUMNS))
    for stream in found:
        table.add_row(*(_cell(stream.get(name)) for name in STREAM_COLUMNS))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)


# --- what is posted ----------------------------------------------------------------------------------------------


def _contents(files: Iterable[str], rows: int) -> Iterator[bytes | str | list[list[float]]]:
    """Each image as bytes; each line of a text; each CSV file as blocks of `rows` rows."""
    for name in files:
        if name == "-":
            yield from _content(sys.stdin.buffer, "standard input", rows)
            continue
        try:
            with Path(name).open("rb") as file:
                yield from _content(file, name, rows)
        except OSError as error:
            raise typer.BadParameter(f"{name}: {error.strerror}") from None


def _content(file: BinaryIO, name: str, rows: int) -> Iterator[bytes | str | list[list[float]]]:
    if name.endswith(".txt"):
        yield from (line for line in TextIOWrapper(file, encoding="utf-8-sig") if line.strip())
        return
    head = file.peek(16)[:16] if hasattr(file, "peek") else b""
    if media_type(head) != "application/octet-stream" or b"\0" in head:
        yield file.read()
    else:
        yield from _blocks(_rows(TextIOWrapper(file, encoding="utf-8-sig", newline=""), name), rows)


def _rows(lines: Iterable[str], name: str) -> Iterator[list[float]]:
    """The numbers of a CSV; a first line of words is a heading."""
    for number, cells in enumerate(csv.reader(lines), start=1):
        if not cells or cells[0].startswith("#"):
            continue
        try:
            yield [float(cell) for cell in cells]
        except ValueError:
            if number > 1:
                raise typer.BadParameter(
                    f"{name}, line {number}: {','.join(cells)[:60]!r} is not a row of numbers"
                ) from None


def _blocks(rows: Iterator[list[float]], size: int) -> Iterator[list[list[float]]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _patiently(post_one: Any) -> dict[str, Any]:
    """Tries again while the server asks to wait: an unknown append excepted, which a repeat could double."""
    deadline = time.monotonic() + RETRIES_S
    while True:
        try:
            answer: dict[str, Any] = post_one()
            return answer
        except Problem as problem:
            again = problem.status in (429, 503) and not problem.type.endswith("append-unknown")
            if not again or time.monotonic() > deadline:
                raise
            time.sleep(problem.retry_after_s or 1.0)


def _sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


# --- what is shown -----------------------------------------------------------------------------------------------


def _print_answer(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer), flush=True)
    elif "label" in answer:
        print(_line(StreamRecord("prediction", answer["id"], answer)), flush=True)
    else:
        print(f"{answer['id']}  {answer['stream']}  {answer['model']}", flush=True)


def _line(record: StreamRecord) -> str:
    """One line a record, for people."""
    body = record.body
    if record.event != "prediction":
        words = [str(body[name]) for name in ("reason", "detail", "action", "of") if body.get(name) is not None]
        return f"{body.get('id') or record.id}  {record.event}: {', '.join(words) or json.dumps(body)}"
    rolling = body["rolling"]
    line = (
        f"{body['id']}  step {body['step']:<6} {body['label']:<10} {body['score']:.3f}"
        f"   rolling {rolling['label']:<10} {rolling['score']:.3f}"
    )
    if body["restarted"]:
        line += f"   restarted: {body['restarted']}"
    return line + "".join(f"   {event['type']} {event['label']}" for event in body["events"])


def _print_json(items: Iterable[Any]) -> None:
    for item in items:
        print(json.dumps(item))


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    with suppress(KeyboardInterrupt):
        yield
