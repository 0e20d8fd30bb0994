"""The certificate finds what streams would suffer from, and its result is kept only for what it was measured on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.states import first_states
from models.rnn import Recurrent
from service import parity
from service.engine import OnnxEngine
from service.errors import PackageRefused, StepFailed
from service.packages import Package, load_package
from service.parity import check, verify
from service.state import StateLayout
from tests.export.conftest import recurrent, some_rows, write


def failing(package: Package) -> set[str]:
    return {each.name for each in check(package).checks if not each.passed}


class Wrapped(nn.Module):
    """A net around a recurrent one, with one fault."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Recurrent = recurrent()

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.inner.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner(x, state)


class MixesStreams(Wrapped):
    """Subtracts the mean over the batch: streams influence each other."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner(x - x.mean(0, keepdim=True), state)


class SeesTheFuture(Wrapped):
    """Subtracts the mean over the call's steps: how a sequence is cut matters."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner(x - x.mean(1, keepdim=True), state)


class ForgetsItsState(Wrapped):
    """Begins anew at every call."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner(x, {name: value * 0 for name, value in state.items()})


def test_streams_that_influence_each_other_are_found(tmp_path: Path) -> None:
    assert {"batch", "neighbours"} <= failing(write(MixesStreams().eval(), tmp_path))


def test_a_net_that_sees_the_future_is_found(tmp_path: Path) -> None:
    assert {"torch, step by step", "blocks"} <= failing(write(SeesTheFuture().eval(), tmp_path))


def test_a_net_that_forgets_its_state_is_found(tmp_path: Path) -> None:
    assert {"torch, step by step", "blocks"} <= failing(write(ForgetsItsState().eval(), tmp_path))


# --- one fault, one check --------------------------------------------------------------------------------------------


def in_another_order(golden: np.ndarray, x: np.ndarray, lengths: Sequence[int]) -> bool:
    return x.shape[1] == 1 and not np.array_equal(x[:, 0], golden[:, sum(lengths) - 1])


def ends_in_another_order(golden: np.ndarray, x: np.ndarray, lengths: Sequence[int]) -> bool:
    return len(lengths) == golden.shape[1] and in_another_order(golden, x, lengths)


def ends_unevenly(golden: np.ndarray, x: np.ndarray, lengths: Sequence[int]) -> bool:
    return sum(lengths) == golden.shape[1] and len(set(lengths)) > 1


def in_a_batch_of_nine(golden: np.ndarray, x: np.ndarray, lengths: Sequence[int]) -> bool:
    return len(x) == 9


def beside_loud_neighbours(golden: np.ndarray, x: np.ndarray, lengths: Sequence[int]) -> bool:
    return bool(np.abs(x).max() > 20 * np.abs(golden).max())


class Faulty:
    """An engine that adds something to its scores or its state where `when` says so."""

    def __init__(self, package: Package, when: Callable[..., bool], scores: float, state: float) -> None:
        self.engine, self.manifest = OnnxEngine(package), package.manifest
        self.when, self.scores, self.state = when, np.float32(scores), np.float32(state)
        self.lengths: list[int] = []  # of the blocks so far
        with np.load(package.folder / parity.GOLDEN) as golden:
            self.golden = golden["x"]

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        scores, after = self.engine.run(x, states)
        self.lengths = [*(self.lengths if states["h"].any() else []), x.shape[1]]
        if self.when(self.golden, x, self.lengths):
            return scores + self.scores, after | {"c": after["c"] + self.state}
        return scores, after


@pytest.mark.parametrize(
    ("when", "scores", "state", "found_by"),
    [
        (in_another_order, 2e-5, 0.0, "slots"),
        (ends_in_another_order, 0.0, 1e-3, "slots"),
        (ends_unevenly, 2e-5, 0.0, "blocks"),
        (ends_unevenly, 0.0, 1e-3, "blocks"),
        (in_a_batch_of_nine, 2e-5, 0.0, "batch"),
        (in_a_batch_of_nine, 0.0, 1e-3, "batch"),
        (in_a_batch_of_nine, np.nan, 0.0, "batch"),
        (beside_loud_neighbours, 2e-5, 0.0, "neighbours"),
        (beside_loud_neighbours, 0.0, 1e-3, "neighbours"),
    ],
)
def test_whatever_only_one_check_can_see_is_found(
    sound: Path, when: Callable[..., bool], scores: float, state: float, found_by: str
) -> None:
    package = load_package(sound)
    engine: Any = Faulty(package, when, scores, state)
    assert {each.name for each in check(package, engine).checks if not each.passed} == {found_by}


def altered(sound: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Package:
    """A copy of the package with another certificate."""
    shutil.copytree(sound, folder)
    rewrite(folder, change)
    return load_package(folder)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    with np.load(folder / parity.GOLDEN) as golden:
        arrays = dict(golden)
    change(arrays)
    np.savez(folder / parity.GOLDEN, **arrays)


def test_a_state_that_is_not_pytorchs_is_found(sound: Path, tmp_path: Path) -> None:
    package = altered(sound, tmp_path / "1", lambda arrays: arrays.update({"state:c": arrays["state:c"] + 1e-3}))
    assert failing(package) == {"torch, state"}


@pytest.mark.parametrize(("streams", "steps"), [(1, 12), (2, 1), (2, 65)])
def test_a_certificate_has_two_streams_or_more_of_2_to_64_steps(
    sound: Path, tmp_path: Path, streams: int, steps: int
) -> None:
    def cut(arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            some = array[:streams] if name.startswith("state:") else np.resize(array, (streams, steps, array.shape[2]))
            arrays[name] = np.ascontiguousarray(some)

    with pytest.raises(PackageRefused, match="at least 2 streams of 2 to 64 steps"):
        check(altered(sound, tmp_path / "1", cut))


def test_a_pass_is_kept_for_the_same_files_and_measured_anew_for_others(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(parity, "check", lambda package: measured.append(package.manifest.name) or check(package))
    package = load_package(sound)

    first = verify(package, tmp_path)
    assert verify(package, tmp_path) == first
    assert measured == ["tiny"]

    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"{ torn")
    verify(package, tmp_path)
    assert len(measured) == 2, "a torn file is measured anew"

    monkeypatch.setattr(parity.onnxruntime, "__version__", "another")
    verify(package, tmp_path)
    assert len(measured) == 3, "another library is measured anew"


def test_a_pass_of_another_certificate_or_manifest_is_no_pass(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(parity, "check", lambda package: measured.append(package.manifest.name) or check(package))
    folder, cache = tmp_path / "tiny" / "1", tmp_path / "cache"
    shutil.copytree(sound, folder)
    verify(load_package(folder), cache)

    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"labels": manifest["labels"][::-1]}))
    verify(load_package(folder), cache)
    assert len(measured) == 2, "another manifest is measured anew"

    rewrite(folder, lambda arrays: arrays.update(probabilities=arrays["probabilities"] + np.float32(1e-3)))
    with pytest.raises(PackageRefused, match="torch"):
        verify(load_package(folder), cache)
    assert len(measured) == 3, "and so is another certificate"


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    package = write(MixesStreams().eval(), tmp_path / "zoo")
    for _ in range(2):
        with pytest.raises(PackageRefused) as caught:
            verify(package, tmp_path / "cache")
        assert caught.value.check == "batch"
    assert not (tmp_path / "cache").exists()


def test_the_report_is_plain_json(sound: Path, tmp_path: Path) -> None:
    verify(load_package(sound), tmp_path)
    (kept,) = tmp_path.iterdir()
    assert {each["name"] for each in json.loads(kept.read_text())["checks"]} >= {"batch", "slots", "neighbours"}


class Fails:
    """An engine whose every step fails."""

    def __init__(self, package: Package) -> None:
        self.manifest = package.manifest

    def run(self, x: np.ndarray, states: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        raise StepFailed("model tiny: not implemented")


def test_a_graph_that_fails_at_its_first_step_refuses_its_package_and_no_more(sound: Path) -> None:
    package = load_package(sound)
    with pytest.raises(PackageRefused, match="not implemented") as caught:
        check(package, Fails(package))
    assert caught.value.check == "run"


# --- what a new stream begins with ---


class LearntBeginning(Wrapped):
    """h begins as learnt, c as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.linspace(-1, 1, 8).reshape(1, 8))

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.inner.initial_state(batch) | {"h": self.first.expand(1, 1, 8).expand(batch, 1, 8)}


