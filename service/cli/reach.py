"""How commands reach a running api, and options that several of them have."""

from __future__ import annotations

import os
from typing import Annotated

import httpx
import typer

from rollcast import Client
from rollcast.client import RETRY_S
from rollcast.flow import Waits, unsaid
from service.errors import StartError
from service.urls import safe_url

Url = Annotated[
    str, typer.Option("--url", envvar="ROLLCAST_URL", help="Where the api listens.", rich_help_panel="Connection")
]
Stream = Annotated[str, typer.Argument(help="A stream's id, such as cam-1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def connect(url: str, *, retry_s: float = RETRY_S, waiting: Waits = unsaid) -> Client:
    """With the key from the environment only: a command line is seen by everybody on the machine."""
    try:
        return Client(url, os.environ.get("ROLLCAST_API_KEY") or None, retry_s=retry_s, waiting=waiting)
    except (ValueError, TypeError, httpx.InvalidURL):
        raise StartError(f"--url {safe_url(url)}: expected http://HOST:PORT or https://…") from None
