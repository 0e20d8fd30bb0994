"""Why a module cannot be packaged, in a line: what raised, where in its owner's file, and what helps.

Torch, its exporter and ONNX Runtime raise whatever the damage leads to, often pages of it.
"""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path
from typing import Final

import torch
from torch import nn

MOST: Final = 240  # characters of what somebody else's error says
_WITHOUT_MEANING: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Non-zero status code returned while running |"
    r"Please feel free to request support.*|\[Caused by the value.*|/\S*onnxruntime\S* |[\w:]+\([^)]*::[^)]*\) "
)
_REMEDIES: Final = (  # what an error says, and what helps
    (r"proj(_size|ections)", "ONNX has no LSTM with proj_size: learn one without, with an nn.Linear behind it"),
    (
        r"[Cc]omplex|fft",
        "complex numbers cannot be written into the graph: compute real and imaginary part by yourself",
    ),
    (r"operator '(?:aten|prim)::\w+'", "this operator cannot be written into the graph: compute it by others"),
    (r"dynamo|torch\.compile|FX to torch", "give the module itself, not what torch.compile made of it"),
    (r"not part of the active trace|Arguments for call are not valid", "give the module itself, not as TorchScript"),
    (r"\bByte\b|unsigned char|uint8", "frames come as uint8: begin with x.float() / 255"),
    (r"missing \d+ required|positional argument", "the call is forward(x, state), with None as a first state"),
    (r"out of memory|can't allocate|bad_alloc", "use a machine with more memory, or a smaller module"),
)
_DIFFERENT: Final = {  # how a check calls the module; what leads to different answers there
    ("torch, step by step", "blocks"): "it may look at rows of the same call, such as by a mean over time, padding or "
    "positions: what was before has to come from the state",
    ("batch", "slots", "neighbours"): "it may look at other streams of the same call, such as by a mean over the "
    "batch: each has to be answered by its own rows",
}


class ForeignError(Exception):
    """What was given cannot be packaged. The text says what was wrong and what was expected."""


class Around(nn.Module):
    """A module of ours around another one, `net`."""

    net: nn.Module


def said(error: BaseException) -> str:
    """The type of an error and what it says, in one line of bounded length."""
    text = " ".join(_WITHOUT_MEANING.sub("", " ".join(str(error).split())).split())
    text = text if len(text) <= MOST else text[: MOST - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_of(error: BaseException) -> str:
    """` (mynets.py, line 12)`: the last place outside of libraries and of rollcast that the error went through."""
    libraries = (f"{Path(__file__).parent}{os.sep}", sysconfig.get_path("stdlib"), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        if not (name.startswith(libraries) or "site-packages" in name or "dist-packages" in name):
            return f" ({Path(name).name}, line {frame.lineno})"
    return ""


def why(error: BaseException, net: nn.Module) -> str:
    """An error as its cause and remedy."""
    text = f"{said(error)}{place_of(error)}"
    helps = [remedy for pattern, remedy in _REMEDIES if re.search(pattern, str(error))]
    return "; ".join([text, *(helps[:1] or suspects(net))])


def remedies(check: str) -> list[str]:
    """Of a failed check of the certificate, where nothing in the module is suspected."""
    return [text for names, text in _DIFFERENT.items() if check in names]


def suspects(net: nn.Module) -> list[str]:
    """What in a module is known to fail one way or another, each with a remedy. None of it must be at fault."""
    while isinstance(net, Around):
        net = net.net
    found = []
    for name, part in net.named_modules():
        of = name or "the module"
        if isinstance(part, nn.RNNBase) and part.bidirectional:
            found.append(f"{of} is bidirectional: it reads the rows to come, which a stream does not have yet")
        elif isinstance(part, nn.RNNBase) and not part.batch_first:
            found.append(f"{of} is an nn.{part.mode.split('_')[0]} with batch_first=False: x comes as (B, T, F)")
        elif isinstance(part, nn.Conv1d) and part.kernel_size[0] > 1:
            found.append(f"{of} is an nn.Conv1d: rows before have to come from the state, and none may come after")
        elif isinstance(part, nn.MultiheadAttention):
            found.append(f"{of} attends to all rows of a call: rows before have to come from the state, none after")
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            found.append(f"{of} has track_running_stats=False: it standardises by whoever is in the batch")
    odd = [(name, value.dtype) for name, value in net.named_parameters() if value.dtype != torch.float32]
    if odd:
        name, dtype = odd[0]
        also = " (double)" if dtype == torch.float64 else ""
        found.append(f"{name} is {dtype}{also}: x is float32, give the module as net.float()")
    return found[:2]
