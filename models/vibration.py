"""Nets for vibration: a row is a block of raw samples. Convolutions inside the row find its texture, a net over rows
follows them in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Vibration(nn.Module):
    """Rows of raw samples (B, T, samples) to logits (B, T, K). State: that of `over`, the net over rows' features.

    `mean` and `std` are one number each: all samples of a row are the same signal. `over` takes (B, T, 2 · filters).
    """

    def __init__(self, over: nn.Module, *, mean: float, std: float, filters: int = 24, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.texture = nn.Sequential(
            nn.Conv1d(1, filters, 15, stride=2, padding=7),  # (N, filters, samples / 2)
            nn.BatchNorm1d(filters),
            nn.ReLU(),
            nn.Conv1d(filters, filters, 7, stride=2, padding=3),  # (N, filters, samples / 4)
            nn.BatchNorm1d(filters),
            nn.ReLU(),
            nn.Conv1d(filters, filters, 5, padding=2),
            nn.BatchNorm1d(filters),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(dropout)
        self.over = over

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.over.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        B, T = x.shape[:2]
        blocks = ((x - self.mean) / self.std).flatten(0, 1).unsqueeze(1)  # (B·T, 1, samples)
        texture = self.texture(blocks)  # (B·T, filters, samples / 4)
        features = torch.cat([texture.mean(-1), texture.amax(-1)], -1)  # (B·T, 2 · filters): indifferent to shifts
        return self.over(self.dropout(features).reshape(B, T, features.shape[-1]), state)
