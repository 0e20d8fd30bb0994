"""One served model in a worker: its engine, the states of its streams, and how a group of entries is stepped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from service import rolling
from service.contracts import Entry, Event, StreamSettings
from service.decode import Tokenizer
from service.errors import NonFinite, StepFailed
from service.ports import Engine
from service.state import StateLayout, StateTable, tensors_of, times_of_steps

GROUP_STEPS: Final = 65_536  # steps of one call of the engine: bounds its memory, not its speed


class Scores(NamedTuple):
    """What the engine made of a group of B entries. `failed` holds the places that were not stepped, and why."""

    probabilities: np.ndarray  # (B, T, K) float32
    failed: dict[int, NonFinite | StepFailed]


class Stepped(NamedTuple):
    """What a group of B entries came to."""

    rows: np.ndarray  # (B,) state rows after the last step
    scores: np.ndarray  # (B, K) float32, of the last step
    events: dict[int, list[Event]]
    failed: dict[int, NonFinite | StepFailed]


class ServedModel:
    """Holds weights (in the engine) and its streams' states (in the table). Written only by Worker.run."""

    def __init__(self, engine: Engine, schema: str, tokenizer: Tokenizer | None = None) -> None:
        manifest = engine.manifest
        self.tokenizer = tokenizer  # of a text model
        self.engine = engine
        self.manifest = manifest
        self.name = manifest.name
        self.version = manifest.version
        self.labels = list(manifest.labels)
        self.layout = StateLayout(manifest, schema)
        self.table = StateTable(self.layout)
        self.interval_us = manifest.interval_s * 1e6
        self.limits = rolling.thresholds(manifest.rolling, manifest.gap, manifest.nominal_s)
        self.freshness = manifest.freshness if manifest.freshness.mode == "latest" else None
        self.step_s = 0.0  # moving average of what one step costs in a run of entries, s of this process's clock
        self.silent = np.array([label in manifest.background for label in manifest.labels], bool)
        self.info = manifest.info

    def interval_of(self, entry: Entry) -> float:
        """Event time between two steps of an entry, us."""
        return self.interval_us if entry.interval_s is None else entry.interval_s * 1e6

    def advance(
        self,
        x: np.ndarray,  # (B, T, …)
        rows: np.ndarray,  # (B,) gathered state rows; their tensors are changed
    ) -> Scores:
        """T steps of B streams. A step that would leave something non-finite behind is redone alone, and has failed."""
        failed: dict[int, NonFinite | StepFailed] = {}
        probabilities, finite = self._run(x, rows, failed)
        if not finite.all():
            probabilities[~finite] = 0  # these rows are thrown away; the automaton must not see what is in them
        return Scores(probabilities, failed)

    def roll(
        self,
        scores: Scores,
        rows: np.ndarray,  # (B,); their automaton, step and time are changed
        entries: Sequence[Entry],  # B
        last_us: Sequence[int],  # (B,) event time of each entry's last step
        settings: Mapping[int, StreamSettings],  # of the places whose rolling or gap differ from the package's
    ) -> Stepped:
        """Folds the T steps of each stream into its automaton."""
        intervals = [self.interval_of(entry) for entry in entries]
        times = times_of_steps(last_us, intervals, scores.probabilities.shape[1])
        ids = [(e.ms, e.number & 0xFFFF_FFFF_FFFF_FFFF) for e in entries]
        limits = self._limits(settings, len(rows)) if settings else self.limits
        behind = rows["time_us"] - times[:, 0] > np.reshape(limits.gap_us, -1)
        if behind.any():
            _set_back(rows, np.flatnonzero(behind).tolist(), entries, times, limits)
        events = rolling.fold(rows, scores.probabilities, times, ids, limits, self.labels, self.silent)
        return Stepped(rows, scores.probabilities[:, -1], events, scores.failed)

    def _limits(self, settings: Mapping[int, StreamSettings], size: int) -> rolling.Thresholds:
        """The thresholds of a batch whose streams differ: (B, 1) each."""
        each = [self.limits] * size
        for b, mine in settings.items():
            own = mine.rolling or self.manifest.rolling, mine.gap or self.manifest.gap
            each[b] = _thresholds(*own, self.manifest.nominal_s)
        return rolling.of_batch(each)

    def _run(
        self, x: np.ndarray, rows: np.ndarray, failed: dict[int, NonFinite | StepFailed]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (B, T, K), and which of the B are finite (B,). Writes the next states of those into `rows`."""
        states = tensors_of(self.layout, rows)
        try:
            probabilities, following = self._advance(x, states)
            finite = _finite(probabilities)
            for tensor in following.values():
                finite &= _finite(tensor)
        except StepFailed as error:
            if len(rows) == 1:
                failed[0] = error
                return np.zeros((1, x.shape[1], len(self.labels)), np.float32), np.zeros(1, bool)
            finite = np.zeros(len(rows), bool)
        if finite.all():
            for name, tensor in following.items():
                rows[f"state:{name}"] = tensor
            return probabilities, finite
        if len(rows) == 1:
            failed[0] = NonFinite(f"model {self.name!r} would leave a non-finite state or score behind")
            return probabilities, finite
        return self._run_alone(x, rows, failed)

    def _run_alone(
        self, x: np.ndarray, rows: np.ndarray, failed: dict[int, NonFinite | StepFailed]
    ) -> tuple[np.ndarray, np.ndarray]:
        probabilities = np.zeros((len(rows), x.shape[1], len(self.labels)), np.float32)
        finite = np.zeros(len(rows), bool)
        for b in range(len(rows)):
            mine: dict[int, NonFinite | StepFailed] = {}
            probabilities[b : b + 1], finite[b : b + 1] = self._run(x[b : b + 1], rows[b : b + 1], mine)
            if mine:
                failed[b] = mine[0]
        return probabilities, finite

    def _advance(self, x: np.ndarray, states: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if self.manifest.many_steps or x.shape[1] == 1:
            return self.engine.run(x, states)
        scores = []
        for t in range(x.shape[1]):
            one, states = self.engine.run(x[:, t : t + 1], states)
            scores.append(one)
        return np.concatenate(scores, axis=1), states


_thresholds = lru_cache(maxsize=1024)(rolling.thresholds)


def _set_back(
    rows: np.ndarray, places: Sequence[int], entries: Sequence[Entry], times: np.ndarray, limits: rolling.Thresholds
) -> None:
    """Sets the time back of those of these streams whose clock was put back."""
    gap_us = np.broadcast_to(np.reshape(limits.gap_us, -1), len(rows))
    for b in places:
        if rows["time_us"][b] - judged_us(entries[b], times[b, 0], times[b, -1]) > gap_us[b]:
            rolling.set_back(rows[b : b + 1], times[b, :1], gap_us[b])


def judged_us(entry: Entry, first_us: int, last_us: int) -> int:
    """The time by which an entry, from `first_us` to `last_us`, is behind its stream's. One that states no time came
    when its id says, however far its rows reach back: blocks that are posted at once overlap, and are no gap."""
    return last_us if entry.time is None else first_us


def _finite(array: np.ndarray) -> np.ndarray:
    """(B,) bool: is everything of each stream finite? One pass over the whole decides the usual case."""
    flat = array.reshape(len(array), -1)
    if array.dtype.kind != "f" or np.isfinite(flat.sum(dtype=np.float64)):
        return np.ones(len(array), bool)
    finite: np.ndarray = np.isfinite(flat).all(axis=1)
    return finite
