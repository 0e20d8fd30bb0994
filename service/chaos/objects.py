"""State objects (docs/formats.md) to and from an oracle: what restores carry, written and read without the worker."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from service.chaos.oracle import Model, Oracle

NEVER: Final = -(2**63)
TIMES: Final = ("since", "mark")


def object_of(oracle: Oracle, schema: str, stream: str = "elsewhere", entry: str = "1-0") -> dict[str, Any]:
    """The oracle's state as a state object's map."""
    labels, manifest = oracle.labels, oracle.manifest
    marks = [label.told_at if label.inside else label.quiet_until for label in labels]
    rolling = {
        "since": np.array([_us(label.since) for label in labels], "<i8"),
        "mark": np.array([_us(mark) for mark in marks], "<i8"),
        "event_ms": np.ones(len(labels), "<u8"),
        "event_seq": np.zeros(len(labels), "<u8"),
        "smooth": oracle.smooth.astype("<f4"),
        "peak": np.array([label.peak for label in labels], "<f4"),
        "reported": np.array([label.told for label in labels], "<f4"),
        "inside": np.array([label.inside for label in labels], "?"),
    }
    return {
        "object": "rollcast-state", "format": 1, "stream": stream, "entry": entry, "model": manifest.name,
        "version": manifest.version, "schema": schema, "steps": oracle.steps, "time_us": _us(oracle.last),
        "rolling": {name: pack(values) for name, values in rolling.items()},
        "tensors": {name: pack(tensor[0]) for name, tensor in oracle.state.items()},
    }  # fmt: skip


def put_back(oracle: Oracle, data: bytes) -> None:
    """The oracle goes on from a state object, a valid one."""
    given: dict[str, Any] = msgspec.msgpack.decode(data)
    rolling = {name: unpack(array) for name, array in given["rolling"].items()}
    oracle.begin()
    oracle.state = {name: unpack(array)[None].copy() for name, array in given["tensors"].items()}
    oracle.smooth = rolling["smooth"].copy()
    oracle.steps, oracle.last = given["steps"], given["time_us"] / 1e6
    for k, label in enumerate(oracle.labels):
        since, mark = int(rolling["since"][k]), int(rolling["mark"][k])
        label.inside = bool(rolling["inside"][k])
        label.since = None if since == NEVER else since / 1e6
        label.quiet_until = -math.inf if label.inside or mark == NEVER else mark / 1e6
        label.told_at = mark / 1e6 if label.inside else 0.0
        label.peak, label.told = float(rolling["peak"][k]), float(rolling["reported"][k])


def moved(state: Mapping[str, Any], to_us: int) -> dict[str, Any]:
    """The same state as if its last step had been at `to_us`."""
    by, rolling = to_us - state["time_us"], dict(state["rolling"])
    for name in TIMES:
        values = unpack(rolling[name])
        rolling[name] = pack(np.where(values == NEVER, values, values + by).astype("<i8"))
    return dict(state) | {"time_us": to_us, "rolling": rolling}


def some_states(engine: Model, schema: str, walks: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """A state after each walk (T, F), and that of a stream that has not stepped."""
    found = [object_of(Oracle(engine), schema)]
    for rows in walks:
        oracle = Oracle(engine)
        oracle.step(rows, 1000.0 + len(rows) * oracle.manifest.interval_s)
        found.append(object_of(oracle, schema))
    return found


def pack(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": values.dtype.str, "shape": list(values.shape), "data": values.tobytes()}


def unpack(array: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])


def _us(time: float | None) -> int:
    return NEVER if time is None or time == -math.inf else round(time * 1e6)
