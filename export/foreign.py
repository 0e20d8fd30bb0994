"""Packages any torch module with `forward(x, state) -> (y, state)`: no training of ours, no catalogue.

The module may keep its state as a dict of tensors, a tensor, or a tuple of tensors as torch's own layers do; with
`initial_state(batch)` it says what a new stream's is, without it `None` must stand for zeros. Where the batch stands in
a state tensor is found out by asking for two sizes. Everything assumed is tried before anything is written.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from export.asked import asked, check_finite, check_y, first
from export.causes import Around, ForeignError, place_of, said, suspects
from export.checks import read_npz, wrong_names
from export.data import DataError, mean_and_spread
from export.states import DTYPES, begin, dtype_of, first_states
from export.to_onnx import Output
from export.weights import fill
from service.contracts import FrameInput, Manifest, RollingSettings, RowInput

LARGEST: Final = 32 << 20  # values of an example
TAKEN: Final = ("x", "probabilities")  # names of the graph's own input and output


class Example(NamedTuple):
    """Real input: x (B, T, …), B ≥ 2 and 2 ≤ T ≤ 64, and the columns' names where the file has them."""

    x: np.ndarray
    features: list[str]


# --- what is given -----------------------------------------------------------------------------------------------


def read_module(spec: str, weights: Path | None, say: Callable[[str], None] = lambda text: None) -> nn.Module:
    """`pkg.mod:factory`, found from the current folder too; `weights` is a state_dict as torch.save writes it, of which
    `say` tells what it was taken out of. On the CPU, in eval mode."""
    place, _, factory = spec.partition(":")
    if not (place and factory):
        raise ForeignError(f"module {spec!r}: expected PACKAGE.MODULE:FACTORY, such as mynets.pumps:make")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever is done at its top
        raise ForeignError(f"module {place!r} cannot be imported: {said(error)}{place_of(error)}") from None
    if not hasattr(module, factory):
        raise ForeignError(f"module {place!r} has no {factory!r}")
    net = _unwrapped(_made(spec, getattr(module, factory)))
    if weights is not None:
        for line in fill(net, weights, spec):
            say(line)
    try:
        return net.to("cpu").eval()
    except Exception as error:  # such as a module on the device meta
        raise ForeignError(f"{spec} cannot be brought to the CPU: {said(error)}") from None


def _made(spec: str, make: Any) -> nn.Module:
    """What the factory makes; a module that stands there itself is taken as it is."""
    net = make
    if not isinstance(make, nn.Module):
        try:
            net = make()
        except (Exception, SystemExit) as error:
            raise ForeignError(
                f"{spec} failed: {said(error)}{place_of(error)}; expected a function or class that makes the module "
                "without arguments"
            ) from None
    if not isinstance(net, nn.Module):
        raise ForeignError(f"{spec} gave {type(net).__name__}: expected a torch.nn.Module")
    return net


def _unwrapped(net: nn.Module) -> nn.Module:
    """The module within what torch.compile, DataParallel or DistributedDataParallel make of it."""
    while True:
        inner = getattr(net, "_orig_mod", None)
        if inner is None and isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = net.module
        if not isinstance(inner, nn.Module):
            return net
        net = inner