def test_a_learnt_first_state_is_what_every_new_stream_begins_with(tmp_path: Path) -> None:
    net = LearntBeginning().eval()
    package = load_package(write(net, tmp_path).folder)
    assert verify(package).passed
    begun = OnnxEngine(package).initial(3)
    assert np.array_equal(begun["h"], net.initial_state(3)["h"].detach().numpy())
    assert begun["c"].tolist() == np.zeros((3, 1, 8)).tolist()
    assert (StateLayout(package.manifest, package.schema).fresh["state:h"] == begun["h"][0]).all()
    assert package.schema == load_package(write(recurrent(), tmp_path, "other").folder).schema, "states go on with it"


class FirstState(Wrapped):
    """h begins as `first(batch)` says."""

    def __init__(self, first: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.first = first

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.inner.initial_state(batch) | {"h": self.first(batch)}


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (lambda batch: torch.randn(batch, 1, 8), "neither random"),
        (lambda batch: torch.randn(1, 1, 8).expand(batch, 1, 8), "neither random"),
        (lambda batch: torch.arange(batch).float().reshape(batch, 1, 1).expand(batch, 1, 8), "neither random"),
        (lambda batch: torch.full((batch, 1, 8), 1 / batch), "neither random"),
        (lambda batch: torch.full((batch, 1, 8), torch.nan), "not finite"),
        (lambda batch: torch.zeros(batch, 1, 8, dtype=torch.bfloat16), "h is bfloat16"),
        (lambda batch: torch.linspace(0, 1, 20_000).expand(batch, 1, 20_000), "20000 values of its own"),
    ],
    ids=["random a stream", "random a call", "by place", "by batch", "not finite", "bfloat16", "too many"],
)
def test_a_first_state_that_not_every_stream_can_have_is_refused(first: Callable[[int], Tensor], said: str) -> None:
    with pytest.raises(PackageRefused, match=said) as caught:
        first_states(FirstState(first))
    assert caught.value.check == "states"


