"""A dense net for images: every pixel an input of its own, without knowledge of what lies beside what."""

from __future__ import annotations

import math

from torch import Tensor, nn


class MLP(nn.Module):
    """Frames to logits through one hidden layer with ReLU, each frame alone: no state.

    `scale` is the value of white: frames are divided by it.
    """

    def __init__(
        self,
        size: tuple[int, int, int],  # H, W, C
        classes: int,
        *,
        hidden: int = 512,
        scale: float = 255.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Linear(math.prod(size), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = x.flatten(2).float() / self.scale  # (B, T, H·W·C)
        return self.layers(pixels), state  # (B, T, K)
