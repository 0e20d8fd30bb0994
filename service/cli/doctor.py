"""`rollcast doctor`: what is wrong with a deployment, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from service.cli.options import OF_DOCTOR, with_settings
from service.errors import BrokerAway, BrokerFailed
from service.settings import Settings

if TYPE_CHECKING:
    from service.doctor import Finding

WORDS = {"well": "[green]ok[/]", "advice": "[cyan]advice[/]", "fix": "[bold red]FIX[/]", "unknown": "[yellow]?[/]"}
EXITS = {"well": 0, "fix": 1, "unknown": 2}


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Look")(with_settings(OF_DOCTOR)(doctor))


def doctor(
    settings: Settings,
    url: Annotated[
        str | None, typer.Option("--url", envvar="ROLLCAST_URL", help="Also ask the api that listens here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as one line of JSON.")] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="First mend shards that ids of no clock have spoilt; as the worker's user.")
    ] = False,
) -> None:
    """Look at everything, change nothing, and say what to fix.

    Looks at this installation, the broker and what runs on it; give the settings that api and workers have. Exit
    status 0: all is well; 1: something is to be fixed; 2: it cannot tell, since the broker does not answer.
    """
    from service.doctor import examine, repair, status_of
    from service.embedded import url_on

    home, broker = None, settings.broker
    if broker is None:
        home = settings.home.expanduser().absolute()
        with suppress(BrokerFailed):
            broker = url_on(home)
    steps: list[str] = []
    if mend and broker is not None:
        tell = steps.append if as_json else partial(print, flush=True)
        try:
            repair(broker, settings.prefix, tell)
        except BrokerAway as error:
            tell(error.detail)
    findings = examine(
        broker,
        prefix=settings.prefix,
        shards=settings.shards,
        models=settings.models,
        home=home,
        backlog_bytes=settings.backlog_bytes,
        max_streams=settings.max_streams,
        api=url,
    )
    status = status_of(findings)
    if as_json:
        checks = [
            {"check": one.check, "verdict": one.verdict, "found": one.found, "cure": one.cure} for one in findings
        ]
        print(json.dumps({"status": status, "findings": checks} | ({"repair": steps} if mend else {})))
    else:
        _show(findings, status)
    raise typer.Exit(EXITS[status])


def _show(findings: Sequence[Finding], status: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for one in findings:
        word = WORDS[one.verdict]
        console.print(f"{word}{' ' * (7 - len(_plain(word)))}{one.check:<12} ", end="")
        console.print(one.found, markup=False)
        if one.cure:
            console.print(f"{' ' * 20}→ {one.cure}", markup=False)
    wrong = sum(one.verdict == "fix" for one in findings)
    console.print({"well": "all is well", "fix": f"{wrong} to fix", "unknown": "cannot tell"}[status])


def _plain(markup: str) -> str:
    return markup[markup.index("]") + 1 : markup.rindex("[")]
