"""The command line: `rollcast COMMAND`. Its errors are one sentence and an exit status, never a traceback.

0 done · 1 the answer is no (a check failed, the demo's accuracy is low, the server refused) · 2 it cannot start
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from rollcast import Problem, ServerAway
from service import VERSION
from service.cli import ask, doctor, manage, posting, prove, recording, serve, watching
from service.cli.shown import printable
from service.errors import RollcastError, StartError
from service.urls import safe_text

app = typer.Typer(
    name="rollcast",
    help="Rolling classifications over live video, sensor and text streams.",
    epilog=(
        "A first look:\n\n  rollcast up --demo\n\nOr step by step, in two terminals:\n\n  rollcast up\n\n"
        "  rollcast post door-7 seven.png --model digits-cnn && rollcast watch door-7 --after 0"
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
serve.add_to(app)
posting.add_to(app)
ask.add_to(app)
manage.add_to(app)
doctor.add_to(app)
prove.add_to(app)
watching.add_to(app)
recording.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rollcast {VERSION}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of `rollcast`."""
    try:
        app()
    except StartError as error:
        _fail(str(error), StartError.exit_code)
    except (RollcastError, ServerAway) as error:
        _fail(str(error), 1)
    except Problem as problem:
        retry = f" (try again after {problem.retry_after_s:g} s)" if problem.retry_after_s else ""
        _fail(f"{problem.title} [{problem.status} {problem.type}]: {problem.detail}{retry}", 1)
    except BrokenPipeError:  # `rollcast watch … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, status: int) -> None:
    shown = printable(safe_text(message)).replace("[", r"\[")
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]rollcast:[/] {shown}")
    sys.exit(status)
