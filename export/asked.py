"""A foreign module is asked, and what it answers is looked at: y and the next state, as docs/models.md wants them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from export.causes import ForeignError, place_of, said, suspects, why
from export.states import dtype_of


def first(net: nn.Module, batch: int) -> Any:
    """What the module's initial_state gives."""
    try:
        with torch.no_grad():
            return net.initial_state(batch)
    except Exception as error:  # whatever a foreign module does
        raise ForeignError(
            f"initial_state({batch}) failed: {said(error)}{place_of(error)}; expected initial_state(batch) that "
            "returns the state of as many new streams"
        ) from error


def asked(net: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """y and the next state, if forward gives these."""
    shape = f"x of shape {tuple(x.shape)}, {dtype_of(x)}"
    try:
        with torch.no_grad():
            given = net(x, state)
    except ForeignError:
        raise
    except Exception as error:  # whatever a foreign module does
        raise ForeignError(f"forward(x, state) failed on {shape}: {why(error, net)}") from error
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not isinstance(given[0], Tensor):
        parts = given if isinstance(given, (tuple, list)) else [given]
        named = ", ".join(type(part).__name__ for part in parts[:5])
        what = f"({named})" if isinstance(given, (tuple, list)) else named
        raise ForeignError(f"forward(x, state) gave {what}: expected (y, state), y a tensor and in this order")
    return given[0], given[1]


def check_y(net: nn.Module, x: Tensor, y: Tensor, labels: list[str], output: str) -> None:
    B, T = x.shape[:2]
    K = y.shape[-1] if y.ndim == 3 else 0
    allowed = {"auto": {len(labels), 1 if len(labels) == 2 else len(labels)}, "logit": {1}}.get(output, {len(labels)})
    if y.shape[:2] != (B, T) or K not in allowed or (output == "logit" and len(labels) != 2):
        order = "(y, state) in this order, y of shape " if K and y.shape[:2] != (B, T) else ""
        text = f"y has shape {tuple(y.shape)}: expected {order}({B}, {T}, {max(allowed)}), a label each at every step"
        if output != "auto":
            text += f", since --output says {output}"
        raise ForeignError("; ".join([text, *suspects(net)]))
    if y.dtype != torch.float32:
        raise ForeignError("; ".join([f"y is {dtype_of(y)}: expected float32, such as y.float()", *suspects(net)]))


def check_finite(net: nn.Module, y: Tensor) -> None:
    if not torch.isfinite(y).all():
        spoilt = [name for name, value in net.named_parameters() if not torch.isfinite(value).all()]
        cause = f", and neither is {', '.join(spoilt[:3])}" if spoilt else ", though all weights are"
        raise ForeignError(f"y is not finite on the example{cause}")
