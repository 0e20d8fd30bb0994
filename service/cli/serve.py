"""Commands that run rollcast, or look at its files: up, api, worker, demo, check, shard.

What they need is imported when they run: `rollcast --help` should not wait for ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rollcast.client import DEFAULT_URL
from service.cli.options import OF_API, OF_SHARD, OF_UP, OF_WORKER, with_settings
from service.cli.reach import Url
from service.contracts import check_stream_id
from service.keys import shard_of
from service.settings import Settings


def add_to(app: typer.Typer) -> None:
    for command, settings in ((up, OF_UP), (api, OF_API), (worker, OF_WORKER)):
        app.command(rich_help_panel="Run")(with_settings(settings)(command))
    app.command(rich_help_panel="Run")(demo)
    app.command(rich_help_panel="Look")(check)
    app.command(rich_help_panel="Look")(with_settings(OF_SHARD)(shard))


def up(
    settings: Settings,
    demo: Annotated[
        bool, typer.Option("--demo", help="Also feed real digits and sensor rows, and show a table.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Stop by itself after this long; default: on Ctrl-C.", min=0.1)
    ] = None,
) -> None:
    """Run everything: the broker (unless --broker names one), the api and the workers.

    Data is kept in --home: the next `rollcast up` continues where this one stops. Ctrl-C stops it.
    """
    from service import app

    raise typer.Exit(app.run_up(settings, demo=demo, seconds=seconds))


def api(
    settings: Settings,
    fd: Annotated[int | None, typer.Option("--fd", help="Listen on this open socket.", hidden=True)] = None,
) -> None:
    """Run one api process on a broker that runs elsewhere (--broker)."""
    from service import app

    app.run_api(settings, fd)


def worker(
    settings: Settings,
    number: Annotated[int, typer.Option("--number", help="Which worker this is, from 0.", min=0, max=9999)] = 0,
    name: Annotated[str | None, typer.Option("--name", help="Its id in the deployment.", hidden=True)] = None,
    pulse: Annotated[int | None, typer.Option("--pulse", help="Write heartbeats into it.", hidden=True)] = None,
) -> None:
    """Run one worker process on a broker that runs elsewhere (--broker)."""
    from service import app

    app.run_worker(settings, number, name, pulse)


def demo(
    url: Url = DEFAULT_URL,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Stop by itself after this long; default: on Ctrl-C.", min=0.1)
    ] = None,
) -> None:
    """Feed a running api the demo's real digits and sensor rows, and show a table: its producers without a server.

    Exit status 1 when an answer is missing or an accuracy is low.
    """
    from service import app

    raise typer.Exit(app.run_demo(url, None, seconds))


def shard(settings: Settings, stream: Annotated[str, typer.Argument(help="A stream's id.")]) -> None:
    """Print the shard of a stream: for producers that write to Redis themselves."""
    typer.echo(shard_of(check_stream_id(stream), settings.shards))


def check(
    package: Annotated[Path, typer.Argument(help="A package's folder, NAME/VERSION.", exists=True, file_okay=False)],
) -> None:
    """Prove a model package equal to its certificate, as the server does before it serves it.

    Exit status 1 when a check fails.
    """
    from service import parity
    from service.errors import PackageRefused
    from service.packages import load_package

    console = Console(highlight=False)
    try:
        report = parity.check(load_package(package))
    except PackageRefused as error:
        console.print(f"refused ({error.check}): {error}", soft_wrap=True, markup=False)
        raise typer.Exit(1) from None
    table = Table(
        "check", "largest difference", "at most", "", "what", title=f"{report.name}, version {report.version}"
    )
    for one in report.checks:
        table.add_row(one.name, f"{one.figure:.1e}", f"{one.limit:.0e}", "ok" if one.passed else "FAILED", one.detail)
    console.print(table)
    raise typer.Exit(0 if report.passed else 1)
