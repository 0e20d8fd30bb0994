"""Small parts of what /docs says: schemas, parameters, problems."""

from __future__ import annotations

from typing import Any, Final

from service.api.problems import HTTP_TYPES, MEDIA_TYPE
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

    def visit(error: type[RollcastError]) -> None:
        if issubclass(error, StartError):
            return  # said on the terminal, never over HTTP
        if error.type not in types.setdefault(error.status, []):
            types[error.status].append(error.type)
        for below in error.__subclasses__():
            visit(below)

    visit(RollcastError)
    return types


def problems(*statuses: int) -> Responses:
    types = problem_types()
    return {
        status: {
            "description": ", ".join(f"`{kind}`" for kind in types[status]),
            "content": {MEDIA_TYPE: {"schema": ref("Problem")}},
        }
        for status in statuses
    }


ID: Final[Schema] = {"type": "string", "pattern": r"^\d+-\d+$", "examples": ["1763860000000-0"]}
RECORD: Final[Schema] = {"oneOf": [ref(t.__name__) for t in (Prediction, Refused, Dropped, Duplicate, Done)]}


def get(responses: Responses, parameters: list[Schema] | None = None) -> Route:
    extra = {"parameters": parameters} if parameters else None
    return {"response_model": None, "responses": responses, "openapi_extra": extra}
