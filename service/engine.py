"""ONNX Runtime on one core. A session holds weights only: states come in and go out as values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import onnxruntime

from service.contracts import Manifest
from service.errors import StepFailed
from service.parts import MAX_MODEL_BYTES, open_session, read_part
from service.state import first_values

WARM_UP_BATCHES: Final = (1, 8, 64)
_SILENT: Final = 4  # ONNX Runtime's log level "fatal": a failed run is raised, not printed


class ModelFolder(Protocol):
    """What an engine needs of a package."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def folder(self) -> Path: ...


class OnnxEngine:
    """A package's model, ready to run. Satisfies ports.Engine.

    Two one-thread sessions beat one of two threads on small recurrent nets (docs/conventions.md), so that a worker
    takes one thread and a machine takes several workers.
    """

    def __init__(self, package: ModelFolder, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = False  # one plan would be kept for every (B, T) ever seen
        options.log_severity_level = _SILENT
        self._manifest = package.manifest
        self._session = open_session(read_part(package.folder / "model.onnx", package.folder, MAX_MODEL_BYTES), options)
        names = [state.name for state in self._manifest.states]
        self._names = names
        self._outputs = ["probabilities", *(f"{name}_next" for name in names)]
        self._moved = {state.name: state.batch_axis for state in self._manifest.states if state.batch_axis}

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def run(
        self,
        x: np.ndarray,  # (B, T, F) float32, (B, T, H, W, C) uint8 or (B, T) int64
        states: Mapping[str, np.ndarray],  # name -> (B, *shape)
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """T steps for B streams: probabilities (B, T, K) float32 and the next states by name, batch axis first.

        Raises StepFailed. Nothing of one call stays for the next.
        """
        feed = {"x": x, **states}
        for name, axis in self._moved.items():
            feed[name] = np.moveaxis(feed[name], 0, axis)
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise StepFailed(f"model {self._manifest.name}: {error}") from error
        following = dict(zip(self._names, outputs[1:], strict=True))
        for name, axis in self._moved.items():
            following[name] = np.moveaxis(following[name], axis, 0)
        return outputs[0], following

    def initial(self, batch: int) -> dict[str, np.ndarray]:
        """The states of `batch` new streams: name -> (B, *shape)."""
        return first_values(self._manifest.states, batch)

    def warm_up(self) -> None:
        """Runs the batches a worker meets first, so that the first entry does not wait for allocations."""
        for batch in WARM_UP_BATCHES:
            self.run(self.blank(batch), self.initial(batch))

    def blank(self, batch: int) -> np.ndarray:
        """One step of input that says nothing, for `batch` streams."""
        manifest = self._manifest
        if manifest.frames is not None:
            frames = manifest.frames
            return np.zeros((batch, 1, frames.height, frames.width, frames.channels), np.uint8)
        if manifest.rows is not None:
            return np.tile(np.asarray(manifest.rows.mean, np.float32), (batch, 1, 1))
        return np.zeros((batch, 1), np.int64)
