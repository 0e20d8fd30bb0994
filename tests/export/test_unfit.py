"""A module that no graph can be made of is refused in one line: the cause, and what helps; nothing else is printed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

from export import package
from export.to_onnx import decided_once, to_onnx
from service.errors import PackageRefused
from service.packages import load_package
from service.parity import verify
from tests.export.conftest import some_rows

ROWS = some_rows(3, 8)


class Plain(nn.Module):
    """Rows of three, a state of two sums."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(3, 2)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"h": torch.zeros(batch, 2)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = state["h"].unsqueeze(1) + self.out(x).cumsum(1)
        return y, {"h": y[:, -1]}


class Loop(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, said = state["h"], []
        for t in range(x.shape[1]):
            h = h + self.out(x[:, t])
            said.append(h)
        return torch.stack(said, 1), {"h": h}


class LoopOverRows(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, said = state["h"], []
        for row in x.unbind(1):
            h = h + self.out(row)
            said.append(h.unsqueeze(1))
        return torch.cat(said, 1), {"h": h}


class LoopInPlace(Plain):
    """Its graph has the right shapes, and fails where there are fewer rows."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, y = state["h"], self.out(x)
        for t in range(x.size(1)):
            h = h + y[:, t]
            y[:, t] = h
        return y, {"h": h}


class LoopOverStreams(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = torch.stack([h + self.out(rows).cumsum(0) for rows, h in zip(x, state["h"], strict=True)])
        return y, {"h": y[:, -1]}


def scan(y: Tensor, h: Tensor) -> Tensor:
    said = []
    for t in range(y.size(1)):
        h = h + y[:, t]
        said.append(h)
    return torch.stack(said, 1)


class Scanned(Plain):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather have its other compilers used
            self.scan = torch.jit.script(scan)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.scan(self.out(x), state["h"])
        return y, {"h": y[:, -1]}


class CountsInPython(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, state = super().forward(x, state)
        return y + torch.zeros(1, int(x.shape[1]), 1), state


class CountsStreams(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = state["h"].unsqueeze(1) + self.out(x).reshape(len(x), -1, 2).cumsum(1)
        return y, {"h": y[:, -1]}


class Decides(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, state = super().forward(x, state)
        if x.abs().max() > 100:
            y = y * 0
        return y, state


class Decided(Decides):
    """By a value that differs within the example."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x * 100 / float(x.abs().max()), state)


class Unsupported(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, state = super().forward(x, state)
        return y + torch.linalg.svdvals(x.transpose(1, 2) @ x)[:, None, :2], state


class Spectrum(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(torch.fft.fft(x).real, state)


class Forgets(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x, {"h": torch.zeros(len(x), 2)})


class OwnBatch(Plain):
    """Standardised by whoever is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2), state)


class Layer(nn.Module):
    """An LSTM with some of torch's options."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True, **options)  # type: ignore[arg-type]
        self.out = nn.Linear(self.rnn.proj_size or 4 * (1 + self.rnn.bidirectional), 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.rnn(x, state)
        return self.out(y), state


class Double(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = super().forward(x.double(), state)
        return y.float(), state


class Centred(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x - x.mean(1, keepdim=True), state)


class CentredStreams(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x - x.mean(0, keepdim=True), state)


def projected() -> nn.Module:
    return Layer(proj_size=2)


def both_ways() -> nn.Module:
    return Layer(bidirectional=True)


def half() -> nn.Module:
    return Layer().half()


def command(made: str, folder: Path) -> tuple[int, str]:
    """Its exit status, and what it said."""
    np.savez(folder / "rows.npz", x=ROWS)
    app = typer.Typer()
    app.command()(package.main)
    words = [
        "--module",
        f"tests.export.test_unfit:{made}",
        "--labels",
        "ok,worn",
        "--example",
        str(folder / "rows.npz"),
    ]
    done = CliRunner().invoke(app, [*words, "--name", "made", "--into", str(folder)])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("Loop", "forward goes over the rows in a Python loop"),
        ("LoopOverRows", "forward goes over the rows in a Python loop"),
        ("LoopInPlace", "forward goes over the rows in a Python loop"),
        ("LoopOverStreams", "forward goes over the streams in a Python loop"),
        ("CountsInPython", "their number becomes one of Python's"),
        ("CountsStreams", "their number becomes one of Python's"),
        ("Decided", "test_unfit.py, line "),
        ("Unsupported", "'aten::linalg_svdvals'"),
        ("Spectrum", "complex numbers cannot be written into the graph"),
        ("Forgets", "forward never reads the state h"),
        ("OwnBatch", "norm has track_running_stats=False"),
        ("Double", "rnn.weight_ih_l0 is torch.float64 (double)"),
        ("projected", "ONNX has no LSTM with proj_size"),
        ("both_ways", "rnn is bidirectional: it reads the rows to come"),
        ("Centred", "it may look at rows of the same call, such as by a mean over time"),
        ("CentredStreams", "it may look at other streams of the same call, such as by a mean over the batch"),
        ("half", "rnn.weight_ih_l0 is torch.float16"),
    ],
)
def test_what_cannot_be_packaged_ends_in_one_line_with_cause_and_remedy(
    made: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, text = command(made, tmp_path)
    assert (status, text.count("\n")) == (2, 1), text
    assert said in text
    assert len(text) < 800
    assert "/.1." not in text, "the name of a draft"
    assert capfd.readouterr() == ("", ""), "neither torch nor ONNX Runtime prints past Python"
    assert [path.name for path in tmp_path.rglob("*")] == ["rows.npz"], "nor an empty folder, refused at every start"


def test_a_loop_that_torch_has_read_goes_over_as_many_rows_as_come(tmp_path: Path) -> None:
    status, text = command("Scanned", tmp_path)
    assert (status, text) == (0, f"{tmp_path}/made/1\n")
    assert verify(load_package(tmp_path / "made" / "1")).passed


def test_what_the_example_decided_is_said_though_the_certificate_holds(tmp_path: Path) -> None:
    status, text = command("Decides", tmp_path)
    assert status == 0
    assert text.startswith("note: test_unfit.py, line ")
    assert decided_once(Plain(), ROWS) == []


def test_a_key_pressed_while_a_graph_is_made_is_nobodys_fault() -> None:
    class Pressed(Plain):
        def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_onnx(Pressed(), ROWS)


def test_a_net_of_ours_is_refused_alike() -> None:
    with pytest.raises(PackageRefused, match="Python loop") as caught:
        to_onnx(Loop(), ROWS)
    assert caught.value.check == "graph"
