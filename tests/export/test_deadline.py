"""A training keeps its time, whatever the machine does: by a clock that the tests turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export import package, train
from export.data import Data, Split
from export.deadline import Deadline
from export.plan import TRIAL_SHARE, Found, choose
from export.runs import with_folds
from export.tasks import Batch, Task
from models.catalogue import Shape
from service.packages import load_package
from tests.export.test_own import examples
from tests.export.test_sequences import of_patterns, of_rows, of_text, settings


class Clock:
    """Seconds, which go on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def slow(task: Task, clock: Clock, batch_s: float) -> Task:
    """The same task, each of whose batches takes so many seconds."""

    class Slow(type(task)):  # type: ignore[misc]
        def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
            for batch in super().batches(split, shape, rng):
                clock.now += batch_s
                yield batch

    return Slow(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.init})


def early(made: tuple[Task, Data], epochs: int = 30) -> tuple[Task, Data]:
    return dataclasses.replace(made[0], early=True, epochs=epochs), made[1]


# --- one training ------------------------------------------------------------------------------------------------


def test_time_that_is_up_in_the_middle_of_an_epoch_ends_it_there(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    task, data = early(of_text())  # 3 batches an epoch
    task = slow(task, clock, 1.0)
    trained = train.train(task, data, settings(task), tmp_path, until=Deadline(7.0, clock))
    assert clock.now - 1000 <= 8.0
    assert len(trained.history) == 3
    told = capsys.readouterr().err.replace("\n", " ")
    assert "broken off: time is up" in told
    assert "time is up after epoch 3: what was learnt so far is kept" in told
    assert "s left, " in told


def test_an_epoch_that_is_longer_than_the_time_gives_a_package_all_the_same(tmp_path: Path, clock: Clock) -> None:
    task, data = early(of_rows())
    task = slow(task, clock, 100.0)
    trained = train.train(task, data, settings(task), tmp_path, until=Deadline(1.0, clock))
    assert [len(trained.history), len(trained.judges)] == [1, 4]
    assert clock.now - 1000 == 500, "a batch each: four folds and the net itself"
    assert load_package(package.write_run(task, data, trained, tmp_path / "package")).manifest.states


def test_folds_and_the_net_itself_share_the_time(tmp_path: Path, clock: Clock) -> None:
    task, data = early(of_rows(), epochs=1000)
    task = slow(task, clock, 1.0)
    trained = train.train(task, data, settings(task), tmp_path, until=Deadline(100.0, clock))
    assert 95 <= clock.now - 1000 <= 105
    assert 15 <= 4 * len(trained.history) <= 25, "its fifth"


def test_what_is_cut_short_comes_to_rest(tmp_path: Path, clock: Clock) -> None:
    """Its rate of learning ends where that of a whole training ends, and what is kept is not the beginning."""
    task, data = early(of_text(), epochs=1000)
    task = slow(task, clock, 1.0)
    learner = train._Learner(task, data.train, 2, settings(task), tmp_path / "c.pt", {})
    before = {name: value.clone() for name, value in learner.net.state_dict().items()}
    learner.learn(data.validation, 1000, False, Deadline(12.0, clock))
    assert learner.optimiser.param_groups[0]["lr"] < 1e-2 * task.learning_rate
    moved, kept = learner.net.state_dict(), learner.average.module.state_dict()
    way = {name: (moved[name] - before[name]).norm() for name in before if before[name].is_floating_point()}
    assert all((kept[name] - moved[name]).norm() < 0.5 * far for name, far in way.items() if far > 1e-3)


def test_without_a_limit_every_epoch_is_learnt(tmp_path: Path) -> None:
    task, data = of_text()
    trained = train.train(task, data, settings(task), tmp_path)
    assert len(trained.history) == task.epochs


# --- early ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scores", "said"), [([1.0], "every validation example right"), ([0.5, 0.75], "not one more")])
def test_own_data_ends_early_where_validation_is_perfect_or_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scores: list[float], said: str
) -> None:
    task, data = of_text()
    given = iter([*scores, *[scores[-1]] * 100])
    monkeypatch.setattr(train, "accuracy", lambda decisions: next(given))
    task = dataclasses.replace(task, early=True, epochs=40, patience=40)
    trained = train.train(task, data, settings(task), tmp_path)
    assert len(trained.history) == (train.PERFECT if scores == [1.0] else 2 + 20)
    assert said in capsys.readouterr().err


def test_the_net_itself_learns_no_longer_than_its_folds_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "accuracy", lambda decisions: 1.0)
    task, data = early(of_rows())
    trained = train.train(task, data, settings(task), tmp_path)
    assert len(trained.history) == train.PERFECT
    assert trained.history[-1]["validation"] == 1.0


def test_folds_of_other_lengths_end_together() -> None:
    folds = [[{"validation": v} for v in each] for each in ([0.1, 0.2, 0.3, 0.4], [0.8])]
    merged = with_folds([{"loss": 1.0}, {"loss": 0.5}], folds)
    assert [entry["validation"] for entry in merged] == pytest.approx([0.5, 0.6])


# --- a net that is solved ----------------------------------------------------------------------------------------


def test_a_net_that_is_solved_leaves_out_copies_and_penalties_when_time_is_up(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = of_patterns()
    task = dataclasses.replace(task, copies=9)
    seen: list[int] = []
    solve = train.Rocket._pooled
    monkeypatch.setattr(train.Rocket, "_pooled", lambda net, x, *rest: seen.append(len(x)) or solve(net, x, *rest))
    whole = train.train_in_folds(task, data, settings(task), tmp_path / "whole", False)
    assert sum(seen) == 9 * 3 * 32  # each fold leaves one person of four out
    seen.clear()
    short = train.train_in_folds(task, data, settings(task), tmp_path / "short", False, Deadline(0.0, clock))
    assert sum(seen) <= 4 * 64
    assert all(torch.isfinite(net.votes.weight).all() for net in (*whole[1], *short[1]))  # type: ignore[union-attr]


# --- choosing ----------------------------------------------------------------------------------------------------


def test_trials_share_their_part_of_the_time_and_leave_the_rest(tmp_path: Path, clock: Clock) -> None:
    from export.own import split_own

    data = split_own("own", tmp_path, examples(800))
    tried: list[float] = []

    def trial(task: Task, rest: Split, held: Split, until: Deadline, path: Path) -> Found:
        tried.append(until.left_s())
        while not until.over():
            clock.now += 0.5
        return Found(0.5, 0.0, 3)

    until = Deadline(90.0, clock)
    task, choice = choose("own", data, 10.0, "auto", until, tmp_path, trial)
    assert len(choice.tried) == 9
    assert tried == pytest.approx([TRIAL_SHARE * 10] * 9, abs=0.6)
    assert until.left_s() == pytest.approx((1 - TRIAL_SHARE) * 90, abs=1)
    assert task.epochs * 4 / 3 <= until.left_s(), "of 4/3 s each, as long as there is time for"


# --- threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "kind", "used"), [(None, "samples", 1), (None, "text", 1), (3, "samples", 3)])
def test_rows_and_texts_are_learnt_by_one_thread_unless_asked(asked: int | None, kind: str, used: int) -> None:
    before = torch.get_num_threads()
    try:
        train.use_threads(asked, kind)
        assert torch.get_num_threads() == used
        train.use_threads(None, "frame")
        assert torch.get_num_threads() == train.LIKED_THREADS
    finally:
        torch.set_num_threads(before)
