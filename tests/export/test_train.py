"""Training: learns, resumes after a kill to the same weights, says what is missing, ends with a proven package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from export import package
from export.data import Data, Split, mean_and_spread
from export.metrics import accuracy, confusion, interval95
from export.runs import CheckpointError, Settings, load_trained
from export.tasks import Decisions, FrameTask, RowTask, Task
from export.train import torch_run, train
from export.zoo import TASKS
from models.catalogue import Net, recurrent
from models.cnn2d import CNN2d
from models.rnn import Cell, Recurrent
from service.packages import load_packages, samples
from service.parity import verify
from tests.deployment import interruptible
from tests.export.conftest import some_rows

EPOCHS = 8


def command(out: Path, *more: str) -> list[str]:
    words = ["digits-small", "--epochs", str(EPOCHS), "--threads", "1", "--out", str(out), *more]
    return [sys.executable, "-m", "export.train", *words]


def kept_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["kept"]["weights"]


def epochs_done(folder: Path) -> int:
    path = folder / "checkpoint.pt"
    return len(torch.load(path, weights_only=True)["history"]) if path.is_file() else 0


# --- a run -------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_a_proven_and_described_package(small_run: Path) -> None:
    packages, refused = load_packages(small_run / "package")
    assert refused == []
    found = packages["digits-small"]
    assert verify(found).passed
    names = {path.name for path in found.folder.iterdir()}
    assert names == {
        "model.onnx", "manifest.json", "golden.npz", "card.md", "training.json", "learning.png", "confusion.png",
        "samples",
    }  # fmt: skip
    manifest = found.manifest
    low, high = manifest.metrics["interval95"]
    assert 0.2 < low < manifest.metrics["accuracy"] < high <= 1
    card = (found.folder / "card.md").read_text()
    for said in (manifest.data.licence, manifest.data.split, manifest.weights_terms, "neighbours", "95 % interval"):
        assert said in card
    history = msgspec.json.decode((found.folder / "training.json").read_bytes())["history"]
    assert [sorted(entry) for entry in history] == [["cpu_s", "loss", "seconds", "validation"]] * 2
    assert history[1]["loss"] < history[0]["loss"]


def test_samples_are_held_out_and_drawn_for_every_label(small_run: Path, small_data: Data) -> None:
    shipped = samples(load_packages(small_run / "package")[0]["digits-small"])
    assert sorted(sample.label for sample in shipped) == sorted(small_data.labels * 2)
    assert {sample.path.stem.split("-")[1] for sample in shipped} <= set(small_data.test.names)
    assert all(sample.path.is_file() and sample.licence for sample in shipped)


def test_a_run_can_be_packaged_anew(small_run: Path, tmp_path: Path) -> None:
    words = [str(small_run), "--name", "digits-small", "--into", str(tmp_path), "--version", "3"]
    done = subprocess.run([sys.executable, "-m", "export.package", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert load_packages(tmp_path)[0]["digits-small"].manifest.version == 3
    model = Path("digits-small", "1", "model.onnx")
    assert (tmp_path / "digits-small/3/model.onnx").read_bytes() == (small_run / "package" / model).read_bytes()


def test_a_kill_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    subprocess.run(command(undisturbed), check=True, capture_output=True, timeout=100)

    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (killed / "checkpoint.pt").is_file():
        assert process.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < limit
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert 0 < epochs_done(killed) < EPOCHS

    done = subprocess.run(command(killed), check=True, capture_output=True, text=True, timeout=100)
    assert "going on after epoch" in done.stderr
    one, other = kept_weights(killed), kept_weights(undisturbed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    model = "package/digits-small/1/model.onnx"
    assert (killed / model).read_bytes() == (undisturbed / model).read_bytes()


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "--no-resume"), stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    limit = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").is_file():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in text
    assert "Traceback" not in text


def test_another_runs_checkpoint_is_not_gone_on_with(small_run: Path, small_task: Task, small_data: Data) -> None:
    other = Settings("digits-small", 1, small_task.epochs, "cpu", "float32")
    with pytest.raises(CheckpointError, match="seed 0, now 1"):
        train(small_task, small_data, other, small_run)


def test_a_damaged_checkpoint_says_so(small_task: Task, small_data: Data, tmp_path: Path) -> None:
    settings = Settings("digits-small", 0, small_task.epochs, "cpu", "float32")
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        train(small_task, small_data, settings, tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_trained(tmp_path / "absent", small_task, small_data)


# --- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits-cnn", "activity-lstm"])
def test_without_data_it_explains_and_offers_what_needs_none(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ROLLCAST_DATA"}
    environment["PYTHONPATH"] = str(Path.cwd())
    done = subprocess.run(
        [sys.executable, "-m", "export.train", name],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    for said in ("missing", "https://", "--data-dir data", "python -m export.train digits-small"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_the_known() -> None:
    done = subprocess.run([sys.executable, "-m", "export.train", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert all(name in done.stderr for name in TASKS)


# --- rows --------------------------------------------------------------------------------------------------------


def waves(count: int, seed: int) -> list[np.ndarray]:
    """Sines of three frequencies, of different lengths: the label is the frequency, which no single row tells."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(60, 90, count)
    phases = rng.uniform(0, 6.28, count)
    return [
        np.stack([np.sin(phase + (0.2 + 0.3 * (i % 3)) * np.arange(length))] * 2, -1).astype(np.float32)
        for i, (length, phase) in enumerate(zip(lengths, phases, strict=True))
    ]


