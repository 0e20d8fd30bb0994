"""What the record of each entry of one stream must be, given the entries before it: a replay from an empty state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from service.chaos.oracle import Difference, Model, Oracle, Told, compare
from service.chaos.traffic import CASE, CASES, PARSED


class Expected(NamedTuple):
    """`type` and what else must stand in the record."""

    type: str
    body: dict[str, Any]


class Replay:
    """One stream. `expect` is asked for one entry after the other, in the log's order."""

    def __init__(self, engine: Model, state_ttl_s: float) -> None:
        self.oracle = Oracle(engine)
        self.alive = False  # is there a state?
        self._ttl_ms = state_ttl_s * 1000
        self._restart: str | None = "first"  # why the next step begins anew
        self._stepped_ms = 0
        self._seq: tuple[int, str] | None = None  # the last one, and its entry

    def expect(self, entry_id: str, fields: Mapping[bytes, bytes]) -> Expected:
        case = fields[CASE.encode()].decode()
        seq = int(fields[b"seq"]) if b"seq" in fields else None
        if case not in PARSED and seq is not None and self._seq is not None and seq <= self._seq[0]:
            if seq == self._seq[0]:
                return Expected("duplicate", {"of": self._seq[1]})
            return Expected("dropped", {"reason": "late"})
        if reason := CASES[case]:
            return Expected("refused", {"reason": reason})
        if case == "reset":
            return self._reset()
        if seq is not None:
            self._seq = seq, entry_id
        return self._step(int(entry_id.partition("-")[0]), fields)

    def _reset(self) -> Expected:
        exits, unsure = (self.oracle.close(), self.oracle.unsure) if self.alive else ([], set())
        if self._restart != "first":
            self._restart = "reset"
        self.alive = False
        return Expected("done", {"events": exits, "unsure": unsure})

    def _step(self, ms: int, fields: Mapping[bytes, bytes]) -> Expected:
        rows, columns = map(int, fields[b"shape"].split(b","))
        x = np.frombuffer(fields[b"data"], "<f4").reshape(rows, columns)
        time = float(fields[b"time"]) if b"time" in fields else ms / 1000
        restarted = self._restarted(ms, time, rows, start=b"start" in fields)
        closed: list[Told] = []
        unsure: set[str] = set()
        if restarted is not None:
            if self.alive:
                closed, unsure = self.oracle.close(), self.oracle.unsure
            self.oracle.begin()
        told = self.oracle.step(x, time)
        told["events"] = [*closed, *told["events"]]
        told["unsure"] |= unsure
        told["restarted"] = restarted
        self.alive, self._restart, self._stepped_ms = True, None, ms
        if b"end" in fields:
            told["events"] += self.oracle.close()
            self.alive, self._restart = False, "first"
        return Expected("prediction", told)

    def _restarted(self, ms: int, time: float, rows: int, *, start: bool) -> str | None:
        if start:
            return "start"
        if self._restart is not None:
            return self._restart
        if ms - self._stepped_ms > self._ttl_ms:
            return "ttl"
        manifest = self.oracle.manifest
        first = time - (rows - 1) * manifest.interval_s
        if manifest.gap.policy == "reset" and round(first - self.oracle.last, 6) > manifest.gap.gap_s:
            return "gap"
        return None


def judge(record: Mapping[str, Any], expected: Expected) -> Difference:
    """How a record differs from what it must be."""
    if record["type"] != expected.type:
        why = record.get("reason") or record.get("detail") or ""
        return Difference([f"type {record['type']} {why}, expected {expected.type} {_brief(expected)}"])
    if expected.type == "prediction":
        found = compare(record, expected.body)
        if record["restarted"] != expected.body["restarted"]:
            found.what.append(f"restarted {record['restarted']}, expected {expected.body['restarted']}")
        return found
    found = Difference()
    for name in ("reason", "of"):
        if record.get(name) != expected.body.get(name):
            found.what.append(f"{name} {record.get(name)}, expected {expected.body.get(name)}")
    if expected.type == "done":
        unsure = expected.body["unsure"]
        told = [(e["type"], e["label"], e["step"], round(e["time"], 6)) for e in record.get("events", [])]
        if [e for e in told if e[1] not in unsure] != [e for e in expected.body["events"] if e[1] not in unsure]:
            found.what.append(f"events {told}, expected {expected.body['events']}")
    return found


def _brief(expected: Expected) -> str:
    return str({name: expected.body[name] for name in ("reason", "of", "step", "restarted") if name in expected.body})
