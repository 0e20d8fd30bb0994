"""Nets for video: each frame alone, or a recurrent layer over what a small CNN sees in each frame.

A recurrent layer alone does not use the structure of images; the CNN does, and knows of no other frame.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.cnn2d import vision
from models.rnn import Cell, Recurrent


class FrameFeatures(nn.Module):
    """Frames (B, T, H, W, C) to features (B, T, F): blocks of convolution, ReLU and pooling, then a dense layer.

    With `shrink` 2 every 2×2 pixels are averaged first: a quarter of the work.
    """

    def __init__(
        self,
        size: tuple[int, int, int],  # H, W, C
        blocks: Sequence[Sequence[int]],
        features: int,
        *,
        shrink: int = 1,
        scale: float = 255.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        height, width, channels = size
        self.vision, seen = vision((height // shrink, width // shrink, channels), blocks, dropout=dropout / 2)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(seen, features), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        B, T = x.shape[:2]
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B·T, C, H, W)
        features = self.dense(self.vision(self.shrink(frames.float() / self.scale)))  # (B·T, F)
        return features.reshape(B, T, features.shape[-1])


class FrameNet(nn.Module):
    """Frames to logits (B, T, K), each frame alone: no state."""

    def __init__(
        self,
        size: tuple[int, int, int],
        classes: int,
        blocks: Sequence[Sequence[int]],
        *,
        features: int = 64,
        shrink: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = FrameFeatures(size, blocks, features, shrink=shrink, dropout=dropout)
        self.head = nn.Linear(features, classes)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(self.features(x)), state


class VideoNet(nn.Module):
    """Frames to logits (B, T, K) with a memory of the frames before. State: that of the recurrent layer."""

    def __init__(
        self,
        cell: Cell,
        size: tuple[int, int, int],
        classes: int,
        blocks: Sequence[Sequence[int]],
        *,
        features: int = 64,
        width: int = 64,
        shrink: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = FrameFeatures(size, blocks, features, shrink=shrink, dropout=dropout)
        flat = [0.0] * features, [1.0] * features
        self.memory = Recurrent(cell, classes, mean=flat[0], std=flat[1], width=width, dropout=dropout)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.memory.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.memory(self.features(x), state)
