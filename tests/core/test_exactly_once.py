"""Any interleaving of arrivals, batches, refusals, lost commits, deaths and take-overs steps each entry exactly once.

The product's own worker, turn by turn, driven by hypothesis; the broker is the one in memory, the model a hash of all
that a stream has seen. The oracle is at the end of this page.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry

from service.codec import id_number, parse_head, parse_position
from service.contracts import RowInput, StateTensor
from service.errors import Fenced
from service.metrics import WorkerMetrics
from service.ports import Commit
from service.state import StateLayout
from service.worker import Worker, careful
from service.worker.shard import Shard
from service.worker.stepping import Stepper
from tests.doubles import MemoryBroker, MemoryLog, rows_fields, tiny_manifest

STREAMS = ("a", "b", "c")
MODULUS = 9973
SCHEMA = "0123456789abcdef"
MANIFEST = tiny_manifest(
    labels=["h", "rest"], states=[StateTensor("h", [1], "int64")], rows=RowInput(["x"], 10.0, *[[0.0]] * 4)
)
LAYOUT = StateLayout(MANIFEST, SCHEMA)
METRICS = WorkerMetrics(CollectorRegistry())


def advance(h: int, value: int) -> int:
    """A model whose state betrays every entry that is lost, doubled or out of order."""
    return (h * 31 + value + 7) % MODULUS


def fails(value: int) -> bool:
    """An entry that is refused when it is stepped."""
    return value % 4 == 0


class Betraying:
    """`advance` as an engine, which shows the state as a score; satisfies ports.Engine."""

    manifest = MANIFEST

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        h, scores = states["h"].copy(), np.zeros((*x.shape[:2], 2), np.float32)
        for b, t in np.ndindex(*x.shape[:2]):
            h[b, 0] = advance(int(h[b, 0]), int(x[b, t, 0]))
            scores[b, t] = np.nan if fails(int(x[b, t, 0])) else [h[b, 0] / MODULUS, 1 - h[b, 0] / MODULUS]
        return scores, {"h": h}


class Link(MemoryLog):
    """A worker's connection: what is sent may stay under way, for others to be quicker. Nothing waits."""

    under_way: list[Commit] | None = None  # what is not to arrive yet

    def poll(self, wait_s: float, wake: int | None) -> list[tuple[int, list[tuple[bytes, list[bytes]]]]] | None:
        return super().poll(0.0, None)

    def send(self, commit: Commit) -> None:
        if self.under_way is None:
            return super().send(commit)
        if commit.shard not in self._fences:
            raise Fenced("no fenced connection")
        self.under_way.append(commit)
        self._sent[commit.shard] = commit
        return None

    def arrive(self) -> None:
        """What was under way is applied where the head is still the one that was watched, though its sender may have
        given it up."""
        commits, self.under_way = self.under_way or [], None
        for commit in commits:
            messenger = MemoryLog(self.broker)
            messenger._fences[commit.shard] = commit.before
            messenger.send(commit)
            if self._sent.get(commit.shard) is commit:
                self._fences[commit.shard] = messenger._fences[commit.shard]


