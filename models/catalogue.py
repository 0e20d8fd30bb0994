"""Every net by the name of its package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from models.cnn2d import CNN2d
from models.rnn import Recurrent


class Shape(NamedTuple):
    """What a net must know of its data: K labels; frames (H, W, C); rows' mean and std, a number a feature."""

    classes: int
    frame: tuple[int, int, int] = (0, 0, 0)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()


class Net(NamedTuple):
    """`family` as manifests say it; `build` makes the net with fresh weights."""

    family: str
    build: Callable[[Shape], nn.Module]


def _digits_cnn(shape: Shape) -> nn.Module:
    return CNN2d(shape.frame, shape.classes, blocks=((24, 24), (48, 48), (96,)), dense=128, dropout=0.3)


def _digits_small(shape: Shape) -> nn.Module:
    return CNN2d(shape.frame, shape.classes, blocks=((16,), (32,)), dense=32, dropout=0.2)


def _activity_lstm(shape: Shape) -> nn.Module:
    return Recurrent(
        "lstm",
        shape.classes,
        mean=shape.mean,
        std=shape.std,
        width=32,
        dropout=0.5,
        input_dropout=0.2,
        windows=(24,),
        remembers=150,
    )


NETS = {
    "digits-cnn": Net("cnn2d", _digits_cnn),
    "digits-small": Net("cnn2d", _digits_small),
    "activity-lstm": Net("lstm", _activity_lstm),
}
