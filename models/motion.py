"""Nets for depth video of one person: what is seen and what moves, from three sides (views.py), remembered over time.

MotionNet adds both up. Added up alone, as in depth motion maps, they do not tell a movement from its reverse; a memory
by Legendre polynomials does. DepthNet looks at each frame with the same eyes and leaves memory to a recurrent layer.

Both are a `watch` that learns nothing and a `read` that learns, so that training keeps what was watched and learns to
read it: MotionNet once a clip, not once a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.memory import LegendreMemory
from models.rnn import Cell, Recurrent
from models.views import COARSE, FRONT, SIDE, TOP, Person, Shake, Views, coarse

State = dict[str, Tensor]


class MotionNet(nn.Module):
    """Frames (B, T, H, W, 1) of depth to logits (B, T, K).

    State: `person` (B, 6), where the person stood at first (Person); `before` (B, VALUES), the views of the frame
    before; `clock` (B, 1), how much moved so far; `sums` (B, orders, 2 · COARSE), what was seen and what moved
    (LegendreMemory).
    """

    at_end = True  # to learn what to say after a clip, what was watched after it is enough

    def __init__(
        self,
        size: tuple[int, int, int],
        classes: int,
        *,
        orders: int = 8,
        filters: int = 32,
        hidden: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.eyes = Eyes(size)
        self.memory = LegendreMemory(orders)
        self.reader = Reader(classes, orders, filters, hidden, dropout)
        self.orders = orders

    def initial_state(self, batch: int) -> State:
        memory = {"clock": torch.zeros(batch, 1), "sums": torch.zeros(batch, self.orders, 2 * COARSE)}
        return self.eyes.initial_state(batch) | memory

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        maps, after = self.watch(x, state)
        return self.read(maps, state)[0], after

    def watch(self, x: Tensor, state: State, *, last: bool = False, shake: Shake | None = None) -> tuple[Tensor, State]:
        """Maps (B, T, 2, orders, COARSE) of what was seen, on average, and of what moved, in all; and the next state.
        With `last` only the maps at the end, T = 1."""
        shown, changed, pace, after = self.eyes(x, state, shake)
        values = torch.cat([shown * pace[..., None], changed], -1)
        sums, clock = self.memory(values, pace, state["sums"], state["clock"], last=last)
        after |= {"clock": clock[:, -1:], "sums": sums[:, -1]}
        seen, moved = sums.split(COARSE, -1)
        return torch.stack([seen / clock[..., None, None], moved], 2), after

    def read(self, maps: Tensor, state: State) -> tuple[Tensor, State]:
        y: Tensor = self.reader(maps)
        return y, {}


class DepthNet(nn.Module):
    """Frames (B, T, H, W, 1) of depth to logits (B, T, K): a CNN over the views of each frame and what changed in them,
    then a recurrent layer.

    Without a cell each frame is alone: it measures its own person and knows of no change. State: that of MotionNet's
    eyes and that of the recurrent layer; none without a cell.
    """

    at_end = False

    def __init__(
        self,
        size: tuple[int, int, int],
        classes: int,
        cell: Cell | None,
        *,
        filters: int = 8,
        features: int = 64,
        width: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.eyes = Eyes(size)
        self.reader = Reader(features if cell else classes, 1, filters, features, dropout)
        self.memory = None
        if cell is not None:
            mean, std = [0.0] * features, [1.0] * features
            self.memory = Recurrent(cell, classes, mean=mean, std=std, width=width, dropout=dropout)

    def initial_state(self, batch: int) -> State:
        return {} if self.memory is None else self.eyes.initial_state(batch) | self.memory.initial_state(batch)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        seen, after = self.watch(x, state)
        y, memory = self.read(seen, state)
        return y, after | memory

    def watch(self, x: Tensor, state: State, *, last: bool = False, shake: Shake | None = None) -> tuple[Tensor, State]:
        """(B, T, 2, 1, COARSE): each frame's views and what changed in them; and the next state of the eyes."""
        if self.memory is None:
            views = coarse(self.eyes.alone(x, shake))
            return torch.stack([views, torch.zeros_like(views)], 2)[:, :, :, None], {}
        shown, changed, _, after = self.eyes(x, state, shake)
        return torch.stack([shown, changed], 2)[:, :, :, None], after

    def read(self, seen: Tensor, state: State) -> tuple[Tensor, State]:
        y: Tensor = self.reader(seen)
        if self.memory is None:
            return y, {}
        mine = {name: value for name, value in state.items() if name not in Eyes.STATE}
        logits, after = self.memory(y.relu(), mine)
        return logits, after