@pytest.fixture(scope="module")
def wave_task(small_data: Data) -> RowTask:
    def load(folder: Path) -> Data:
        parts = []
        for seed, count in ((0, 18), (1, 6)):
            y = np.arange(count) % 3
            parts.append(Split(waves(count, seed), y, [f"{seed}-{i}" for i in range(count)], np.arange(count)))
        labels = ["slow", "middle", "fast"]
        return Data(parts[0], None, parts[1], labels, small_data.about, "waves", ["a", "b"], frozenset({"1-0"}))

    own = Net("lstm", partial(recurrent, cell="lstm", width=24, dropout=0.0))
    return RowTask(
        name="waves", own=own, load=load, description="", unit="a recording's end", weights_terms="", limits="",
        samples=1, columns=["a", "b"], hz=10.0, epochs=25, batch=12, learning_rate=2e-2, weight_decay=0.0,
        average=0.9, folds=2, rounds=4, shortest=40, longest=60, skipped=4, noise=0.02, scale=0.05, blend=0.1,
    )  # fmt: skip


def test_sequences_of_many_lengths_are_learnt_in_folds_and_packaged(wave_task: RowTask, tmp_path: Path) -> None:
    data = wave_task.load(tmp_path)
    settings = Settings(wave_task.name, 0, wave_task.epochs, "cpu", "float32")
    trained = train(wave_task, data, settings, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "fold1.pt", "fold2.pt"}
    assert trained.best == wave_task.epochs
    assert trained.history[-1]["validation"] > trained.history[0]["validation"]
    again = load_trained(tmp_path, wave_task, data)
    assert again.history == trained.history

    place = package.write_run(wave_task, data, trained, tmp_path / "package")
    metrics = msgspec.json.decode((place / "manifest.json").read_bytes())["metrics"]
    assert metrics["accuracy"] > 0.8
    assert metrics["without_copies"]["units"] == 5
    assert "another number" in (place / "card.md").read_text()
    assert not any("1-0" in path.name for path in (place / "samples").iterdir()), "a copy is not held out"


def test_padding_changes_nothing(wave_task: RowTask) -> None:
    """Decisions on a batch of different lengths are those on each sequence alone."""
    data = wave_task.load(Path())
    torch.manual_seed(0)
    net = wave_task.net.build(wave_task.shape(data.train, 3)).eval()
    together = wave_task.decide(torch_run(net), data.test).guess
    alone = [wave_task.decide(torch_run(net), data.test.take([i])).guess[0] for i in range(len(data.test))]
    assert together.tolist() == alone


def test_cuts_and_weights_are_as_the_task_says(wave_task: RowTask) -> None:
    data = wave_task.load(Path())
    shape = wave_task.shape(data.train, 3)
    first, *_ = list(wave_task.batches(data.train, shape, np.random.default_rng(0)))
    B, T, F_ = first.x.shape
    assert (B, F_) == (12, 2)
    assert 40 <= T <= 60
    assert first.weight[:, :4].sum() == 0
    assert first.weight[:, 4:].min() == 1
    again, *_ = list(wave_task.batches(data.train, shape, np.random.default_rng(0)))
    assert torch.equal(first.x, again.x)


def test_augmented_frames_move_a_little(small_data: Data) -> None:
    task = TASKS["digits-small"]
    assert isinstance(task, FrameTask)
    torch.manual_seed(0)
    x = torch.from_numpy(np.asarray(small_data.train.x[:64]))
    moved = task._moved(x)
    assert moved.shape == x.shape
    difference = (moved - x.float()).abs().mean()
    assert 1 < difference < 40
    assert moved.min() >= 0
    assert moved.max() < 255.01


# --- what a net is told of its rows -------------------------------------------------------------------------------

