"""Commands that talk to a running api over HTTP: post, models, streams."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.table import Column, Table

from rollcast import Accepted, Client, Prediction
from rollcast.calls import media_type
from rollcast.client import DEFAULT_URL
from service.cli.shown import line

Url = Annotated[
    str, typer.Option("--url", envvar="ROLLCAST_URL", help="Where the api listens.", rich_help_panel="Connection")
]
Stream = Annotated[str, typer.Argument(help="A stream's id, such as cam-1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
STREAM_COLUMNS = ("stream", "model", "steps", "label", "score", "last_entry", "lag_s", "drops", "restarts")


def add_to(app: typer.Typer) -> None:
    for command in (post, models, streams):
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
                answer = client.post_frame(stream, content, **more)
                posted += 1
            elif isinstance(content, str):
                answer = client.post_text(stream, content, **more)
                posted += 1
            else:
                answer = client.post_samples(stream, content, **more)
                posted += len(content)
            _print_answer(answer, as_json)


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


def streams(
    sort: Annotated[
        str | None, typer.Option("--sort", help="The worst first: lag, drops or restarts; default: by name.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="At most so many; default: all.", min=1)] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List the streams a server knows, by name or the worst first.

    **rollcast streams --sort lag -n 10**
    """
    with Client(url) as client:
        found = list(islice(client.streams(sort=sort), limit))
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


def _sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


# --- what is shown -----------------------------------------------------------------------------------------------


def _print_answer(answer: Accepted | Prediction, as_json: bool) -> None:
    if isinstance(answer, Prediction):
        print(answer.json if as_json else line(answer), flush=True)
    elif as_json:
        print(json.dumps({"id": answer.id, "stream": answer.stream, "model": answer.model}), flush=True)
    else:
        print(f"{answer.id}  {answer.stream}  {answer.model}", flush=True)


def _print_json(items: Iterable[Any]) -> None:
    for item in items:
        print(json.dumps(item))
