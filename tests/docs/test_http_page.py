"""docs/http.md has every call of the interface, and every parameter, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from service.api import create_app
from service.metrics import create_registry
from tests.doubles import MemoryBroker
from tests.ports.fake_predictions import FakePredictions

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")


def calls() -> dict[str, Any]:
    """`GET /path` -> what OpenAPI says of it."""
    paths = create_app(FakePredictions(MemoryBroker()), [], create_registry()).openapi()["paths"]
    return {f"{method.upper()} {path}": call for path, methods in paths.items() for method, call in methods.items()}


def test_every_call_has_its_line() -> None:
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", PAGE, re.MULTILINE)) == calls().keys()


def test_every_parameter_is_named() -> None:
    seen: set[str] = set()
    for name, call in calls().items():
        for parameter in call.get("parameters", []):
            if parameter["in"] != "path":
                seen.add(parameter["name"])
                assert re.search(rf"`\??{parameter['name']}(=\w+)?`", PAGE), f"{name}: {parameter['name']}"
    assert seen >= {"model", "wait", "ack", "after", "limit", "sort", "when_full", "Last-Event-ID"}
