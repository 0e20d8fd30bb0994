"""The compose files, read as compose reads them: merged, and with the variables of an .env put in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.deployment import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DEMO = ROOT / "compose.demo.yml"
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:?[-?])([^}]*))?\})")


class Missing(ValueError):
    """A variable that must be given is not; its message is the compose file's."""


def load(*files: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The merged model. Maps are merged, everything else of a later file takes the earlier's place."""
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merge(merged, yaml.safe_load(file.read_text(encoding="utf-8")))
    model = _filled(merged, environ)
    assert isinstance(model, dict)
    return model


def read_env(path: Path) -> dict[str, str]:
    """An .env file's variables."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


class Mount(NamedTuple):
    source: str  # a folder or file of the checkout, or a volume's name
    target: str
    read_only: bool

    @property
    def is_volume(self) -> bool:
        return not self.source.startswith((".", "/"))


def mounts(service: Mapping[str, Any]) -> list[Mount]:
    parts = [volume.split(":") for volume in service.get("volumes", [])]
    return [Mount(source, target, mode == ["ro"]) for source, target, *mode in parts]


def published(service: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(address of the host, its port, port of the container)."""
    parts = [port.rsplit(":", 2) for port in service.get("ports", [])]
    return [(address, int(host), int(inner)) for address, host, inner in parts]


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _merge(old.get(key), new.get(key, old.get(key))) for key in [*old, *(new.keys() - old.keys())]}
    return old if new is None else new


def _filled(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, environ) for item in value]
    return _put_in(value, environ) if isinstance(value, str) else value


def _put_in(text: str, environ: Mapping[str, str]) -> str:
    """
    >>> _put_in("${A:-1gb} $$x ${B}", {"B": "2"})
    '1gb $x 2'
    """

    def one(found: re.Match[str]) -> str:
        name, how, other = found.groups()
        if name is None:
            return "$"
        given = environ.get(name)
        if given is None or (not given and how and how.startswith(":")):
            if how and how.endswith("?"):
                raise Missing(f"required variable {name} is missing a value: {other}")
            return other or ""
        return given

    return _VARIABLE.sub(one, text)
