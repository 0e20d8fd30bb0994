"""A net that watches before it learns: its memory, its eyes, and training from what was kept of a clip."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from export import package
from export.data import Data, Split
from export.learner import torch_run
from export.metrics import accuracy
from export.motion import WatchTask
from export.package import stream_run
from export.runs import Settings
from export.sequences import moving_blobs
from export.tasks import Task
from export.train import train
from models.catalogue import Net
from models.memory import LegendreMemory
from models.motion import DepthNet, MotionNet
from models.views import COLUMNS, ROWS, Person, Views
from service.contracts import TrainingData
from service.packages import load_package
from service.parity import verify
from tests.export.test_sequences import COMMON

HEIGHT, WIDTH = 30, 40


def figure(low: int = 26, centre: int = 20, tall: int = 20, hand: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W) uint8: somebody upright, 170 away, and a hand (rows above the feet, columns to the right), nearer."""
    frame = np.zeros((HEIGHT, WIDTH), np.uint8)
    frame[low - tall + 1 : low + 1, centre - 2 : centre + 3] = 170
    if hand is not None:
        up, right = low - hand[0], centre + hand[1]
        frame[up - 1 : up + 2, right - 1 : right + 2] = 150
    return frame


def swing(rightwards: bool, steps: int, **where: int) -> np.ndarray:
    """(T, H, W, 1): a hand moves from one side to the other; the pictures of both ways are the same."""
    across = np.linspace(-9, 9, steps).round().astype(int)
    frames = [figure(**where)] + [figure(hand=(14, int(at)), **where) for at in across] + [figure(**where)]
    return np.stack(frames if rightwards else frames[::-1])[..., None]


def clips(count: int = 16) -> Data:
    rng = np.random.default_rng(0)
    x = []
    for i in range(count):
        place = {
            "low": int(rng.integers(25, 29)),
            "centre": int(rng.integers(18, 23)),
            "tall": int(rng.integers(18, 21)),
        }
        x.append(swing(bool(i % 2), int(rng.integers(10, 20)), **place))
    split = Split(x, np.arange(count) % 2, [f"c{i}" for i in range(count)], np.arange(count) // 4)
    return Data(split, None, None, ["left", "right"], TrainingData("made up", "a test", "none", "none"), "clips")


def motion_task(**changes: object) -> Task:
    net = Net("motion", lambda s: MotionNet(s.frame, s.classes, orders=4, filters=4, hidden=16, dropout=0.1))
    more = {"hz": 10.0, "folds": 2, "copies": 3, "rotation": 3, "zoom": 0.1, "shift": 0.5, "nearer": 0.01, "cut": 0.05}
    return WatchTask(name="swings", own=net, **(COMMON | more | {"epochs": 12} | changes))  # type: ignore[arg-type]


def depth_task(cell: str | None) -> Task:
    net = Net("cnn", lambda s: DepthNet(s.frame, s.classes, cell, filters=4, features=16, width=16))  # type: ignore[arg-type]
    return dataclasses.replace(motion_task(epochs=6), own=net)


# --- memory ------------------------------------------------------------------------------------------------------


def remembered(memory: LegendreMemory, values: torch.Tensor, pace: torch.Tensor, cut: list[int]) -> torch.Tensor:
    B, D = len(values), values.shape[-1]
    sums, clock = torch.zeros(B, memory.orders, D), torch.zeros(B, 1)
    parts = []
    for block, took in zip(values.split(cut, 1), pace.split(cut, 1), strict=True):
        after, now = memory(block, took, sums, clock)
        sums, clock = after[:, -1], now[:, -1:]
        parts.append(after)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("cut", [[40], [1] * 40, [7, 1, 30, 2]])
def test_the_memory_weighs_each_value_by_legendre_polynomials_of_its_time(cut: list[int]) -> None:
    torch.manual_seed(0)
    memory, values, pace = LegendreMemory(8), torch.randn(2, 40, 3), torch.rand(2, 40) + 0.01
    found = remembered(memory, values, pace, cut)
    for b in range(2):
        for t in (0, 1, 17, 39):
            took = pace[b, : t + 1].double().numpy()
            when = (took.cumsum() - took / 2) / took.sum() * 2 - 1
            expected = np.polynomial.legendre.legvander(when, 7).T @ values[b, : t + 1].double().numpy()
            assert np.abs(found[b, t].numpy() - expected).max() < 2e-5


def test_only_the_last_sums_are_the_last_of_all() -> None:
    torch.manual_seed(0)
    memory, values, pace = LegendreMemory(5), torch.randn(2, 9, 3), torch.rand(2, 9) + 0.01
    sums, clock = torch.randn(2, 5, 3), torch.ones(2, 1)
    every, times = memory(values, pace, sums, clock)
    last, time = memory(values, pace, sums, clock, last=True)
    assert torch.allclose(last, every[:, -1:], atol=1e-6)
    assert torch.equal(time, times[:, -1:])


def test_rest_leaves_the_memory_as_it_is_and_speed_changes_it_little() -> None:
    memory, at = LegendreMemory(6), torch.linspace(0, 3, 60)
    values, pace = torch.stack([at.sin(), at.cos()], -1)[None], torch.full((1, 60), 0.1)
    whole = remembered(memory, values * pace[..., None], pace, [60])[:, -1]
    twice = pace[:, ::2] * 2
    assert (remembered(memory, values[:, ::2] * twice[..., None], twice, [30])[:, -1] - whole).abs().max() < 0.2
    rested = torch.cat([values * pace[..., None], torch.zeros(1, 50, 2)], 1)
    resting = torch.cat([pace, torch.full((1, 50), 1e-6)], 1)
    assert (remembered(memory, rested, resting, [110])[:, -1] - whole).abs().max() < 1e-3


# --- eyes --------------------------------------------------------------------------------------------------------


def frames(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures))[None].float()  # (1, T, H, W)


