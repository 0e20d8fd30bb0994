"""Recurrent nets for rows: SimpleRNN, GRU and LSTM under one dense layer.

A recurrent layer gets its own output of the step before as input: a dense layer that has memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Cell = Literal["rnn", "gru", "lstm"]
LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """Rows (B, T, F) to logits (B, T, K), the logits of a row knowing only it and the rows before it.

    `mean` and `std` are the training data's, a number a feature: rows come as the sensor gives them. `windows`: the
    recurrent layer sees not rows, but their mean and spread over the last so many (Moments). `remembers`: an LSTM's
    cells begin as memories of 1 up to so many steps (chrono initialisation: Tallec and Ollivier, 2018).

    State: `h` (B, layers, width), and `c` of the same shape for an LSTM; `recent`, if there are windows (Moments).
    All zeros at the beginning of a stream.
    """

    def __init__(
        self,
        cell: Cell,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        windows: Sequence[int] = (),
        remembers: float = 0.0,
    ) -> None:
        super().__init__()
        self.cell, self.layers, self.width = cell, layers, width
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.moments = Moments(len(mean), windows) if windows else None
        sees = 2 * len(mean) * len(windows) if windows else len(mean)
        self.input_dropout = nn.Dropout(input_dropout)
        between = dropout if layers > 1 else 0.0
        self.memory = LAYERS[cell](sees, width, layers, batch_first=True, dropout=between)
        if cell == "lstm" and remembers:
            self._remember(remembers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        names = ("h", "c") if self.cell == "lstm" else ("h",)
        state = {name: torch.zeros(batch, self.layers, self.width) for name in names}
        return state if self.moments is None else state | {"recent": self.moments.initial_state(batch)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = (x - self.mean) / self.std
        after: dict[str, Tensor] = {}
        if self.moments is not None:
            rows, after["recent"] = self.moments(rows, state["recent"])
        rows = self.input_dropout(rows)
        h = state["h"].transpose(0, 1).contiguous()  # torch wants (layers, B, width)
        if self.cell == "lstm":
            y, (h, c) = self.memory(rows, (h, state["c"].transpose(0, 1).contiguous()))
            after["c"] = c.transpose(0, 1)
        else:
            y, h = self.memory(rows, h)
        after["h"] = h.transpose(0, 1)
        return self.head(self.dropout(y)), after

    def _remember(self, steps: float) -> None:
        """A forget gate's bias of log(n) keeps a cell for about n steps; the input gate takes in what is let go."""
        for layer in range(self.layers):
            bias = getattr(self.memory, f"bias_ih_l{layer}")  # (4 · width,): input, forget, cell, output
            forget = torch.log1p(torch.rand(self.width) * (steps - 1))
            with torch.no_grad():
                bias[: self.width] = -forget
                bias[self.width : 2 * self.width] = forget


class Moments(nn.Module):
    """Rows (B, T, F) to (B, T, 2 · F · windows): mean and logarithm of the spread over the last n rows, n a window.

    While a stream is younger than a window, its rows so far count. State: `recent` (B, longest − 1, F + 1), the rows
    before; the last column is 1 where there was a row.
    """

    def __init__(self, features: int, windows: Sequence[int]) -> None:
        super().__init__()
        if min(windows) < 2:
            raise ValueError(f"windows {list(windows)}: expected at least 2 rows each")
        self.features, self.windows, self.longest = features, tuple(windows), max(windows)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.longest - 1, self.features + 1)

    def forward(self, x: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        rows = torch.cat([recent, rows], 1)  # (B, longest − 1 + T, F + 1)
        exact = rows.double()  # sums of squares lose their differences in 32 bits
        columns = torch.cat([exact, exact[..., :-1] ** 2], -1)  # (B, …, F + 1 + F): x, 1, x²
        sums = torch.cat([torch.zeros_like(columns[:, :1]), columns.cumsum(1)], 1)  # (B, longest + T, 2 F + 1)
        seen: list[Tensor] = []
        for window in self.windows:
            inside = sums[:, self.longest :] - sums[:, self.longest - window : -window]  # (B, T, 2 F + 1)
            total, count, squares = inside.split((self.features, 1, self.features), -1)
            mean = total / count
            variance = (squares / count - mean * mean).clamp_min(0)
            seen += [mean.float(), 0.5 * torch.log(variance.float() + 0.01)]
        return torch.cat(seen, -1), rows[:, 1 - self.longest :]
