"""What a new stream's state holds, as the manifest says it: what the net's `initial_state(batch)` gives, learnt or not.

A server has no net to ask. What a stream begins with must therefore be the same whenever, and beside whomever, it
begins.
"""

from __future__ import annotations

from typing import Final, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from service.contracts import StateTensor
from service.errors import PackageRefused
from service.state import first_value

DTYPES: Final[tuple[str, ...]] = get_args(get_type_hints(StateTensor)["dtype"])
MOST_VALUES: Final = 16_384  # in a manifest, of all states that are not one value everywhere
ALIKE: Final = 1e-6  # so much may two batches differ, which add up in another order


def begin(net: nn.Module, batch: int) -> dict[str, Tensor]:
    """`batch` new streams' states, name -> (batch, *shape): copies, even of what is learnt."""
    with torch.no_grad():
        states = net.initial_state(batch)
        return {name: part.detach().clone(memory_format=torch.contiguous_format) for name, part in states.items()}


def first_states(net: nn.Module) -> list[StateTensor]:
    """The manifest's `states` of a net whose state tensors have the batch first. Raises PackageRefused."""
    one, three = begin(net, 1), begin(net, 3)
    found = [_state(name, tensor, three[name]) for name, tensor in one.items()]
    listed = sum(len(state.initial) for state in found if isinstance(state.initial, list))
    if listed > MOST_VALUES:
        raise PackageRefused(
            f"initial_state(batch): a new stream begins with {listed} values of its own, expected {MOST_VALUES} at "
            "most; one value everywhere, such as zeros, counts as none",
            check="states",
        )
    return found


def dtype_of(tensor: Tensor) -> str:
    """`float32`, `bfloat16`, …"""
    return str(tensor.dtype).removeprefix("torch.")


def _state(name: str, one: Tensor, three: Tensor) -> StateTensor:  # (1, *shape), (3, *shape)
    if dtype_of(one) not in DTYPES:
        raise PackageRefused(f"state {name} is {dtype_of(one)}: expected one of {', '.join(DTYPES)}", check="states")
    values, others = one.numpy()[0], three.numpy()
    if not np.isfinite(values).all():
        raise PackageRefused(f"state {name}: initial_state(batch) gives values that are not finite", check="states")
    if not np.allclose(others, values, rtol=ALIKE, atol=ALIKE):
        raise PackageRefused(
            f"state {name}: initial_state(1) and initial_state(3) give streams different values; expected the same for "
            "every stream, whenever it begins: neither random nor made of the batch's size or place",
            check="states",
        )
    state = StateTensor(name, list(values.shape), str(values.dtype), initial=_said(values))  # type: ignore[arg-type]
    if not (first_value(state) == values).all():
        raise PackageRefused(f"state {name}: it begins with whole numbers above 2^53", check="states")
    return state


def _said(values: np.ndarray) -> float | list[float]:
    """One number where it stands everywhere, else all in C order; float32 in as few digits as it takes."""
    shortest = [float(str(value)) for value in values.reshape(-1)]
    return shortest[0] if len(set(shortest)) == 1 else shortest
