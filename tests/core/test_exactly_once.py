"""Any interleaving of arrivals, batches, failures, commits, lost replies, crashes and take-overs steps each entry
exactly once.

The real scheduler, state table, layout, positions and heads, driven by hypothesis; the broker is a dictionary, the
model a hash of all that a stream has seen. The oracle is at the end of this page.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.batching import Scheduler
from service.codec import (
    NOWHERE,
    Head,
    Position,
    encode_position,
    id_number,
    number_id,
    parse_head,
    parse_position,
    predecessor,
)
from service.contracts import StateTensor
from service.state import StateLayout, StateTable, restart_on_load
from tests.doubles import tiny_manifest

STREAMS = ("a", "b", "c")
MUTANTS = {  # rules without which it fails: what is written below, and what is put in its place
    "positions are not looked at": ("if number <= position.last:", "if False:"),
    "the head is not compared": ("if self.head != before:", "if False:"),
    "low passes what is unfinished": ("low = predecessor(self.unfinished[0].number) if", "low = self.cursor if"),
    "a failed entry leaves a state behind": ("scatter(slots[good], rows[good])", "scatter(slots, rows)"),
}
LAYOUT = StateLayout(tiny_manifest(states=[StateTensor("h", [1], "int64")]), "0123456789abcdef")


def advance(h: int, value: int) -> int:
    """A model whose state betrays every entry that is lost, doubled or out of order."""
    return (h * 31 + value + 7) % 1_000_003


def fails(value: int) -> bool:
    """An entry that is refused when it is stepped."""
    return value % 4 == 0


@dataclass
class Broker:
    """One shard: what survives a worker."""

    log: list[tuple[int, str, int]] = field(default_factory=list)  # id, stream, value
    head: bytes = Head("life", "none", 0, 0, 0, 0).encode()
    pos: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)
    out: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)  # stream -> id, step, h

    def commit(self, before: bytes, commit: Commit) -> bool:
        """WATCH, MULTI … EXEC."""
        if self.head != before:
            return False
        self.head = commit.head
        self.pos |= commit.pos
        self.states |= commit.states
        for stream, record in commit.records:
            self.out.setdefault(stream, []).append(record)
        return True


@dataclass
class Commit:
    head: bytes
    pos: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)
    records: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)


@dataclass(eq=False)
class Piece:
    """An item of the scheduler."""

    number: int
    key: str
    value: int
    ready: bool = True
    done: bool = False


class Owner:
    """One acquisition of the shard, as service/worker holds it: cursor, unfinished, positions, slots, head."""

    def __init__(self, broker: Broker, token: str) -> None:
        self.broker = broker
        old = parse_head(broker.head)
        broker.head = self.written = Head(old.life, token, old.n, old.low, 0, old.tries + 1).encode()
        self.head = parse_head(self.written)
        self.cursor = self.head.low
        self.scheduler: Scheduler[Piece] = Scheduler()
        self.unfinished: list[Piece] = []
        self.table = StateTable(LAYOUT, block_rows=1)
        self.slots: dict[str, int] = {}
        self.positions: dict[str, Position] = {}
        self.in_flight: tuple[bytes, Commit] | None = None

    def meet(self, stream: str) -> Position:
        if stream not in self.positions:
            stored = self.broker.pos.get(stream)
            position = parse_position(stored) if stored else NOWHERE
            state = self.broker.states.get(stream)
            row = LAYOUT.decode(state) if state else None
            why = restart_on_load(parse_position(stored) if stored else None, state is not None, row is not None)
            assert why == (None if state else "first")
            self.slots[stream] = self.table.put(row)
            self.positions[stream] = position
        return self.positions[stream]

    def read(self, count: int, slow: bool) -> None:
        for number, stream, value in [entry for entry in self.broker.log if entry[0] > self.cursor][:count]:
            self.cursor = number
            position = self.meet(stream)
            if number <= position.last:
                continue
            piece = Piece(number, stream, value, ready=not slow)
            self.unfinished.append(piece)
            self.scheduler.offer(piece)

    def decode(self) -> None:
        for piece in list(self.scheduler):
            piece.ready = True
            self.scheduler.wake(piece)

    def step(self, limit: int) -> Commit | None:
        """The next batch through the model, and the commit it makes."""
        batch = self.scheduler.take(limit)
        if not batch:
            return None
        assert len({piece.key for piece in batch}) == len(batch), "one entry of a stream in a batch"
        slots = np.array([self.slots[piece.key] for piece in batch])
        rows = self.table.gather(slots)
        rows["state:h"] = [
            [advance(int(row["state:h"][0]), piece.value)] for row, piece in zip(rows, batch, strict=True)
        ]
        rows["step"] += 1
        good = [at for at, piece in enumerate(batch) if not fails(piece.value)]
        self.table.scatter(slots[good], rows[good])
        commit = Commit(b"")
        for piece, row, record in zip(batch, rows, LAYOUT.encode(rows), strict=True):
            entry_id = number_id(piece.number)
            position = self.positions[piece.key]._replace(last=piece.number, record=entry_id)
            if fails(piece.value):
                commit.records.append((piece.key, (piece.number, 0, 0)))
            else:
                position = position._replace(stepped=entry_id)
                commit.states[piece.key] = record
                commit.records.append((piece.key, (piece.number, int(row["step"]), int(row["state:h"][0]))))
            self.positions[piece.key] = position
            commit.pos[piece.key] = encode_position(entry_id, entry_id, position.seq, position.seq_id, position.stepped)
            piece.done = True
        while self.unfinished and self.unfinished[0].done:
            self.unfinished.pop(0)
        low = predecessor(self.unfinished[0].number) if self.unfinished else self.cursor
        self.head = Head(self.head.life, self.head.token, self.head.n + 1, low, 0, 0)
        commit.head = self.head.encode()
        return commit


class Machine(RuleBasedStateMachine):
    """Arrivals at any moment; at most one owner believes in itself, another may have taken its shard."""

    Owner: type[Owner] = Owner

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.acquisitions = 0
        self.owner = self.acquire()
        self.zombies: list[tuple[bytes, Commit]] = []
        self.clock = 0

    def acquire(self) -> Owner:
        self.acquisitions += 1
        return self.Owner(self.broker, f"token{self.acquisitions}")

    @rule(streams=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=6), same_ms=st.booleans(), read=st.booleans())
    def arrive(self, streams: list[str], same_ms: bool, read: bool) -> None:
        for stream in streams:
            self.clock += 1
            ms, seq = (17, self.clock) if same_ms and self.clock < 50 else (17 + self.clock, 0)
            number = id_number(f"{ms}-{seq}")
            if not self.broker.log or number > self.broker.log[-1][0]:
                self.broker.log.append((number, stream, self.clock))
        if read:
            self.owner.read(len(streams), slow=False)

    @rule(count=st.integers(1, 8), slow=st.booleans())
    def read(self, count: int, slow: bool) -> None:
        self.owner.read(count, slow)

    @rule()
    def decoded(self) -> None:
        self.owner.decode()

    @precondition(lambda self: self.owner.in_flight is None)
    @rule(limit=st.integers(1, 4), answered=st.booleans())
    def batch(self, limit: int, answered: bool) -> None:
        commit = self.owner.step(limit)
        if commit is None:
            return
        self.owner.in_flight = self.owner.written, commit
        if answered:
            self.settle()

    @precondition(lambda self: self.owner.in_flight is not None)
    @rule()
    def settle(self) -> None:
        before, commit = self.owner.in_flight or (b"", Commit(b""))
        self.owner.in_flight = None
        if self.broker.commit(before, commit):
            self.owner.written = commit.head
        else:
            self.owner = self.acquire()

    @rule(arrives=st.sampled_from(["never", "now", "later"]))
    def crash_or_lose_the_reply(self, arrives: str) -> None:
        """The owner is gone, and with it all it held. What it had sent arrives now, later, or never."""
        if self.owner.in_flight is not None:
            if arrives == "now":
                self.broker.commit(*self.owner.in_flight)
            elif arrives == "later":
                self.zombies.append(self.owner.in_flight)
        self.owner = self.acquire()

    @precondition(lambda self: self.zombies)
    @rule()
    def a_zombie_commits(self) -> None:
        assert not self.broker.commit(*self.zombies.pop()), "fenced"

    @invariant()
    def every_record_is_the_oracles(self) -> None:
        check(self.broker, complete=False)

    def teardown(self) -> None:
        self.owner = self.acquire()
        self.owner.read(10_000, slow=False)
        while (commit := self.owner.step(3)) is not None:
            assert self.broker.commit(self.owner.written, commit)
            self.owner.written = commit.head
        check(self.broker, complete=True)


def check(broker: Broker, *, complete: bool) -> None:
    """The oracle: each stream alone, one entry after the other."""
    low = parse_head(broker.head).low
    for stream in STREAMS:
        h, step, expected = 0, 0, []
        for number, name, value in broker.log:
            if name == stream and fails(value):
                expected.append((number, 0, 0))
            elif name == stream:
                h, step = advance(h, value), step + 1
                expected.append((number, step, h))
        records = broker.out.get(stream, [])
        assert records == (expected if complete else expected[: len(records)])
        assert all(number > low for number, _, _ in expected[len(records) :]), "low has passed an unfinished entry"
        if records:
            assert parse_position(broker.pos[stream]).last == records[-1][0]
        if stepped := [record for record in records if record[1]]:
            row = LAYOUT.decode(broker.states[stream])
            assert row is not None
            assert (int(row["step"]), int(row["state:h"][0])) == stepped[-1][1:]


QUICK = settings(max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


def test_each_entry_is_stepped_exactly_once_and_in_order() -> None:
    run_state_machine_as_test(Machine, settings=QUICK)


def copy_with(old: str, new: str) -> type[Machine]:
    """The machine of a copy of this page in which one thing is different."""
    source = inspect.getsource(sys.modules[__name__])
    assert source.count(old) == 2, "once in MUTANTS, once in the code"
    module = ModuleType("exactly_once_copy")
    sys.modules["exactly_once_copy"] = module
    exec(compile(source.replace(old, new), "exactly_once_copy", "exec"), module.__dict__)
    machine: type[Machine] = module.Machine
    return machine


@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS.keys())
def test_without_each_rule_a_counterexample_is_found(old: str, new: str) -> None:
    search = settings(QUICK, max_examples=400, phases=[Phase.generate], report_multiple_bugs=False, derandomize=True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(copy_with(old, new), settings=search)
