"""Every family's graph takes any B and T without a warning, and steps as torch does on whole sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export import to_onnx as exporter
from export.to_onnx import run_torch, to_onnx
from export.zoo import TASKS
from models.catalogue import NETS, Shape
from models.cnn2d import CNN2d
from models.rnn import Moments
from tests.export.conftest import recurrent, some_rows

SIZES = (1, 3, 64)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 1), np.uint8)  # (B, T, H, W, C)


def nets() -> dict[str, tuple[nn.Module, np.ndarray]]:
    cells = {
        f"{cell}, {layers} layers": recurrent(cell, layers) for cell in ("rnn", "gru", "lstm") for layers in (1, 2)
    }
    rows = {name: (net, some_rows(2, 3)) for name, net in cells.items()}
    rows["lstm, windows"] = (recurrent("lstm", windows=(3, 7)), some_rows(2, 3))
    return {**rows, "cnn2d": (CNN2d((8, 8, 1), 4, ((4, 4), (8,)), 16).eval(), FRAMES)}


def run_everywhere(model: bytes, net: nn.Module, x: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for B in SIZES:
        for T in SIZES:
            states = {name: value.numpy() for name, value in net.initial_state(B).items()}
            y = session.run(None, {"x": np.resize(x, (B, T, *x.shape[2:])), **states})[0]
            assert y.shape[:2] == (B, T)


@pytest.mark.parametrize("name", nets())
def test_no_batch_and_no_length_makes_onnx_runtime_warn(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    net, x = nets()[name]
    run_everywhere(to_onnx(net, x), net, x)
    assert capfd.readouterr() == ("", "")


def test_without_the_correction_it_would_warn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def keep_the_examples_shape(model: onnx.ModelProto, states: object) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2

    monkeypatch.setattr(exporter, "_forget_example", keep_the_examples_shape)
    net, x = nets()["lstm, 1 layers"]
    run_everywhere(to_onnx(net, x), net, x)
    assert "does not match actual shape" in capfd.readouterr().err


@pytest.mark.parametrize("name", nets())
def test_stepping_equals_torch_on_the_whole_sequence(name: str) -> None:
    net, x = nets()[name]
    session = onnxruntime.InferenceSession(to_onnx(net, x), providers=["CPUExecutionProvider"])
    states = {key: value.numpy() for key, value in net.initial_state(len(x)).items()}
    parts = []
    for t in range(x.shape[1]):
        y, *after = session.run(None, {"x": x[:, t : t + 1], **states})
        states = dict(zip(states, after, strict=True))
        parts.append(y)
    expected, last = run_torch(net, x)
    assert np.abs(np.concatenate(parts, 1) - expected).max() < 1e-5
    assert all(np.abs(states[key] - last[key]).max() < 1e-5 for key in last)


def test_recurrent_layers_stay_single_operators() -> None:
    for cell, operator in (("rnn", "RNN"), ("gru", "GRU"), ("lstm", "LSTM")):
        model = onnx.load_from_string(to_onnx(recurrent(cell), some_rows(2, 3)))
        assert [node.op_type for node in model.graph.node].count(operator) == 1


def test_the_graph_says_nothing_of_the_machine_it_was_made_on() -> None:
    model = to_onnx(recurrent(), some_rows(2, 3))
    assert str(Path.cwd()).encode() not in model
    assert model == to_onnx(recurrent(), some_rows(2, 3)), "the same net gives the same bytes"


def test_moments_are_mean_and_spread_of_the_rows_so_far_in_each_window() -> None:
    moments, x = Moments(3, (4, 9)), some_rows(2, 20)
    seen, recent = moments(torch.from_numpy(x), moments.initial_state(2))
    for t in range(20):
        for place, window in enumerate((4, 9)):
            rows = x[:, max(0, t + 1 - window) : t + 1]
            expected = np.concatenate([rows.mean(1), 0.5 * np.log(rows.var(1) + 0.01)], -1)
            assert np.abs(seen[:, t, 6 * place : 6 * place + 6].numpy() - expected).max() < 1e-4
    assert np.array_equal(recent[..., :3].numpy(), x[:, -8:])
    assert recent[..., 3].min() == 1


class OneNeuron(nn.Module):
    """Two labels, one neuron: a logit (B, T, 1)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.layer(x), state


def test_one_sigmoid_neuron_is_packaged_as_two_labels() -> None:
    net, x = OneNeuron().eval(), some_rows(2, 3)
    session = onnxruntime.InferenceSession(to_onnx(net, x, "logit"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    p = net(torch.from_numpy(x), {})[0].sigmoid().detach().numpy()
    assert np.abs(y - np.concatenate([1 - p, p], -1)).max() < 1e-6


@pytest.mark.parametrize("name", NETS)
def test_every_net_of_the_catalogue_steps_as_torch_on_the_whole(name: str) -> None:
    task, rng = TASKS[name], np.random.default_rng(0)
    frame = (60, 80, 1) if name.startswith("action") else (28, 28, 1)
    F = 96 if name.startswith("bearing") else 6
    shape = Shape(6, frame=frame, mean=[0.5] * F, std=[2.0] * F, tokens=50)
    torch.manual_seed(0)
    net = NETS[name].build(shape).eval()
    x = {
        "frame": rng.integers(0, 256, (2, 3, *frame), np.uint8),
        "samples": rng.normal(0.5, 2.0, (2, 8, F)).astype(np.float32),
        "text": rng.integers(0, 50, (2, 8)),
    }[task.kind]
    session = onnxruntime.InferenceSession(to_onnx(net, x), providers=["CPUExecutionProvider"])
    states = {key: value.numpy() for key, value in net.initial_state(2).items()}
    for t in range(x.shape[1]):
        y, *after = session.run(None, {"x": x[:, t : t + 1], **states})
        states = dict(zip(states, after, strict=True))
    assert np.abs(y[:, 0] - run_torch(net, x)[0][:, -1]).max() < 1e-5
    assert sum(parameter.numel() for parameter in net.parameters()) * 4 < 4_000_000