# --- the engine --------------------------------------------------------------------------------------------------


class BatchInTheMiddle(nn.Module):
    """An LSTM whose state tensors are (layers, B, width), as torch likes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.memory, self.head = nn.LSTM(3, 8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.memory(x, (h, c))
        return self.head(y).softmax(-1), h, c


@pytest.mark.filterwarnings("ignore")
def test_the_batch_axis_of_a_state_may_stand_anywhere(tmp_path: Path, sound: Path) -> None:
    net, zeros = BatchInTheMiddle().eval(), torch.zeros(2, 1, 8)
    axes = {name: {1: "batch"} for name in ("h", "c", "h_next", "c_next")}
    axes |= {name: {0: "batch", 1: "time"} for name in ("x", "probabilities")}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        net,
        (torch.zeros(1, 2, 3), zeros, zeros),
        str(path),
        input_names=["x", "h", "c"],
        output_names=["probabilities", "h_next", "c_next"],
        dynamic_axes=axes,
        dynamo=False,
    )
    manifest = json.loads((sound / "manifest.json").read_text())
    manifest["states"] = [{"name": name, "shape": [2, 8], "batch_axis": 1} for name in ("h", "c")]
    manifest["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    engine, x = OnnxEngine(load_package(tmp_path)), some_rows(5, 6)
    states = engine.initial(5)
    assert {name: value.shape for name, value in states.items()} == {"h": (5, 2, 8), "c": (5, 2, 8)}
    for t in range(6):
        y, states = engine.run(x[:, t : t + 1], states)
    assert {name: value.shape for name, value in states.items()} == {"h": (5, 2, 8), "c": (5, 2, 8)}
    with torch.no_grad():
        expected, h, _ = net(torch.from_numpy(x), torch.zeros(2, 5, 8), torch.zeros(2, 5, 8))
    assert np.abs(y[:, 0] - expected[:, -1].numpy()).max() < 1e-5
    assert np.abs(states["h"] - h.transpose(0, 1).numpy()).max() < 1e-5


def test_a_failed_run_is_a_step_that_failed(sound: Path) -> None:
    engine = OnnxEngine(load_package(sound))
    with pytest.raises(StepFailed, match="model tiny"):
        engine.run(np.zeros((1, 1, 4), np.float32), engine.initial(1))


def test_an_engine_warms_up_and_keeps_nothing(sound: Path) -> None:
    engine, x = OnnxEngine(load_package(sound)), some_rows(2, 3)
    before = engine.run(x, engine.initial(2))
    engine.warm_up()
    engine.run(some_rows(2, 3, seed=9), engine.initial(2))
    after = engine.run(x, engine.initial(2))
    assert np.array_equal(before[0], after[0])
    assert all(np.array_equal(before[1][name], after[1][name]) for name in before[1])
