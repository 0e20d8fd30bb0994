"""What /docs says of each call: parameters, bodies, answers, problems. One constant a route, used by its decorator."""

from __future__ import annotations

from typing import Final

from service import VERSION
from service.api.examples import ACCEPTED, MODEL, PAGE, STREAM, STREAMS
from service.api.follower import WHEN_FULL
from service.api.query import MAX_RECORDS, MAX_WAIT_S
from service.api.schemas import ID as _ID
from service.api.schemas import RECORD as _RECORD
from service.api.schemas import Responses, Route, Schema
from service.api.schemas import array as _array
from service.api.schemas import get as _get
from service.api.schemas import json as _json
from service.api.schemas import object_of as _object
from service.api.schemas import problems as _problems
from service.api.schemas import query as _query
from service.api.schemas import ref as _ref
from service.api.schemas import seconds as _seconds
from service.codec import MAX_INTERVAL_S, MAX_SEQ, MAX_TIME_S
from service.contracts import RECORD_TYPES
from service.metrics import CONTENT_TYPE

_FLAG: Final[Schema] = {"type": "integer", "enum": [0, 1]}
_MODEL: Final[Schema] = {
    "allOf": [
        _ref("Manifest"),
        _object(parity={"type": "object"}, served={"type": "boolean", "description": "a live worker has it"}),
    ]
}

# --- posting -----------------------------------------------------------------------------------------------------

_ACK: Final = _query(
    "ack",
    {"type": "string", "enum": ["log", "fsync"]},
    "`fsync`: answer only when it is on disk, or 501; else log.",
)
_POST_QUERY: Final = [
    _query(
        "model", {"type": "string"}, "Else the stream's, else the default of this kind, else the only one that fits."
    ),
    _query(
        "seq", {"type": "integer", "minimum": 0, "maximum": MAX_SEQ}, "The producer's own counter: makes retries safe."
    ),
    _query("time", _seconds(MAX_TIME_S), "Event time, seconds since 1970; of the last row of a block."),
    _query("start", _FLAG, "1: the state begins anew before this entry."),
    _query("end", _FLAG, "1: the state is dropped after this entry."),
    _query("wait", _seconds(MAX_WAIT_S), "Wait this many seconds for the entry's record, and answer with it."),
    _ACK,
]
_INTERVAL: Final = _query("interval_s", _seconds(MAX_INTERVAL_S), "Seconds between rows; else the model's rate.")
_ACCEPTED: Final[Responses] = {
    200: {"description": "With `wait`: the prediction.", "content": _json(_ref("Prediction"))},
    202: {
        "description": "The entry is in the log.",
        "content": _json(
            _object(id=_ID, stream={"type": "string"}, model={"type": "string"}),
            ACCEPTED,
        ),
    },
    **_problems(400, 404, 409, 410, 413, 415, 422, 429, 501, 503, 504),
}
_BINARY: Final[Schema] = {"schema": {"type": "string", "format": "binary"}}


def _post(content: Schema, parameters: list[Schema]) -> Route:
    return {
        "status_code": 202,
        "response_model": None,
        "responses": _ACCEPTED,
        "openapi_extra": {"parameters": parameters, "requestBody": {"required": True, "content": content}},
    }


POST_FRAME: Final = _post(
    {
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "image/webp": _BINARY,
        "multipart/form-data": {
            "schema": _object(frame={"type": "string", "format": "binary"}),
            "encoding": {"frame": {"contentType": "image/jpeg, image/png, image/webp"}},
        },
    },
    _POST_QUERY,
)
POST_SAMPLES: Final = _post(
    {
        **_json(
            {
                "type": "object",
                "required": ["samples"],
                "additionalProperties": False,
                "properties": {
                    "samples": {"type": "array", "minItems": 1, "items": _array({"type": "number"})},
                    "time": _seconds(MAX_TIME_S),
                },
            },
            {"samples": [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3]], "time": 1763860000.0},
        ),
        "text/csv": {
            "schema": {"type": "string"},
            "example": "avg_rss12,var_rss12,avg_rss13,var_rss13,avg_rss23,var_rss23\n39.25,0.43,22.75,0.43,33.75,1.3\n",
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary", "description": "float32 rows"}},
    },
    [*_POST_QUERY, _INTERVAL],
)

POST_TEXT: Final = _post(
    {
        "text/plain": {"schema": {"type": "string"}, "example": "a stirring , funny film"},
        **_json(
            {
                "type": "object",
                "required": ["text"],
                "additionalProperties": False,
                "properties": {"text": {"type": "string", "minLength": 1}, "time": _seconds(MAX_TIME_S)},
            },
            {"text": "a stirring , funny film", "time": 1763860000.0},
        ),
    },
    _POST_QUERY,
)

POST_ENTRIES: Final[Route] = {
    "response_model": None,
    "responses": {
        200: {
            "description": 'One line an entry, in order: `{"id", "stream"}`, or a problem.',
            "content": {
                "application/x-ndjson": {
                    "schema": {"type": "string"},
                    "example": '{"id":"1763860000000-0","stream":"belt-1"}\n{"type":"problem","status":422, …}\n',
                }
            },
        },
        **_problems(400, 413, 415),
    },
    "openapi_extra": {
        "parameters": [_ACK],
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {
                    "schema": _ref("PostedEntry"),
                    "example": '{"stream":"belt-1","kind":"samples","samples":[[39.25,0.43,22.75,0.43,33.75,1.3]]}\n',
                }
            },
        },
    },
}

