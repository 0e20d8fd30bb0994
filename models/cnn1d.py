"""Causal 1D convolutional nets for rows: the rival of recurrent nets.

A convolution's output at a step sees that step and the ones before it, never the ones after. What it still has to
see of earlier calls is its state: a cache of its last inputs. Stepping is therefore the same net, not an approximation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalCNN(nn.Module):
    """Rows (B, T, F) to logits (B, T, K), the logits of a row knowing only it and the rows before it.

    Residual blocks of dilated convolutions find local texture; the average of what they found since the stream's
    beginning, or over the last `window` steps, stands for what is global. The dense layer sees both.

    State: `cache0`, `cache1`, … (B, channels, reach) of the convolutions, zeros at first, which is what padding with
    zeros would give; and of the average either `mean` (B, width), or `recent` (B, width, window − 1) where there is a
    window; and `count` (B, 1), the steps in it. `mean` and `std` are the training data's, a number a feature.
    """

    def __init__(
        self,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 32,
        dilations: Sequence[int] = (1, 2, 4, 8),
        kernel: int = 3,
        window: int = 0,  # 0: the average goes back to the beginning
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.first = CausalConv(len(mean), width, kernel)
        self.blocks = nn.ModuleList(Block(width, kernel, dilation, dropout) for dilation in dilations)
        self.average = WindowMean(width, window) if window else RunningMean(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, classes)

    @property
    def convolutions(self) -> list[CausalConv]:
        """In the order in which data passes them."""
        return [self.first, *(conv for block in self.blocks for conv in (block.one, block.other))]

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        caches = {f"cache{i}": conv.initial_state(batch) for i, conv in enumerate(self.convolutions)}
        return caches | self.average.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        after = dict(state)
        rows = ((x - self.mean) / self.std).transpose(1, 2)  # (B, F, T)
        y, after["cache0"] = self.first(rows, state["cache0"])  # (B, width, T)
        for i, block in enumerate(self.blocks):
            names = f"cache{2 * i + 1}", f"cache{2 * i + 2}"
            y, after[names[0]], after[names[1]] = block(y, state[names[0]], state[names[1]])
        y = F.relu(y).transpose(1, 2)  # (B, T, width)
        average, kept = self.average(y, state)
        logits = self.head(self.dropout(torch.cat([y, average], -1)))  # (B, T, K)
        return logits, after | kept


class Block(nn.Module):
    """Two convolutions of one dilation, added to what came in. Normalised over the channels of a step, so that no
    step depends on another one's."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.one, self.other = (CausalConv(width, width, kernel, dilation) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # x (B, width, T)
        y, one = self.one(self._normalised(x, 0), one)
        y, other = self.other(self.dropout(self._normalised(y, 1)), other)
        return x + y, one, other

    def _normalised(self, x: Tensor, which: int) -> Tensor:
        return F.relu(self.norms[which](x.transpose(1, 2)).transpose(1, 2))


class CausalConv(nn.Module):
    """A 1D convolution that sees `reach` = (kernel − 1) · dilation steps back, from its cache where need be."""

    def __init__(self, channels: int, filters: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.channels, self.reach = channels, (kernel - 1) * dilation
        self.conv = nn.Conv1d(channels, filters, kernel, dilation=dilation)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.channels, self.reach)

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, channels, T), cache (B, channels, reach) -> (B, filters, T), the next cache."""
        seen = torch.cat([cache, x], -1)  # (B, channels, reach + T)
        return self.conv(seen), seen[:, :, -self.reach :]


class RunningMean(nn.Module):
    """The mean of all steps so far. It is kept beside their number, so that it stays of the values' size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"mean": torch.zeros(batch, self.width), "count": torch.zeros(batch, 1)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, T, width) -> the mean up to each step (B, T, width), the next state."""
        count = state["count"] + torch.ones_like(x[:, :, 0]).cumsum(1)  # (B, T)
        total = (state["mean"] * state["count"]).unsqueeze(1) + x.cumsum(1)
        average = total / count.unsqueeze(-1)
        return average, {"mean": average[:, -1], "count": count[:, -1:]}


class WindowMean(nn.Module):
    """The mean of the last `window` steps, or of those there were: what lies further back is forgotten."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.width, self.window = width, window

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"recent": torch.zeros(batch, self.width, self.window - 1), "count": torch.zeros(batch, 1)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, T, width) -> the mean up to each step (B, T, width), the next state."""
        seen = torch.cat([state["recent"], x.transpose(1, 2)], -1)  # (B, width, window − 1 + T)
        count = (state["count"] + torch.ones_like(x[:, :, 0]).cumsum(1)).clamp(max=self.window)  # (B, T)
        share = self.window / count.unsqueeze(-1)  # zeros stand where there were no steps yet
        average = F.avg_pool1d(seen, self.window, stride=1).transpose(1, 2) * share
        return average, {"recent": seen[:, :, 1 - self.window :], "count": count[:, -1:]}
