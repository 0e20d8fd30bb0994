"""A person in depth video, seen from three sides, wherever the person stands and however tall. Nothing here is learnt.

Views from front, side and top are those of depth motion maps (Yang, Zhang and Tian, 2012).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, COLUMNS, SLICES = 28, 20, 10  # of the views: front ROWS × COLUMNS, side ROWS × SLICES, top SLICES × COLUMNS
PIXEL = 2 / 42  # of the person's height: between two rows or columns of a view
BEHIND, SLICE = -0.045, 0.029  # of the person's distance: the slice farthest back, and between two slices
_SPLIT = (ROWS * COLUMNS, ROWS * COLUMNS, ROWS * SLICES, SLICES * COLUMNS)
FRONT, SIDE, TOP = (ROWS // 2, COLUMNS // 2), (ROWS // 2, SLICES), (SLICES, COLUMNS // 2)  # made coarse
COARSE = 2 * FRONT[0] * FRONT[1] + SIDE[0] * SIDE[1] + TOP[0] * TOP[1]


class Shake(NamedTuple):
    """How far off a person is measured in training, so that a net does not rely on it: all 0 by default."""

    tall: float = 0.0  # logarithm of a factor on the height
    wide: float = 0.0  # the same sideways
    down: float = 0.0  # rows of a view
    right: float = 0.0  # columns of a view
    depth: float = 0.0  # share of the distance


class Person(nn.Module):
    """Where the person is: of frames (B, T, H, W), depth in any unit, 0 the background, the first that shows anybody.

    State and result: (B, 6) and (B, T, 6): the lowest row, the middle column, rows and columns that stand for the
    person's height, the distance of most of the body, and 1 when that is known, until then all 0.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(height).float())
        self.register_buffer("columns", torch.arange(width).float())
        self.height = height

    rows: Tensor
    columns: Tensor

    def forward(self, frames: Tensor, person: Tensor, shake: Shake | None = None) -> tuple[Tensor, Tensor]:
        found = self.measure(frames, shake or Shake())  # (B, T, 6)
        some = found[..., 5:]
        first = some * (some.cumsum(1) <= 1) * (1 - person[:, None, 5:])  # 1 at the step that decides
        known = person[:, None] + (first * found).cumsum(1)
        return known, known[:, -1]

    def measure(self, frames: Tensor, shake: Shake) -> Tensor:
        near = _mean(frames, frames > 0)
        near = _mean(frames, frames > 0.7 * near[..., None, None])  # without the rim, which the background darkens
        depth = _mean(frames, frames > 0.9 * near[..., None, None])  # without hands held forward
        body = (frames > 0.35 * depth[..., None, None]) & (frames > 0)  # (B, T, H, W)
        some = body.any(-1)  # (B, T, H)
        seen = some.any(-1)
        low = torch.where(some, self.rows, torch.zeros_like(self.rows)).amax(-1)
        high = torch.where(some, self.rows, torch.full_like(self.rows, float(self.height))).amin(-1)
        tall = (low - high + 1).clamp_min(self.height / 2)  # a person who sits or is cut off is no child
        count = body.float().sum((-2, -1)).clamp_min(1.0)
        centre = (body.float().sum(-2) * self.columns).sum(-1) / count
        unit = tall * PIXEL
        sized = [
            low + shake.down * unit,
            centre + shake.right * unit,
            tall * _exp(shake.tall),
            tall * _exp(shake.wide),
            depth * (1 + shake.depth),
            torch.ones_like(low),
        ]
        return torch.stack(sized, -1) * seen[..., None]


class Views(nn.Module):
    """A person from three sides. Frames (N, H, W) and person (N, 6) to (N, VALUES): of the front what is covered and
    how far it stands forward; of side and top how much there is in each place. All 0 where there is no person."""

    VALUES = sum(_SPLIT)
    FRONT = 2 * ROWS * COLUMNS  # so many of them are the front's

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        for name, values in (
            ("rows", torch.arange(height)),
            ("columns", torch.arange(width)),
            ("up", (torch.arange(ROWS) - (ROWS - 3.5)) * PIXEL),  # some room is left below the feet
            ("across", (torch.arange(COLUMNS) - (COLUMNS - 1) / 2) * PIXEL),
            ("slices", BEHIND + SLICE * torch.arange(SLICES)),
        ):
            self.register_buffer(name, values.float())

    rows: Tensor
    columns: Tensor
    up: Tensor
    across: Tensor
    slices: Tensor

    def forward(self, frames: Tensor, person: Tensor) -> Tensor:
        low, centre, tall, wide, depth, seen = person[:, :, None].unbind(1)  # (N, 1) each
        by_row = _sampling(low + self.up * tall, self.rows, tall)  # (N, ROWS, H)
        by_column = _sampling(centre + self.across * wide, self.columns, wide)  # (N, COLUMNS, W)
        share = frames / depth.clamp_min(1e-3)[..., None]
        solid = ((share - 0.55) / 0.1).clamp(0, 1)  # 0 at the rim, whose depth is not to be believed
        planes = torch.stack([share.clamp(0, 1.2), solid, (1 - share) * solid], 1)  # (N, 3, H, W)
        small = by_row[:, None] @ planes @ by_column[:, None].transpose(-1, -2)  # (N, 3, ROWS, COLUMNS)
        covered, solid, forward = small.unbind(1)
        forward = forward / (solid + 0.05)
        inside = forward.clamp(BEHIND, BEHIND + SLICE * (SLICES - 1))[..., None]
        near = (1 - (inside - self.slices).abs() / SLICE).clamp_min(0)  # (N, ROWS, COLUMNS, SLICES)
        filled = near * solid[..., None]
        side, top = filled.sum(2), filled.sum(1).transpose(1, 2)
        front = torch.stack([covered, (forward * 8.7).clamp(-1, 2) * solid], 1)
        parts = [front.flatten(1), (side / 2).clamp_max(1.5).flatten(1), (top / 2).clamp_max(1.5).flatten(1)]
        return torch.cat(parts, 1) * seen


def coarse(views: Tensor) -> Tensor:
    """(B, T, Views.VALUES) -> (B, T, COARSE): two rows and two columns become one; slices stay."""
    B, T = views.shape[:2]
    covered, forward, side, top = views.flatten(0, 1).split(_SPLIT, -1)
    front = torch.stack([covered, forward], 1).reshape(-1, 2, ROWS, COLUMNS)
    parts = [
        F.avg_pool2d(front, 2),
        F.avg_pool2d(side.reshape(-1, 1, ROWS, SLICES), (2, 1)),
        F.avg_pool2d(top.reshape(-1, 1, SLICES, COLUMNS), (1, 2)),
    ]
    return torch.cat([part.flatten(1) for part in parts], 1).reshape(B, T, -1)


def _sampling(at: Tensor, pixels: Tensor, tall: Tensor) -> Tensor:
    """(N, places, pixels): what share each pixel has in each place; places a view's pixel apart overlap a little."""
    reach = (1.2 / 2 * PIXEL * tall).clamp_min(1e-3)[..., None]
    share = (1 - (at[..., None] - pixels).abs() / reach).clamp_min(0)
    return share / (share.sum(-1, keepdim=True) + 1e-6)


def _mean(frames: Tensor, where: Tensor) -> Tensor:
    chosen = where.to(frames.dtype)
    return (frames * chosen).sum((-2, -1)) / chosen.sum((-2, -1)).clamp_min(1.0)


def _exp(value: float) -> float:
    return float(torch.tensor(value).exp())
