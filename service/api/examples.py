"""What /docs shows as examples: one of every answer, and of every problem. Made from the types that are encoded."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from service.api.described import Backlog, DeadSummary, StateSummary, StreamDetail, StreamSummary, TensorSummary
from service.contracts import (
    Done,
    Dropped,
    Duplicate,
    Event,
    Freshness,
    GapPolicy,
    Manifest,
    Prediction,
    Refused,
    Rolling,
    RollingSettings,
    RowInput,
    StateTensor,
    StreamSettings,
)

_ID, _SECOND, _NEXT = "1763860000000-0", "1763860000250-0", "1763860000500-0"
_FEATURES: Final = ["avg_rss12", "var_rss12", "avg_rss13", "var_rss13", "avg_rss23", "var_rss23"]
_LABELS: Final = ["bending1", "bending2", "cycling", "lying", "sitting", "standing", "walking"]
_SCORES: Final = [0.001, 0.0, 0.002, 0.0, 0.004, 0.012, 0.981]
_SMOOTH: Final = [0.004, 0.001, 0.006, 0.0, 0.014, 0.022, 0.953]
_EVENT: Final = Event("enter", "walking", _ID, 42, 1763859999.75, 1763859999.75, 0.91, 0.91)
_PREDICTION: Final = Prediction(
    _ID, "belt-1", "activity-lstm", 1, 1763860000.0, 42, "walking", 0.981, _SCORES,
    Rolling("walking", 0.953, _SMOOTH), [_EVENT], None,
)  # fmt: skip
_SUMMARY: Final = StreamSummary(
    "belt-1", "activity-lstm", 42, "walking", 0.953, _ID, _ID, 41, 17, lag_s=0.25, drops=0, restarts=1
)
_STATE: Final = StateSummary(
    "activity-lstm", 1, "4f0c2ab19d3e5b77", 1236, _ID, 0.4, 42, 1763860000.0, 3.81,
    [TensorSummary("h", "float32", [1, 64], 2.1), TensorSummary("c", "float32", [1, 64], 3.18)],
)  # fmt: skip
_SETTINGS: Final = StreamSettings("activity-lstm", RollingSettings(0.5, 0.7, 0.3), GapPolicy("reset", 2.0))

RECORDS: Final = {
    "prediction": _PREDICTION,
    "refused": Refused(_SECOND, "belt-1", "non_finite", "row 1, column 2 (var_rss12): nan", "activity-lstm"),
    "dropped": Dropped(_SECOND, "belt-1", "late", "seq 3 is below the stream's last, 41", "activity-lstm"),
    "duplicate": Duplicate(_SECOND, "belt-1", _ID, 41, "activity-lstm"),
    "done": Done(_NEXT, "belt-1", "reset", [_EVENT]),
}
_MANIFEST: Final = Manifest(
    1, "activity-lstm", 1, "samples", _LABELS, "9b" * 32, [StateTensor("h", [1, 64]), StateTensor("c", [1, 64])],
    rows=RowInput(_FEATURES, 20.0, *[[0.0] * 6] * 4), freshness=Freshness(), family="lstm", parameters=20_000,
    weights_terms="Apache-2.0",
)  # fmt: skip
_DEAD: Final = DeadSummary(_SECOND, "belt-1", "samples", "non_finite", "row 1, column 2: nan", 24, 17, 1763860000.26)

# By the name of a component.
COMPONENTS: Final[dict[str, Any]] = {
    **{type(record).__name__: msgspec.to_builtins(record) for record in RECORDS.values()},
    "StreamSummary": msgspec.to_builtins(_SUMMARY),
    "StreamDetail": msgspec.to_builtins(
        StreamDetail(**msgspec.structs.asdict(_SUMMARY), backlog=Backlog(1, True, 3), state=_STATE, settings=_SETTINGS)
    ),
    "StateSummary": msgspec.to_builtins(_STATE),
    "DeadSummary": msgspec.to_builtins(_DEAD),
    "Manifest": msgspec.to_builtins(_MANIFEST),
}
ACCEPTED: Final = {"id": _ID, "stream": "belt-1", "model": "activity-lstm"}
PAGE: Final = {"predictions": [COMPONENTS["Prediction"]], "next": _ID, "gap": False}
STREAMS: Final = {"streams": [COMPONENTS["StreamSummary"]], "next": "belt-1"}  # (the framework drops nulls)
STREAM: Final = COMPONENTS["StreamDetail"] | {"last": COMPONENTS["Prediction"]}
MODEL: Final = COMPONENTS["Manifest"] | {"parity": {"steps equal sequence": 1.5e-07}, "served": True}
DEAD: Final = {"dead": [COMPONENTS["DeadSummary"]], "next": "MTcgMTc2Mzg2MDAwMDI2MC0w"}
DEAD_ENTRY: Final = COMPONENTS["DeadSummary"] | {
    "fields": {"shape": "1,6", "seq": "42"},
    "data": "AACAPwAAwH8AAEBAAACAQAAAoEAAAMBA",
}

# Of every problem, by type: what its `detail` may say, and what it adds.
DETAILS: Final[dict[str, str]] = {
    "malformed": 'Expected `array`, got `str` - at `$.samples`; expected {"samples": [[number, …], …]}',
    "bad-stream-id": "stream id 'a b': expected 1 to 128 characters of A-Z a-z 0-9 . _ : - that begin with a letter …",
    "wrong-shard": "stream 'belt-1' in shard 3: it belongs to shard 17",
    "bad-id": "id 10000000000000000-0: expected one that the broker gave; its clock stood at 1763860000000",
    "unknown-model": "unknown model 'activity'; known are: activity-lstm, digits-cnn",
    "other-model": "stream 'belt-1' is bound to model 'activity-lstm', not 'gesture-lstm'",
    "other-schema": "the state has schema '4f0c2ab19d3e5b77', the package that is served '8d11e0c2a7f3b5d9'",
    "too-large": "body of 9437184 bytes: the limit is 8388608 bytes",
    "unsupported-media": "Content-Type text/xml: expected application/json, text/csv or application/octet-stream",
    "model-needed": "several models take samples of 6 columns: activity-gru, activity-lstm; name one with model",
    "wrong-kind": "model 'digits-cnn' takes entries of kind frame, not samples",
    "wrong-shape": "row 2 has 5 columns, expected 6: avg_rss12, var_rss12, avg_rss13, var_rss13, avg_rss23, var_rss23",
    "non-finite": "row 1, column 2 (var_rss12): nan; expected a finite number of float32's range",
    "bad-image": "JPEG: cut off before the frame header",
    "step-failed": "the model failed on this entry",
    "crash": "the worker's process ended twice while it worked on this entry",
    "bad-request": "query: unknown parameter 'sequence'; known are: model, seq, time, start, end, wait, ack",
    "bad-cursor": "after: 'x' is not an id MS-SEQ, or 0 for all that is kept",
    "unknown-stream": "stream 'belt-9': no entry of it was ever answered",
    "no-fsync": "the broker's appendfsync is 'everysec': ack=fsync needs 'always' (docs/operations.md)",
    "no-state": "stream 'belt-1' has no state: it never stepped, or its state ended and nothing came since",
    "not-in-quarantine": "no entry 1763860000250-0 of stream 'belt-1' in quarantine: it may have been dropped",
    "foreign-host": "Host 'example.org' is not a name of this server: expected its address, or a name in the setting …",
    "foreign-origin": "Origin 'https://example.org': pages of other sites may not call this server; expected none, …",
    "unsupported-encoding": "Content-Encoding 'br': expected one of gzip, deflate, or none",
    "head-too-large": "head or trailers of more than 65536 bytes",
    "too-slow": "nothing of the body came for 30 s",
    "not-found": "GET /v1/nothing is no call of this server; /docs lists them",
    "method-not-allowed": "DELETE /v1/models is no call of this server; /docs lists them",
    "refused": "row 1, column 2 (var_rss12): nan",
    "dropped": "seq 3 is below the stream's last, 41",
    "duplicate": "seq 41 was finished as entry 1763860000000-0",
    "wait-timeout": "no record of entry 1763860000250-0 within 5 s; it is in the log and will be answered",
    "broker-away": "broker unix:///…/broker.sock: Connection refused",
    "broker-full": "nothing was appended: the broker uses 913,000,000 of 1,073,741,824 bytes, …",
    "append-unknown": "the connection to the broker was lost before it answered: the entry may be in the log or not; …",
    "no-worker": "no live worker serves model 'activity-lstm'",
    "too-many-streams": "stream 'cam-9' would be a new one: there are 100,000, and at most 100,000 may be (…); …",
    "busy": "lists, states and quarantine: 64 wait already, and no more may",
    "backlog-full": "shard 17: 12,400 unfinished entries, 31 s of work; at most 30 s may wait",
    "crowded": "too many connections: this one waited longest",
    "unavailable": "try again later",
    "internal": "a fault of the server; its log has the details",
}
MEMBERS: Final[dict[str, dict[str, str]]] = {
    "refused": {"id": _SECOND, "stream": "belt-1", "reason": "non_finite"},
    "dropped": {"id": _SECOND, "stream": "belt-1", "reason": "late"},
    "duplicate": {"id": _SECOND, "stream": "belt-1", "of": _ID},
    "wait-timeout": {"id": _SECOND, "stream": "belt-1"},
}
