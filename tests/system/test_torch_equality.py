"""Streams cut, interleaved and batched by a worker are what PyTorch says of each whole sequence, events included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from export.package import write_model
from export.to_onnx import run_torch
from models.rnn import Recurrent
from service.contracts import GapPolicy, Manifest, RollingSettings, RowInput
from service.engine import OnnxEngine
from service.packages import load_package
from tests.doubles import rows_fields
from tests.oracle import Oracle, same
from tests.worlds import SHARDS, BrokerWorld, MemoryWorld, World, answered, working

STREAMS, ROWS, FEATURES = 9, 80, 4


@pytest.fixture(params=["memory", "valkey"])
def world(request: pytest.FixtureRequest, prefix: str) -> World:
    if request.param == "memory":
        return MemoryWorld(SHARDS)
    return BrokerWorld(request.getfixturevalue("broker_url"), prefix)


class WholeSequence:
    """What PyTorch gave for a whole sequence, handed out step by step; satisfies ports.Engine."""

    def __init__(self, manifest: Manifest, probabilities: np.ndarray) -> None:
        self.manifest, self._probabilities, self._at = manifest, probabilities, 0

    def run(self, x: np.ndarray, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self._at += 1
        return self._probabilities[None, None, self._at - 1], dict(states)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_worker_gives_what_pytorch_gives_for_the_whole_sequence(world: World, cell: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Recurrent(cell, 5, mean=[0.5] * FEATURES, std=[2.0] * FEATURES, width=12, layers=2).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        net.head.weight.mul_(40)  # clear decisions, so that labels enter and leave
    rng = np.random.default_rng(4)
    sequences = rng.normal(size=(STREAMS, ROWS, FEATURES)).astype(np.float32).cumsum(axis=1)
    manifest = Manifest(
        format=1,
        name="net",
        version=1,
        kind="samples",
        labels=list("abcde"),
        sha256="",
        rows=RowInput([f"x{f}" for f in range(FEATURES)], 50.0, *[[0.0] * FEATURES] * 4),
        rolling=RollingSettings(0.05, 0.5, 0.4, 0.04, 0.1, 0.2),
        gap=GapPolicy("carry", 5.0),
    )
    folder = tmp_path / "net" / "1"
    write_model(net, manifest, sequences[:2, :48], folder)
    engine = OnnxEngine(load_package(folder))
    whole, _ = run_torch(net, sequences)

    place = dict.fromkeys(range(STREAMS), 0)
    blocks: dict[str, list[tuple[np.ndarray, float]]] = {f"s{n}": [] for n in range(STREAMS)}
    while unfinished := [n for n in place if place[n] < ROWS]:
        n, size = int(rng.choice(unfinished)), int(rng.choice([1, 1, 2, 5, 13]))
        block = sequences[n, place[n] : place[n] + size]
        place[n] += len(block)
        time = round(50 + 0.02 * place[n], 6)
        blocks[f"s{n}"].append((block, time))
        world.append(f"s{n}", rows_fields(f"s{n}", block, time=repr(time).encode()))
    with working(world.new_log(), engine):
        bodies = answered(world, {stream: len(cut) for stream, cut in blocks.items()})
    events = 0
    for n in range(STREAMS):
        oracle = Oracle(WholeSequence(engine.manifest, whole[n]))
        for (block, time), body in zip(blocks[f"s{n}"], bodies[f"s{n}"], strict=True):
            same(body, oracle.step(block, time), tolerance=1e-4)
            events += len(body["events"])
    assert events > 20
