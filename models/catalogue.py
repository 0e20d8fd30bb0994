"""Every net by the name of its package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from models.cnn1d import CausalCNN
from models.cnn2d import CNN2d
from models.ensemble import Ensemble
from models.mlp import MLP
from models.motion import DepthNet, MotionNet
from models.rnn import Cell, Recurrent
from models.rocket import Rocket
from models.text import TextCNN, TextRecurrent
from models.vibration import Vibration
from models.video import VideoNet


class Shape(NamedTuple):
    """What a net must know of its data: K labels; frames (H, W, C); rows' mean and std, a number a feature; tokens."""

    classes: int
    frame: tuple[int, int, int] = (0, 0, 0)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    tokens: int = 0  # of the tokenizer


class Net(NamedTuple):
    """`family` as manifests say it; `build` makes the net with fresh weights."""

    family: str
    build: Callable[[Shape], nn.Module]


def together(net: Net, members: int) -> Net:
    """The net itself, or several of it, from different beginnings, that answer together."""
    if members == 1:
        return net
    return net._replace(build=lambda shape: Ensemble([net.build(shape) for _ in range(members)]))


# --- frames ------------------------------------------------------------------------------------------------------


def _digits_cnn(shape: Shape) -> nn.Module:
    blocks = ((32, 32), (64, 64))
    return CNN2d(shape.frame, shape.classes, blocks, dense=128, keep_size=False, dropout=0.3)


def _digits_small(shape: Shape) -> nn.Module:
    return CNN2d(shape.frame, shape.classes, blocks=((16,), (32,)), dense=32, dropout=0.2)


def _digits_mlp(shape: Shape) -> nn.Module:
    return MLP(shape.frame, shape.classes, hidden=512, dropout=0.3)


def _action_motion(shape: Shape) -> nn.Module:
    return MotionNet(shape.frame, shape.classes, orders=8, filters=32, hidden=128, dropout=0.5)


def _action(shape: Shape, cell: Cell | None) -> nn.Module:
    return DepthNet(shape.frame, shape.classes, cell)


def images(shape: Shape, width: int = 16) -> nn.Module:
    """A CNN for images of any size: blocks until some 4 pixels are left along the shorter side."""
    return CNN2d(shape.frame, shape.classes, _blocks(shape.frame, width), dense=64, dropout=0.3)


def video(shape: Shape, cell: Cell, width: int = 64) -> nn.Module:
    """A recurrent layer over a CNN for frames of any size."""
    blocks = _blocks(shape.frame, 12)
    return VideoNet(cell, shape.frame, shape.classes, blocks, features=64, width=width, motion=True, dropout=0.3)


def _blocks(frame: tuple[int, int, int], width: int) -> list[tuple[int]]:
    count = max(1, min(frame[:2]).bit_length() - 2)
    return [(min(96, width * 2**i),) for i in range(min(5, count))]


# --- rows --------------------------------------------------------------------------------------------------------


def recurrent(
    shape: Shape, cell: Cell, width: int = 32, layers: int = 1, dropout: float = 0.2, remembers: int = 0
) -> nn.Module:
    """SimpleRNN, GRU or LSTM over rows."""
    return Recurrent(
        cell, shape.classes,
        mean=shape.mean, std=shape.std, width=width, layers=layers, dropout=dropout, remembers=remembers,
    )  # fmt: skip


def _activity(shape: Shape, cell: Cell, remembers: int = 0) -> nn.Module:
    """Over the moments of the last 6 s, which say more than a row does."""
    return Recurrent(
        cell, shape.classes,
        mean=shape.mean, std=shape.std, width=32, dropout=0.5, input_dropout=0.2, windows=(24,), remembers=remembers,
    )  # fmt: skip


def causal(
    shape: Shape, width: int = 32, dilations: Sequence[int] = (1, 2, 4, 8), window: int = 0, dropout: float = 0.2
) -> nn.Module:
    """Causal 1D convolutions over rows."""
    return CausalCNN(
        shape.classes,
        mean=shape.mean, std=shape.std, width=width, dilations=dilations, window=window, dropout=dropout,
    )  # fmt: skip


