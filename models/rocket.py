"""Nets for rows that look for many short patterns and let every step vote.

After ROCKET and MiniRocket (Dempster, Petitjean, Webb 2020; Dempster, Schmidt, Webb 2021): kernels of nine taps, two
thirds of them −1 and one third 2, over a few channels and at several dilations; what counts of each is how often and
how far its response lies above a threshold. There they stay random; here they are where learning begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cnn1d import RunningMean

KERNEL = 9


class Rocket(nn.Module):
    """Rows (B, T, F) to logits (B, T, K), the logits of a row knowing only it and the rows before it.

    Each step votes: a dense layer over what each pattern's response says there. Logits are the mean of all votes since
    the beginning, and, of votes of their own, a mean that forgets half in every so many steps of `halves`. Mean and
    dense layer change places without changing the sum, so that a stream keeps K votes and not a number a pattern.

    `mean` and `std` are the training data's, a number a feature. `spatial`: each three columns are x, y, z of one
    sensor; their length, which does not change when the sensor is turned, is a channel, too.

    State: `recent` (B, channels, reach), the channels of the steps before; `mean` (B, K) and `count` (B, 1) of the
    votes; `fading` (B, halves, K) if there are any. All zeros at the beginning of a stream.
    """

    def __init__(
        self,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 48,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        halves: Sequence[float] = (),
        spatial: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if spatial and len(mean) % 3:
            raise ValueError(f"{len(mean)} columns: expected x, y and z of each sensor")
        self.classes, self.dilations, self.spatial, self.dropout = classes, tuple(dilations), spatial, dropout
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        size = (self.mean**2 + self.std**2).reshape(-1, 3 if spatial else 1).sum(-1).sqrt()
        self.register_buffer("size", size)  # of a sensor's vector, typically
        self.channels = len(mean) + (len(mean) // 3 if spatial else 0)
        self.reach = (KERNEL - 1) * max(dilations)
        self.patterns = nn.ModuleList(_patterns(self.channels, width, d) for d in dilations)
        self.norm = nn.BatchNorm1d(width * len(self.dilations))
        nn.init.normal_(self.norm.bias, std=0.7)  # the thresholds
        self.votes = nn.Linear(2 * width * len(self.dilations), classes * (1 + len(halves)))
        nn.init.normal_(self.votes.weight, std=0.04)
        nn.init.zeros_(self.votes.bias)
        self.since = RunningMean(classes)
        self.fading = FadingMean(classes, halves) if halves else None

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        state = {"recent": torch.zeros(batch, self.channels, self.reach), **self.since.initial_state(batch)}
        return state if self.fading is None else state | {"fading": self.fading.initial_state(batch)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen = torch.cat([state["recent"], self._channels(x).transpose(1, 2)], -1)  # (B, channels, reach + T)
        found = [
            conv(seen[..., self.reach - (KERNEL - 1) * dilation :])
            for conv, dilation in zip(self.patterns, self.dilations, strict=True)
        ]
        y = self.norm(torch.cat(found, 1))  # (B, width · dilations, T), 0 is the threshold
        said = torch.cat([torch.sigmoid(3 * y), F.relu(y)], 1) - 0.5  # is it there, and how far
        if self.training:  # a pattern is forgotten for a whole sequence: a step's neighbours would tell of it
            said = said * F.dropout(torch.ones_like(said[..., :1]), self.dropout)
        votes = 4 * self.votes(said.transpose(1, 2))  # (B, T, K · (1 + halves))
        logits, after = self.since(votes[..., : self.classes], state)
        after["recent"] = seen[..., -self.reach :]
        if self.fading is not None:
            late, after["fading"] = self.fading(votes[..., self.classes :], state["fading"], state["count"])
            logits = logits + late
        return logits, after

    def _channels(self, x: Tensor) -> Tensor:
        rows = (x - self.mean) / self.std
        if not self.spatial:
            return rows
        lengths = x.reshape(*x.shape[:2], -1, 3).square().sum(-1).add(1e-12).sqrt()  # (B, T, sensors)
        return torch.cat([rows, 2 * (lengths / self.size - 1)], -1)


class FadingMean(nn.Module):
    """Means that forget half of their weight in so many steps, of votes of their own each, added up."""

    def __init__(self, width: int, halves: Sequence[float]) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("keep", torch.tensor([0.5 ** (1 / steps) for steps in halves]))

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, len(self.keep), self.width)

    def forward(self, x: Tensor, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, halves · width), mean (B, halves, width), count (B, 1) of steps so far -> (B, T, width), the next
        mean. Takes T² numbers a half-life."""
        keep = self.keep[:, None]  # (halves, 1)
        step = torch.ones_like(x[0, :, 0]).cumsum(0)  # (T,): 1, 2, …
        ago = step[:, None] - step  # (T, T)
        share = torch.pow(keep[:, None], ago.clamp(min=0)) * (ago >= 0)  # (halves, T, T)
        fresh = x.reshape(*x.shape[:2], -1, self.width).transpose(1, 2)  # (B, halves, T, width)
        before = mean * self._weight(count)  # (B, halves, width): the sum that was kept
        total = share @ fresh + torch.pow(keep, step)[..., None] * before[:, :, None]  # (B, halves, T, width)
        means = total / self._weight(count + step)[..., None]
        return means.sum(1), means[:, :, -1]

    def _weight(self, count: Tensor) -> Tensor:
        """Numbers of steps (B, n) -> (B, halves, n): how much so many weigh together."""
        keep = self.keep[:, None]
        return (1 - torch.pow(keep, count[:, None])) / (1 - keep)


def _patterns(channels: int, width: int, dilation: int) -> nn.Conv1d:
    """Kernels as MiniRocket's, each over some of the channels, few more often than many."""
    conv = nn.Conv1d(channels, width, KERNEL, dilation=dilation, bias=False)
    with torch.no_grad():
        for kernel in conv.weight:  # (channels, KERNEL)
            taps = torch.full((KERNEL,), -1.0)
            taps[torch.randperm(KERNEL)[: KERNEL // 3]] = 2.0
            count = int(2 ** (float(torch.rand(())) * math.log2(channels + 1)))
            sign = torch.zeros(channels)
            sign[torch.randperm(channels)[:count]] = torch.randint(0, 2, (count,)) * 2.0 - 1
            kernel.copy_(sign[:, None] * taps / (3 * count**0.5))
    return conv
