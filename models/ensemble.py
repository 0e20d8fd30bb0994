"""Several nets as one: they learn apart, from different beginnings, and answer together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The logarithm of the mean of the members' probabilities.

    In training the members answer one by one: logits (members · B, T, K), the first member's B examples first, so that
    each is right or wrong by itself. State: each member's, its names behind the member's number, such as `net0_mean`.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return {
            f"net{number}_{name}": value
            for number, member in enumerate(self.members)
            for name, value in member.initial_state(batch).items()
        }

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        said, after = [], {}
        for number, member in enumerate(self.members):
            own = {name: state[f"net{number}_{name}"] for name in member.initial_state(1)}
            logits, following = member(x, own)
            said.append(logits)
            after |= {f"net{number}_{name}": value for name, value in following.items()}
        if self.training:
            return torch.cat(said), after
        together = torch.stack(said).softmax(-1).mean(0)  # (B, T, K)
        return together.clamp_min(1e-12).log(), after
