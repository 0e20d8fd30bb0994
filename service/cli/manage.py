"""Commands that look after streams over HTTP: their state, and what was refused of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from rollcast.client import DEFAULT_URL
from service.cli.reach import AsJson, Stream, Url, connect

EntryId = Annotated[str, typer.Argument(help="The refused entry's id, MS-SEQ.")]
DEAD_COLUMNS = ("id", "stream", "kind", "reason", "bytes", "detail")

dead = typer.Typer(help="Look after refused entries: list, show, retry, drop.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Use")(state)
    for name, command in (("list", list_dead), ("show", show), ("retry", retry), ("drop", drop)):
        dead.command(name)(command)
    app.add_typer(dead, name="dead", rich_help_panel="Use")


# --- state -------------------------------------------------------------------------------------------------------


def state(
    stream: Stream,
    save: Annotated[Path | None, typer.Option("--save", help="Write the state to this file.")] = None,
    restore: Annotated[Path | None, typer.Option("--restore", help="Put the state in this file back.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Drop the state: the stream begins anew.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what a stream remembers; save it, put it back, or drop it.

    **rollcast state cam-1 --save cam-1.state**, later **rollcast state cam-2 --restore cam-1.state**
    """
    if (save is not None) + (restore is not None) + reset > 1:
        raise typer.BadParameter("--save, --restore and --reset: expected one of them")
    with connect(url) as client:
        if save is not None:
            data = client.save_state(stream)
            _write(save, data)
            print(f"{save}: {len(data)} bytes")
        elif restore is not None:
            _print_done(client.restore(stream, _read(restore)), as_json)
        elif reset:
            _print_done(client.reset(stream), as_json)
        else:
            _print_fields(dict(client.state(stream)), as_json)


# --- quarantine --------------------------------------------------------------------------------------------------


def list_dead(
    stream: Annotated[str | None, typer.Option("--stream", help="Only of this stream.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Only with this reason.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List the refused entries that are kept."""
    with connect(url) as client:
        found = list(client.dead(stream=stream, reason=reason))
    if as_json:
        for entry in found:
            print(json.dumps(entry))
        return
    table = Table(*(Column(name, no_wrap=name != "detail") for name in DEAD_COLUMNS))
    for entry in found:
        table.add_row(*(str(dict(entry)[name]) for name in DEAD_COLUMNS))
    Console().print(table)


def show(
    stream: Stream,
    entry_id: EntryId,
    save: Annotated[Path | None, typer.Option("--save", help="Write the entry's bytes to this file.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show one refused entry: why it was refused, and its fields."""
    with connect(url) as client:
        if save is not None:
            data = client.dead_bytes(stream, entry_id)
            _write(save, data)
            print(f"{save}: {len(data)} bytes")
            return
        found: dict[str, Any] = dict(client.dead_entry(stream, entry_id))
    if not as_json:
        found.pop("data")
        found |= found.pop("fields")
    _print_fields(found, as_json)


def retry(
    stream: Stream,
    entry_id: EntryId,
    model: Annotated[str | None, typer.Option("--model", help="Another model than the entry came with.")] = None,
    keep: Annotated[bool, typer.Option("--keep/--drop", help="Whether the old entry stays in quarantine.")] = True,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Append a refused entry again, as a new entry at the end of its stream."""
    with connect(url) as client:
        answer = client.retry_dead(stream, entry_id, model=model, drop=not keep)
    print(json.dumps(answer) if as_json else f"{answer.get('id')}  {stream}  retry of {entry_id}")


def drop(
    stream: Annotated[str | None, typer.Argument(help="The stream of the one entry to drop.")] = None,
    entry_id: Annotated[str | None, typer.Argument(help="The refused entry's id, MS-SEQ.")] = None,
    of_stream: Annotated[str | None, typer.Option("--stream", help="Drop all of this stream.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Drop all with this reason.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all that is kept.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Drop refused entries from quarantine: one, or many at once.

    **rollcast dead drop cam-1 1763860000250-0**, or **rollcast dead drop --reason bad_image**
    """
    many = of_stream is not None or reason is not None
    if (entry_id is not None) + many + everything != 1 or (stream is None) != (entry_id is None):
        raise typer.BadParameter("expected STREAM ENTRY_ID; or --stream, --reason or both; or --all")
    with connect(url) as client:
        if stream is not None and entry_id is not None:
            client.drop_dead(stream, entry_id)
            print(f"{entry_id}  {stream}  dropped")
        else:
            print(f"{client.drop_all_dead(stream=of_stream, reason=reason, everything=everything)} dropped")


# --- small parts -------------------------------------------------------------------------------------------------


def _print_done(record: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(record) if as_json else f"{record.get('id')}  done: {record.get('action')}")


def _print_fields(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if name == "tensors":
            for tensor in value or ():
                print(f"  {tensor['name']:<8} {tensor['dtype']} {tensor['shape']}  norm {tensor['norm']:.6g}")
        elif value is not None:
            print(f"{name:<8} {value:.6g}" if isinstance(value, float) and name == "norm" else f"{name:<8} {value}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        print(f"rollcast: {path}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None
