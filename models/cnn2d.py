"""Convolutional nets for images: blocks of convolution and ReLU, each ended by max pooling, then a dense net.

The dense net knows nothing of vision; what it sees has been made roughly indifferent to small shifts by the pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CNN2d(nn.Module):
    """Frames to logits, each frame alone: no state.

    `blocks`: the numbers of filters of each block's convolutions, e.g. ((16, 16), (32, 32)). A convolution gives
    (H − 2, W − 2, filters); with `keep_size` its input is padded with zeros first. `scale` is the value of white:
    frames are divided by it. Batch normalisation stands between convolution and ReLU; at export it is folded into the
    filters.
    """

    def __init__(
        self,
        size: tuple[int, int, int],  # H, W, C
        classes: int,
        blocks: Sequence[Sequence[int]],
        dense: int,
        *,
        keep_size: bool = True,
        scale: float = 255.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.vision, seen = vision(size, blocks, keep_size=keep_size, dropout=dropout / 2)
        self.head = nn.Sequential(
            nn.Flatten(),  # (N, filters · H' · W')
            nn.Linear(seen, dense),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dense, classes),
        )

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        B, T = x.shape[:2]
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B·T, C, H, W)
        y = self.head(self.vision(frames.float() / self.scale))  # (B·T, K)
        return y.reshape(B, T, y.shape[-1]), state


def vision(
    size: tuple[int, int, int], blocks: Sequence[Sequence[int]], *, keep_size: bool = True, dropout: float = 0.0
) -> tuple[nn.Sequential, int]:
    """The blocks as layers over (N, C, H, W), and how many values come out of them for one frame.

    With `keep_size` a convolution pads with zeros; without, it sees whole 3×3 squares only: H − 2, W − 2.
    """
    height, width, channels = size
    layers: list[nn.Module] = []
    for block in blocks:
        for filters in block:
            layers += [_conv3x3(channels, filters, keep_size), nn.BatchNorm2d(filters), nn.ReLU()]
            channels = filters
            height, width = (height, width) if keep_size else (height - 2, width - 2)
        layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        height, width = height // 2, width // 2
    if min(height, width) < 1:
        raise ValueError(f"frames of {size[0]}×{size[1]} are too small for {len(blocks)} blocks")
    return nn.Sequential(*layers), channels * height * width


def _conv3x3(channels: int, filters: int, keep_size: bool) -> nn.Conv2d:
    """The bias is batch normalisation's."""
    conv = nn.Conv2d(channels, filters, 3, padding=1 if keep_size else 0, bias=False)
    torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
