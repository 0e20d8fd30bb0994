"""Every setting, read once, when a command starts. docs/settings.md has the same table; a test keeps the two together.

A setting is `ROLLCAST_NAME` in the environment and `--name` (dashes for underscores) on the command line, which wins.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import BadSettings
from service.urls import safe_text, safe_url

PREFIX: Final = "ROLLCAST_"
# read elsewhere: HTTP commands, training
OTHER_VARIABLES: Final = frozenset({"ROLLCAST_URL", "ROLLCAST_API_KEY", "ROLLCAST_DATA"})
LONGEST: Final = 200  # characters of a wrong value that are shown
_ORIGIN: Final = re.compile(r"https?://[^/\s@?#]+")
_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def _broker_url(value: str) -> str:
    if not value.startswith(_SCHEMES):
        raise ValueError(f"expected a URL that begins with {', '.join(_SCHEMES)}")
    from service.broker.wire import check_url  # only where a broker is named: it loads the client library

    check_url(value)
    return value


def _key_prefix(value: str) -> str:
    if not value or any(character in value for character in "{}* \t\r\n"):
        raise ValueError("expected a word without braces, asterisks and spaces")
    return value


def _names(value: str) -> str:
    """Names between commas, in lower case.

    >>> _names(" api, Example.org:8443,")
    'api,example.org:8443'
    """
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    if any("/" in name or " " in name for name in names):
        raise ValueError("expected host names between commas, without http:// and without paths")
    return ",".join(names)


def _origins(value: str) -> str:
    origins = [origin.strip().lower() for origin in value.split(",") if origin.strip()]
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("expected origins between commas, as in https://example.org or http://localhost:3000")
    return ",".join(origins)


Port = Annotated[int, Field(ge=0, le=65_535)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Wait = Annotated[float, Field(ge=0.1, le=86_400)]


class Settings(BaseSettings):
    """Frozen. The description is what `--help` and docs/settings.md say."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    broker: Annotated[str, AfterValidator(_broker_url)] | None = Field(
        None, description="URL of a Redis or Valkey; none: `up` starts its own, embedded"
    )
    broker_binary: str | None = Field(
        None, description="program of the embedded broker, a path or a name on PATH; none: the packaged Valkey"
    )
    appendfsync: Literal["everysec", "always"] = Field(
        "everysec",
        description="when the embedded broker syncs its data to disk; always: before each answer, as ack=fsync needs",
    )
    broker_memory_bytes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="memory of the embedded broker's data, at most; none: half of the machine's; 0: no bound"
    )
    home: Path = Field(Path(".rollcast"), description="folder of the embedded broker's data, lock and log")
    host: str = Field("127.0.0.1", description="address the api listens on")
    port: Port = Field(8000, description="port of the api; 0: any free one")
    workers: Positive = Field(1, description="worker processes that `up` starts")
    shards: Annotated[int, Field(ge=1, le=16_384)] = Field(
        32, description="partitions of the log; fixed for the life of a deployment"
    )
    models: Path | None = Field(None, description="folder of model packages, NAME/VERSION/; none: those shipped")
    prefix: Annotated[str, AfterValidator(_key_prefix)] = Field(
        "rollcast", description="what every key in the broker begins with"
    )
    lease_s: Annotated[float, Field(ge=0.1, le=600)] = Field(
        3.0, description="how long a shard stays a worker's that says nothing"
    )
    state_ttl_s: Annotated[float, Field(gt=0, le=315_360_000)] = Field(
        86_400.0, description="a stream silent for longer starts anew (by its entries' ids)"
    )
    input_history_s: Seconds = Field(0.0, description="how long finished entries stay in the log")
    output_history_s: Seconds = Field(600.0, description="how long records are kept")
    records_kept: Positive = Field(1000, description="records kept of a stream, at most")
    dead_kept: Positive = Field(1000, description="refused entries kept in quarantine, at most, a shard")
    dead_share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.1, description="part of the broker's maxmemory that refused entries may take, over all shards"
    )
    dead_bytes: Positive = Field(
        64 * 2**20, description="their bytes in the broker, at most, a shard, whatever dead_share allows"
    )
    dead_history_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        604_800.0, description="how long refused entries are kept"
    )
    settings_ttl_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        2_592_000.0, description="how long settings that somebody set outlive their stream's last entry"
    )
    max_streams: Positive = Field(
        100_000, description="streams of a deployment beyond which POST and PUT answer 429 to a new one"
    )
    backlog_bytes: Positive = Field(
        64 * 2**20, description="unfinished entries' bytes in a shard beyond which POST answers 429"
    )
    backlog_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="POST answers 429 when a shard's unfinished entries take longer than this, as measured"
    )
    batch_entries: Annotated[int, Field(ge=1, le=1024)] = Field(
        1024, description="entries in one batch and one commit, at most"
    )
    max_resident_streams: Annotated[int, Field(ge=64)] = Field(
        16_384, description="streams in a worker's memory, at most; the others' states wait in the broker"
    )
    decode_threads: Positive | None = Field(
        None, description="threads that decode frames, a worker; none: its share of the CPUs, 8 at most"
    )
    max_frame_bytes: Positive = Field(8 * 2**20, description="largest image, bytes")
    max_pixels: Positive = Field(16_777_216, description="largest image, width × height")
    decode_s: Annotated[float, Field(ge=1, le=600)] = Field(
        10.0, description="CPU time to decode one picture, at most; of those that are not provably small"
    )
    decode_memory_bytes: Annotated[int, Field(ge=64 * 2**20)] = Field(
        448 * 2**20, description="memory to decode such pictures, all together, at most, a worker"
    )
    max_entry_bytes: Positive = Field(8 * 2**20, description="largest body of samples, bytes")
    max_head_bytes: Annotated[int, Field(ge=4096)] = Field(
        64 * 2**10, description="largest head of a request, bytes: its URL and headers, or the trailers of its body"
    )
    head_s: Wait = Field(10.0, description="how long the head of a request may take")
    body_s: Wait = Field(30.0, description="how long a body or a WebSocket message may stand still before its end")
    idle_s: Wait = Field(5.0, description="how long a connection stays open after an answer, without a new request")
    answer_s: Wait = Field(30.0, description="how long an answer may wait for a client that reads nothing of it")
    max_connections: Annotated[int, Field(ge=0)] = Field(
        4096, description="open connections of an api process, at most; 0: no bound"
    )
    max_client_connections: Annotated[int, Field(ge=0)] = Field(
        2048, description="of these from one address, at most; 0: no bound, as behind a proxy"
    )
    max_unfinished_bytes: Annotated[int, Field(ge=32 * 2**20)] = Field(
        128 * 2**20, description="bytes of bodies and messages that an api process holds unanswered, at most"
    )
    allowed_hosts: Annotated[str, AfterValidator(_names)] | None = Field(
        None, description="more names that the api may be called by, between commas; *: any"
    )
    allowed_origins: Annotated[str, AfterValidator(_origins)] | None = Field(
        None, description="origins of other sites whose pages may call the api, between commas"
    )
    default_model_frame: str | None = Field(None, description="model of a new stream of frames that names none")
    default_model_samples: str | None = Field(None, description="model of a new stream of samples that names none")
    default_model_text: str | None = Field(None, description="model of a new stream of texts that names none")
    metrics_port: Port = Field(9101, description="worker N serves its metrics on this port + N; 0: any free one")
    metrics_host: str = Field("127.0.0.1", description="address a worker serves its metrics on; 0.0.0.0: on all")
    hung_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        20.0, description="how long an api or a worker may give no sign of life, and one entry take alone"
    )
    log_format: Literal["console", "json"] = Field("console", description="log lines for people or for machines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line, then the environment: no files that change a run from somewhere unseen."""
        return init_settings, env_settings

    def environment(self) -> dict[str, str]:
        """These settings as variables, for a child process that is to read the same."""
        values = self.model_dump(exclude_none=True)
        return {variable(name): str(value) for name, value in values.items()}

    def names(self, setting: Literal["allowed_hosts", "allowed_origins"]) -> list[str]:
        """The names of a setting that has them between commas."""
        value: str | None = getattr(self, setting)
        return value.split(",") if value else []

    def default_models(self) -> dict[str, str]:
        """kind -> model."""
        chosen = {
            "frame": self.default_model_frame,
            "samples": self.default_model_samples,
            "text": self.default_model_text,
        }
        return {kind: model for kind, model in chosen.items() if model is not None}


def load_settings(options: Mapping[str, Any] | None = None) -> Settings:
    """`options`: what the command line gave, by setting name; None values were not given. Raises BadSettings."""
    given = {name: value for name, value in (options or {}).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [_explain(str(fault["loc"][0]), fault, given) for fault in error.errors()]
        raise BadSettings("\n".join(lines)) from None


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each ROLLCAST_ variable that nothing reads: most likely a slip of the pen."""
    known = {variable(name) for name in Settings.model_fields} | OTHER_VARIABLES
    sentences = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not name.startswith("ROLLCAST_TEST_"):
            close = difflib.get_close_matches(name, sorted(known), n=1)
            sentences.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return sentences


def variable(name: str) -> str:
    """
    >>> variable("records_kept")
    'ROLLCAST_RECORDS_KEPT'
    """
    return PREFIX + name.upper()


def option(name: str) -> str:
    """
    >>> option("records_kept")
    '--records-kept'
    """
    return "--" + name.replace("_", "-")


def _explain(name: str, fault: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    source = option(name) if name in given else variable(name)
    expectation = str(fault["msg"])
    for noise in ("Value error, ", "Input should be "):
        expectation = expectation.removeprefix(noise)
    if not expectation.startswith("expected"):
        expectation = f"expected {expectation}"
    description = Settings.model_fields[name].description
    found = fault["input"]
    if isinstance(found, str):  # of any setting: a URL with a password may have come to the wrong one
        found = safe_url(found) if name == "broker" else safe_text(found)
        found = found if len(found) <= LONGEST else f"{found[:LONGEST]}…"
    return f"setting {name}: {found!r} from {source}: {expectation} ({description})"
