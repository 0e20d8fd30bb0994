"""The OpenAPI document is complete: every body, answer and error has a schema and an example, which fits it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rollcast import shapes
from service.api import create_app
from service.api.examples import DETAILS
from service.api.schemas import problem_types
from service.metrics import create_registry
from tests.described import Document
from tests.doubles import MemoryBroker
from tests.ports.fake_predictions import FakePredictions

DOCUMENT = Document(create_app(FakePredictions(MemoryBroker()), [], create_registry()).openapi())


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body and every answer, and where it stands."""
    for path, calls in DOCUMENT.document["paths"].items():
        for method, call in calls.items():
            for media, content in call.get("requestBody", {}).get("content", {}).items():
                yield f"{method} {path}: body {media}", content
            for status, answer in call["responses"].items():
                for media, content in answer.get("content", {}).items():
                    yield f"{method} {path}: {status} {media}", content


def is_binary(schema: dict[str, Any]) -> bool:
    return "binary" in str(schema)


@pytest.mark.parametrize(("where", "content"), [pytest.param(*one, id=one[0]) for one in contents()])
def test_every_body_and_answer_has_a_schema_and_an_example_that_fits(where: str, content: dict[str, Any]) -> None:
    assert content.get("schema"), where
    if is_binary(content["schema"]):
        return
    examples = [one["value"] for one in content.get("examples", {}).values()] or [content["example"]]
    for example in examples:
        if not isinstance(example, str):
            assert DOCUMENT.wrong(example, content["schema"]) == ""


def test_no_body_or_answer_is_left_out() -> None:
    found = [where for where, _ in contents()]
    assert len(found) >= 100
    assert sum(": body " in where for where in found) >= 10
    assert {method for where in found for method in [where.split()[0]]} == {"get", "put", "post", "delete"}


def test_every_problem_has_an_example() -> None:
    assert DETAILS.keys() == {kind for kinds in problem_types().values() for kind in kinds}


def test_every_parameter_has_a_description_and_a_schema() -> None:
    seen = 0
    for path, calls in DOCUMENT.document["paths"].items():
        for method, call in calls.items():
            for parameter in call.get("parameters", []):
                seen += 1
                assert parameter["schema"], f"{method} {path}"
                assert parameter["in"] == "path" or parameter["description"], f"{method} {path}: {parameter['name']}"
    assert seen >= 60


def test_who_is_told_to_try_again_is_told_when() -> None:
    seen: set[str] = set()
    for calls in DOCUMENT.document["paths"].values():
        for call in calls.values():
            for status in call["responses"].keys() & {"429", "503"}:
                if "readyz" not in call["operationId"]:
                    seen.add(f"{status} {call['operationId']}")
                    assert "Retry-After" in call["responses"][status]["headers"]
    assert {one[:3] for one in seen} == {"429", "503"}
    assert len(seen) >= 20


@pytest.mark.parametrize(
    ("value", "schema", "told"),
    [
        ({"a": 1}, {"type": "object", "required": ["b"]}, "without b"),
        ({"a": 1}, {"type": "object", "properties": {"a": {"type": "string"}}}, "$.a: 1 is no string"),
        ({"a": 1}, {"type": "object", "additionalProperties": False}, "'a' is not described"),
        ([1, "x"], {"type": "array", "items": {"type": "number"}}, "$[1]: 'x' is no number"),
        ("z", {"enum": ["x", "y"]}, "none of"),
        ("z", {"oneOf": [{"type": "null"}, {"pattern": "^a"}]}, "none of 2"),
        (True, {"type": "integer"}, "is no integer"),
        ({"type": "prediction"}, {"$ref": "#/components/schemas/Prediction"}, "without"),
    ],
)
def test_what_does_not_fit_is_seen(value: Any, schema: dict[str, Any], told: str) -> None:
    assert told in DOCUMENT.wrong(value, schema)


@pytest.mark.parametrize(
    "name", ["StreamSummary", "StreamDetail", "DeadSummary", "StateSummary", "TensorSummary", "Backlog"]
)
def test_the_clients_shapes_are_those_of_the_service(name: str) -> None:
    described = DOCUMENT.document["components"]["schemas"][name]["properties"].keys()
    assert getattr(shapes, name).__annotations__.keys() - {"last"} == described
