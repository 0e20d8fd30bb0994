"""Commands that talk to a running api over HTTP: post, models, streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from rollcast import Accepted, Prediction
from rollcast.client import DEFAULT_URL
from service.cli.contents import Kind, contents
from service.cli.reach import AsJson, Stream, Url, connect
from service.cli.shown import line

LABELS_SHOWN: Final = 10  # of a model, in a table
STREAM_COLUMNS = ("stream", "model", "steps", "label", "score", "lag_s", "drops", "restarts", "silent")


def add_to(app: typer.Typer) -> None:
    for command in (post, models, streams):
        app.command(rich_help_panel="Use")(command)


def post(
    stream: Stream,
    files: Annotated[
        list[str],
        typer.Argument(help="Images (JPEG, PNG, WebP), CSV files, or texts, a line each; - for standard input."),
    ],
    model: Annotated[str | None, typer.Option("--model", help="The stream's model; needed if several fit.")] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Images, rows or texts a second; default: as fast as it goes.", min=0.001),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Rows of a CSV file in one entry.", min=1, max=4096)] = 1,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What the input is; default: by its name and its first bytes.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="The stream's state begins anew before the first.")] = False,
    numbered: Annotated[
        bool, typer.Option("--numbered", help="Give every entry the stream's next seq: nothing is ever stepped twice.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for each prediction and print it.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Post images, rows or texts to a stream, in the order given.

    **rollcast post door-7 seven.png eight.png --model digits-cnn --wait**

    **rollcast post belt-1 recording.csv --model activity-lstm --rate 4**

    **ffmpeg -i rtsp://… -f image2pipe -c:v mjpeg - | rollcast post cam-1 -** (every image as it comes)

    **journalctl -f | rollcast post log-1 - --kind text** (every line as it comes)

    The columns of a CSV with a heading find their places by name.
    """
    with connect(url, numbered=numbered) as client:
        begun, posted = time.monotonic(), 0
        for content in contents(files, rows, kind):
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
                answer = client.post_samples(stream, content if content.columns else content.rows, **more)
                posted += len(content.rows)
            _print_answer(answer, as_json)


def models(as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List the model packages a server has."""
    with connect(url) as client:
        found = client.models()["models"]
    if as_json:
        _print_json(found)
        return
    table = Table("model", "version", "kind", "labels", "accuracy", "terms of the weights")
    for model in found:
        labels, accuracy = model["labels"], model["metrics"].get("accuracy")
        some = ", ".join(labels if len(labels) <= LABELS_SHOWN else [*labels[:LABELS_SHOWN], f"… ({len(labels)})"])
        measured = "" if accuracy is None else f"{accuracy:.4f}"
        table.add_row(model["name"], str(model["version"]), model["kind"], some, measured, model["weights_terms"])
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
    with connect(url) as client:
        found = list(islice(client.streams(sort=sort), limit))
    if as_json:
        _print_json(found)
        return
    table = Table(*(_column(name) for name in STREAM_COLUMNS), box=box.SIMPLE_HEAD)
    for stream in found:
        table.add_row(*(_cell(stream.get(name)) for name in STREAM_COLUMNS))
    Console().print(table)


def _column(name: str) -> Column:
    """Numbers are shown whole; where it is narrow, words go on in the next line."""
    words = name in ("stream", "model", "label")
    return Column(name, overflow="fold", no_wrap=not words, justify="left" if words else "right")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)


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