class Machine(RuleBasedStateMachine):
    """Arrivals at any moment; any number of workers believe that they own the shard, one is believed."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = MemoryBroker(1)
        self.values: list[tuple[int, str, int]] = []  # id, stream, value
        self.started = 0
        self.workers: list[tuple[Worker, Link]] = []
        self.start()

    def start(self) -> None:
        self.started += 1
        log = Link(self.broker, f"w{self.started:03}")
        self.workers.append((Worker(log, {"tiny": (Betraying(), SCHEMA)}, METRICS, lease_s=3600, batch_entries=2), log))

    @rule(streams=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=6), same_ms=st.booleans())
    def arrive(self, streams: list[str], same_ms: bool) -> None:
        for stream in streams:
            value = len(self.values) + 1
            if same_ms:
                self.broker.clock_ms -= 1
            fields = rows_fields(stream, np.array([[value]], np.float32), model=b"tiny")
            self.values.append((id_number(self.broker.append(stream, fields)), stream, value))

    @rule(which=st.integers(0, 2), beat=st.booleans())
    def turn(self, which: int, beat: bool) -> None:
        worker, _ = self.workers[which % len(self.workers)]
        if beat:
            worker._next_beat = worker._renewed = 0.0
        worker._turn()

    @rule(which=st.integers(0, 2), when=st.sampled_from(["request", "reply"]))
    def a_connection_breaks(self, which: int, when: str) -> None:
        """The next commit is not applied, or nobody is told that it was."""
        _, log = self.workers[which % len(self.workers)]
        log.fail_send, log.fail_reply = int(when == "request"), int(when == "reply")

    @rule(dead=st.booleans())
    def the_lease_ends(self, dead: bool) -> None:
        """Another worker may take the shard; the one that had it knows nothing of that, or is dead."""
        self.broker.shards[0].owner = ""
        if dead or len(self.workers) > 2:
            worker, log = self.workers.pop(0)
            log.leave()
            worker._end()
        self.start()

    @rule(which=st.integers(0, 2))
    def commits_stay_under_way(self, which: int) -> None:
        _, log = self.workers[which % len(self.workers)]
        log.under_way = log.under_way or []

    @precondition(lambda self: any(log.under_way for _, log in self.workers))
    @rule()
    def they_arrive(self) -> None:
        for _, log in self.workers:
            log.arrive()

    @invariant()
    def every_record_is_the_oracles(self) -> None:
        check(self.broker, self.values, complete=False)

    def teardown(self) -> None:
        for worker, log in self.workers:
            log.leave()
            worker._end()
        self.broker.shards[0].owner = ""
        self.workers.clear()
        self.start()
        worker, _ = self.workers[0]
        for _ in range(20 + 2 * len(self.values)):
            worker._next_beat = 0.0
            worker._turn()
        worker._end()
        check(self.broker, self.values, complete=True)


def check(broker: MemoryBroker, values: list[tuple[int, str, int]], *, complete: bool) -> None:
    """The oracle: each stream alone, one entry after the other."""
    shard = broker.shards[0]
    low = parse_head(shard.head).low if shard.head else 0
    for stream in STREAMS:
        h, step, expected = 0, 0, []
        for number, name, value in values:
            if name == stream and fails(value):
                expected.append((number, 0, 0))
            elif name == stream:
                h, step = advance(h, value), step + 1
                expected.append((number, step, h))
        records = [_read(entry_id, json.loads(body)) for entry_id, _, body, _ in broker.records(stream)]
        assert records == (expected if complete else expected[: len(records)])
        assert all(number > low for number, _, _ in expected[len(records) :]), "low has passed an unfinished entry"
        assert not {number for number, _, _ in expected[len(records) :]} - shard.log.keys(), "it has left the log"
        if records:
            assert parse_position(shard.pos[stream]).last == records[-1][0]
        if stepped := [record for record in records if record[1]]:
            row = LAYOUT.decode(shard.states[stream])
            assert row is not None
            assert (int(row["step"]), int(row["state:h"][0])) == stepped[-1][1:]


def _read(entry_id: str, body: dict[str, Any]) -> tuple[int, int, int]:
    if body["type"] == "refused":
        return id_number(entry_id), 0, 0
    assert body["restarted"] == ("first" if body["step"] == 1 else None)
    return id_number(entry_id), body["step"], round(body["probabilities"][0] * MODULUS)


QUICK = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def without_careful_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers die all the time here, and no entry is to be refused for it."""
    monkeypatch.setattr(careful, "TRIES", 1 << 30)


def test_each_entry_is_stepped_exactly_once_and_in_order() -> None:
    run_state_machine_as_test(Machine, settings=QUICK)


# --- rules without which it fails: where they stand, what is written there, and what is put in its place ---

MUTANTS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "positions are not looked at": (Worker._admit, "entry.number <= stream.last", "False"),
    "the entry at a position is new": (Worker._admit, "entry.number <= stream.last", "entry.number < stream.last"),
    "reading begins behind low": (Shard.__init__, "self.cursor = self.head.low", "self.cursor = self.head.low + 1"),
    "low passes what is unfinished": (Shard.low, "predecessor(unfinished[0].number) if unfinished else", ""),
    "what is unfinished leaves the log": (Shard.build, "min(trim, low + 1)", "trim"),
    "a refusal leaves a state behind": (
        Stepper._step_group,
        "scatter(slots[good], rows[good])",
        "scatter(slots, rows)",
    ),
    "an entry moves no position": (Shard.build, "stream.last, stream.record = entry.number, entry.id", "pass"),
}


def without(rule: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """A function of the product in which one thing is different."""
    source = textwrap.dedent(inspect.getsource(rule))
    assert source.count(old) == 1
    scope = dict(rule.__globals__)
    exec(compile(source.replace(old, new), inspect.getfile(rule), "exec"), scope)
    changed: Callable[..., Any] = scope[rule.__name__]
    return changed


@pytest.mark.parametrize(("rule", "old", "new"), MUTANTS.values(), ids=MUTANTS.keys())
def test_without_each_rule_a_counterexample_is_found(
    rule: Callable[..., Any], old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = getattr(sys.modules[rule.__module__], rule.__qualname__.partition(".")[0])
    monkeypatch.setattr(owner, rule.__name__, without(rule, old, new))
    search = settings(QUICK, max_examples=400, phases=[Phase.generate], report_multiple_bugs=False, derandomize=True)
    with pytest.raises((AssertionError, ValueError)):
        run_state_machine_as_test(Machine, settings=search)
