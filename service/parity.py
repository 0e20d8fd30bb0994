"""The parity certificate: a package computes what its net computed in PyTorch, in whatever company and cut.

`golden.npz` holds real input and what PyTorch made of it; no torch is needed to check it:

    x               (B, T, …) as the graph takes it, B ≥ 2 streams of 2 ≤ T ≤ 64 steps
    probabilities   (B, T, K) float32 by PyTorch, the whole sequence in one call, from new states
    state:NAME      (B, *shape) PyTorch's state after the last step, one for every state
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import onnxruntime

from service.contracts import Manifest
from service.engine import OnnxEngine
from service.errors import PackageRefused, StepFailed
from service.homes import opened
from service.packages import Package
from service.parts import MAX_GOLDEN_BYTES, read_arrays, read_part, refused_alone
from service.ports import Engine
from service.state import first_values

GOLDEN: Final = "golden.npz"
CHECKS: Final = 1  # version of what is checked; part of the cache's key
TO_TORCH: Final = 1e-4  # two libraries
WITHIN: Final = 1e-5  # the same library, another batch shape or cut
LOUD: Final = 30.0  # how much louder than the data the neighbours are
_CUTS: Final = (1, 2, 5, 3)  # lengths of the blocks of an uneven cut, in turn
_BATCH: Final = 9  # a batch that no power of two divides

States = dict[str, np.ndarray]


class Check(msgspec.Struct, frozen=True):
    """One sentence that holds when `figure` ≤ `limit`. Figures are largest absolute differences."""

    name: str
    figure: float
    limit: float
    detail: str

    @property
    def passed(self) -> bool:
        return self.figure <= self.limit  # false for NaN


class ParityReport(msgspec.Struct, frozen=True):
    name: str
    version: int
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def check(package: Package, engine: Engine | None = None) -> ParityReport:
    """Runs every check. Raises PackageRefused when the certificate cannot be read or does not fit the manifest."""
    with refused_alone(package.folder):
        golden = _read(package)
        with _failing():
            runner = _Runner(engine if engine is not None else OnnxEngine(package), golden)
        checks = [Check(name, _figure(measure, runner), limit, detail) for name, limit, detail, measure in _checks()]
    return ParityReport(package.manifest.name, package.manifest.version, checks)


def verify(package: Package, cache: Path | None = None) -> ParityReport:
    """`check`, or its result from `cache` where the same files passed on the same library and processor.

    `cache`: a folder in a home that nobody else can write into. Raises PackageRefused that names the first failing
    check, its figure and its limit.
    """
    kept = cache / f"{_key(package)}.json" if cache is not None else None
    if kept is not None:
        try:
            return msgspec.json.decode(kept.read_bytes(), type=ParityReport)
        except (OSError, msgspec.DecodeError):
            pass  # not kept, or not whole: measured anew below
    report = check(package)
    for failed in (each for each in report.checks if not each.passed):
        raise PackageRefused(
            f"{package.folder}: parity check `{failed.name}` failed ({failed.detail}): "
            f"found {failed.figure:.3g}, expected at most {failed.limit:.3g}",
            check=failed.name,
        )
    if kept is not None:
        with suppress(OSError):  # a folder that cannot be written only costs the time to measure again
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            fresh = kept.with_suffix(f".{os.getpid()}")
            with opened(fresh, "wb") as file:
                file.write(msgspec.json.encode(report))
            fresh.replace(kept)
    return report


# --- the certificate ---------------------------------------------------------------------------------------------


class _Golden(NamedTuple):
    x: np.ndarray
    probabilities: np.ndarray
    states: States


def _read(package: Package) -> _Golden:
    path, manifest = package.folder / GOLDEN, package.manifest
    names = ["x", "probabilities", *(f"state:{state.name}" for state in manifest.states)]
    try:
        x, probabilities, *last = read_arrays(read_part(path, package.folder, MAX_GOLDEN_BYTES, "golden"), names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PackageRefused(f"{path}: cannot be read: {error}", check="golden") from None
    states = {state.name: array for state, array in zip(manifest.states, last, strict=True)}
    B, T = x.shape[:2] if x.ndim >= 2 else (0, 0)
    expected = {
        "x": (x, (B, T, *_step_shape(manifest, x))),
        "probabilities": (probabilities, (B, T, len(manifest.labels))),
        **{f"state:{s.name}": (states[s.name], (B, *s.shape)) for s in manifest.states},
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise PackageRefused(f"{path}: {name}: expected shape {shape}, found {array.shape}", check="golden")
    if B < 2 or not 2 <= T <= 64:
        raise PackageRefused(f"{path}: x: expected at least 2 streams of 2 to 64 steps, found {B} of {T}", "golden")
    return _Golden(x, probabilities, states)


def _step_shape(manifest: Manifest, x: np.ndarray) -> tuple[int, ...]:
    if manifest.frames is not None:
        return manifest.frames.height, manifest.frames.width, manifest.frames.channels
    return (len(manifest.rows.features),) if manifest.rows is not None else ()


# --- the checks --------------------------------------------------------------------------------------------------

Measure = Callable[["_Runner"], float]


def _checks() -> Iterator[tuple[str, float, str, Measure]]:
    """(name, limit, what is compared, how). The order is that of the report."""
    yield "distribution", WITHIN, "every output is finite, not negative, and sums to 1", _distribution
    yield "torch, step by step", TO_TORCH, "T calls of one step against PyTorch's whole sequence", _steps_as_torch
    yield "torch, whole sequence", TO_TORCH, "one call of T steps against PyTorch's whole sequence", _whole_as_torch
    yield "torch, state", TO_TORCH, "the state after the last step against PyTorch's, by name", _state_as_torch
    yield "blocks", WITHIN, "an uneven cut and one call of T steps against T calls", _blocks
    yield "batch", WITHIN, "many streams in one call against each alone", _batch
    yield "slots", WITHIN, "streams in another order against the given one", _slots
    yield "neighbours", WITHIN, f"a stream beside neighbours {LOUD:g} times as loud against it alone", _neighbours


class _Runner:
    """The golden input through the engine. `by_step` is what every other way of running is compared with."""

    def __init__(self, engine: Engine, golden: _Golden) -> None:
        self.engine, self.golden, self.manifest = engine, golden, engine.manifest
        self.steps = golden.x.shape[1]
        self.by_step, self.state = self.run(golden.x, [1] * self.steps)

    def run(self, x: np.ndarray, cut: Sequence[int]) -> tuple[np.ndarray, States]:
        """x (B, T, …) in blocks of `cut` steps from new states: probabilities (B, T, K), last states."""
        states = self.new_states(len(x))
        parts, at = [], 0
        for length in cut:
            y, states = self.engine.run(np.ascontiguousarray(x[:, at : at + length]), states)
            parts.append(y)
            at += length
        return np.concatenate(parts, 1), states

    def new_states(self, batch: int) -> States:
        return first_values(self.manifest.states, batch)

    def cuts(self) -> list[list[int]]:
        """The ways to cut T steps into calls that the model allows."""
        if not self.manifest.many_steps:
            return [[1] * self.steps]
        uneven: list[int] = []
        while sum(uneven) < self.steps:
            uneven.append(min(_CUTS[len(uneven) % len(_CUTS)], self.steps - sum(uneven)))
        return [uneven, [self.steps]]

    def longest(self) -> list[int]:
        """The cut with the fewest calls."""
        return self.cuts()[-1]


def _figure(measure: Measure, runner: _Runner) -> float:
    with _failing():
        return measure(runner)


@contextmanager
def _failing() -> Iterator[None]:
    """A step that fails is the package's fault."""
    try:
        yield
    except StepFailed as error:
        raise PackageRefused(f"parity: {error.detail}", check="run") from error


