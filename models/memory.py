"""A memory that tells the past as a polynomial of time: how much there was, when, and how it changed.

The idea of measuring the whole past by Legendre polynomials is that of HiPPO-LegS (Gu, Dao, Ermon, Rudra and Ré, 2020).
Here time is what a pace says it is, such as the amount of movement: rest makes no time pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class LegendreMemory(nn.Module):
    """Values (B, T, D) to sums (B, T, orders, D): each value so far times P_k(u), u its time from −1, the beginning, to
    1, now.

    Sum 0 is how much there was; sum 1 is positive where more of it was late; and so on. `pace` (B, T), above 0, is how
    much time each step takes. The same movement at another speed makes the same sums.

    State: `sums` (B, orders, D) and `clock` (B, 1), the time so far; zeros at the beginning. As time passes, old sums
    are told anew for the longer past: P_k over the longer one is a polynomial over the shorter one, whose shares
    Gauss-Legendre quadrature gives without a rounding error that grows with k.
    """

    nodes: Tensor
    shares: Tensor

    def __init__(self, orders: int) -> None:
        super().__init__()
        self.orders = orders
        nodes, weights = np.polynomial.legendre.leggauss(orders)
        at_nodes = legendre(torch.from_numpy(nodes), orders, 0)  # (orders, Q)
        norms = torch.arange(orders).double() + 0.5
        self.register_buffer("nodes", torch.from_numpy(nodes).float())
        self.register_buffer("shares", (at_nodes * torch.from_numpy(weights) * norms[:, None]).T.float().contiguous())

    def forward(
        self, values: Tensor, pace: Tensor, sums: Tensor, clock: Tensor, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The sums after every step and the clock (B, T); with `last` after the last step alone, as if T were 1."""
        B, T, D = values.shape
        now = clock + pace.cumsum(1)  # (B, T)
        steps = torch.arange(T, device=pace.device)
        past = (steps[:, None] >= steps[None, :]).to(pace.dtype)  # (T, T)
        middle = (now - pace / 2)[:, None]  # (B, 1, T): when each value was
        if last:
            now, past = now[:, -1:], past[-1:]
        weight = legendre((2 * middle / now[..., None] - 1).clamp(-1, 1), self.orders, 2)  # (B, T', orders, T)
        new = (weight * past[:, None]).flatten(1, 2) @ values  # (B, T' · orders, D)
        ratio = (clock / now)[..., None]  # (B, T', 1)
        told = legendre(ratio * (self.nodes + 1) - 1, self.orders, 2) @ self.shares  # (B, T', orders, orders)
        old = told.flatten(1, 2) @ sums
        return (new + old).reshape(B, -1, self.orders, D), now


def legendre(u: Tensor, orders: int, dim: int) -> Tensor:
    """P_0(u) … stacked along a new dimension, by Bonnet's recursion."""
    found = [torch.ones_like(u), u]
    for k in range(1, orders - 1):
        found.append(((2 * k + 1) * u * found[k] - k * found[k - 1]) / (k + 1))
    return torch.stack(found[:orders], dim)
