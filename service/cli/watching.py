"""`rollcast watch`: records of one stream or of many, as lines or as a live table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from rollcast import Client, Gap, Prediction, Record
from rollcast.client import DEFAULT_URL
from service.cli.ask import AsJson, Url
from service.cli.shown import line

REDRAW_S = 0.25
ROWS = 40  # streams that a table shows: those heard of last


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Use")(watch)


def watch(
    streams: Annotated[list[str], typer.Argument(help="Streams, or patterns such as 'cam-*' (in quotes).")],
    after: Annotated[
        str | None, typer.Option("--after", help="Begin after this cursor; 0: with all that is kept; default: now.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Stop after so many records.", min=1)] = None,
    lines: Annotated[
        bool | None,
        typer.Option("--lines/--table", help="A line a record, or a row a stream; default: by what is asked."),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow records live. A lost connection is taken up again where it stopped; Ctrl-C ends it.

    **rollcast watch cam-1** (a line a record)

    **rollcast watch 'cam-\\*'** (a live table, a row a stream; lines where there is no terminal)
    """
    wanted = streams[0] if len(streams) == 1 else streams
    many = len(streams) > 1 or "*" in streams[0] or "?" in streams[0]
    console = Console()
    as_lines = as_json or (not many or not console.is_terminal if lines is None else lines)
    with Client(url) as client, _ended_by_ctrl_c():
        records = _counted(client.records(wanted, after=after), count)
        if as_lines:
            for record in records:
                print(record.json if as_json else line(record, named=many), flush=True)
        else:
            _show_table(records, console)


def _counted(records: Iterator[Record], count: int | None) -> Iterator[Record]:
    seen = 0
    for record in records:
        yield record
        seen += not isinstance(record, Gap)
        if seen == count:
            return


# --- the table -----------------------------------------------------------------------------------------------------


class _Row:
    """The newest of one stream."""

    def __init__(self) -> None:
        self.last: Prediction | None = None
        self.records = 0
        self.others: dict[str, int] = {}  # type -> how many
        self.event = ""

    def take(self, record: Record) -> None:
        self.records += 1
        if isinstance(record, Prediction):
            self.last = record
            for event in record.events:
                self.event = f"{event.type} {event.label}"
        else:
            self.others[record.type] = self.others.get(record.type, 0) + 1


def _show_table(records: Iterator[Record], console: Console) -> None:
    rows: dict[str, _Row] = {}
    gaps = 0
    drawn = 0.0
    with Live(_table(rows, gaps), console=console, auto_refresh=False) as live:
        try:
            for record in records:
                name = getattr(record, "stream", None)
                if isinstance(record, Gap) or name is None:
                    gaps += 1
                else:
                    row = rows.pop(name, None) or _Row()
                    row.take(record)
                    rows[name] = row  # the newest last
                if time.monotonic() - drawn >= REDRAW_S:
                    live.update(_table(rows, gaps), refresh=True)
                    drawn = time.monotonic()
        finally:
            live.update(_table(rows, gaps), refresh=True)


def _table(rows: dict[str, _Row], gaps: int) -> Table:
    caption = f"{len(rows):,} streams" + (f", {gaps:,} gaps" if gaps else "") + "; Ctrl-C ends"
    table = Table(
        *(Column(name, no_wrap=True) for name in ("stream", "model", "step", "label", "rolling", "score", "event")),
        Column("records", justify="right", no_wrap=True),
        "others",
        caption=caption,
    )
    for name in sorted(list(rows)[-ROWS:]):
        row = rows[name]
        found = ("", "", "", "", "", "")
        if (last := row.last) is not None:
            score = f"{last.rolling.score:.3f}"
            found = (last.model, str(last.step), last.label, last.rolling.label, score, row.event)
        others = ", ".join(f"{n} {kind}" for kind, n in sorted(row.others.items()))
        table.add_row(name, *found, f"{row.records:,}", others)
    return table


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    with suppress(KeyboardInterrupt):
        yield
