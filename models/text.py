"""Nets for text: an embedding makes vectors of words, an LSTM reads them, a dense layer classifies at every word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cnn1d import RunningMean


class TextLSTM(nn.Module):
    """Token ids (B, T) int64 to logits (B, T, K); with two classes to one logit (B, T, 1), a single sigmoid neuron.

    The dense layer sees the LSTM's output at a word and its mean over all words so far, so that no early word is lost.
    State: `h` and `c` (B, 1, width) of the LSTM, `mean` (B, width) and `count` (B, 1) of the running mean.
    """

    def __init__(
        self, tokens: int, classes: int, *, embedding: int = 64, width: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.memory = nn.LSTM(embedding, width, batch_first=True)
        self.average = RunningMean(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, 1 if classes == 2 else classes)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        memory = {name: torch.zeros(batch, 1, self.width) for name in ("h", "c")}
        return memory | self.average.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        words = self.dropout(self.embedding(x))  # (B, T, embedding)
        before = state["h"].transpose(0, 1), state["c"].transpose(0, 1)  # torch wants (1, B, width)
        y, (h, c) = self.memory(words, before)  # (B, T, width)
        average, kept = self.average(y, state)
        logits = self.head(self.dropout(torch.cat([y, average], -1)))  # (B, T, K)
        return logits, {"h": h.transpose(0, 1), "c": c.transpose(0, 1), **kept}
