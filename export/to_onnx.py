"""A torch net to an ONNX graph whose state is input and output: `x`, NAME … → `probabilities`, NAME_next …

torch's TorchScript exporter is used on purpose: it keeps LSTM, GRU and RNN as single ONNX operators, which ONNX Runtime
runs fastest, where the newer one takes them apart and cannot do so for any number of steps
(docs/decisions/0003-torchscript-exporter.md).
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.states import begin

OPSET = 18
BATCH, TIME = "batch", "time"

Output = Literal["logits", "logit", "probabilities"]  # of K labels; one neuron for two labels; already normalised


class Served(nn.Module):
    """The net as it is served: logits become probabilities, the state's dict becomes arguments in a fixed order."""

    def __init__(self, net: nn.Module, names: list[str], output: Output = "logits") -> None:
        super().__init__()
        self.net, self.names, self.output = net, names, output

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, after = self.net(x, dict(zip(self.names, state, strict=True)))
        if self.output == "logits":
            y = y.softmax(-1)
        elif self.output == "logit":
            p = y.sigmoid()  # (B, T, 1)
            y = torch.cat([1 - p, p], -1)
        return y, *(after[name] for name in self.names)


def to_onnx(net: nn.Module, x: np.ndarray, output: Output = "logits") -> bytes:
    """The graph as bytes, for any B and T. `x` (B, T, …) is an example; only its type and its shape behind T count."""
    state = begin(net, 1)
    names = list(state)
    served = Served(net, names, output).eval()
    example = torch.from_numpy(np.ascontiguousarray(x[:1, :2]))
    following = [f"{name}_next" for name in names]
    axes = {"x": {0: BATCH, 1: TIME}, "probabilities": {0: BATCH, 1: TIME}}
    axes |= {name: {0: BATCH} for name in (*names, *following)}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the exporter's age, and on tracing shapes that do not vary
        torch.onnx.export(
            served,
            (example, *state.values()),
            buffer,
            input_names=["x", *names],
            output_names=["probabilities", *following],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _forget_example(model, {name: tensor.shape[1:] for name, tensor in state.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def run_torch(net: nn.Module, x: np.ndarray, output: Output = "logits") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Whole sequences in one call, from new states: probabilities (B, T, K) and the last states by name."""
    state = begin(net, len(x))
    served = Served(net, list(state), output).eval()
    with torch.no_grad():
        y, *after = served(torch.from_numpy(x), *state.values())
    return y.numpy(), {name: tensor.numpy() for name, tensor in zip(state, after, strict=True)}


def _forget_example(model: onnx.ModelProto, states: dict[str, torch.Size]) -> None:
    """Writes the true shapes of what goes in and comes out, and removes the exporter's guesses of what lies between.

    The exporter takes the example's B and T for constants in recurrent layers' outputs: the results are right, but
    ONNX Runtime warns at every other B and T.
    """
    del model.graph.value_info[:]
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        known = states.get(value.name.removesuffix("_next"))
        named = [BATCH, TIME] if value.name == "probabilities" else [BATCH]
        sizes = [*named, *(known if known is not None else [dims[-1].dim_value])]
        del dims[:]
        for size in sizes:
            dim = dims.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = int(size)
    model.producer_name, model.producer_version, model.doc_string = "rollcast", "", ""
    for node in model.graph.node:
        node.doc_string = ""
