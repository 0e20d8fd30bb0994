"""Commands that talk to a running api over HTTP: models, streams."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from rollcast.client import DEFAULT_URL
from service.cli.reach import AsJson, Url, connect

LABELS_SHOWN: Final = 10  # of a model, in a table
STREAM_COLUMNS = ("stream", "model", "steps", "label", "score", "lag_s", "drops", "restarts", "silent")


def add_to(app: typer.Typer) -> None:
    for command in (models, streams):
        app.command(rich_help_panel="Use")(command)


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


def _print_json(items: Iterable[Any]) -> None:
    for item in items:
        print(json.dumps(item))
