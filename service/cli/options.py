"""Settings as options: every setting becomes `--name`, with the same words as in docs/settings.md."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from service.settings import Settings, load_settings, option, unknown_variables

Command = Callable[..., None]
PANEL = "Settings: --name here, ROLLCAST_NAME in the environment"

OF_SHARD = ("shards",)
OF_API = (
    "broker", "home", "host", "port", "models", "prefix", "shards", "max_frame_bytes", "max_pixels", "max_entry_bytes",
    "backlog_bytes", "backlog_s", "max_streams", "max_head_bytes", "head_s", "body_s", "idle_s", "answer_s",
    "max_connections", "max_client_connections", "max_unfinished_bytes", "allowed_hosts", "allowed_origins",
    "default_model_frame", "default_model_samples", "default_model_text", "log_format", "log_level",
)  # fmt: skip
OF_WORKER = (
    "broker", "home", "models", "prefix", "shards", "lease_s", "state_ttl_s", "input_history_s", "output_history_s",
    "settings_ttl_s", "records_kept", "dead_kept", "dead_share", "dead_bytes", "dead_history_s", "batch_entries",
    "max_resident_streams", "decode_threads", "hung_s", "max_frame_bytes", "max_pixels", "decode_s",
    "decode_memory_bytes",
    "default_model_frame", "default_model_samples", "default_model_text", "metrics_port", "metrics_host",
    "log_format", "log_level",
)  # fmt: skip
OF_DOCTOR = ("broker", "home", "models", "prefix", "shards", "backlog_bytes", "max_streams")
OF_UP = tuple(Settings.model_fields)


def with_settings(names: Sequence[str]) -> Callable[[Command], Command]:
    """Gives a command whose first parameter is `settings: Settings` one option for each of these settings."""

    def decorate(command: Command) -> Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            settings = load_settings({name: values.pop(name) for name in names})
            for sentence in unknown_variables():
                print(f"rollcast: {sentence}", file=sys.stderr)
            command(settings, **values)

        parameters = own + [_parameter(name) for name in names]
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    """Text on the command line, whatever the type: settings.py parses and explains, as for the environment."""
    field = Settings.model_fields[name]
    default = "none" if field.default is None else str(field.default)
    given = typer.Option(
        option(name),
        help=f"{field.description} (default: {default})",
        metavar=_metavar(name, field.annotation),
        show_default=False,
        rich_help_panel=PANEL,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, given]
    )


def _metavar(name: str, annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if name.endswith("_s"):
        return "SECONDS"
    kinds = (annotation, *get_args(annotation))
    return "NUMBER" if int in kinds else "PATH" if Path in kinds else "TEXT"
