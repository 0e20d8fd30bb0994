"""Packages any torch module with `forward(x, state) -> (y, state)`: no training of ours, no catalogue.

The module may keep its state as a dict of tensors, a tensor, or a tuple of tensors as torch's own layers do; with
`initial_state(batch)` it says what a new stream's is, without it `None` must stand for zeros. Where the batch stands in
a state tensor is found out by asking for two sizes. Everything assumed is tried before anything is written.
"""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from export.data import mean_and_spread
from export.to_onnx import Output
from service.contracts import FrameInput, Manifest, RollingSettings, RowInput


class ForeignError(Exception):
    """What was given cannot be packaged. The text says what was wrong and what was expected."""


class Example(NamedTuple):
    """Real input: x (B, T, …), B ≥ 2 and 2 ≤ T ≤ 64, and the columns' names where the file has them."""

    x: np.ndarray
    features: list[str]


# --- what is given -----------------------------------------------------------------------------------------------


def read_module(spec: str, weights: Path | None) -> nn.Module:
    """`pkg.mod:factory`, found from the current folder too; `weights` is a state_dict as torch.save writes it."""
    place, _, factory = spec.partition(":")
    if not (place and factory):
        raise ForeignError(f"module {spec!r}: expected PACKAGE.MODULE:FACTORY, such as mynets.pumps:make")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(place), factory)
    except ImportError as error:
        raise ForeignError(f"module {place!r} cannot be imported: {error}") from None
    except AttributeError:
        raise ForeignError(f"module {place!r} has no {factory!r}") from None
    net = make()
    if not isinstance(net, nn.Module):
        raise ForeignError(f"{spec} gave {type(net).__name__}: expected a torch.nn.Module")
    if weights is not None:
        try:
            net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise ForeignError(f"missing file {weights}") from None
        except Exception as error:  # torch's readers raise whatever the damage leads to
            raise ForeignError(f"{weights} does not fit {spec}: {str(error).strip().splitlines()[0]}") from None
    return net.eval()