def test_a_person_is_measured_in_the_first_frame_that_shows_one_and_not_again() -> None:
    person, empty = Person(HEIGHT, WIDTH), np.zeros((HEIGHT, WIDTH), np.uint8)
    x = frames(empty, empty, figure(hand=(14, 9)), figure(low=20, centre=9), empty)
    whole, last = person(x, torch.zeros(1, 6))
    assert whole[0, :2].abs().sum() == 0
    low, centre, tall, wide, depth, seen = whole[0, 2].tolist()
    assert (low, tall, wide, seen) == (26, 20, 20, 1)
    assert 20 <= centre < 21.5  # the hand counts a little
    assert depth == pytest.approx(170, abs=1)
    assert torch.equal(whole[0, 3], whole[0, 2])
    state = torch.zeros(1, 6)
    for t in range(5):
        known, state = person(x[:, t : t + 1], state)
        assert torch.allclose(known[0, 0], whole[0, t])
    assert torch.equal(state, last)


def test_the_views_are_the_same_wherever_a_person_stands_and_however_tall() -> None:
    person, views = Person(HEIGHT, WIDTH), Views(HEIGHT, WIDTH)

    def seen(x: torch.Tensor) -> torch.Tensor:
        known, _ = person(x, torch.zeros(1, 6))
        return views(x[0], known[0])[0]

    here = seen(frames(figure(hand=(14, 8))))
    assert (seen(frames(figure(low=24, centre=15, hand=(14, 8)))) - here).abs().max() < 1e-4
    nearer = frames(figure(hand=(14, 8))) * 0.9
    assert (seen(nearer) - here).abs().max() < 1e-3
    other = seen(frames(figure(hand=(14, -8))))
    assert (other - here).abs().max() > 0.5
    fronts = [each[: ROWS * COLUMNS].reshape(ROWS, COLUMNS).sum(0) for each in (here, other)]
    assert fronts[0].nonzero().max() > fronts[1].nonzero().max() + 3  # the hand reaches as far to the right
    large = torch.from_numpy(np.kron(figure(hand=(14, 8)), np.ones((2, 2))))[None, None].float()
    known, _ = Person(2 * HEIGHT, 2 * WIDTH)(large, torch.zeros(1, 6))
    assert (Views(2 * HEIGHT, 2 * WIDTH)(large[0], known[0])[0] - here).abs().mean() < 0.03


def test_a_hand_held_forward_shows_in_the_side_view_and_not_in_the_front_view() -> None:
    person, views = Person(HEIGHT, WIDTH), Views(HEIGHT, WIDTH)
    x = frames(figure(), figure(hand=(14, 0)))
    known, _ = person(x, torch.zeros(1, 6))
    still, forward = views(x[0], known[0])
    area = ROWS * COLUMNS
    assert (still - forward)[2 * area :].abs().max() > 0.2
    assert (still - forward)[:area].abs().max() < 0.15


