"""Any torch module with forward(x, state) -> (y, state) becomes a package, or the reason why not is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.foreign import Adapted, Example, ForeignError, adapt, read_example, read_module
from service.errors import PackageRefused
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


class Memory(NamedTuple):
    total: Tensor
    last: Tensor


class NamedTupleState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor, state: Memory | None) -> tuple[Tensor, Memory]:
        begun = Memory(x.new_zeros(x.shape[0], 3), x.new_zeros(x.shape[0], 3)) if state is None else state
        totals = begun.total.unsqueeze(1) + x.cumsum(1) + begun.last.unsqueeze(1) * 0
        return self.out(totals), Memory(totals[:, -1], x[:, -1])


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
        (NamedTupleState, "logits", {"state0": (3,), "state1": (3,)}),
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
    """One fault each: `forward` by its name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.calls = what, 0
        self.rnn = nn.LSTM(3, 2, batch_first=what != "time first")

    def forward(self, x: Tensor, state: Tensor | None) -> object:
        y, self.calls = x[..., :2], self.calls + 1
        if self.what == "raises":
            raise RuntimeError("no such thing\n" * 50)
        if self.what == "begins with ones":
            state = torch.ones(len(x), 1) if state is None else state
            return y + state.unsqueeze(1), state
        return {
            "last only": (y[:, -1], None),
            "no batch": (y, torch.zeros(4)),
            "text": (y, "hello"),
            "y alone": y,
            "three": (y, None, None),
            "a dict": {"y": y, "state": None},
            "state first": ((x[:, -1], x[:, -1]), y),
            "tensor first": (x[:, -1].reshape(len(x), 3, 1), y),
            "double": (y.double(), None),
            "whole numbers": (y.long(), None),
            "not a number": (y * torch.nan, None),
            "noise": (y + torch.rand(1), None),
            "memory inside": (y + self.calls, None),
            "grows": (y, x.mean(2)),
            "half a state": (y, x[:, -1].half()),
            "numbered": (y, {0: x[:, -1]}),
            "a taken name": (y, {"x": x[:, -1]}),
            "a name that follows": (y, {"h": x[:, -1], "h_next": x[:, -1]}),
            "time first": (y, self.rnn(x)[1]),
            "squeezed": (y.squeeze(), None),
            "two rows at least": (y[:, 1:].repeat(1, 2, 1)[:, : x.shape[1]], None),
        }[self.what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raises", r"RuntimeError: no such thing .*\(test_foreign\.py, line \d+\)$"),
        ("last only", r"y has shape \(3, 2\): expected \(3, 8, 2\)"),
        ("begins with ones", r"must begin with zeros.* initial_state\(batch\) that returns"),
        ("no batch", "expected one axis that grows"),
        ("text", "is str: expected tensors"),
        ("y alone", r"gave Tensor: expected \(y, state\)"),
        ("three", r"gave \(Tensor, NoneType, NoneType\): expected \(y, state\)"),
        ("a dict", r"gave dict: expected \(y, state\)"),
        ("state first", r"gave \(tuple, Tensor\): expected \(y, state\), y a tensor and in this order"),
        ("tensor first", r"y has shape \(3, 3, 1\): expected \(y, state\) in this order"),
        ("double", "y is float64: expected float32"),
        ("whole numbers", "y is int64: expected float32"),
        ("not a number", "y is not finite on the example, though all weights are"),
        ("noise", "another y when it is called again"),
        ("memory inside", "another y when it is called again"),
        ("grows", r"float32 of \(3, 8\) after 8 steps.*the same size"),
        ("half a state", "state is float16: expected one of float32"),
        ("numbered", "state 0: expected another name"),
        ("a taken name", "state 'x': expected another name"),
        ("a name that follows", "state 'h_next': expected another name"),
        ("squeezed", r"y has shape \(3, 2\): expected \(3, 1, 2\)"),
        ("two rows at least", r"y has shape \(3, 0, 2\): expected .*\(3, 1, 2\)"),
        ("time first", "one axis that grows; rnn is an nn.LSTM with batch_first=False"),
    ],
)
def test_a_module_that_does_not_fit_says_why(what: str, said: str) -> None:
    with pytest.raises(ForeignError, match=said) as caught:
        adapt(Odd(what).eval(), ROWS, LABELS, "auto")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


class Begins(nn.Module):
    """With an initial_state that does not fit."""

    def __init__(self, given: Callable[[int], object]) -> None:
        super().__init__()
        self.given = given

    def initial_state(self, batch: int) -> object:
        return self.given(batch)

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, dict[str, Tensor]]:
        return x[..., :2], {"h": x[:, -1]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda batch: None, "gives no tensors, forward gives h back"),
        (lambda batch: {"other": torch.zeros(3, 3)}, "one axis that grows"),
        (lambda batch: {"h": torch.rand(batch, 3)}, "neither random"),
        (lambda batch: {"h": torch.full((batch, 3), torch.inf)}, "values that are not finite"),
        (lambda batch: 1 / 0, r"initial_state\(3\) failed: ZeroDivisionError: division by zero \(test_foreign.py"),
    ],
)
def test_an_initial_state_that_does_not_fit_says_why(given: Callable[[int], object], said: str) -> None:
    with pytest.raises((ForeignError, PackageRefused), match=said):
        adapt(Begins(given).eval(), ROWS, LABELS, "auto")


def test_the_output_that_is_named_must_be_that_of_y() -> None:
    with pytest.raises(ForeignError, match=r"expected \(3, 8, 1\), .*since --output says logit"):
        adapt(TorchsOwnHabit(), ROWS, LABELS, "logit")
    with pytest.raises(ForeignError, match=r"expected \(3, 8, 2\), .*since --output says probabilities"):
        adapt(NoMemory(), ROWS, LABELS, "probabilities")


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
        (np.zeros((3, 30, 480, 640, 1), np.uint8), (3, 13, 480, 640, 1)),
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


@pytest.mark.parametrize(
    ("features", "said"), [(["a", "b"], "2 features are named"), (["a", "a", "b"], "twice"), (["a", "", "b"], "empty")]
)
def test_an_examples_names_are_those_of_its_columns(tmp_path: Path, features: list[str], said: str) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 3)), features=features)
    with pytest.raises(ForeignError, match=rf"x\.npz: .*{said}"):
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
        ("tests.export.test_foreign:raising", r"raising failed: ValueError: no config \(test_foreign.py, line \d+\)"),
        ("tests.export.test_foreign:Odd", "Odd failed: TypeError: .*without arguments"),
        ("tests.export.test_foreign:nowhere", "cannot be brought to the CPU"),
    ],
)
def test_a_factory_that_is_none_says_why(spec: str, said: str) -> None:
    with pytest.raises(ForeignError, match=said):
        read_module(spec, None)


def raising() -> nn.Module:
    raise ValueError("no config")


def nowhere() -> nn.Module:
    return TorchsOwnHabit().to("meta")


@pytest.mark.parametrize("top", ["1 / 0", "import gone", "raise SystemExit(3)", "def", "import os; os.gone"])
def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str) -> None:
    name = f"broken{abs(hash(top))}"
    (tmp_path / f"{name}.py").write_text(top + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ForeignError, match=f"module '{name}' cannot be imported: "):
        read_module(f"{name}:make", None)


def test_a_key_pressed_in_a_module_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(NoMemory):
        def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(Slow(), ROWS, LABELS, "auto")


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
