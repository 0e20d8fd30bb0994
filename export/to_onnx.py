"""A torch net to an ONNX graph whose state is input and output: `x`, NAME … → `probabilities`, NAME_next …

torch's TorchScript exporter is used on purpose: it keeps LSTM, GRU and RNN as single ONNX operators, which ONNX Runtime
runs fastest, where the newer one takes them apart and cannot do so for any number of steps
(docs/decisions/0003-torchscript-exporter.md).
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from export.causes import Around, suspects, why
from export.states import begin
from service.errors import PackageRefused
from service.parts import open_session

OPSET = 18
BATCH, TIME = "batch", "time"
ONLY_THIS = (
    "the graph takes only as many streams and steps as it was made with: in forward their number becomes one of "
    "Python's, by int(), len(), .item() or numpy"
)

Output = Literal["logits", "logit", "probabilities"]  # of K labels; one neuron for two labels; already normalised


class Served(Around):
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
    """The graph as bytes, for any B and T. `x` (B, T, …) is an example; only its type and its shape behind T count.

    Raises PackageRefused with the cause and what helps, where the net cannot be written as a graph, the graph cannot be
    run, or other numbers of streams and steps than the example's do not fit into it.
    """
    served = Served(net, list(begin(net, 1)), output).eval()
    model = _export(served, 1, x[:1, :2])
    given = {value.name for value in model.graph.input}
    for name in ("x", *served.names):
        if name not in given:
            raise _refused(
                f"forward never reads {name if name == 'x' else f'the state {name}'}: what comes out must depend on it"
            )
    y, after = run_torch(net, x[:1, :2], output)
    _forget_example(model, {"probabilities": y.shape[2:]} | {name: value.shape[1:] for name, value in after.items()})
    try:
        data: bytes = model.SerializeToString(deterministic=True)
        onnx.checker.check_model(model, full_check=True)
        _try(data, served, x, [(1, 2)])
    except Exception as error:  # neither onnx nor ONNX Runtime has one class of errors
        raise _refused(f"the graph cannot be run: {why(error, net)}") from error
    try:
        _try(data, served, x, [(1, 1), (3, 3)])
    except Exception as error:
        raise _refused(_written_out(served, x, model) or "; ".join([ONLY_THIS, *suspects(net)])) from error
    return data


def _export(served: Served, batch: int, x: np.ndarray) -> onnx.ModelProto:
    """Traced with `x` (batch, T, …). Raises PackageRefused."""
    state = begin(served.net, batch)
    following = [f"{name}_next" for name in state]
    axes = {"x": {0: BATCH, 1: TIME}, "probabilities": {0: BATCH, 1: TIME}}
    axes |= {name: {0: BATCH} for name in (*state, *following)}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")  # on the exporter's age, and on tracing shapes that do not vary
        try:
            torch.onnx.export(
                served,
                (torch.from_numpy(np.ascontiguousarray(x)), *state.values()),
                buffer,
                input_names=["x", *state],
                output_names=["probabilities", *following],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # whatever the exporter, or the net under it, does
            raise _refused(f"it cannot be written as a graph: {why(error, served.net)}") from error
    return onnx.load_from_string(buffer.getvalue())


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter prints a failed graph past Python, to file descriptor 1."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _try(model: bytes, served: Served, x: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
    """Runs the graph with so many streams and steps. Raises whatever it fails with, and where other sizes come out."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = open_session(model, options)
    for batch, steps in sizes:
        part = np.resize(x, (batch, steps, *x.shape[2:]))
        expected, after = run_torch(served.net, part, served.output)
        states = {name: value.numpy() for name, value in begin(served.net, batch).items()}
        y, *following = session.run(["probabilities", *(f"{name}_next" for name in after)], {"x": part, **states})
        for found, wanted in zip((y, *following), (expected, *after.values()), strict=True):
            if found.shape != wanted.shape:
                raise ValueError(f"{found.shape} comes out, expected {wanted.shape}")


def _written_out(served: Served, x: np.ndarray, model: onnx.ModelProto) -> str:
    """Whether Python goes over rows or streams one by one: then a graph of more of them has more nodes."""
    rows = {3: "rows", 5: "frames"}.get(x.ndim, "steps")
    at_once = "give all of them to nn.RNN, nn.GRU or nn.LSTM at once, or put the loop into a function under "
    remedies = {rows: f"{at_once}@torch.jit.script", "streams": "compute all at once, they are the first axis of x"}
    for what, batch, steps in ((rows, 1, 3), ("streams", 2, 2)):
        longer = _export(served, batch, np.resize(x, (batch, steps, *x.shape[2:])))
        if len(longer.graph.node) > len(model.graph.node):
            return (
                f"forward goes over the {what} in a Python loop, of which the graph keeps as many turns as the example "
                f"has {what}: {remedies[what]}"
            )
    return ""


def _refused(detail: str) -> PackageRefused:
    return PackageRefused(detail, check="graph")


def decided_once(net: nn.Module, x: np.ndarray, output: Output = "logits") -> list[str]:
    """Places, as `mynets.py, line 12`, where a value becomes Python's: a graph keeps what the example decided there."""
    state = begin(net, 1)
    served = Served(net, list(state), output).eval()
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        try:
            torch.jit.trace(
                served, (torch.from_numpy(np.ascontiguousarray(x[:1, :2])), *state.values()), check_trace=False
            )
        except Exception:  # what cannot be traced is told by to_onnx
            return []
    places = [
        f"{Path(one.filename).name}, line {one.lineno}"
        for one in told
        if issubclass(one.category, torch.jit.TracerWarning)
        and re.search("to a (Python|NumPy)|Using len", str(one.message))
        and "site-packages" not in one.filename
    ]
    return list(dict.fromkeys(places))


def run_torch(net: nn.Module, x: np.ndarray, output: Output = "logits") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Whole sequences in one call, from new states: probabilities (B, T, K) and the last states by name."""
    state = begin(net, len(x))
    served = Served(net, list(state), output).eval()
    with torch.no_grad():
        y, *after = served(torch.from_numpy(x), *state.values())
    return y.numpy(), {name: tensor.numpy() for name, tensor in zip(state, after, strict=True)}


def _forget_example(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Writes the true shapes of what goes in and comes out, and removes the exporter's guesses of what lies between.

    The exporter takes the example's B and T for constants in recurrent layers' outputs: the results are right, but
    ONNX Runtime warns at every other B and T.
    """
    del model.graph.value_info[:]
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        named = [BATCH, TIME] if value.name == "probabilities" else [BATCH]
        del dims[:]
        for size in [*named, *shapes[value.name.removesuffix("_next")]]:
            dim = dims.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = int(size)
    model.producer_name, model.producer_version, model.doc_string = "rollcast", "", ""
    for node in model.graph.node:
        node.doc_string = ""