COLUMNS = {
    "alike": np.full(300_000, 0.1),
    "seconds since 1970": 1.7e9 + 128.0 * (np.arange(300_000) % 40),
    "nearly alike": 16_777_216.0 + 2.0 * (np.arange(300_000) % 2),
    "tiny": 1e-9 * (1 + np.arange(300_000) % 3),
    "nothing": np.zeros(300_000),
    "large": np.where(np.arange(300_000) % 2, 3e38, -3e38),
}


def test_means_and_spreads_are_the_true_ones_and_lie_where_they_must() -> None:
    """Added up in 32 bits the mean of equal values comes to lie above them."""
    rows = np.stack([*COLUMNS.values()], -1).astype(np.float32)
    assert not (rows.min(0) <= rows.mean(0)).all() or not (rows.mean(0) <= rows.max(0)).all()
    mean, spread = (np.array(each) for each in mean_and_spread(rows))
    assert (rows.min(0) <= mean).all()
    assert (mean <= rows.max(0)).all()
    assert (mean.astype(np.float32) == mean).all()
    assert (spread.astype(np.float32) == spread).all()
    true = rows.astype(np.float64)
    assert np.abs(mean - true.mean(0)).max() <= np.abs(np.spacing(mean.astype(np.float32))).max()
    changes = [name not in ("alike", "nothing") for name in COLUMNS]
    assert spread.tolist() == pytest.approx(np.where(changes, true.std(0), 1.0).tolist(), rel=1e-6)


def test_a_manifest_says_what_the_net_was_told(wave_task: RowTask) -> None:
    data = wave_task.load(Path())
    for x in data.train.x:
        x[:, 1] = 0.1  # a column that never changes
    rows, shape = wave_task.describe_input(data)["rows"], wave_task.shape(data.train, 3)
    assert (rows.mean, rows.std) == (list(shape.mean), list(shape.std))
    assert (rows.minimum[1], rows.mean[1], rows.maximum[1], rows.std[1]) == (*[float(np.float32(0.1))] * 3, 1.0)
    net = wave_task.net.build(shape)
    assert net.mean.tolist() == rows.mean
    assert net.std.tolist() == rows.std


# --- every family learns -----------------------------------------------------------------------------------------


def overfit(net: nn.Module, x: np.ndarray, y: torch.Tensor) -> float:
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    inputs, state = torch.from_numpy(x), net.initial_state(len(x))
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(net(inputs, state)[0][:, -1], y).backward()
        optimiser.step()
    net.eval()
    return float((net(inputs, state)[0][:, -1].argmax(-1) == y).float().mean())


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_tiny_recurrent_net_overfits_eight_sequences(cell: Cell) -> None:
    torch.manual_seed(0)
    net = Recurrent(cell, 2, mean=[0.5] * 3, std=[2.0] * 3, width=16)
    assert overfit(net, some_rows(8, 12), torch.arange(8) % 2) == 1.0


def test_a_tiny_cnn_overfits_eight_frames() -> None:
    torch.manual_seed(0)
    net = CNN2d((8, 8, 1), 2, ((4,), (8,)), 16)
    x = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8, 1), np.uint8)
    assert overfit(net, x, torch.arange(8) % 2) == 1.0


# --- figures -----------------------------------------------------------------------------------------------------


def decisions(truth: list[int], guess: list[int], example: list[int] | None = None) -> Decisions:
    return Decisions(np.array(truth), np.array(guess), np.array(example if example is not None else range(len(truth))))


def test_figures_of_known_decisions() -> None:
    found = decisions([0, 0, 1, 1], [0, 1, 1, 1])
    assert accuracy(found) == 0.75
    assert confusion(found, 2).tolist() == [[1, 1], [0, 2]]


def test_the_interval_knows_that_decisions_of_one_example_belong_together() -> None:
    truth, guess = [0] * 400, [0] * 300 + [1] * 100
    separate = interval95(decisions(truth, guess))
    together = interval95(decisions(truth, guess, [i // 100 for i in range(400)]))
    assert separate[0] == pytest.approx(0.705, abs=0.005)
    assert together[1] - together[0] > 2 * (separate[1] - separate[0])


def test_a_perfect_score_is_not_certain() -> None:
    low, high = interval95(decisions([0] * 40, [0] * 40, [i // 20 for i in range(40)]))
    assert high == 1.0
    assert low < 0.5, "two examples prove little"


def test_a_draft_that_fails_leaves_the_old_package(tmp_path: Path) -> None:
    place = tmp_path / "tiny" / "1"
    with package._Draft(place) as folder:
        (folder / "model.onnx").write_text("old")

    def write_and_fail() -> None:
        with package._Draft(place) as folder:
            (folder / "model.onnx").write_text("new")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_and_fail()
    assert (place / "model.onnx").read_text() == "old"
    assert [path.name for path in place.parent.iterdir()] == ["1"]
