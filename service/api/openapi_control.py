"""What /docs says of the calls that change a stream, its state and quarantine. One constant a route."""

from __future__ import annotations

from typing import Final

from service.api.examples import COMPONENTS, DEAD, DEAD_ENTRY
from service.api.query import MAX_RECORDS, MAX_WAIT_S
from service.api.schemas import ID, Responses, Route, Schema, array, get, json, object_of, problems, query, ref, seconds
from service.portable import MEDIA_TYPE

CONTROL_WAIT_S: Final = 10.0  # how long a control is waited for when the caller does not say

_STREAM: Final[Schema] = {"type": "string"}
_BINARY: Final[Schema] = {"schema": {"type": "string", "format": "binary"}}
_WAIT: Final = query(
    "wait",
    {**seconds(MAX_WAIT_S), "default": CONTROL_WAIT_S},
    "Wait this many seconds for the control's record, and answer with it; 0: answer at once.",
)
_CARRIED_OUT: Final[Responses] = {
    200: {
        "description": "It was carried out, in its turn in the stream's log.",
        "content": json(
            ref("Done"), {"type": "done", "id": "1763860000000-2", "stream": "cam-1", "action": "settings"}
        ),
    },
    202: {
        "description": "With `wait=0`: it is in the log.",
        "content": json(object_of(id=ID, stream=_STREAM), {"id": "1763860000000-2", "stream": "cam-1"}),
    },
}


def _control(*statuses: int, body: Schema | None = None, **more: Schema) -> Route:
    extra: Schema = {"parameters": [_WAIT], **more}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": body}
    responses = {**_CARRIED_OUT, **problems(400, 422, 503, 504, *statuses)}
    return {"response_model": None, "responses": responses, "openapi_extra": extra}


PUT_STREAM: Final = _control(
    404,
    413,
    429,
    body=json(
        ref("NewSettings"),
        {"model": "digits-cnn", "rolling": {"half_life_s": 0.5, "enter": 0.7, "exit": 0.3}, "state_ttl_s": 3600},
    ),
)
DELETE_STREAM: Final = _control(404)
DELETE_STATE: Final = _control(404)
PUT_STATE: Final = _control(404, 409, 413, 415, 429, body={MEDIA_TYPE: _BINARY, "application/octet-stream": _BINARY})
GET_STATE: Final = get(
    {
        200: {
            "description": "The state; with `Accept: application/json` what it is, without its tensors' values.",
            "content": {MEDIA_TYPE: _BINARY, **json(ref("StateSummary"))},
        },
        **problems(400, 404, 409, 503),
    }
)

_DEAD_ENTRY: Final[Schema] = {
    "allOf": [
        ref("DeadSummary"),
        object_of(
            fields={"type": "object", "description": "the entry's other fields, as they came"},
            data={
                "type": ["string", "null"],
                "format": "byte",
                "description": "its bytes, in base64; null where they were too many to be kept",
            },
        ),
    ]
}
GET_DEAD: Final = get(
    {
        200: {
            "description": "Refused entries, shard by shard, the oldest first; `next` is the `after` of the next page, "
            "null after the last one. A page may be short, or empty.",
            "content": json(object_of(dead=array(ref("DeadSummary")), next={"type": ["string", "null"]}), DEAD),
        },
        **problems(400, 503),
    },
    [
        query("stream", {"type": "string"}, "Only of this stream."),
        query("reason", {"type": "string"}, "Only with this reason."),
        query("after", {"type": "string"}, "Where the page begins: the `next` of the one before. Opaque."),
        query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_RECORDS, "default": 100}, "At most so many."),
    ],
)
DELETE_MANY_DEAD: Final = get(
    {
        200: {
            "description": "So many left quarantine. `next`, unless it is null: call again with it as `after`.",
            "content": json(
                object_of(dropped={"type": "integer"}, next={"type": ["string", "null"]}),
                {"dropped": 104, "next": "MTcgMTc2Mzg2MDAwMDI1MC0w"},
            ),
        },
        **problems(400, 503),
    },
    [
        query("stream", {"type": "string"}, "Those of this stream."),
        query("reason", {"type": "string"}, "Those with this reason."),
        query("all", {"type": "integer", "enum": [0, 1]}, "1: all that are kept; without `stream` and `reason`."),
        query("after", {"type": "string"}, "Where to go on: the `next` of the call before. Opaque."),
    ],
)
GET_DEAD_ENTRY: Final = get(
    {
        200: {
            "description": "The entry; with `Accept: application/octet-stream` its bytes alone, as they came.",
            "content": {**json(_DEAD_ENTRY, DEAD_ENTRY), "application/octet-stream": _BINARY},
        },
        **problems(400, 404, 503),
    }
)
DELETE_DEAD: Final = get(
    {
        200: {
            "description": "It left quarantine.",
            "content": json(
                object_of(id=ID, stream=_STREAM, dropped={"type": "boolean"}),
                {"id": "1763860000250-0", "stream": "belt-1", "dropped": True},
            ),
        },
        **problems(400, 404, 503),
    }
)
RETRY_DEAD: Final[Route] = {
    "status_code": 202,
    "response_model": None,
    "responses": {
        200: {
            "description": "With `wait`: the new entry's record.",
            "content": json({"oneOf": [ref("Prediction"), ref("Done")]}, COMPONENTS["Prediction"]),
        },
        202: {
            "description": "The new entry is in the log.",
            "content": json(
                object_of(id=ID, stream=_STREAM, retry_of=ID, dropped={"type": "boolean"}),
                {"id": "1763860000900-0", "stream": "belt-1", "retry_of": "1763860000250-0", "dropped": False},
            ),
        },
        **problems(400, 404, 409, 410, 413, 422, 429, 503, 504),
    },
    "openapi_extra": {
        "parameters": [
            query("model", {"type": "string"}, "Else the model the entry came with, if it named one."),
            query("drop", {"type": "integer", "enum": [0, 1]}, "1: the old entry leaves quarantine."),
            query("wait", seconds(MAX_WAIT_S), "Wait this many seconds for the new entry's record."),
        ]
    },
}
