"""Weights are taken out of what training wraps them in, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.causes import ForeignError
from export.foreign import read_module
from export.weights import fill


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x, state)
        return self.out(y), state


def compiled() -> nn.Module:
    """As torch.compile makes it, without the seconds that its compiler takes to be there."""
    around = nn.Module()
    around._orig_mod = Net()
    return around


def parallel() -> nn.Module:
    return nn.DataParallel(Net())


Weights = dict[str, Tensor]


def behind(before: str) -> Callable[[Weights], Weights]:
    return lambda weights: {before + name: value for name, value in weights.items()}


WRAPPED: dict[str, tuple[Callable[[Weights], object], list[str]]] = {
    "nothing": (lambda w: w, []),
    "DataParallel": (behind("module."), ["'module.' before"]),
    "torch.compile": (behind("_orig_mod."), ["'_orig_mod.' before"]),
    "both": (behind("module._orig_mod."), ["'module.' before", "'_orig_mod.' before"]),
    "the other way": (behind("_orig_mod.module."), ["'_orig_mod.' before", "'module.' before"]),
    "a compiled part": (
        lambda w: {name.replace("rnn.", "rnn._orig_mod."): value for name, value in w.items()},
        ["'_orig_mod.' within"],
    ),
    "AveragedModel": (lambda w: behind("module.")(w) | {"n_averaged": torch.tensor(3)}, ["'module.' before"]),
    "a checkpoint": (lambda w: {"epoch": 3, "loss": torch.tensor(0.5), "state_dict": w}, ["its 'state_dict'"]),
    "Lightning": (lambda w: {"state_dict": behind("model.")(w)}, ["its 'state_dict'", "'model.' before"]),
    "Lightning, compiled": (lambda w: {"state_dict": behind("net._orig_mod.")(w)}, ["its", "'net._orig_mod.' before"]),
    "a loop of one's own": (lambda w: {"model_state_dict": behind("module.")(w), "optimizer": {}}, ["its", "module"]),
    "half": (lambda w: {name: value.half() for name, value in w.items()}, []),
}


@pytest.mark.parametrize("what", WRAPPED)
def test_weights_are_found_in_what_wraps_them_and_that_is_said(tmp_path: Path, what: str) -> None:
    torch.manual_seed(0)
    trained, net = Net().half().float(), Net()
    wrap, said = WRAPPED[what]
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
    told = fill(net, tmp_path / "w.pt", "nets:Net")
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in net.state_dict().items())
    assert [words in line for words, line in zip(said, told, strict=True)] == [True] * len(said)


def test_names_that_a_module_has_itself_stay(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()

    torch.save(Holder().state_dict(), tmp_path / "w.pt")
    assert fill(Holder(), tmp_path / "w.pt", "nets:Holder") == []


UNFIT: dict[str, tuple[Callable[[Weights], object], str]] = {
    "part": (lambda w: {name: w[name] for name in w if "rnn" in name}, "it lacks out.weight, out.bias"),
    "more": (lambda w: w | {"head.weight": torch.ones(1)}, "the module has no head.weight"),
    "wider": (lambda w: w | {"out.weight": torch.ones(3, 4)}, "out.weight of (3, 4), which the module has of (2, 4)"),
    "all else": (
        lambda w: {f"{i}": value for i, value in enumerate(w.values())},
        "and 3 more; the module has no 0, 1, 2",
    ),
    "complex": (lambda w: {name: w[name].to(torch.complex64) for name in w}, "it has complex rnn.weight_ih_l0"),
    "spoilt": (lambda w: w | {"out.bias": torch.tensor([1.0, torch.nan])}, "out.bias holds values that are not finite"),
    "two nets": (lambda w: {"generator": w, "discriminator": w}, "holds a dict of generator, discriminator"),
    "a tensor": (lambda w: torch.ones(3), "holds Tensor: expected names and tensors"),
    "nothing": (lambda w: {}, "expected names and tensors"),
    "the module": (
        lambda w: Net(),
        "test_weights.Net, which may do anything when they are read; save the weights alone",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_does_not_fit_is_named_in_one_line(tmp_path: Path, what: str) -> None:
    make, said = UNFIT[what]
    torch.save(make(Net().state_dict()), tmp_path / "w.pt")
    with pytest.raises(ForeignError) as caught:
        fill(Net(), tmp_path / "w.pt", "nets:Net")
    text = str(caught.value)
    assert said in text
    assert "w.pt" in text
    assert "\n" not in text
    assert len(text) < 600


@pytest.mark.parametrize("kept", [0, 1, 500])
def test_half_a_file_is_named(tmp_path: Path, kept: int) -> None:
    torch.save(Net().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:kept])
    with pytest.raises(ForeignError, match=r"w\.pt cannot be read: .*save the weights alone"):
        fill(Net(), tmp_path / "w.pt", "nets:Net")


@pytest.mark.parametrize("made", ["compiled", "parallel", "Net"])
def test_a_module_is_taken_out_of_what_torch_wraps_it_in(tmp_path: Path, made: str) -> None:
    wrapped: Mapping[str, Tensor] = parallel().state_dict()
    torch.save(wrapped, tmp_path / "w.pt")
    net = read_module(f"tests.export.test_weights:{made}", tmp_path / "w.pt")
    assert type(net) is Net
    assert torch.equal(net.out.weight, wrapped["module.out.weight"])
    assert not net.training
