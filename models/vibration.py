"""Nets for vibration: a row is a block of raw samples. Its power spectrum says what it sounds like, a dense layer what
of that matters, a net over rows follows it in time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FLOOR = 1e-3  # of power, in the training data's variance: what is fainter counts as silence


class Vibration(nn.Module):
    """Rows of raw samples (B, T, samples) to logits (B, T, K). State: that of `over`, the net over rows' features.

    A row is freed of its mean (a sensor's offset says nothing); the dense layer sees the logarithm of its power at
    samples / 2 frequencies, and `over` takes the layer's (B, T, features). `std` is one number: all samples of a row
    are the same signal. `jitter`: in training each sequence's spectrum is raised and lowered at random, by so many
    nepers of power, frequency by frequency and as a whole: another load, another mounting, another day.
    """

    def __init__(
        self,
        over: nn.Module,
        samples: int,
        *,
        std: float,
        features: int = 32,
        jitter: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        bins = samples // 2
        self.jitter = jitter
        cosines, sines = _fourier(samples, bins)
        self.register_buffer("cosines", cosines / std)
        self.register_buffer("sines", sines / std)
        self.norm = nn.BatchNorm1d(bins, affine=False)
        self.dense = nn.Sequential(nn.Dropout(dropout), nn.Linear(bins, features), nn.LayerNorm(features), nn.ReLU())
        self.over = over

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.over.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        waves = x - x.mean(-1, keepdim=True)
        power = (waves @ self.cosines) ** 2 + (waves @ self.sines) ** 2
        power = torch.log(power + FLOOR)  # (B, T, bins)
        if self.training and self.jitter:
            B, _, bins = power.shape
            power = power + self.jitter * (torch.randn(B, 1, bins) + torch.randn(B, 1, 1))
        power = self.norm(power.transpose(1, 2)).transpose(1, 2)
        return self.over(self.dense(power), state)


def _fourier(samples: int, bins: int) -> tuple[Tensor, Tensor]:
    """Two (samples, bins): a row times these is its Fourier transform from the first frequency up.

    Under a Hann window, scaled so that white noise of variance 1 has a power of 1 at every frequency.
    """
    at = torch.arange(samples, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * (at + 0.5) / samples)
    window = (window / window.square().sum().sqrt())[:, None]
    angle = 2 * math.pi * at[:, None] * torch.arange(1, bins + 1, dtype=torch.float64) / samples
    return (window * torch.cos(angle)).float(), (window * torch.sin(angle)).float()
