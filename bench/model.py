"""An LSTM-64 over rows of 6 features with random weights, as a package in memory: what is measured is the loop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contracts import Manifest, RowInput, StateTensor

FEATURES, WIDTH, LABELS = 6, 64, 6


class BenchPackage(NamedTuple):
    manifest: Manifest
    folder: Path


def lstm_package(folder: Path) -> BenchPackage:
    """Writes model.onnx into `folder`: x (B, T, 6), h and c (B, 1, 64) -> probabilities (B, T, 6), h_next, c_next."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32), name)

    constants = [
        weight("w", 1, 4 * WIDTH, FEATURES),
        weight("r", 1, 4 * WIDTH, WIDTH),
        weight("b", 1, 8 * WIDTH),
        weight("head", WIDTH, LABELS),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["h"], ["ht"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["c"], ["ct"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "w", "r", "b", "", "ht", "ct"], ["y", "hn", "cn"], hidden_size=WIDTH),
        helper.make_node("Squeeze", ["y", "one"], ["yt"]),
        helper.make_node("Transpose", ["yt"], ["yb"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["yb", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("Transpose", ["hn"], ["h_next"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["cn"], ["c_next"], perm=[1, 0, 2]),
    ]

    def value(name: str, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "lstm64",
        [value("x", "B", "T", FEATURES), value("h", "B", 1, WIDTH), value("c", "B", 1, WIDTH)],
        [value("probabilities", "B", "T", LABELS), value("h_next", "B", 1, WIDTH), value("c_next", "B", 1, WIDTH)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    manifest = Manifest(
        format=1,
        name="lstm64",
        version=1,
        kind="samples",
        labels=[f"label{k}" for k in range(LABELS)],
        sha256=hashlib.sha256(data).hexdigest(),
        states=[StateTensor("h", [1, WIDTH]), StateTensor("c", [1, WIDTH])],
        rows=RowInput([f"x{f}" for f in range(FEATURES)], 50.0, *[[0.0] * FEATURES] * 4),
    )
    return BenchPackage(manifest, folder)