def test_nobody_in_view_says_nothing_and_makes_nothing_infinite() -> None:
    net = MotionNet((HEIGHT, WIDTH, 1), 3).eval()
    with torch.no_grad():
        y, state = net(torch.zeros(2, 5, HEIGHT, WIDTH, 1, dtype=torch.uint8), net.initial_state(2))
    assert all(bool(value.isfinite().all()) for value in (y, *state.values()))
    assert state["before"].abs().sum() == state["sums"].abs().sum() == state["person"].abs().sum() == 0


def test_frames_in_colour_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels: expected 1, depth"):
        MotionNet((HEIGHT, WIDTH, 3), 3)


# --- training ----------------------------------------------------------------------------------------------------


def test_what_was_kept_of_a_clip_is_what_the_net_remembers_at_its_end() -> None:
    data = clips()
    for task in (motion_task(), depth_task("gru"), depth_task(None)):
        assert isinstance(task, WatchTask)
        torch.manual_seed(0)
        net = task.net.build(task.shape(data.train, 2)).eval()
        for clip in data.train.x[:3]:
            kept = torch.from_numpy(task._watched(clip, task.shape(data.train, 2), 0))[None]
            with torch.no_grad():
                whole, _ = net(torch.from_numpy(clip)[None], net.initial_state(1))
                read = task.logits(net, kept)
            assert kept.shape[1] == (1 if net.at_end else len(clip))
            assert (read[0, -1] - whole[0, -1]).abs().max() < 2e-2  # kept in 16 bits


def test_a_copy_of_a_clip_is_another_one_and_always_the_same() -> None:
    data, task, again = clips(), motion_task(), motion_task()
    assert isinstance(task, WatchTask)
    assert isinstance(again, WatchTask)
    shape = task.shape(data.train, 2)
    copies = [task._watched(data.train.x[0], shape, copy) for copy in range(4)]
    assert all(np.abs(copies[0] - other).max() > 0.01 for other in copies[1:])
    state = torch.random.get_rng_state()
    assert all(
        np.array_equal(again._watched(data.train.x[0], shape, copy), copies[copy]) for copy in (3, 0, 2, 1)
    )  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), state)


def test_to_learn_from_a_clip_is_not_to_look_at_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data, task, watched = clips(), motion_task(copies=1), []
    watch = MotionNet.watch
    monkeypatch.setattr(MotionNet, "watch", lambda net, x, *a, **k: watched.append(1) or watch(net, x, *a, **k))
    shape = task.shape(data.train, 2)
    for epoch in range(3):
        assert sum(len(batch.x) for batch in task.batches(data.train, shape, np.random.default_rng(epoch))) == 16
    assert len(watched) == 16


def test_left_is_told_from_right_by_people_never_seen_though_their_pictures_are_the_same(tmp_path: Path) -> None:
    task, data = motion_task(), clips()
    settings = Settings(task.name, 0, task.epochs, "cpu", "float32")
    trained = train(task, data, settings, tmp_path)
    place = package.write_run(task, data, trained, tmp_path / "package")
    found = load_package(place)
    assert verify(found).passed
    assert found.manifest.metrics["accuracy"] >= 0.9
    assert found.manifest.metrics["validation_accuracy"] == found.manifest.metrics["accuracy"]  # kept = stepped
    streamed = accuracy(task.decide(stream_run(found), data.train))
    assert streamed == accuracy(task.decide(torch_run(trained.net), data.train))


@pytest.mark.parametrize("cell", [None, "rnn", "gru", "lstm"])
def test_nets_with_a_recurrent_layer_and_without_learn_from_what_was_kept(cell: str | None, tmp_path: Path) -> None:
    task, data = depth_task(cell), clips()
    settings = Settings(task.name, 0, task.epochs, "cpu", "float32")
    trained = train(task, data, settings, tmp_path)
    losses = [entry["loss"] for entry in trained.history]
    assert losses[-1] < losses[0]
    assert verify(load_package(package.write_run(task, data, trained, tmp_path / "package"))).passed


# --- golden ------------------------------------------------------------------------------------------------------


def test_the_certificates_frames_are_made_up_and_move() -> None:
    task, data = motion_task(), clips()
    golden = task.golden(data)
    assert golden.shape == (2, 24, HEIGHT, WIDTH, 1)
    assert golden.dtype == np.uint8
    assert np.array_equal(golden, task.golden(clips(4)))  # whatever the recordings
    assert np.array_equal(golden, moving_blobs((HEIGHT, WIDTH, 1)))
    assert 100 < golden[golden > 0].mean() < 200
    assert (golden == 0).mean() > 0.5
    assert all((clip[1:] != clip[:-1]).any((1, 2, 3)).all() for clip in golden)
