"""Nets for text: embeddings make vectors of words and of pairs of words, a recurrent layer or a causal CNN reads them,
a dense layer classifies at every word."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.cnn1d import CausalConv, RunningMean
from models.rnn import LAYERS, Cell

SHARPNESS = 4.0  # of the strongest so far: near 0 it would be the mean, at infinity the maximum


class Text(nn.Module, ABC):
    """Token ids (B, T) int64 to logits (B, T, K); with two classes to one logit (B, T, 1), a single sigmoid neuron.

    What `read` makes of the words stands beside the words and the pairs of neighbours themselves. The dense layer sees
    all this at a word and its mean over all words so far, so that no early word is lost; or, with `strongest`, in the
    mean's place how strongly each value spoke at the most: the logarithm of the mean of exponentials, which follows
    the largest. A pair has its place in a table of `pairs` rows by a hash of its two ids: no list of pairs is needed.

    State: that of `read`; `before` (B, 1), the token before, at first the unknown word; `mean` (B, width + embedding +
    pair_embedding) and `count` (B, 1) of the running mean.
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        *,
        embedding: int,
        width: int,  # of what `read` gives
        pairs: int,
        pair_embedding: int,
        strongest: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.strongest = strongest
        self.embedding = nn.Embedding(tokens, embedding)
        self.pairs = nn.Embedding(pairs, pair_embedding)
        nn.init.normal_(self.embedding.weight, std=0.3)
        nn.init.normal_(self.pairs.weight, std=0.1)
        self.average = RunningMean(width + embedding + pair_embedding)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * self.average.width, 1 if classes == 2 else classes)

    @abstractmethod
    def read(self, words: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, embedding) -> (B, T, width), the next state of what reads."""

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {"before": torch.zeros(batch, 1)} | self.average.initial_state(batch)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        words = self.dropout(self.embedding(x))  # (B, T, embedding)
        read, after = self.read(words, state)
        line = torch.cat([state["before"].long(), x], 1)  # (B, 1 + T)
        places = (line[:, :-1] * 7919 + x * 104_729) % self.pairs.num_embeddings  # two primes
        pairs = self.dropout(self.pairs(places))  # (B, T, pair_embedding)
        seen = torch.cat([read, words, pairs], -1)
        if self.strongest:
            seen = torch.tanh(seen)
            average, kept = self.average(torch.exp(SHARPNESS * seen), state)
            so_far = torch.log(average) / SHARPNESS
        else:
            so_far, kept = self.average(seen, state)
        logits = self.head(self.dropout(torch.cat([seen, so_far], -1)))  # (B, T, K)
        return logits, after | kept | {"before": line[:, -1:].float()}


class TextRecurrent(Text):
    """Read by an LSTM, a GRU or a SimpleRNN. State: `h` (B, 1, width) besides, and `c` alike for an LSTM."""

    def __init__(
        self,
        cell: Cell,
        tokens: int,
        classes: int,
        *,
        embedding: int = 64,
        width: int = 64,
        pairs: int = 10_000,
        pair_embedding: int = 32,
        strongest: bool = False,
        dropout: float = 0.0,
    ) -> None:
        more: dict[str, Any] = {"pairs": pairs, "pair_embedding": pair_embedding}
        more |= {"strongest": strongest, "dropout": dropout}
        super().__init__(tokens, classes, embedding=embedding, width=width, **more)
        self.cell = cell
        self.memory = LAYERS[cell](embedding, width, batch_first=True)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        names = ("h", "c") if self.cell == "lstm" else ("h",)
        memory = {name: torch.zeros(batch, 1, self.memory.hidden_size) for name in names}
        return memory | super().initial_state(batch)

    def read(self, words: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = state["h"].transpose(0, 1).contiguous()  # torch wants (1, B, width)
        if self.cell == "lstm":
            y, (h, c) = self.memory(words, (h, state["c"].transpose(0, 1).contiguous()))
            return y, {"h": h.transpose(0, 1), "c": c.transpose(0, 1)}
        y, h = self.memory(words, h)
        return y, {"h": h.transpose(0, 1)}


class TextCNN(Text):
    """Read by causal convolutions over so many words each. State: `cache0`, … (B, embedding, kernel − 1) besides."""

    def __init__(
        self,
        tokens: int,
        classes: int,
        *,
        embedding: int = 64,
        filters: int = 64,  # of each kernel
        kernels: Sequence[int] = (2, 3),
        pairs: int = 10_000,
        pair_embedding: int = 32,
        strongest: bool = False,
        dropout: float = 0.0,
    ) -> None:
        more: dict[str, Any] = {"pairs": pairs, "pair_embedding": pair_embedding}
        more |= {"strongest": strongest, "dropout": dropout}
        super().__init__(tokens, classes, embedding=embedding, width=filters * len(kernels), **more)
        self.convolutions = nn.ModuleList(CausalConv(embedding, filters, kernel) for kernel in kernels)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        caches = {f"cache{i}": conv.initial_state(batch) for i, conv in enumerate(self.convolutions)}
        return caches | super().initial_state(batch)

    def read(self, words: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        line, after, found = words.transpose(1, 2), {}, []  # (B, embedding, T)
        for i, conv in enumerate(self.convolutions):
            y, after[f"cache{i}"] = conv(line, state[f"cache{i}"])
            found.append(torch.tanh(y).transpose(1, 2))
        return torch.cat(found, -1), after
