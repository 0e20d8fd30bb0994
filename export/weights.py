"""A module's weights out of what training leaves behind: a state_dict, or a checkpoint around it, under the names that
wrappers gave.

| of | looks like |
| --- | --- |
| DataParallel, DistributedDataParallel | `module.` before every name |
| torch.compile | `_orig_mod.` before every name, or before those of a compiled part |
| AveragedModel | `module.` before every name, and `n_averaged` |
| Lightning, and loops of one's own | `{"state_dict": …, "epoch": …}`, its names often behind `model.` or `net.` |
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from export.causes import ForeignError, said

INSIDE: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module")
WRAPPERS: Final = ("module.", "_orig_mod.")
ALONE: Final = "save the weights alone: torch.save(net.state_dict(), PATH)"


def fill(net: nn.Module, path: Path, spec: str) -> list[str]:
    """Gives the net its weights. Returns what they were taken out of, a line each. Raises ForeignError."""
    told: list[str] = []
    weights = _inside(_read(path), path, told)
    wanted = net.state_dict()
    weights = _as_named(weights, set(wanted), path, told)
    if wrong := _differences(weights, wanted):
        raise ForeignError(f"{path} does not fit {spec}: {'; '.join(wrong)}")
    try:
        net.load_state_dict(weights)
    except Exception as error:  # what names and sizes do not show
        raise ForeignError(f"{path} does not fit {spec}: {said(error)}") from None
    for name, value in net.named_parameters():
        if not torch.isfinite(value).all():
            raise ForeignError(f"{path}: {name} holds values that are not finite: its training went wrong")
    return told


def _read(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ForeignError(f"missing file {path}") from None
    except Exception as error:  # torch's readers raise whatever the damage leads to
        text = str(error)
        if found := re.search(r"(?:GLOBAL|class) ([\w.]+) was not an allowed global|Trying to load unsupported", text):
            what = f"objects of {found.group(1)}" if found.group(1) else "objects"
            raise ForeignError(f"{path} holds {what}, which may do anything when they are read; {ALONE}") from None
        if "TorchScript" in text:
            raise ForeignError(f"{path} holds a TorchScript module; {ALONE}") from None
        raise ForeignError(f"{path} cannot be read: {said(error).split('Please file')[0]}; {ALONE}") from None


def _inside(stored: Any, path: Path, told: list[str]) -> dict[str, Tensor]:
    """The state_dict in a checkpoint."""
    while isinstance(stored, Mapping):
        name = next((name for name in INSIDE if isinstance(stored.get(name), Mapping)), None)
        if name is None:
            break
        told.append(f"{path}: took its {name!r}")
        stored = stored[name]
    tensors = isinstance(stored, Mapping) and all(isinstance(name, str) for name in stored)
    if not tensors or not any(isinstance(value, Tensor) for value in stored.values()):
        held = (
            f"a dict of {', '.join(map(str, list(stored)[:5]))}"
            if isinstance(stored, Mapping)
            else type(stored).__name__
        )
        raise ForeignError(f"{path} holds {held}: expected names and tensors; {ALONE}")
    return dict(stored)


def _as_named(weights: dict[str, Tensor], wanted: set[str], path: Path, told: list[str]) -> dict[str, Tensor]:
    """The weights under the module's names, where wrappers put something before them."""
    if "n_averaged" in weights and "n_averaged" not in wanted:
        weights = {name: value for name, value in weights.items() if name != "n_averaged"}
    while weights.keys() != wanted and (before := _common(list(weights), wanted)):
        told.append(f"{path}: left out {before!r} before every name")
        weights = {name.removeprefix(before): value for name, value in weights.items()}
    for wrapper in WRAPPERS:  # of a part
        shorter = {re.sub(rf"(^|\.){re.escape(wrapper)}", r"\1", name): value for name, value in weights.items()}
        if shorter.keys() == wanted and weights.keys() != wanted:
            told.append(f"{path}: left out {wrapper!r} within its names")
            weights = shorter
    return weights


def _common(names: list[str], wanted: set[str]) -> str:
    """What stands before every name and before none that is wanted: a wrapper's, or whatever is all that differs."""
    before, shared = "", names
    while shared and "." in shared[0]:
        part = shared[0].partition(".")[0] + "."
        if not all(name.startswith(part) for name in shared):
            break
        before, shared = before + part, [name.removeprefix(part) for name in shared]
        if set(shared) == wanted or (before in WRAPPERS and not any(name.startswith(before) for name in wanted)):
            return before
    return ""


def _differences(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What is missing, too much, or of another size."""
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    more = [name for name in weights if name not in wanted]
    both = [(name, weights[name], value) for name, value in wanted.items() if isinstance(weights.get(name), Tensor)]
    sized = [
        f"{name} of {tuple(given.shape)}, which the module has of {tuple(value.shape)}"
        for name, given, value in both
        if not nn.parameter.is_lazy(value) and given.shape != value.shape
    ]
    sized += [f"complex {name}" for name, given, value in both if given.is_complex() and not value.is_complex()]
    parts = {"it lacks": missing, "the module has no": more, "it has": sized}
    return [f"{what} {_few(names)}" for what, names in parts.items() if names]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
