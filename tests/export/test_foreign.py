"""Any torch module with forward(x, state) -> (y, state) becomes a package, or the reason why not is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.foreign import Adapted, Example, ForeignError, adapt, read_example, read_module
from service.packages import load_package
from service.parity import verify
from tests.deployment import ROOT

LABELS = ["ok", "worn"]
ROWS = Example(np.random.default_rng(0).normal(size=(3, 8, 3)).astype(np.float32), [])


class TorchsOwnHabit(nn.Module):
    """State as torch's layers have it: None at first, then a tuple with the batch in the middle."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 5, 2, batch_first=True)
        self.out = nn.Linear(5, outputs)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.memory(x, state)
        return self.out(y), state


class OneTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(3, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        y, state = self.memory(x, state)
        return self.out(y).softmax(-1), state


class NamedState(nn.Module):
    """With initial_state, which is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"total": torch.ones(batch, 3)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        totals = state["total"].unsqueeze(1) + x.cumsum(1)
        return self.out(totals), {"total": totals[:, -1]}


class NoMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        return self.out(x), None


@pytest.mark.parametrize(
    ("make", "gives", "states"),
    [
        (TorchsOwnHabit, "logits", {"state0": (2, 5), "state1": (2, 5)}),
        (OneTensor, "probabilities", {"state": (1, 4)}),
        (NamedState, "logits", {"total": (3,)}),
        (NoMemory, "logit", {}),
    ],
)
def test_a_state_may_be_kept_in_any_way_and_steps_as_the_module(
    make: Callable[[], nn.Module], gives: str, states: dict[str, tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    net = make().eval()
    adapted, output = adapt(net, ROWS, LABELS, "auto")
    assert output == gives
    state = adapted.initial_state(3)
    assert {name: tuple(value.shape) for name, value in state.items()} == {n: (3, *s) for n, s in states.items()}
    x = torch.from_numpy(ROWS.x)
    begin = net.initial_state(3) if hasattr(net, "initial_state") else None
    with torch.no_grad():
        expected, _ = net(x, begin)
        for t in range(x.shape[1]):
            y, state = adapted(x[:, t : t + 1], state)
            assert torch.allclose(y[:, 0], expected[:, t], atol=1e-6)


class Odd(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, object]:
        y = x[..., :2]
        if self.what == "raises":
            raise RuntimeError("no such thing")
        if self.what == "last only":
            return y[:, -1], None
        if self.what == "begins with ones":
            state = torch.ones(len(x), 1) if state is None else state
            return y + state.unsqueeze(1), state
        if self.what == "no batch":
            return y, torch.zeros(4)
        return y, "hello"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raises", "RuntimeError: no such thing"),
        ("last only", r"y has shape \(3, 2\): expected \(3, 8, 2\)"),
        ("begins with ones", "must begin with zeros"),
        ("no batch", "expected one axis that grows"),
        ("text", "is str: expected tensors"),
    ],
)
def test_a_module_that_does_not_fit_says_why(what: str, said: str) -> None:
    with pytest.raises(ForeignError, match=said):
        adapt(Odd(what), ROWS, LABELS, "auto")


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", ""]])
def test_labels_are_at_least_two_and_different(labels: list[str]) -> None:
    with pytest.raises(ForeignError, match="at least two"):
        adapt(TorchsOwnHabit(), ROWS, labels, "auto")


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (np.zeros((500, 3)), (7, 64, 3)),
        (np.zeros((2, 9, 3)), (2, 9, 3)),
        (np.zeros((1, 4, 8, 8, 1), np.uint8), (2, 4, 8, 8, 1)),
    ],
)
def test_an_example_is_brought_into_streams(tmp_path: Path, x: np.ndarray, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "x.npz", x=x, features=["a", "b", "c"])
    found = read_example(tmp_path / "x.npz")
    assert found.x.shape == shape
    assert found.features == ["a", "b", "c"]


@pytest.mark.parametrize("x", [np.zeros(3), np.zeros((2, 3)), np.zeros((2, 3, 4, 4, 1)), np.full((9, 2), np.nan)])
def test_an_example_that_is_none_says_what_was_expected(tmp_path: Path, x: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(ForeignError, match=r"example .*x\.npz"):
        read_example(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [None, b"hello"])
def test_a_spoilt_example_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ForeignError, match=r"x\.npz"):
        read_example(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torch.nn", "expected PACKAGE.MODULE:FACTORY"),
        ("no.such:make", "cannot be imported"),
        ("torch.nn:nothing", "has no 'nothing'"),
        ("builtins:dict", "gave dict"),
    ],
)
def test_a_factory_that_is_none_says_why(spec: str, said: str) -> None:
    with pytest.raises(ForeignError, match=said):
        read_module(spec, None)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    (tmp_path / "x.pt").write_bytes(b"hello")
    for name in ("w.pt", "x.pt", "gone.pt"):
        with pytest.raises(ForeignError, match=name.replace(".", r"\.")):
            read_module("tests.export.test_foreign:TorchsOwnHabit", tmp_path / name)


def test_the_command_writes_a_proven_package_or_one_message(tmp_path: Path) -> None:
    source = Path(__file__).read_text()
    (tmp_path / "mynets.py").write_text(
        "import torch\nfrom torch import Tensor, nn\n\n"
        + source[source.index("class TorchsOwnHabit") : source.index("class OneTensor")]
    )
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(200, 3)), features=["a", "b", "c"])
    torch.manual_seed(5)
    torch.save(TorchsOwnHabit().state_dict(), tmp_path / "w.pt")
    words = ["--module", "mynets:TorchsOwnHabit", "--weights", "w.pt", "--example", "rows.npz", "--hz", "20"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "export.package", *words, *more],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = run("--labels", "ok,worn", "--name", "pumps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "packages/pumps/1"
    package = load_package(tmp_path / "packages" / "pumps" / "1")
    assert verify(package).passed
    assert package.manifest.rows is not None
    assert (package.manifest.rows.features, package.manifest.rows.rate_hz) == (["a", "b", "c"], 20)
    wrong = run("--labels", "ok,worn,gone")
    assert wrong.returncode == 2
    assert "y has shape" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_batch_axis_is_found() -> None:
    assert Adapted(TorchsOwnHabit(), ROWS.x).axes == {"state0": 1, "state1": 1}
