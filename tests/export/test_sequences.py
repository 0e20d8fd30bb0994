"""Whole sequences as examples: padded, masked, weighed; learnt, killed and gone on with; judged in folds; packaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from export import package
from export.data import Data, Split
from export.learner import torch_run
from export.runs import Settings, load_trained
from export.sequences import SequenceTask, TextTask, VideoTask, join, surprise, weigh
from export.tasks import Batch, Task, at_the_end, pad, trace
from export.texts import learn_tokenizer, tokens
from export.train import train
from export.zoo import TASKS
from models.catalogue import Net, Shape, causal, patterns, recurrent, video
from models.text import TextRecurrent
from service.contracts import TrainingData
from service.packages import load_package
from service.parity import verify

ABOUT = TrainingData("made up", "a test", "none", "none")
COMMON = {
    "load": lambda folder: None,
    "description": "",
    "unit": "an end",
    "weights_terms": "",
    "limits": "",
    "epochs": 4,
    "batch": 8,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "average": 0.9,
}


def of_rows() -> tuple[Task, Data]:
    """Two labels by frequency, four people, no test split: judged by leaving each person out."""
    rng = np.random.default_rng(0)
    x = []
    for i in range(32):
        at = (0.4 + 0.8 * (i % 2)) * np.arange(rng.integers(12, 20)) + rng.uniform(0, 6)
        x.append(np.stack([np.sin(at), np.cos(at), 0 * at], -1).astype(np.float32))
    split = Split(x, np.arange(32) % 2, [f"r{i}" for i in range(32)], np.arange(32) // 2 % 4)
    data = Data(split, None, None, ["slow", "fast"], ABOUT, "rows", ["a", "b", "c"])
    net = Net("gru", partial(recurrent, cell="gru", width=12, dropout=0.1))
    more = {"hz": 10.0, "columns": ["a", "b", "c"], "folds": 4, "noise": 0.05, "speed": 0.1, "turn": 20.0}
    return SequenceTask(name="waves", own=net, **more, **COMMON), data  # type: ignore[arg-type]


def of_text() -> tuple[Task, Data]:
    texts = [f"a {'good' if i % 2 else 'bad'} {'film' if i % 3 else 'story with no end'}" for i in range(40)]
    tokenizer = learn_tokenizer(texts)
    y, x = np.arange(40) % 2, [tokens(tokenizer, text) for text in texts]
    split = Split(x, y, texts, np.arange(40))
    parts = split.take(range(24)), split.take(range(24, 32)), split.take(range(32, 40))
    data = Data(*parts, ["negative", "positive"], ABOUT, "texts", tokenizer=tokenizer.to_str())
    net = Net(
        "lstm", lambda shape: TextRecurrent("lstm", shape.tokens, shape.classes, embedding=8, width=8, dropout=0.1)
    )
    return TextTask(name="reader", own=net, forget=0.1, samples=1, **COMMON), data  # type: ignore[arg-type]


def of_video() -> tuple[Task, Data]:
    """A bright bar that goes up or down: no single frame tells."""
    clips = []
    for i in range(16):
        clip = np.zeros((6 + i % 3, 16, 16, 1), np.uint8)
        for t in range(len(clip)):
            clip[t, (2 * t if i % 2 else -2 * t) % 16] = 255
        clips.append(clip)
    split = Split(clips, np.arange(16) % 2, [f"c{i}" for i in range(16)], np.arange(16))
    data = Data(split, split.take(range(4)), split.take(range(4, 8)), ["down", "up"], ABOUT, "clips")
    net = Net("cnn-gru", partial(video, cell="gru", width=8))
    return VideoTask(name="bars", own=net, hz=10.0, shift=1, speed=0.1, **COMMON), data  # type: ignore[arg-type]


MADE = {"rows": of_rows, "text": of_text, "video": of_video}
every_kind = pytest.mark.parametrize("kind", MADE)


def settings(task: Task) -> Settings:
    return Settings(task.name, 0, task.epochs, "cpu", "float32")


# --- parts -------------------------------------------------------------------------------------------------------


def test_padding_adds_zeros_behind_and_weights_end_with_the_sequence() -> None:
    one, other = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    assert pad([one, other])[0].sum(1).tolist() == [3, 3, 0, 0]
    weight = weigh([2, 4])
    assert weight.sum(1) == pytest.approx([1, 1])
    assert weight[0].tolist() == pytest.approx([0.2, 0.8, 0, 0])
    assert (np.diff(weight[1]) > 0).all()


def test_a_decision_is_that_of_the_last_step_whatever_the_order_of_lengths() -> None:
    lengths = [5, 2, 9, 2]
    split = Split([np.full((n, 1), n, np.float32) for n in lengths], np.array([1, 0, 1, 0]), list("abcd"), np.arange(4))

    def run(x: np.ndarray) -> np.ndarray:  # says at each step whether more than two steps were seen
        seen = (x[..., 0] > 0).cumsum(1)
        return np.stack([seen <= 2, seen > 2], -1).astype(np.float32)

    assert at_the_end(trace(run, split.x, 2), split).guess.tolist() == [1, 0, 1, 0]


def test_surprise_is_the_log_loss_at_the_end() -> None:
    split = Split([np.zeros((n, 1), np.float32) for n in (1, 3)], np.array([0, 1]), list("ab"), np.arange(2))
    assert surprise(lambda x: np.tile(np.float32([0.5, 0.25]), (*x.shape[:2], 1)), split) == pytest.approx(
        (np.log(2) + np.log(4)) / 2
    )


@every_kind
def test_batches_hold_every_example_once(kind: str) -> None:
    task, data = MADE[kind]()
    shape = task.shape(data.train, 2)
    batches = list(task.batches(data.train, shape, np.random.default_rng(0)))
    assert len(batches) == task.steps(data.train)
    assert sum(len(batch.x) for batch in batches) == len(data.train)
    assert all(batch.weight.sum(1).numpy() == pytest.approx(1) for batch in batches)
    assert sum(int(batch.y[:, 0].sum()) for batch in batches) == int(data.train.y.sum())


def test_another_speed_and_a_turned_sensor_change_what_they_should() -> None:
    task, data = of_rows()
    assert isinstance(task, SequenceTask)
    rows, rng = data.train.x[0], np.random.default_rng(0)
    paced = {len(task._paced(rows, rng)) for _ in range(50)}
    assert min(paced) >= 0.9 * len(rows) - 1
    assert max(paced) <= 1.1 * len(rows) + 1
    assert len(paced) > 1
    turned = task._turned(rows, rng)
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1), atol=1e-5)
    assert not np.allclose(turned, rows, atol=1e-2)


def test_a_swaying_speed_keeps_ends_and_values_and_a_crop_takes_only_ends() -> None:
    task, _ = of_rows()
    rows, rng = np.linspace(0, 1, 100, dtype=np.float32)[:, None].repeat(3, 1), np.random.default_rng(0)
    swaying = dataclasses.replace(task, speed=0.0, sway=0.3)  # type: ignore[call-arg]
    for paced in (swaying._paced(rows, rng) for _ in range(20)):
        slope = 99 * np.diff(paced[:, 0])
        assert len(paced) == 100
        assert paced[[0, -1], 0].tolist() == pytest.approx([0, 1], abs=1e-3)
        assert 0.65 < slope.min() <= slope.max() < 1.35
    cropping = dataclasses.replace(task, speed=0.0, crop=0.2)  # type: ignore[call-arg]
    cut = [cropping._paced(rows, rng) for _ in range(50)]
    assert all(0 <= paced[0, 0] < 0.2 and 0.8 < paced[-1, 0] <= 1 for paced in cut)
    assert all(np.allclose(99 * np.diff(paced[:, 0]), 1, atol=0.05) for paced in cut)
    assert min(map(len, cut)) < 75 < max(map(len, cut))


def test_a_certificate_holds_no_recording_that_may_not_be_passed_on(tmp_path: Path) -> None:
    task, data = of_rows()
    task = dataclasses.replace(task, synthetic=True)  # type: ignore[call-arg]
    place = package.write_run(task, data, train(task, data, settings(task), tmp_path), tmp_path / "package")
    x, shape = np.load(place / "golden.npz")["x"], task.shape(data.train, 2)
    recorded = np.concatenate(data.train.x)
    assert x.shape == (4, 64, 3)
    assert np.abs(x.reshape(-1, 1, 3) - recorded).sum(-1).min() > 0
    assert np.abs(x.std((0, 1)) / shape.std - 1).max() < 0.4
    assert not (place / "samples").exists()
    assert all(TASKS[f"gesture-{family}"].synthetic for family in ("lstm", "rocket"))  # type: ignore[attr-defined]
    assert all(TASKS[f"bearing-{family}"].synthetic for family in ("lstm", "cnn1d"))  # type: ignore[attr-defined]


def of_patterns() -> tuple[SequenceTask, Data]:
    """The waves, to be solved."""
    task, data = of_rows()
    net = Net("rocket", partial(patterns, width=20, dilations=(1,), halves=(4,), spatial=True))
    return dataclasses.replace(task, own=net, epochs=1, copies=3), data  # type: ignore[call-arg, return-value]


def test_a_net_that_is_solved_takes_every_copy_at_once_and_knows_people_it_never_met(tmp_path: Path) -> None:
    task, data = of_patterns()
    (batch,) = task.batches(data.train, task.shape(data.train, 2), np.random.default_rng(0))
    assert batch.group is not None
    assert batch.group.tolist() == 3 * data.train.group.tolist()
    assert batch.x[:32].sum() == pytest.approx(sum(x.sum() for x in data.train.x), abs=1e-3), "the first as recorded"
    assert not torch.equal(batch.x[32:64], batch.x[64:])
    trained = train(task, data, settings(task), tmp_path)
    again = train(task, data, settings(task), tmp_path / "again")
    assert torch.equal(trained.net.votes.weight, again.net.votes.weight)  # type: ignore[arg-type, union-attr]
    place = package.write_run(task, data, trained, tmp_path / "package")
    assert verify(load_package(place)).passed
    assert load_package(place).manifest.metrics["accuracy"] > 0.9


def test_votes_solve_what_is_pooled_at_each_sequences_end() -> None:
    """The net that steps gives the scores that ridge regression saw."""
    task, data = of_patterns()
    (batch,) = task.batches(data.train, task.shape(data.train, 2), np.random.default_rng(0))
    net, length = task.net.build(task.shape(data.train, 2)), (batch.weight > 0).sum(1)
    assert batch.group is not None
    net.fit(batch.x, batch.y[:, 0], length, batch.group)
    pooled = net._pooled(batch.x, length, 1)
    weight = net.votes.weight.reshape(2, 2, -1)  # (kinds of mean, K, 2 · width)
    expected = torch.einsum("nkw,klw->nl", pooled.reshape(len(pooled), 2, -1), weight) + net.votes.bias[:2]
    with torch.no_grad():
        logits, _ = net.eval()(batch.x, net.initial_state(len(batch.x)))
    assert (logits[torch.arange(len(logits)), length - 1] - expected).abs().max() < 1e-3


def test_one_group_alone_is_solved_in_folds_of_its_sequences() -> None:
    task, data = of_patterns()
    (batch,) = task.batches(data.train, task.shape(data.train, 2), np.random.default_rng(0))
    net = task.net.build(task.shape(data.train, 2))
    loss = net.fit(batch.x, batch.y[:, 0], (batch.weight > 0).sum(1), torch.zeros(len(batch.x), dtype=torch.long))
    assert 0 < loss < 0.5


def test_forgotten_words_become_the_unknown_one() -> None:
    task, data = of_text()
    task = dataclasses.replace(task, forget=0.5)  # type: ignore[call-arg]
    batches = list(task.batches(data.train, task.shape(data.train, 2), np.random.default_rng(0)))
    words = np.concatenate([batch.x[batch.weight > 0].numpy() for batch in batches])
    assert 0.35 < (words == 0).mean() < 0.65


# --- a kill ------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killing(task: Task, at: int) -> Task:
    """The same task, which dies in the batches of its `at`-th epoch."""
    begun = 0

    class Dying(type(task)):  # type: ignore[misc]
        def batches(self, split: Split, shape: Shape, rng: np.random.Generator) -> Iterator[Batch]:
            nonlocal begun
            begun += 1
            for number, batch in enumerate(super().batches(split, shape, rng)):
                if begun == at and number:
                    raise Killed
                yield batch

    return Dying(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.init})


@every_kind
@pytest.mark.parametrize("at", [1, 3])
def test_a_run_that_was_killed_ends_with_the_same_weights(kind: str, at: int, tmp_path: Path) -> None:
    task, data = MADE[kind]()
    whole = train(task, data, settings(task), tmp_path / "whole")
    with pytest.raises(Killed):
        train(killing(task, at), data, settings(task), tmp_path / "killed")
    again = train(task, data, settings(task), tmp_path / "killed")
    for nets in ((whole.net, again.net), *zip(whole.judges, again.judges, strict=True)):
        one, other = (net.state_dict() for net in nets)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert [e["loss"] for e in whole.history] == [e["loss"] for e in again.history]


# --- packages ----------------------------------------------------------------------------------------------------


@every_kind
def test_a_run_ends_with_a_proven_package(kind: str, tmp_path: Path) -> None:
    task, data = MADE[kind]()
    trained = train(task, data, settings(task), tmp_path)
    again = load_trained(tmp_path, task, data)
    assert (again.history, len(again.judges)) == (trained.history, len(trained.judges))
    place = package.write_run(task, data, trained, tmp_path / "package")
    found = load_package(place)
    assert verify(found).passed
    assert found.manifest.metrics["units"] == (len(data.test) if data.test is not None else len(data.train))
    assert (place / "card.md").read_text().startswith(f"# {task.name}")


def test_without_a_test_split_every_person_is_judged_by_the_net_that_never_met_him(tmp_path: Path) -> None:
    task, data = of_rows()
    task = dataclasses.replace(task, epochs=40)
    trained = train(task, data, settings(task), tmp_path)
    metrics = load_package(package.write_run(task, data, trained, tmp_path / "package")).manifest.metrics
    by_hand = []
    for person, net in zip([0, 1, 2, 3], _by_person(trained.judges, data, task), strict=True):
        held = data.train.take(np.flatnonzero(data.train.group == person))
        by_hand.append(float((task.decide(torch_run(net), held).guess == held.y).mean()))
    assert sorted(metrics["folds"]) == pytest.approx(sorted(by_hand))
    assert metrics["accuracy"] == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert metrics["accuracy"] > 0.8
    assert "never saw" in (tmp_path / "package" / "waves" / "1" / "card.md").read_text()


def _by_person(judges: list[torch.nn.Module], data: Data, task: Task) -> list[torch.nn.Module]:
    from export.data import folds

    held = [int(part.group[0]) for _, part in folds(data.train, 4, seed=0)]
    return [judges[held.index(person)] for person in range(4)]


def test_texts_ship_as_files_with_their_label(tmp_path: Path) -> None:
    task, data = of_text()
    place = package.write_run(task, data, train(task, data, settings(task), tmp_path), tmp_path / "package")
    written = sorted(path.name for path in (place / "samples").glob("*.txt"))
    assert [name[0] for name in written] == ["0", "1"]
    assert "good" in (place / "samples" / written[1]).read_text()


def test_a_longer_sequence_beside_it_changes_no_gradient() -> None:
    """What follows an end is masked: the loss of a sequence is the same in any company."""
    shape = Shape(2, mean=[0.0] * 3, std=[1.0] * 3)
    torch.manual_seed(0)
    net = causal(shape, width=8, dropout=0.0)
    rng = np.random.default_rng(0)
    short, long = (rng.normal(size=(n, 3)).astype(np.float32) for n in (5, 30))
    losses = []
    for batch in (join([short], np.array([1])), join([short, long], np.array([1, 0]))):
        logits, _ = net(batch.x, net.initial_state(len(batch.x)))
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.y, reduction="none")
        losses.append(float((each * batch.weight)[0].sum().detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
