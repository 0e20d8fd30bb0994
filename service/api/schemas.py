"""Small parts of what /docs says: schemas, parameters, problems."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from service.api.examples import DETAILS, MEMBERS
from service.api.problems import HTTP_TYPES, MEDIA_TYPE, TYPE_PREFIX
from service.contracts import Done, Dropped, Duplicate, Prediction, Refused
from service.errors import RollcastError, StartError

Route = dict[str, Any]  # keyword arguments of a route
Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]
REF: Final = "#/components/schemas/"


def ref(name: str) -> Schema:
    return {"$ref": REF + name}


def json(schema: Schema, example: Any = None) -> Schema:
    content: Schema = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def object_of(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def seconds(high: float) -> Schema:
    return {"type": "number", "minimum": 0, "maximum": high}


def problem_types() -> dict[int, list[str]]:
    """Status -> the problem types that answer with it."""
    types: dict[int, list[str]] = {status: [kind] for status, kind in HTTP_TYPES.items()}
    for error in problem_errors():
        if error.type not in types.setdefault(error.status, []):
            types[error.status].append(error.type)
    return types


def problem_errors() -> list[type[RollcastError]]:
    """Those that are said over HTTP; others only on the terminal."""

    def below(error: type[RollcastError]) -> list[type[RollcastError]]:
        return [error, *(one for sub in error.__subclasses__() if sub is not StartError for one in below(sub))]

    return below(RollcastError)


def problems(*statuses: int) -> Responses:
    return {status: _problem(status, problem_types()[status]) for status in statuses}


def _problem(status: int, kinds: list[str]) -> dict[str, Any]:
    titles = {error.type: error.title for error in problem_errors()} | {
        kind: HTTPStatus(code).phrase for code, kind in HTTP_TYPES.items()
    }
    examples = {
        kind: {
            "summary": titles[kind],
            "value": {
                "type": TYPE_PREFIX + kind, "title": titles[kind], "status": status, "detail": DETAILS[kind],
                **MEMBERS.get(kind, {}),
            },
        }
        for kind in kinds
    }  # fmt: skip
    described: dict[str, Any] = {
        "description": ", ".join(f"`{kind}`" for kind in kinds),
        "content": {MEDIA_TYPE: {"schema": ref("Problem"), "examples": examples}},
    }
    if status in (429, 503):
        described["headers"] = {
            "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
        }
    return described


ID: Final[Schema] = {"type": "string", "pattern": r"^\d+-\d+$", "examples": ["1763860000000-0"]}
RECORD: Final[Schema] = {"oneOf": [ref(t.__name__) for t in (Prediction, Refused, Dropped, Duplicate, Done)]}


def get(responses: Responses, parameters: list[Schema] | None = None) -> Route:
    extra = {"parameters": parameters} if parameters else None
    return {"response_model": None, "responses": responses, "openapi_extra": extra}
