"""`rollcast watch`: records of one stream or of many, as lines or as a live table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from rollcast import Gap, Prediction, Record
from rollcast.client import DEFAULT_URL
from service.cli.reach import AsJson, Url, connect
from service.cli.shown import line

DRAWN_PER_S = 4
FRAME_LINES = 6  # of the table around its rows


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
    with connect(url) as client:
        watched = _Watched(client.records(wanted, after=after), count)
        with _ended_by_ctrl_c():
            if as_lines:
                for record in watched:
                    print(record.json if as_json else line(record, named=many), flush=True)
            else:
                _show_table(watched, console)
    if watched.cursor:
        told = Console(stderr=True, highlight=False, soft_wrap=True)
        told.print(f"to go on: --after {watched.cursor}", markup=False)


class _Watched:
    """The records, at most `count`, and the cursor after the last one."""

    def __init__(self, records: Iterator[Record], count: int | None) -> None:
        self.cursor = ""
        self._records, self._count = records, count

    def __iter__(self) -> Iterator[Record]:
        seen = 0
        for record in self._records:
            self.cursor = record.cursor
            yield record
            seen += not isinstance(record, Gap)
            if seen == self._count:
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


class _Rows:
    """What the table shows. Filled by the command, drawn by rich's thread."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._gaps = 0
        self._lock = Lock()

    def take(self, record: Record) -> None:
        with self._lock:
            name = getattr(record, "stream", None)
            if isinstance(record, Gap) or name is None:
                self._gaps += 1
            else:
                row = self._rows.pop(name, None) or _Row()
                row.take(record)
                self._rows[name] = row  # the newest last

    def table(self, height: int) -> Table:
        with self._lock:
            return _table(self._rows, self._gaps, max(1, height - FRAME_LINES))


def _show_table(records: Iterable[Record], console: Console) -> None:
    rows = _Rows()
    with Live(get_renderable=lambda: rows.table(console.height), console=console, refresh_per_second=DRAWN_PER_S):
        for record in records:
            rows.take(record)


def _table(rows: dict[str, _Row], gaps: int, most: int) -> Table:
    """`most`: so many streams, those heard of last."""
    shown = [(name, rows[name]) for name in sorted(list(rows)[-most:])]
    caption = f"{len(rows):,} stream{'s' if len(rows) != 1 else ''}" + (f", {gaps:,} gaps" if gaps else "")
    caption += f", {most:,} shown" if len(rows) > most else ""
    words = [Column(name, overflow="fold") for name in ("stream", "model", "rolling", "event")]
    numbers = [Column(name, no_wrap=True, justify="right") for name in ("score", "step", "records")]
    others = any(row.others for _, row in shown)
    table = Table(
        *words,
        *numbers,
        *["others"] * others,
        caption=f"{caption}; Ctrl-C ends",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name, row in shown:
        found = ["", "", row.event, "", ""]
        if (last := row.last) is not None:
            score = f"{last.rolling.score:.3f}"
            found = [last.model, last.rolling.label, row.event, score, str(last.step)]
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(row.others.items()))
        table.add_row(name, *found, f"{row.records:,}", *[counts] * others)
    return table


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    with suppress(KeyboardInterrupt):
        yield