def patterns(
    shape: Shape,
    width: int = 200,
    dilations: Sequence[int] = (1, 2, 4, 8, 16),
    halves: Sequence[float] = (25,),
    spatial: bool = False,
) -> nn.Module:
    """Many short patterns, each step a vote."""
    return Rocket(
        shape.classes,
        mean=shape.mean, std=shape.std, width=width, dilations=dilations, halves=halves, spatial=spatial,
    )  # fmt: skip


def _bearing(shape: Shape, family: str) -> nn.Module:
    features = 32
    flat = Shape(shape.classes, mean=[0.0] * features, std=[1.0] * features)
    if family == "cnn1d":
        over = causal(flat, width=24, dilations=(1, 2, 4), window=64, dropout=0.3)
    else:
        over = recurrent(flat, family, width=32, dropout=0.3)
    mean = sum(shape.mean) / len(shape.mean)
    spread = sum(s * s + (m - mean) ** 2 for m, s in zip(shape.mean, shape.std, strict=True)) / len(shape.mean)
    samples = len(shape.mean)
    return Vibration(over, samples, std=spread**0.5, features=features, jitter=0.6, dropout=0.2)


# --- text --------------------------------------------------------------------------------------------------------


def _text(shape: Shape, cell: Cell) -> nn.Module:
    return TextRecurrent(cell, shape.tokens, shape.classes, embedding=64, width=64, dropout=0.5)


def _text_cnn(shape: Shape, strongest: bool = False) -> nn.Module:
    more = {"embedding": 64, "filters": 64, "kernels": (2, 3)}
    return TextCNN(shape.tokens, shape.classes, **more, strongest=strongest, dropout=0.5)


RECURRENT: tuple[Cell, ...] = ("lstm", "gru", "rnn")

NETS = {
    "digits-cnn": Net("cnn2d", _digits_cnn),
    "digits-mlp": Net("mlp", _digits_mlp),
    "digits-small": Net("cnn2d", _digits_small),
    "action-frame": Net("cnn2d", partial(_action, cell=None)),
    "action-cnn-lstm": Net("cnn-lstm", partial(_action, cell="lstm")),
    "action-cnn-gru": Net("cnn-gru", partial(_action, cell="gru")),
    "action-cnn-rnn": Net("cnn-rnn", partial(_action, cell="rnn")),
    "action-motion": Net("motion", _action_motion),
    "activity-lstm": Net("lstm", partial(_activity, cell="lstm", remembers=150)),
    "activity-gru": Net("gru", partial(_activity, cell="gru")),
    "activity-rnn": Net("rnn", partial(_activity, cell="rnn")),
    "activity-cnn1d": Net("cnn1d", partial(causal, width=24, window=64, dropout=0.3)),
    "gesture-lstm": Net("lstm", partial(recurrent, cell="lstm", width=64, dropout=0.4)),
    "gesture-gru": Net("gru", partial(recurrent, cell="gru", width=64, dropout=0.4)),
    "gesture-rnn": Net("rnn", partial(recurrent, cell="rnn", width=64, dropout=0.4)),
    "gesture-cnn1d": Net("cnn1d", partial(causal, width=48, dilations=(1, 2, 4, 8, 16), dropout=0.3)),
    "gesture-rocket": Net("rocket", partial(patterns, halves=(25,), spatial=True)),
    **{f"bearing-{family}": Net(family, partial(_bearing, family=family)) for family in (*RECURRENT, "cnn1d")},
    **{f"sentiment-{cell}": Net(cell, partial(_text, cell=cell)) for cell in RECURRENT},
    "sentiment-cnn1d": Net("cnn1d", _text_cnn),
    **{f"question-{cell}": Net(cell, partial(_text, cell=cell)) for cell in RECURRENT},
    "question-cnn1d": Net("cnn1d", partial(_text_cnn, strongest=True)),
}