class Eyes(nn.Module):
    """Frames (B, T, H, W, 1) to their coarse views and the size of their changes since the frame before, (B, T, COARSE)
    each, and how much that was (B, T).

    State: `person` (B, 6), of Person; `before` (B, Views.VALUES), the views of the frame before.
    """

    STATE = ("person", "before")

    def __init__(self, size: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = size
        if channels != 1:
            raise ValueError(f"frames of {channels} channels: expected 1, depth")
        self.person, self.views = Person(height, width), Views(height, width)

    def initial_state(self, batch: int) -> State:
        return {"person": torch.zeros(batch, 6), "before": torch.zeros(batch, Views.VALUES)}

    def forward(self, x: Tensor, state: State, shake: Shake | None) -> tuple[Tensor, Tensor, Tensor, State]:
        frames = x[..., 0].float()
        known, person = self.person(frames, state["person"], shake)
        seen = self._seen(frames, known)
        earlier = torch.cat([state["before"][:, None], seen[:, :-1]], 1)
        was = (earlier.abs().amax(-1, keepdim=True) > 0).to(seen.dtype)  # who appears has not moved
        change = (seen - earlier).abs() * was
        front = change[..., : Views.FRONT].reshape(*x.shape[:2], 2, -1).sum(2)
        # Noise makes no time pass, or hardly any; a whole movement takes about 1.
        pace = (((front - 0.1).clamp_min(0).sum(-1) - 1).clamp_min(0) + 0.1) / 500
        return coarse(seen), coarse(change), pace, {"person": person, "before": seen[:, -1]}

    def alone(self, x: Tensor, shake: Shake | None) -> Tensor:
        """The views (B, T, Views.VALUES) of frames that know nothing of each other."""
        frames = x[..., 0].float()
        return self._seen(frames, self.person.measure(frames, shake or Shake()))

    def _seen(self, frames: Tensor, person: Tensor) -> Tensor:
        B, T = frames.shape[:2]
        seen: Tensor = self.views(frames.flatten(0, 1), person.flatten(0, 1))
        return seen.reshape(B, T, Views.VALUES)


class Reader(nn.Module):
    """A small CNN over maps (B, T, 2, orders, COARSE) to logits (B, T, K): each view in its own way, then together."""

    def __init__(self, classes: int, orders: int, filters: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.orders = orders
        # momentum None: the mean of all batches, from the first on; 1, where variances begin, is far from what they are
        self.level = nn.BatchNorm1d(orders * 2 * COARSE, eps=3e-3, momentum=None, affine=False)
        self.forget = nn.Dropout(0.4 * dropout)
        self.front = _look(4 * orders, filters, 2 * filters)
        self.side, self.top = (_look(2 * orders, filters, filters) for _ in range(2))
        seen = sum(
            channels * (height // 2) * (width // 2)
            for channels, (height, width) in ((2 * filters, FRONT), (filters, SIDE), (filters, TOP))
        )
        self.dense = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(seen, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, maps: Tensor) -> Tensor:
        B, T = maps.shape[:2]
        maps = maps * (maps.abs() + 0.01) ** -0.5  # as the square root, and smooth at 0
        maps = self.forget(self._levelled(maps.reshape(-1, self.level.num_features)))
        maps = maps.reshape(-1, 2, self.orders, COARSE)
        front, side, top = maps.split((2 * FRONT[0] * FRONT[1], SIDE[0] * SIDE[1], TOP[0] * TOP[1]), -1)
        looked = [
            self.front(front.reshape(-1, 4 * self.orders, *FRONT)),
            self.side(side.reshape(-1, 2 * self.orders, *SIDE)),
            self.top(top.reshape(-1, 2 * self.orders, *TOP)),
        ]
        y = self.dense(torch.cat([each.reshape(-1, each[0].numel()) for each in looked], 1))
        return y.reshape(B, T, y.shape[-1])

    def _levelled(self, x: Tensor) -> Tensor:
        """Each value by its own mean and spread. The exporter knows batch normalisation by channels alone."""
        mean, variance = self.level.running_mean, self.level.running_var
        if self.training or mean is None or variance is None:
            levelled: Tensor = self.level(x)
            return levelled
        return (x - mean) * (variance + self.level.eps) ** -0.5


def _look(channels: int, filters: int, more: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given, made in ((channels, filters), (filters, more)):
        layers += [nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))
