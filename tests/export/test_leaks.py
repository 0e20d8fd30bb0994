"""Nothing of what a net is judged by comes into what it learns: not into means, weights, choices or folds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from export import package, texts
from export.data import Data, Split
from export.runs import Trained
from export.streaming import choose_rolling
from export.tasks import Task
from export.train import train
from models.rocket import _choose
from service.contracts import Manifest
from tests.export.test_readers import SST, TREC, written
from tests.export.test_sequences import of_rows, settings

Run = tuple[Trained, Manifest, Path]


def waves(count: int, seed: int, *, late: bool = False, moved: float = 0.0) -> Split:
    """Two labels by frequency; `late`: the first two thirds of a sequence are the other label's; `moved` values."""
    rng = np.random.default_rng(seed)
    x = []
    for i in range(count):
        length = int(rng.integers(24, 30))
        label = np.where(np.arange(length) < (2 * length // 3 if late else 0), 1 - i % 2, i % 2)
        at = np.cumsum(0.4 + 0.8 * label) + rng.uniform(0, 6)
        x.append((np.stack([np.sin(at), np.cos(at), 0 * at], -1) + moved).astype(np.float32))
    return Split(x, np.arange(count) % 2, [f"w{seed}-{i}" for i in range(count)], 1000 * seed + np.arange(count))


def run(data: Data, folds: int, folder: Path) -> Run:
    task: Task = dataclasses.replace(of_rows()[0], folds=folds, epochs=8)
    trained = train(task, data, settings(task), folder)
    place = package.write_run(task, data, trained, folder / "package")
    return trained, msgspec.json.decode((place / "manifest.json").read_bytes(), type=Manifest), place


@pytest.fixture(scope="module", params=[0, 2], ids=["validation", "folds"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Data]:
    """The same training with two test splits: one like the rest, and one that is moved and late."""
    folder, (_, made) = tmp_path_factory.mktemp("leaks"), of_rows()
    plain = dataclasses.replace(
        made, train=waves(24, 0), validation=None if request.param else waves(12, 1), test=waves(12, 2)
    )
    other = dataclasses.replace(plain, test=waves(16, 3, late=True, moved=0.3))
    return (
        run(plain, request.param, folder / "plain"), run(other, request.param, folder / "other"), other,
    )  # fmt: skip


def test_another_test_split_changes_neither_mean_nor_spread_nor_weights(runs: tuple[Run, Run, Data]) -> None:
    (one, its, _), (other, theirs, _), _ = runs
    for net, same in ((one.net, other.net), *zip(one.judges, other.judges, strict=True)):
        weights, again = net.state_dict(), same.state_dict()
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert its.rows == theirs.rows
    assert its.sha256 == theirs.sha256
    assert [entry["loss"] for entry in one.history] == [entry["loss"] for entry in other.history]
    assert (one.best, one.history[-1]["validation"]) == (other.best, other.history[-1]["validation"])


def test_another_test_split_changes_no_rolling_setting_though_it_wants_another(runs: tuple[Run, Run, Data]) -> None:
    (_, its, _), (trained, theirs, place), data = runs
    assert its.rolling == theirs.rolling
    task = of_rows()[0]
    assert data.test is not None
    said = task.trace(package.stream_run(package.Package(theirs, place)), data.test)
    wanted, _ = choose_rolling([said], [data.test.y], 1 / 10.0, task.rolling, task.gap)
    assert wanted != theirs.rolling, "or this proves nothing"
    assert trained.net.mean.tolist() == theirs.rows.mean  # type: ignore[union-attr]


def test_another_test_split_changes_no_certificate(runs: tuple[Run, Run, Data]) -> None:
    (_, _, one), (_, _, other), _ = runs
    assert (np.load(one / "golden.npz")["x"] == np.load(other / "golden.npz")["x"]).all()


def test_a_fold_that_a_net_is_judged_by_is_no_part_of_its_mean(tmp_path: Path) -> None:
    task, data = of_rows()
    rows = [
        x + np.float32(10 * group) for x, group in zip(data.train.x, data.train.group, strict=True)
    ]  # each person elsewhere
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, x=rows))
    trained = train(task, data, settings(task), tmp_path)
    means = sorted(float(judge.mean[0]) for judge in trained.judges)  # type: ignore[arg-type,index]
    assert means == pytest.approx([10 * (6 - left_out) / 3 for left_out in (3, 2, 1, 0)], abs=1)


def test_another_validation_split_changes_no_mean(tmp_path: Path) -> None:
    _, made = of_rows()
    parts = [waves(12, 1), waves(12, 1, moved=5.0)]
    nets = []
    for number, validation in enumerate(parts):
        data = dataclasses.replace(made, train=waves(24, 0), validation=validation, test=waves(12, 2))
        nets.append(train(of_rows()[0], data, settings(of_rows()[0]), tmp_path / str(number)).net)
    assert torch.equal(nets[0].mean, nets[1].mean)  # type: ignore[arg-type]
    assert torch.equal(nets[0].std, nets[1].std)  # type: ignore[arg-type]


# --- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["sst2", "trec"])
def test_another_test_split_changes_no_word_of_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    sums, files, read = (
        (texts.SST_SHA256, SST, texts.sst2) if which == "sst2" else (texts.TREC_SHA256, TREC, texts.trec)
    )
    found = []
    for number, more in enumerate((b"", b"1 stirring stirring do n't can not -lrb- `` ''\n" * 3)):
        judged = {name: content + more * ("train" not in name) for name, content in files.items()}
        written(tmp_path / str(number), sums, judged, monkeypatch)
        found.append(read(tmp_path / str(number)))
    assert len(found[0].test.x) < len(found[1].test.x)
    assert found[0].tokenizer == found[1].tokenizer


# --- Rocket ------------------------------------------------------------------------------------------------------


def test_copies_of_a_person_never_stand_on_both_sides_of_rockets_folds() -> None:
    """Labels that only who knows the person can know: in folds by person nothing can be learnt."""
    generator = torch.Generator().manual_seed(0)
    people, copies, features = 24, 6, 64
    group = torch.arange(people).repeat(copies)
    y = (torch.randperm(people, generator=generator) % 2)[group]
    seen = torch.randn(people, features, generator=generator)[group]
    seen = seen + 0.01 * torch.randn(len(group), features, generator=generator)
    gram = (seen @ seen.T / features).double()
    torch.manual_seed(0)
    *_, by_person = _choose(gram, torch.nn.functional.one_hot(y, 2).double(), y, group)
    *_, by_copy = _choose(gram, torch.nn.functional.one_hot(y, 2).double(), y, torch.arange(len(y)))
    assert by_copy < 0.1, "a copy on the other side tells everything"
    assert by_person > 0.6
