"""A training keeps its time, whatever the machine does: by a clock that the tests turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import learner, package, train
from export.data import Data, Split
from export.deadline import Deadline
from export.own import split_own
from export.plan import TRIAL_SHARE, Candidate, Found, choose, own_task
from export.runs import with_folds
from export.sequences import SequenceTask
from export.tasks import Batch, Decisions, Task
from export.train import JUDGED_ROWS
from models import rocket
from models.catalogue import Shape
from models.rocket import PART_STEPS, Rocket
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
    net = learner.Learner(task, data.train, 2, settings(task), tmp_path / "c.pt", {})
    before = {name: value.clone() for name, value in net.net.state_dict().items()}
    net.learn(data.validation, 1000, False, Deadline(12.0, clock))
    assert net.optimiser.param_groups[0]["lr"] < 1e-2 * task.learning_rate
    moved, kept = net.net.state_dict(), net.average.module.state_dict()
    way = {name: (moved[name] - before[name]).norm() for name in before if before[name].is_floating_point()}
    assert all((kept[name] - moved[name]).norm() < 0.5 * far for name, far in way.items() if far > 1e-3)


def test_without_a_limit_every_epoch_is_learnt(tmp_path: Path) -> None:
    task, data = of_text()
    trained = train.train(task, data, settings(task), tmp_path)
    assert len(trained.history) == task.epochs


def test_what_judging_takes_is_kept_back(tmp_path: Path, clock: Clock) -> None:
    task, data = early(of_text(), epochs=1000)

    class Judged(type(task)):  # type: ignore[misc]
        def judge(self, *given: Any) -> Decisions:
            clock.now += 10.0
            return super().judge(*given)

    task = Judged(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.init})
    task = slow(task, clock, 1.0)  # 3 batches an epoch, and 10 s of judging
    trained = train.train(task, data, settings(task), tmp_path, until=Deadline(50.0, clock))
    assert len(trained.history) == 4
    assert clock.now - 1000 <= 51.0


# --- early ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scores", "said"), [([1.0], "every validation example right"), ([0.5, 0.75], "not one more")])
def test_own_data_ends_early_where_validation_is_perfect_or_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scores: list[float], said: str
) -> None:
    task, data = of_text()
    given = iter([*scores, *[scores[-1]] * 100])
    monkeypatch.setattr(learner, "accuracy", lambda decisions: next(given))
    task = dataclasses.replace(task, early=True, epochs=40, patience=40)
    trained = train.train(task, data, settings(task), tmp_path)
    assert len(trained.history) == (learner.PERFECT if scores == [1.0] else 2 + 20)
    assert said in capsys.readouterr().err


def test_the_net_itself_learns_no_longer_than_its_folds_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "accuracy", lambda decisions: 1.0)
    task, data = early(of_rows())
    trained = train.train(task, data, settings(task), tmp_path)
    assert len(trained.history) == learner.PERFECT
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
    solve = learner.Rocket._pooled
    monkeypatch.setattr(learner.Rocket, "_pooled", lambda net, x, *rest: seen.append(len(x)) or solve(net, x, *rest))
    whole = train.train_in_folds(task, data, settings(task), tmp_path / "whole", False)
    assert sum(seen) == 9 * 3 * 32  # each fold leaves one person of four out
    seen.clear()
    short = train.train_in_folds(task, data, settings(task), tmp_path / "short", False, Deadline(0.0, clock))
    assert sum(seen) <= 4 * 64
    assert all(torch.isfinite(net.votes.weight).all() for net in (*whole[1], *short[1]))  # type: ignore[union-attr]


def test_of_long_sequences_few_are_looked_at_before_time_is_asked_for() -> None:
    x, y = torch.randn(64, 3000, 2), torch.arange(64) % 2
    net = Rocket(2, mean=[0.0, 0.0], std=[1.0, 1.0], width=4, dilations=(1,))
    looked: list[int] = []
    responses = net._responses
    net._responses = lambda seen, thin=1: looked.append(len(seen)) or responses(seen, thin)  # type: ignore[func-returns-value,method-assign]
    net.fit(x, y, torch.full((64,), 3000), torch.arange(64), enough=lambda: True, left_s=lambda: 0.0)
    assert len(looked) == 2, "for thresholds, and one part"
    assert max(looked) * 3000 <= PART_STEPS


@pytest.mark.parametrize(("left_s", "solved"), [(math.inf, [400, 400]), (0.0, [64, 64])])
def test_no_more_is_solved_for_than_time_allows(
    monkeypatch: pytest.MonkeyPatch, left_s: float, solved: list[int]
) -> None:
    found: list[int] = []
    choose_in_folds = rocket._choose
    monkeypatch.setattr(rocket, "_choose", lambda gram, *rest: found.extend(gram.shape) or choose_in_folds(gram, *rest))
    x, y = torch.randn(400, 20, 2), torch.arange(400) % 2
    net = Rocket(2, mean=[0.0, 0.0], std=[1.0, 1.0], width=4, dilations=(1,))
    net.fit(x, y, torch.full((400,), 20), torch.arange(400), left_s=lambda: left_s)
    assert found == solved
    assert rocket._solvable(4000, 4096, 60.0) == 4000, "with time enough all of them"
    assert 500 < rocket._solvable(4000, 2048, 1.0) < 2000


# --- choosing ----------------------------------------------------------------------------------------------------


def test_trials_share_their_part_of_the_time_and_leave_the_rest(tmp_path: Path, clock: Clock) -> None:
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


def test_a_family_that_takes_longer_than_is_left_is_not_tried_wider(tmp_path: Path, clock: Clock) -> None:
    data = split_own("own", tmp_path, examples(800))
    tried: list[str] = []

    def trial(task: Task, rest: Split, held: Split, until: Deadline, path: Path) -> Found:
        tried.append(path.stem)
        clock.now += 8.0 if "rocket" in path.stem else 0.1  # it cannot be broken off
        return Found(0.5, 0.0, 1)

    until = Deadline(30.0, clock)  # 12 for trials
    choose("own", data, 10.0, "auto", until, tmp_path, trial)
    assert "try-rocket-32" in tried
    assert "try-rocket-64" not in tried
    assert {"try-gru-64", "try-rnn-32"} <= set(tried), "what is quick still is"
    assert until.left_s() >= (1 - TRIAL_SHARE) * 30


def test_a_trial_is_judged_by_few_rows_and_every_label() -> None:
    y = np.arange(400) % 4
    long = Split([np.zeros((JUDGED_ROWS // 10, 1), np.float32)] * 400, y, [""] * 400, np.arange(400))
    short = Split([np.zeros((10, 1), np.float32)] * 400, y, [""] * 400, np.arange(400))
    huge = Split([np.zeros((JUDGED_ROWS + 1, 1), np.float32)] * 400, y, [""] * 400, np.arange(400))
    assert len(train._to_judge(long, 0)) == 10
    assert len(train._to_judge(short, 0)) == train.MOST_JUDGED
    assert sorted(train._to_judge(huge, 0).y) == [0, 1, 2, 3]


def test_of_many_rows_few_disturbed_copies_are_made(tmp_path: Path) -> None:
    made = examples(40)
    for rows, copies in ((10, 8), (30_000, 2)):
        made.x = [np.resize(x, (rows, x.shape[1])) for x in made.x]
        task = own_task("own", split_own("own", tmp_path, made), 10.0, Candidate("rocket", 32))
        assert isinstance(task, SequenceTask)
        assert task.copies == copies


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