def _distribution(runner: _Runner) -> float:
    y = runner.by_step
    return max(float(np.abs(y.sum(-1) - 1).max()), float((-y).max()), 0.0) if np.isfinite(y).all() else float("inf")


def _steps_as_torch(runner: _Runner) -> float:
    return _apart(runner.by_step, runner.golden.probabilities)


def _whole_as_torch(runner: _Runner) -> float:
    return _apart(runner.run(runner.golden.x, runner.longest())[0], runner.golden.probabilities)


def _state_as_torch(runner: _Runner) -> float:
    return _states_apart(runner.state, runner.golden.states)


def _blocks(runner: _Runner) -> float:
    found = 0.0
    for cut in runner.cuts():
        y, state = runner.run(runner.golden.x, cut)
        found = max(found, _apart(y, runner.by_step), _states_apart(state, runner.state))
    return found


def _batch(runner: _Runner) -> float:
    """Each stream alone, and all of them over again up to a batch of nine."""
    x, cut = runner.golden.x, runner.longest()
    many = np.arange(_BATCH) % len(x)
    y, state = runner.run(x[many], cut)
    found = 0.0
    for b in range(len(x)):
        alone, its_state = runner.run(x[b : b + 1], cut)
        same = np.flatnonzero(many == b)
        found = max(found, _apart(y[same], alone), _apart(runner.by_step[b : b + 1], alone))
        found = max(found, _states_apart({name: value[same] for name, value in state.items()}, its_state))
    return found