def read_example(path: Path) -> Example:
    """`x` of an npz: rows (N, F) or (B, T, F), frames (B, T, H, W, C) uint8."""
    wanted = "expected an npz with `x`: rows (N, F), N ≥ 4, or (B, T, F), numbers; or frames (B, T, H, W, C) uint8"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            x, names = stored["x"], stored["features"].tolist() if "features" in stored.files else []
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ForeignError(f"example {path}: {error}; {wanted}") from None
    if x.ndim == 2 and x.dtype.kind in "fiu" and len(x) >= 4:
        steps = min(64, len(x) // 2)
        x = x[: len(x) // steps * steps].reshape(-1, steps, x.shape[1])[:8]
    frames = x.ndim == 5 and x.dtype == np.uint8 and x.shape[-1] in (1, 3)
    rows = x.ndim == 3 and x.dtype.kind in "fiu"
    if not (frames or rows) or x.shape[1] < 2 or not len(x):
        raise ForeignError(f"example {path}: x of shape {x.shape} and type {x.dtype}; {wanted}")
    x = x[:8, :64] if frames else x[:8, :64].astype(np.float32)
    if not np.isfinite(x).all():
        raise ForeignError(f"example {path}: x has values that are not finite")
    if len(x) == 1:
        x = np.concatenate([x, x[:, ::-1]])  # the certificate needs two streams
    return Example(np.ascontiguousarray(x), [str(name) for name in names])


# --- the module as ours ------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A foreign module with named state tensors whose batch comes first."""

    def __init__(self, net: nn.Module, x: np.ndarray) -> None:
        super().__init__()
        self.net = net
        self._x = torch.from_numpy(np.ascontiguousarray(x[:1, :2]))
        two, three = (self._parts(self._new(batch)) for batch in (2, 3))
        self.names = list(two)
        self.axes = {name: _batch_axis(name, two[name].shape, three[name].shape) for name in two}
        self.like = type(self._new(1))

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        parts = self._parts(self._new(batch))
        return {name: parts[name].movedim(self.axes[name], 0) for name in self.names}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        theirs = {name: state[name].movedim(0, self.axes[name]) for name in self.names}
        given: Any = theirs
        if not issubclass(self.like, dict):
            given = tuple(theirs.values()) if issubclass(self.like, (tuple, list)) else theirs.get("state")
        y, after = self.net(x, given)
        parts = self._parts(after)
        return y, {name: parts[name].movedim(self.axes[name], 0) for name in self.names}

    def _new(self, batch: int) -> Any:
        """A new stream's state, as the module has it."""
        if hasattr(self.net, "initial_state"):
            return self.net.initial_state(batch)
        with torch.no_grad():
            _, after = self.net(self._x.expand(batch, *self._x.shape[1:]), None)
        parts = self._parts(after)
        zeros = {name: torch.zeros_like(part) for name, part in parts.items()}
        return _shaped_as(after, zeros)

    def _parts(self, state: Any) -> dict[str, Tensor]:
        if isinstance(state, dict):
            parts = state
        elif isinstance(state, Tensor):
            parts = {"state": state}
        elif state is None:
            parts = {}
        elif isinstance(state, (tuple, list)):
            parts = {f"state{i}": part for i, part in enumerate(state)}
        else:
            parts = {"?": state}
        for name, part in parts.items():
            if not isinstance(part, Tensor):
                raise ForeignError(f"state {name} is {type(part).__name__}: expected tensors in a dict or a tuple")
        return dict(parts)


def _shaped_as(after: Any, parts: dict[str, Tensor]) -> Any:
    if after is None or isinstance(after, dict):
        return None if after is None else parts
    return next(iter(parts.values())) if isinstance(after, Tensor) else tuple(parts.values())


def _batch_axis(name: str, two: torch.Size, three: torch.Size) -> int:
    found = [axis for axis, (a, b) in enumerate(zip(two, three, strict=False)) if (a, b) == (2, 3)]
    if len(two) != len(three) or len(found) != 1:
        raise ForeignError(
            f"state {name} is {tuple(two)} for two streams and {tuple(three)} for three: expected one axis that grows"
        )
    return found[0]


def adapt(net: nn.Module, example: Example, labels: list[str], output: str) -> tuple[Adapted, Output]:
    """The module as ours and what it gives, both tried on the example. Raises ForeignError."""
    if len(labels) < 2 or len(set(labels)) != len(labels) or not all(labels):
        raise ForeignError(f"labels {labels}: expected at least two, all different, none empty")
    x = torch.from_numpy(example.x)
    try:
        adapted = Adapted(net, example.x)
        with torch.no_grad():
            y, _ = adapted(x, adapted.initial_state(len(x)))
            first, _ = net(x, None) if not hasattr(net, "initial_state") else (y, None)
    except ForeignError:
        raise
    except Exception as error:  # whatever a foreign module does
        raise ForeignError(
            f"forward(x, state) failed on x of shape {tuple(x.shape)}, {x.dtype}: {type(error).__name__}: {error}"
        ) from error
    B, T = x.shape[:2]
    K = y.shape[-1] if y.ndim == 3 else 0
    if y.shape[:2] != (B, T) or K not in {len(labels), 1 if len(labels) == 2 else len(labels)}:
        raise ForeignError(
            f"y has shape {tuple(y.shape)}: expected ({B}, {T}, {len(labels)}), a label each at every step"
        )
    if not torch.allclose(first, y, atol=1e-5):
        raise ForeignError("without initial_state(batch), forward(x, None) must begin with zeros: it gives another y")
    if output == "auto":
        normal = K > 1 and bool((y >= 0).all()) and torch.allclose(y.sum(-1), torch.ones(B, T), atol=1e-4)
        output = "probabilities" if normal else "logits" if K > 1 else "logit"
    return adapted, output  # type: ignore[return-value]


def foreign_manifest(
    name: str, version: int, labels: list[str], example: Example, hz: float | None, description: str
) -> Manifest:  # fmt: skip
    """What can be said of it; states and checksums are filled in by the graph."""
    x = example.x
    rolling = RollingSettings(half_life_s=0.5 if hz is None else max(0.5, 2 / hz))
    common = dict(format=1, name=name, version=version, labels=labels, sha256="", family="own", rolling=rolling)  # noqa: C408
    common |= {"weights_terms": "the owner's", "description": description}
    if x.ndim == 5:
        height, width, channels = x.shape[2:]
        colour = "gray" if channels == 1 else "rgb"
        return Manifest(kind="frame", frames=FrameInput(height, width, channels, colour, rate_hz=hz), **common)
    flat = x.reshape(-1, x.shape[-1])
    names = example.features or [f"x{i}" for i in range(flat.shape[1])]
    if len(names) != flat.shape[1]:
        raise ForeignError(f"{len(names)} features are named, the rows have {flat.shape[1]}")
    mean, spread = mean_and_spread(flat)
    low, high = flat.min(0).tolist(), flat.max(0).tolist()
    rows = RowInput(names, hz or 1.0, mean, spread, low, high)
    return Manifest(kind="samples", rows=rows, **common)