GET_ENTRIES: Final = _get(
    {
        200: {
            "description": "A line an entry, for ever; an empty one at first, and where nothing came for a while.",
            "content": {
                "application/x-ndjson": {
                    "schema": _ref("LoggedEntry"),
                    "example": '{"id":"1763860000000-0","stream":"talk-1","kind":"text","text":"a funny film"}\n',
                }
            },
        },
        **_problems(400, 503),
    },
    [_query("after", {"type": "string"}, "Begin after this entry; 0, the default: with all that the log still holds.")],
)

# --- reading -----------------------------------------------------------------------------------------------------


_WHEN_FULL: Final = _query(
    "when_full",
    {"type": "string", "enum": list(WHEN_FULL), "default": "catch_up"},
    "Events, when this subscriber reads too slowly: read what it missed from the broker, drop the oldest records and "
    "say `gap`, or say `bye` and end.",
)
_LAST_EVENT_ID: Final[Schema] = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Events: the last one seen; goes before `after`.",
}
GET_PREDICTIONS: Final = _get(
    {
        200: {
            "description": (
                "`text/event-stream`: every record after the cursor as it comes; a prediction is an unnamed event, "
                "`refused`, `dropped`, `duplicate`, `done`, `gap` and `bye` are named. "
                "`application/json`: a page, ascending; `gap` is true where records before it "
                "are not kept any more, or were lost with the log's tail."
            ),
            "content": {
                **_json(_object(predictions=_array(_RECORD), next=_ID, gap={"type": "boolean"}), PAGE),
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'data: {"type":"prediction","id":"1763860000000-0", …}\nid: 1763860000000-0\n\n',
                },
            },
        },
        **_problems(400, 503),
    },
    [
        _query(
            "after",
            {"type": "string"},
            "Cursor: the id of an entry; 0: all that is kept. None: from now, or the newest.",
        ),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_RECORDS}, "JSON: at most so many records."),
        _query(
            "type", {"type": "string", "enum": ["all", *RECORD_TYPES], "default": "prediction"}, "JSON: which records."
        ),
        _WHEN_FULL,
        _LAST_EVENT_ID,
    ],
)
GET_MANY_PREDICTIONS: Final = _get(
    {
        200: {
            "description": (
                "Every record of the streams that fit, as it comes; in order within a stream. Events are named as of "
                "one stream; each `id` is an opaque cursor, a record's own id stands in its JSON."
            ),
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'data: {"type":"prediction","id":"1763860000000-0", …}\nid: AQIArAICqxIAAAAA\n\n',
                },
            },
        },
        **_problems(400, 503),
    },
    [
        _query(
            "stream",
            {"type": "array", "items": {"type": "string"}, "default": ["*"]},
            "A stream's name, in which `*` stands for any characters and `?` for one. May be given several times.",
        ),
        _query("after", {"type": "string"}, "Cursor: an event's id; 0: all that is kept. None: from now."),
        _WHEN_FULL,
        _LAST_EVENT_ID,
    ],
)
GET_STREAMS: Final = _get(
    {
        200: {
            "description": "The streams, in the order asked for.",
            "content": _json(
                _object(streams=_array(_ref("StreamSummary")), next={"type": ["string", "null"]}), STREAMS
            ),
        },
        **_problems(400, 503),
    },
    [
        _query(
            "sort",
            {"type": "string", "enum": ["name", "lag", "drops", "restarts"], "default": "name"},
            "By name; or first those whose oldest unfinished entry is the oldest, that had the most entries dropped, "
            "whose state began anew most often.",
        ),
        _query("after", {"type": "string"}, "Where the page begins: the `next` of the one before."),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_RECORDS, "default": 100}, "At most so many."),
    ],
)
GET_STREAM: Final = _get(
    {
        200: {
            "description": "The stream.",
            "content": _json(
                {"allOf": [_ref("StreamDetail"), _object(last={"oneOf": [_RECORD, {"type": "null"}]})]}, STREAM
            ),
        },
        **_problems(400, 404, 503),
    }
)
_SERVER: Final[Schema] = {"type": "string", "description": "this server's version"}
_MODELS: Final = _object(rollcast=_SERVER, models=_array(_MODEL))
GET_MODELS: Final = _get(
    {200: {"description": "The packages.", "content": _json(_MODELS, {"rollcast": VERSION, "models": [MODEL]})}}
)
GET_MODEL: Final = _get({200: {"description": "The package.", "content": _json(_MODEL, MODEL)}, **_problems(404)})
GET_METRICS: Final = _get(
    {
        200: {
            "description": "Metrics.",
            "content": {
                CONTENT_TYPE: {
                    "schema": {"type": "string"},
                    "example": 'rollcast_steps_total{model="activity-lstm",process="worker-0"} 42.0\n',
                }
            },
        }
    }
)
GET_LIVEZ: Final = _get(
    {200: {"description": "Alive.", "content": _json(_object(live={"type": "boolean"}), {"live": True})}}
)
_READY: Final = _object(ready={"type": "boolean"}, reasons=_array({"type": "string"}))
GET_READYZ: Final = _get(
    {
        200: {"description": "Ready.", "content": _json(_READY, {"ready": True, "reasons": []})},
        503: {
            "description": "Not ready, and why.",
            "content": _json(_READY, {"ready": False, "reasons": ["no worker serves model digits-cnn"]}),
        },
    }
)