def _slots(runner: _Runner) -> float:
    """Step by step, in another order at every step: a stream's place in the batch means nothing."""
    x, rng = runner.golden.x, np.random.default_rng(0)
    states = runner.new_states(len(x))
    found = 0.0
    for t in range(runner.steps):
        order = rng.permutation(len(x))
        y, after = runner.engine.run(x[order, t : t + 1], {name: value[order] for name, value in states.items()})
        back = np.argsort(order)
        states = {name: value[back] for name, value in after.items()}
        found = max(found, _apart(y[back, 0], runner.by_step[:, t]))
    return max(found, _states_apart(states, runner.state))


def _neighbours(runner: _Runner) -> float:
    x, cut = runner.golden.x, runner.longest()
    loud = _loud(x, runner.manifest)
    found = 0.0
    for b in range(len(x)):
        company = loud.copy()
        company[b] = x[b]
        y, state = runner.run(company, cut)
        its_state = {name: value[b] for name, value in state.items()}
        found = max(found, _apart(y[b], runner.by_step[b]))
        found = max(found, _states_apart(its_state, {name: value[b] for name, value in runner.state.items()}))
    return found


def _loud(x: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Rows × 30; frames as bright as they can be where they were not black; tokens as they are, in reverse."""
    if manifest.rows is not None:
        return np.asarray(x * np.float32(LOUD))
    if manifest.frames is not None:
        return np.asarray(np.clip(x * LOUD, 0, 255).astype(x.dtype))
    return np.ascontiguousarray(x[:, ::-1])


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute difference; infinite where one is not finite."""
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(difference.max(initial=0.0)) if np.isfinite(difference).all() else float("inf")


def _states_apart(one: States, other: States) -> float:
    """As `_apart`, but relative where a state is larger than 1: cells grow with the length of a sequence."""
    figures = [_apart(value / _size(other[name]), other[name] / _size(other[name])) for name, value in one.items()]
    return max(figures, default=0.0)


def _size(state: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1.0, np.abs(state)))


# --- the cache ---------------------------------------------------------------------------------------------------


def _key(package: Package) -> str:
    """What a pass depends on: the three files, the checks, ONNX Runtime and the processor."""
    total = hashlib.sha256(f"{CHECKS} {onnxruntime.__version__} {_processor()}".encode())
    total.update(package.manifest.sha256.encode())
    for name in ("manifest.json", GOLDEN):
        try:
            total.update(hashlib.sha256(read_part(package.folder / name, package.folder, MAX_GOLDEN_BYTES)).digest())
        except PackageRefused:
            total.update(b"absent")
    return total.hexdigest()[:32]


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{platform.machine()} {found.group(1) if found else platform.processor()}"
