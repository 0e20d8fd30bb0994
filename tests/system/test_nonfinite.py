"""A package that yields NaN for one input: that entry is refused, its neighbours in the batch notice nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from bench.model import BenchPackage
from service.contracts import Manifest, RollingSettings, RowInput, StateTensor
from service.engine import OnnxEngine
from service.metrics import WorkerMetrics
from tests.doubles import rows_fields
from tests.oracle import Oracle, same
from tests.worlds import BrokerWorld, answered, working


def package(folder: Path) -> BenchPackage:
    """Sums the square roots of its rows' first feature: the root of a negative number is not a number."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Sqrt", ["x"], ["root"]),
        helper.make_node("ReduceSum", ["root", "steps"], ["gain"], keepdims=0),
        helper.make_node("Add", ["total", "gain"], ["total_next"]),
        helper.make_node("Unsqueeze", ["total_next", "steps"], ["after"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Add", ["after", "nothing"], ["each"]),
        helper.make_node("Softmax", ["each"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes, "roots",
        [value("x", TensorProto.FLOAT, ("B", "T", 2)), value("total", TensorProto.FLOAT, ("B", 2))],
        [value("probabilities", TensorProto.FLOAT, ("B", "T", 2)), value("total_next", TensorProto.FLOAT, ("B", 2))],
        [
            numpy_helper.from_array(np.array([1], np.int64), "steps"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    manifest = Manifest(
        format=1, name="roots", version=1, kind="samples", labels=["left", "right"],
        sha256=hashlib.sha256(data).hexdigest(), states=[StateTensor("total", [2])],
        rows=RowInput(["a", "b"], 10.0, *[[0.0] * 2] * 4), many_steps=False,
        rolling=RollingSettings(0.3, 0.6, 0.4, 0.1, 0.2, 0.5),
    )  # fmt: skip
    return BenchPackage(manifest, folder)


def test_the_guilty_entry_is_refused_and_counted_and_no_neighbour_notices(
    broker_url: str, prefix: str, tmp_path: Path
) -> None:
    engine = OnnxEngine(package(tmp_path))  # type: ignore[arg-type]
    world, metrics = BrokerWorld(broker_url, prefix), WorkerMetrics(CollectorRegistry())
    rng = np.random.default_rng(1)
    streams = [f"s{n}" for n in range(12)]
    posted: dict[str, list[tuple[np.ndarray, float, bool]]] = {stream: [] for stream in streams}
    for n in range(20):
        for place, stream in enumerate(streams):
            rows = rng.uniform(0, 4, size=(1 + (place + n) % 3, 2)).astype(np.float32)
            bad = (n, place) in ((7, 2), (7, 9), (13, 2), (19, 0))
            rows[-1, 1] = -1 if bad else rows[-1, 1]
            time = 50.0 + n
            world.append(stream, rows_fields(stream, rows, time=repr(time).encode()))
            posted[stream].append((rows, time, bad))
    with working(world.new_log(), engine, metrics=metrics):
        bodies = answered(world, dict.fromkeys(streams, 20))
    for stream, entries in posted.items():
        oracle = Oracle(engine)
        for (rows, time, bad), body in zip(entries, bodies[stream], strict=True):
            if bad:
                assert (body["type"], body["reason"]) == ("refused", "non_finite")
                assert "'roots' would leave a non-finite" in body["detail"]
            else:
                same(body, oracle.step(rows, time), tolerance=1e-5)
    assert metrics.nonfinite.labels("roots").value == 4
    assert metrics.dead.labels("non_finite").value == 4
    assert sorted(stream for _, stream, _ in world.dead()) == ["s0", "s2", "s2", "s9"]
