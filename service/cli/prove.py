"""`rollcast chaos`: state that survives anything, proved on this machine."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from service.errors import BrokerFailed


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Look")(chaos)


def chaos(
    seconds: Annotated[float, typer.Option("--seconds", help="How long entries are posted and faults made.", min=1)] = (
        60.0
    ),
    workers: Annotated[int, typer.Option("--workers", help="Worker processes.", min=1, max=64)] = 3,
    streams: Annotated[
        int, typer.Option("--streams", help="Streams; a third of them sparse, the others in bursts.", min=2, max=10_000)
    ] = 300,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Entries and the order of faults follow from it; default: any.", min=0)
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder with the broker's data and the workers' logs.")
    ] = False,
    broker_binary: Annotated[
        str | None,
        typer.Option(
            "--broker-binary", help="The server to ill-treat, redis-server say; default: the packaged Valkey."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict as one line of JSON.")] = False,
) -> None:
    """Break everything for a while, then compare every record with an undisturbed replay.

    Runs a broker and workers of its own, in a temporary folder. Workers are killed and stopped, their connections
    cut, held and slowed; the broker runs out of memory, is killed, loses the tail of its log, and is replaced by an
    empty one. Exit status 1 when a record was lost, doubled, out of order or different, or when a kind of fault did
    not happen.
    """
    from service.chaos.run import Chaos, Options

    console, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    chosen = random.randrange(1_000_000) if seed is None else seed
    options = Options(seconds, workers, streams, chosen, broker_binary=broker_binary)
    with progress.status("starting") as status:

        def show(line: str) -> None:
            if progress.is_terminal:
                status.update(line)
            else:
                progress.print(line, soft_wrap=True, markup=False)

        run = Chaos(options, show)
        try:
            verdict = run.run()
        except (KeyboardInterrupt, BrokerFailed):
            shutil.rmtree(run.home, ignore_errors=True)
            raise
    if verdict.passed and not keep:
        shutil.rmtree(run.home, ignore_errors=True)
    else:
        verdict = replace(verdict, evidence=str(run.home))
    if as_json:
        print(json.dumps(verdict.as_json()))
    else:
        verdict.show(console)
    raise typer.Exit(0 if verdict.passed else 1)
