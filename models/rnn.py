"""Recurrent nets for rows: SimpleRNN, GRU and LSTM under one dense layer.

A recurrent layer gets its own output of the step before as input: a dense layer that has memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Cell = Literal["rnn", "gru", "lstm"]
_LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """Rows (B, T, F) to logits (B, T, K), the logits of a row knowing only it and the rows before it.

    State: `h` (B, layers, width), and `c` of the same shape for an LSTM; zeros at the beginning of a stream.
    `mean` and `std` are the training data's, a number a feature: rows come as the sensor gives them. `remembers`: an
    LSTM's cells begin as memories of 1 up to so many steps (chrono initialisation: Tallec and Ollivier, 2018).
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
        remembers: float = 0.0,
    ) -> None:
        super().__init__()
        self.cell, self.layers, self.width = cell, layers, width
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        between = dropout if layers > 1 else 0.0
        self.memory = _LAYERS[cell](len(mean), width, layers, batch_first=True, dropout=between)
        if cell == "lstm" and remembers:
            self._remember(remembers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        names = ("h", "c") if self.cell == "lstm" else ("h",)
        return {name: torch.zeros(batch, self.layers, self.width) for name in names}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = (x - self.mean) / self.std
        before = tuple(tensor.transpose(0, 1) for tensor in state.values())  # torch wants (layers, B, width)
        y, after = self.memory(rows, before if self.cell == "lstm" else before[0])
        after = after if self.cell == "lstm" else (after,)
        return self.head(self.dropout(y)), {
            name: tensor.transpose(0, 1) for name, tensor in zip(state, after, strict=True)
        }

    def _remember(self, steps: float) -> None:
        """A forget gate's bias of log(n) keeps a cell for about n steps; the input gate takes in what is let go."""
        for layer in range(self.layers):
            bias = getattr(self.memory, f"bias_ih_l{layer}")  # (4 · width,): input, forget, cell, output
            forget = torch.log1p(torch.rand(self.width) * (steps - 1))
            with torch.no_grad():
                bias[: self.width] = -forget
                bias[self.width : 2 * self.width] = forget
