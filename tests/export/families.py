"""A tiny net of every family, with input that fits it: what must hold of one must hold of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from export.to_onnx import Output
from models.cnn1d import CausalCNN
from models.cnn2d import CNN2d
from models.ensemble import Ensemble
from models.mlp import MLP
from models.motion import DepthNet, MotionNet
from models.rnn import Recurrent
from models.rocket import Rocket
from models.text import TextCNN, TextRecurrent
from models.vibration import Vibration
from models.video import VideoNet
from service.contracts import FrameInput, Manifest, RowInput, TextInput

SIZE = (12, 16, 1)  # H, W, C
FEATURES = 3
SAMPLES = 32  # of a row of vibration
TOKENS = 20
SMALL = {"embedding": 12, "pairs": 50, "pair_embedding": 6}
FLAT = {"mean": [0.0] * FEATURES, "std": [1.0] * FEATURES}


class Family(NamedTuple):
    """`build(classes)`; `step` is the shape of one step of x, `kind` what it takes."""

    kind: str
    build: Callable[[int], nn.Module]
    output: Output = "logits"

    @property
    def step(self) -> tuple[int, ...]:
        return {"frame": SIZE, "samples": (FEATURES,), "vibration": (SAMPLES,), "text": ()}[self.kind]

    def net(self, classes: int = 4) -> nn.Module:
        torch.manual_seed(1)
        return self.build(classes)

    def sequences(self, lengths: list[int], seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        shapes = [(length, *self.step) for length in lengths]
        if self.kind == "frame":
            return [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
        if self.kind == "text":
            return [rng.integers(0, TOKENS, shape) for shape in shapes]
        return [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def manifest(self, classes: int = 4) -> Manifest:
        labels = [f"l{i}" for i in range(classes)]
        more: dict[str, object] = {"text": TextInput()}
        if self.kind == "frame":
            more = {"frames": FrameInput(*SIZE, "gray")}
        elif self.kind != "text":
            (width,) = self.step
            zeros, ones = [0.0] * width, [1.0] * width
            more = {"rows": RowInput([f"x{i}" for i in range(width)], 10.0, zeros, ones, zeros, ones)}
        kind = "samples" if self.kind == "vibration" else self.kind
        return Manifest(format=1, name="tiny", version=1, kind=kind, labels=labels, sha256="", **more)  # type: ignore[arg-type]


def _over(kind: str, classes: int) -> nn.Module:
    features = {"mean": [0.0] * 16, "std": [1.0] * 16}
    if kind == "cnn1d":
        return CausalCNN(classes, **features, width=12, dilations=(1, 2), window=8)
    return Recurrent(kind, classes, **features, width=12)  # type: ignore[arg-type]


FAMILIES: dict[str, Family] = {
    "mlp": Family("frame", lambda k: MLP(SIZE, k, hidden=32)),
    "cnn2d": Family("frame", lambda k: CNN2d(SIZE, k, ((8,), (8,)), 16)),
    "cnn2d, valid": Family("frame", lambda k: CNN2d(SIZE, k, ((8,), (8,)), 16, keep_size=False)),
    "motion": Family("frame", lambda k: MotionNet(SIZE, k, orders=4, filters=4, hidden=16, dropout=0.0)),
    **{
        f"depth {cell}": Family(
            "frame", lambda k, cell=cell: DepthNet(SIZE, k, cell, filters=4, features=16, width=16, dropout=0.0)
        )
        for cell in (None, "rnn", "gru", "lstm")
    },
    **{
        f"video {cell}": Family("frame", lambda k, cell=cell: VideoNet(cell, SIZE, k, ((8,),), features=16, width=16))
        for cell in ("rnn", "gru", "lstm")
    },
    "video with motion": Family(
        "frame", lambda k: VideoNet("gru", SIZE, k, ((8,),), features=16, width=16, shrink=2, motion=True)
    ),
    **{
        cell: Family("samples", lambda k, cell=cell: Recurrent(cell, k, **FLAT, width=16))
        for cell in ("rnn", "gru", "lstm")
    },
    "lstm, 2 layers": Family("samples", lambda k: Recurrent("lstm", k, **FLAT, width=12, layers=2)),
    "cnn1d": Family("samples", lambda k: CausalCNN(k, **FLAT, width=12, dilations=(1, 2, 4))),
    "cnn1d, window": Family("samples", lambda k: CausalCNN(k, **FLAT, width=12, dilations=(1, 2), window=5)),
    "rocket": Family("samples", lambda k: Rocket(k, **FLAT, width=12, dilations=(1, 2), halves=(4, 9))),
    "rocket, spatial": Family("samples", lambda k: Rocket(k, **FLAT, width=12, dilations=(1, 2), spatial=True)),
    "rockets": Family(
        "samples", lambda k: Ensemble([Rocket(k, **FLAT, width=12, dilations=(1,), halves=(4,)) for _ in range(2)])
    ),
    **{
        f"vibration {kind}": Family(
            "vibration", lambda k, kind=kind: Vibration(_over(kind, k), SAMPLES, std=1.0, features=16)
        )
        for kind in ("gru", "lstm", "cnn1d")
    },
    "text": Family("text", lambda k: TextRecurrent("lstm", TOKENS, k, **SMALL, width=12)),
    "text, one neuron": Family("text", lambda k: TextRecurrent("lstm", TOKENS, 2, **SMALL, width=12), "logit"),
    "text, strongest": Family("text", lambda k: TextRecurrent("lstm", TOKENS, k, **SMALL, width=12, strongest=True)),
    "text gru": Family("text", lambda k: TextRecurrent("gru", TOKENS, k, **SMALL, width=12)),
    "text rnn": Family("text", lambda k: TextRecurrent("rnn", TOKENS, k, **SMALL, width=12)),
    "text cnn1d": Family("text", lambda k: TextCNN(TOKENS, k, **SMALL, filters=8, kernels=(2, 4))),
}
