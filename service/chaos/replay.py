"""What the record of each entry of one stream must be, given the entries before it: a replay from an empty state."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from service.chaos.objects import put_back
from service.chaos.oracle import Difference, Model, Oracle, Told, compare, told_in
from service.chaos.traffic import CASE, CASES, PARSED
from service.contracts import StreamSettings

STEPPABLE: Final = ("good", "not-finite")  # what supersedes: that a number is not finite is seen when it is stepped
SILENCE: Final = "silence"  # the case of a control that a worker appended, which no producer did
TIMED: Final = ("superseded", "stale")  # reasons of drops that a clock decides


class Expected(NamedTuple):
    """`type` and what else must stand in the record."""

    type: str
    body: dict[str, Any]


class Replay:
    """One stream. `expect` is asked for one entry after the other, in the log's order."""

    def __init__(self, engine: Model, state_ttl_s: float) -> None:
        self.oracle = Oracle(engine)
        self.alive = False  # is there a state?
        self.settings = StreamSettings()
        self._ttl_s = state_ttl_s
        self._restart: str | None = "first"  # why the next step begins anew
        self._stepped_ms = 0
        self._restored = False  # and nothing was stepped since
        self._seq: tuple[int, str] | None = None  # the last finished one, and its entry

    def expect(
        self, entry_id: str, fields: Mapping[bytes, bytes], *, dropped: str | None = None, newer: bool = False
    ) -> Expected:
        """`dropped`: for which reason the record says so, believed where only the latest entry counts and `newer`, an
        entry that can supersede, was there. Whether it waited in time only a clock knows."""
        case = fields[CASE.encode()].decode()
        if case == SILENCE:
            return self._silence(fields[b"told"] == b"1")
        seq = int(fields[b"seq"]) if b"seq" in fields else None
        if case not in PARSED and seq is not None and self._seq is not None and seq <= self._seq[0]:
            if seq == self._seq[0]:
                return Expected("duplicate", {"of": self._seq[1]})
            return Expected("dropped", {"reason": "late"})
        if dropped is not None and self._may_drop(case, dropped, newer):
            return self._drop(entry_id, seq, fields, dropped)
        if reason := CASES[case]:
            unbound = case == "restore-model" and self.settings.model is None  # then it is only unknown
            return Expected("refused", {"reason": "unknown_model" if unbound else reason})
        if fields[b"kind"] == b"control":
            return self._control(entry_id, msgspec.json.decode(fields[b"data"]))
        missed = 0 if seq is None or self._seq is None else seq - self._seq[0] - 1
        if seq is not None:
            self._seq = seq, entry_id
        return self._step(_ms(entry_id), fields, missed)

    # --- freshness -------------------------------------------------------------------------------------------------

    def _may_drop(self, case: str, dropped: str, newer: bool) -> bool:
        freshness = self.settings.freshness
        if freshness is None or freshness.mode != "latest" or case in PARSED or case.partition("-")[0] in ACTIONS:
            return False
        if dropped == "superseded":
            return newer and case in STEPPABLE
        return dropped == "stale" and freshness.max_age_s is not None

    def _drop(self, entry_id: str, seq: int | None, fields: Mapping[bytes, bytes], reason: str) -> Expected:
        if seq is not None:
            self._seq = seq, entry_id
        exits, unsure = self._close() if b"start" in fields or b"end" in fields else ([], set())
        if b"end" in fields:
            self.alive, self._restart = False, "first"
        elif b"start" in fields:
            self.alive, self._restart = False, "start"
        return Expected("dropped", {"reason": reason, "events": exits, "unsure": unsure})

    # --- controls --------------------------------------------------------------------------------------------------

    def _control(self, entry_id: str, control: Mapping[str, Any]) -> Expected:
        action = control["action"]
        exits, unsure = ([], set()) if action == "settings" else self._close()
        if action == "settings":
            given = msgspec.convert(control["settings"], StreamSettings)
            self._set(msgspec.structs.replace(given, model=given.model or self.settings.model))
        elif action == "restore":
            data = base64.b64decode(control["state"])
            put_back(self.oracle, data)
            self.alive, self._restart, self._stepped_ms, self._restored = True, None, _ms(entry_id), True
            self._bind(msgspec.msgpack.decode(data)["model"])
        else:
            if action == "delete":
                self._seq, self._restart = None, "first"
                self._set(StreamSettings())
            elif self._restart != "first":
                self._restart = "reset"
            self.alive = False
        return Expected("done", {"action": action, "events": exits, "unsure": unsure})

    def _silence(self, told: bool) -> Expected:
        """When a worker appends it a clock decides, and where something came meanwhile it does nothing: that it did
        (`told`) is believed, what it tells is not."""
        exits, unsure = self._close() if told else ([], set())
        if told and self.alive:
            self.oracle.silence()
        return Expected("done", {"action": "silence", "events": exits, "unsure": unsure})

    def _set(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.oracle.own_rolling, self.oracle.own_gap = settings.rolling, settings.gap

    def _bind(self, model: str) -> None:
        if self.settings.model is None:
            self.settings = msgspec.structs.replace(self.settings, model=model)

    def _close(self) -> tuple[list[Told], set[str]]:
        return (self.oracle.close(), self.oracle.unsure) if self.alive else ([], set())

    # --- steps -----------------------------------------------------------------------------------------------------

    def _step(self, ms: int, fields: Mapping[bytes, bytes], missed: int) -> Expected:
        rows, columns = map(int, fields[b"shape"].split(b","))
        x = np.frombuffer(fields[b"data"], "<f4").reshape(rows, columns)
        time = float(fields[b"time"]) if b"time" in fields else ms / 1000
        restarted = self._restarted(ms, time, rows, missed, fields)
        closed: list[Told] = []
        unsure: set[str] = set()
        if restarted is not None:
            closed, unsure = self._close()
            self.oracle.begin()
        told = self.oracle.step(x, time, stated=b"time" in fields)
        told["events"] = [*closed, *told["events"]]
        told["unsure"] |= unsure
        told["restarted"], told["missed"] = restarted, missed
        self.alive, self._restart, self._stepped_ms, self._restored = True, None, ms, False
        self._bind(fields[b"model"].decode())
        if b"end" in fields:
            told["events"] += self.oracle.close()
            self.alive, self._restart = False, "first"
        return Expected("prediction", told)

    def _restarted(self, ms: int, time: float, rows: int, missed: int, fields: Mapping[bytes, bytes]) -> str | None:
        if b"start" in fields:
            return "start"
        if self._restart is not None:
            return self._restart
        own_s = self.settings.state_ttl_s or self.oracle.manifest.state_ttl_s
        if ms - self._stepped_ms > 1000 * min(self._ttl_s, self._ttl_s if own_s is None else own_s):
            return "ttl"
        gap = self.oracle.gap
        first = time - (rows - 1) * self.oracle.manifest.interval_s
        last = self._stepped_ms / 1000 if self._restored else self.oracle.last
        behind = not self._restored and self.oracle.is_behind(first if b"time" in fields else time)
        if gap.policy == "reset" and (missed or behind or round(first - last, 6) > gap.gap_s):
            return "gap"
        return None


ACTIONS: Final = ("reset", "settings", "restore", "delete", "control")  # what cases of controls begin with


def superseding(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[bool]:
    """Of each entry, whether one that can be stepped comes later, with a higher `seq` and no control between."""
    highest, found = 0, []
    for _, fields in reversed(entries):
        found.append(highest > int(fields.get(b"seq", b"-1")))
        if fields[b"kind"] == b"control":
            highest = 0
        elif fields[CASE.encode()].decode() in STEPPABLE:
            highest = max(highest, int(fields.get(b"seq", b"0")))
    return found[::-1]


def judge(record: Mapping[str, Any], expected: Expected) -> Difference:
    """How a record differs from what it must be."""
    if record["type"] != expected.type:
        why = record.get("reason") or record.get("detail") or ""
        return Difference([f"type {record['type']} {why}, expected {expected.type} {_brief(expected)}"])
    if expected.type == "prediction":
        found = compare(record, expected.body)
        for name, none in (("restarted", None), ("missed", 0)):
            if record.get(name, none) != expected.body[name]:
                found.what.append(f"{name} {record.get(name)}, expected {expected.body[name]}")
        return found
    found = Difference()
    for name in ("reason", "of", "action"):
        if record.get(name) != expected.body.get(name):
            found.what.append(f"{name} {record.get(name)}, expected {expected.body.get(name)}")
    unsure, events = expected.body.get("unsure", set()), expected.body.get("events", [])
    told = told_in(record)
    if [e for e in told if e[1] not in unsure] != [e for e in events if e[1] not in unsure]:
        found.what.append(f"events {told}, expected {events}")
    return found


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _brief(expected: Expected) -> str:
    named = ("reason", "of", "action", "step", "restarted", "missed")
    return str({name: expected.body[name] for name in named if name in expected.body})