def read_example(path: Path) -> Example:
    """`x` of an npz: rows (N, F) or (B, T, F), frames (B, T, H, W, C) uint8."""
    wanted = "expected an npz with `x`: rows (N, F), N ≥ 4, or (B, T, F), numbers; or frames (B, T, H, W, C) uint8"
    try:
        stored = read_npz(path)
    except DataError as error:
        raise ForeignError(f"example {path}: {error}; {wanted}") from None
    if "x" not in stored:
        raise ForeignError(f"example {path}: it holds {sorted(stored)}; {wanted}")
    x, names = stored["x"], [str(name) for name in stored.get("features", np.array([])).reshape(-1).tolist()]
    if x.ndim == 2 and x.dtype.kind in "fiu" and len(x) >= 4:
        steps = min(64, len(x) // 2)
        x = x[: len(x) // steps * steps].reshape(-1, steps, x.shape[1])[:8]
    frames = x.ndim == 5 and x.dtype == np.uint8 and x.shape[-1] in (1, 3)
    rows = x.ndim == 3 and x.dtype.kind in "fiu"
    if not (frames or rows) or x.shape[1] < 2 or not x.size:
        raise ForeignError(f"example {path}: x of shape {x.shape} and type {x.dtype}; {wanted}")
    if rows and (wrong := wrong_names(names, x.shape[1:])):
        raise ForeignError(f"example {path}: {wrong}")
    steps = max(2, min(64, LARGEST // (8 * x[0, 0].size)))
    with np.errstate(over="ignore"):
        x = x[:8, :steps] if frames else x[:8, :steps].astype(np.float32)
    if not np.isfinite(x).all():
        raise ForeignError(f"example {path}: x has values that are not finite")
    if len(x) == 1:
        x = np.concatenate([x, x[:, ::-1]])  # the certificate needs two streams
    return Example(np.ascontiguousarray(x), names)


# --- the module as ours ------------------------------------------------------------------------------------------


class Adapted(Around):
    """A foreign module with named state tensors whose batch comes first."""

    def __init__(self, net: nn.Module, x: np.ndarray) -> None:
        super().__init__()
        self.net = net
        self._x = torch.from_numpy(np.ascontiguousarray(x[:1, :2]))
        two, three = (self._parts(self._new(batch)) for batch in (2, 3))
        self.names = list(two)
        self.axes = {name: _batch_axis(net, name, two[name].shape, three[name].shape) for name in two}
        self.like = type(self._new(1))

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        return self.named(self._new(batch))

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        theirs = {name: state[name].movedim(0, self.axes[name]) for name in self.names}
        given: Any = theirs
        if hasattr(self.like, "_make"):  # a named tuple
            given = self.like._make(theirs.values())
        elif not issubclass(self.like, dict):
            given = tuple(theirs.values()) if issubclass(self.like, (tuple, list)) else theirs.get("state")
        y, after = self.net(x, given)
        return y, self.named(after)

    def named(self, after: Any) -> dict[str, Tensor]:
        """The module's state by name, the batch first."""
        return {name: part.movedim(self.axes.get(name, 0), 0) for name, part in self._parts(after).items()}

    def _new(self, batch: int) -> Any:
        """A new stream's state, as the module has it."""
        if hasattr(self.net, "initial_state"):
            return first(self.net, batch)
        _, after = asked(self.net, self._x.expand(batch, *self._x.shape[1:]), None)
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
            if (
                not (isinstance(name, str) and name)
                or name in TAKEN
                or name.removesuffix("_next") in parts.keys() - {name}
            ):
                raise ForeignError(f"state {name!r}: expected another name; x, probabilities and NAME_next are taken")
        return dict(parts)


def _shaped_as(after: Any, parts: dict[str, Tensor]) -> Any:
    if after is None or isinstance(after, dict):
        return None if after is None else parts
    if hasattr(after, "_make"):
        return after._make(parts.values())
    return next(iter(parts.values())) if isinstance(after, Tensor) else tuple(parts.values())


def _batch_axis(net: nn.Module, name: str, two: torch.Size, three: torch.Size) -> int:
    found = [axis for axis, (a, b) in enumerate(zip(two, three, strict=False)) if (a, b) == (2, 3)]
    if len(two) != len(three) or len(found) != 1:
        text = (
            f"state {name} is {tuple(two)} for two streams and {tuple(three)} for three: expected one axis that grows"
        )
        raise ForeignError("; ".join([text, *suspects(net)]))
    return found[0]


def adapt(net: nn.Module, example: Example, labels: list[str], output: str) -> tuple[Adapted, Output]:
    """The module as ours and what it gives, both tried on the example. Raises ForeignError, and PackageRefused where
    streams cannot begin as it says."""
    if len(labels) < 2 or len(set(labels)) != len(labels) or not all(labels):
        raise ForeignError(f"labels {labels}: expected at least two, all different, none empty")
    x = torch.from_numpy(example.x)
    y, after = asked(net, x, first(net, len(x)) if hasattr(net, "initial_state") else None)
    check_y(net, x, y, labels, output)
    adapted = Adapted(net, example.x)
    _check_states(adapted, x, after)
    first_states(adapted)
    check_finite(net, y)
    for part in (x[:, :1], x[:1]):  # a stream may come alone, and row by row
        one, _ = asked(adapted, part, begin(adapted, len(part)))
        check_y(net, part, one, labels, output)
    again, repeated = (asked(adapted, x, begin(adapted, len(x)))[0] for _ in range(2))
    if not torch.allclose(again, repeated, atol=1e-5):
        raise ForeignError(
            "forward(x, state) gives another y when it is called again with the same: dropout or noise that stays on "
            "in eval mode (F.dropout needs training=self.training), or a memory kept inside the module"
        )
    if not torch.allclose(again, y, atol=1e-5):
        raise ForeignError(
            "without initial_state(batch), forward(x, None) must begin with zeros: it gives another y; give the module "
            "an initial_state(batch) that returns what it begins with"
        )
    K = y.shape[-1]
    if output == "auto":
        normal = K > 1 and bool((y >= 0).all()) and torch.allclose(y.sum(-1), torch.ones(y.shape[:2]), atol=1e-4)
        output = "probabilities" if normal else "logits" if K > 1 else "logit"
    return adapted, output  # type: ignore[return-value]


def _check_states(adapted: Adapted, x: Tensor, after: Any) -> None:
    """What one call gives is what the next one takes."""
    before, found = begin(adapted, len(x)), adapted.named(after)
    if before.keys() != found.keys():
        raise ForeignError(
            f"initial_state(batch) gives {', '.join(before) or 'no tensors'}, forward gives "
            f"{', '.join(found) or 'no tensors'} back: expected the same"
        )
    for name, tensor in found.items():
        if dtype_of(before[name]) not in DTYPES:
            raise ForeignError(f"state {name} is {dtype_of(before[name])}: expected one of {', '.join(DTYPES)}")
        if (tensor.shape, tensor.dtype) != (before[name].shape, before[name].dtype):
            raise ForeignError(
                f"state {name} is {dtype_of(tensor)} of {tuple(tensor.shape)} after {x.shape[1]} steps, and was "
                f"{dtype_of(before[name])} of {tuple(before[name].shape)}: expected the same size and type for ever"
            )


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
