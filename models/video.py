"""A net for video: a recurrent layer over what a small CNN sees in each frame.

A recurrent layer alone does not use the structure of images; the CNN does, and knows of no other frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
        features = self.look(self.scaled(x))  # (B·T, F)
        return features.reshape(B, T, features.shape[-1])

    def scaled(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) uint8 -> (B·T, C, H', W') float32."""
        frames: Tensor = self.shrink(x.flatten(0, 1).permute(0, 3, 1, 2).float() / self.scale)
        return frames

    def look(self, frames: Tensor) -> Tensor:
        features: Tensor = self.dense(self.vision(frames))
        return features


class VideoNet(nn.Module):
    """Frames to logits (B, T, K) with a memory of the frames before. State: that of the recurrent layer.

    With `motion` the CNN also sees what changed since the frame before; state `before` (B, C, H, W) holds that frame,
    scaled and shrunk, and black at first.
    """

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
        motion: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width_px, channels = size
        self.motion = motion
        self.before = (channels, height // shrink, width_px // shrink)
        seen = (height, width_px, 2 * channels if motion else channels)
        self.features = FrameFeatures(seen, blocks, features, shrink=shrink, dropout=dropout)
        flat = [0.0] * features, [1.0] * features
        self.memory = Recurrent(cell, classes, mean=flat[0], std=flat[1], width=width, dropout=dropout)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        state = self.memory.initial_state(batch)
        return state | {"before": torch.zeros(batch, *self.before)} if self.motion else state

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        B, T = x.shape[:2]
        frames = self.features.scaled(x)  # (B·T, C, H, W)
        seen, after = frames, {}
        if self.motion:
            each = frames.reshape(B, T, *self.before)
            earlier = torch.cat([state["before"].unsqueeze(1), each[:, :-1]], 1)
            seen = torch.cat([frames, (each - earlier).reshape(B * T, *self.before)], 1)
            after = {"before": each[:, -1]}
        features = self.features.look(seen)  # (B·T, F)
        mine = {name: value for name, value in state.items() if name != "before"}
        y, memory = self.memory(features.reshape(B, T, features.shape[-1]), mine)
        return y, memory | after
