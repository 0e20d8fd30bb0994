"""The OpenAPI document: the routes as the framework knows them, schemas of what msgspec encodes, examples."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.described import DeadSummary, StreamDetail, StreamSummary
from service.api.examples import COMPONENTS
from service.api.posted import LoggedEntry, PostedEntry
from service.api.problems import TYPE_PREFIX
from service.api.schemas import REF, Schema, problem_types, problems
from service.contracts import Done, Dropped, Duplicate, Manifest, Prediction, Refused
from service.controls import NewSettings

TYPES: Final = (
    Prediction, Refused, Dropped, Duplicate, Done, Manifest, StreamSummary, StreamDetail, NewSettings, DeadSummary,
    PostedEntry, LoggedEntry,
)  # fmt: skip
BEFORE_A_CALL: Final = (400, 403, 408, 415, 421, 431)  # said before it is known which call it is
OF_ALL: Final = (*BEFORE_A_CALL, 500, 503)
_PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "RFC 9457. After a wait it adds the entry's `id` and `stream`, and `reason`, `of` or `stopping`.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "id": {"type": "string"},
        "stream": {"type": "string"},
        "reason": {"type": "string"},
        "of": {"type": "string"},
        "stopping": {"type": "boolean"},
    },
}


def describe(app: FastAPI) -> Schema:
    """The OpenAPI document."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    _, schemas = msgspec.json.schema_components(TYPES, ref_template=REF + "{name}")
    del schemas["Manifest"]["additionalProperties"]  # an answer says more
    for name, example in COMPONENTS.items():
        schemas[name]["examples"] = [example]
    types = sorted(TYPE_PREFIX + kind for kinds in problem_types().values() for kind in kinds)
    typed = _PROBLEM["properties"] | {"type": {"type": "string", "enum": types}}
    schemas["Problem"] = _PROBLEM | {"properties": typed}
    components = document.setdefault("components", {})
    kept = {name: schema for name, schema in components.get("schemas", {}).items() if "Validation" not in name}
    components["schemas"] = {**kept, **schemas}
    for path, methods in document["paths"].items():
        for call in methods.values():
            answers = call["responses"]
            _leave_out_what_is_not_ours(answers)
            for status, answer in problems(*(OF_ALL if path.startswith("/v1/") else BEFORE_A_CALL)).items():
                answers.setdefault(str(status), answer)
            contents = [call.get("requestBody", {}), *answers.values()]
            for content in [one for said in contents for one in said.get("content", {}).values()]:
                name = content.get("schema", {}).get("$ref", "").removeprefix(REF)
                if "example" not in content and "examples" not in content and name in COMPONENTS:
                    content["example"] = COMPONENTS[name]
    return document


def _leave_out_what_is_not_ours(answers: dict[str, Any]) -> None:
    """What the framework adds: JSON to every answer, and its own errors of validation, where ours are problems."""
    for content in (answer.get("content", {}) for answer in answers.values()):
        if content.get("application/json", {}).get("schema") == {}:
            del content["application/json"]
    if "application/json" in answers.get("422", {}).get("content", {}):
        del answers["422"]
