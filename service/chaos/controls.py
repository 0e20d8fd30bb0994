"""Controls that are posted: resets, settings, restores, deletes; good ones, and ones that must be refused."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from service.chaos.objects import moved, pack, unpack


class ControlTraffic:
    """The controls of one stream; they follow from its dice. `states`: state objects that fit, to restore."""

    def __init__(self, dice: random.Random, model: str, states: Sequence[Mapping[str, Any]]) -> None:
        self._dice, self._model, self._states = dice, model, states

    def data(self, case: str, now_us: int) -> bytes:
        """`now_us`: event time of the stream, where it has its own."""
        action, _, fault = case.partition("-")
        if action == "control":
            return b'{"action": '
        said: dict[str, Any] = {"action": action}
        if action == "settings":
            said["settings"] = self._settings() | _WRONG.get(fault, {})
        elif action == "restore" and fault != "none":
            said["state"] = base64.b64encode(self._state(fault, now_us)).decode()
        return json.dumps(said).encode()

    def _settings(self) -> dict[str, Any]:
        """Each of them, or as the package says: settings are replaced as a whole."""
        choose, given = self._dice.choice, dict[str, Any]()
        if self._dice.random() < 0.5:
            given["rolling"] = {
                "half_life_s": choose([1.0, 4.0, 8.0]), "enter": choose([0.5, 0.6, 0.7]), "exit": choose([0.3, 0.45]),
                "dwell_s": choose([0.0, 1.0, 2.0]), "refractory_s": choose([0.0, 0.0, 3.0]),
                "update_s": choose([2.0, 9.0]),
            }  # fmt: skip
        if self._dice.random() < 0.5:
            given["gap"] = {"policy": choose(["carry", "reset"]), "gap_s": choose([1.0, 5.0, 30.0])}
        if self._dice.random() < 0.5:
            given["state_ttl_s"] = choose([0.5, 1.0, 3.0])
        if self._dice.random() < 0.5:
            given["idle_exit_s"] = choose([0.3, 0.5])
        if self._dice.random() < 0.4:
            given["freshness"] = choose(
                [{"mode": "latest"}, {"mode": "latest", "max_age_s": choose([0.3, 1.0])}, {"max_age_s": 1.0}]
            )
        if self._dice.random() < 0.2:
            given["model"] = self._model
        return given

    def _state(self, fault: str, now_us: int) -> bytes:
        state = dict(self._dice.choice(self._states))
        if self._dice.random() < 0.5:
            state = moved(state, now_us)
        name = self._dice.choice(sorted(state["tensors"]))
        values = unpack(state["tensors"][name]).copy()
        if fault == "schema":
            state["schema"] = "0" * len(state["schema"])
        elif fault == "model":
            state["model"] = "nobody"
        elif fault == "nan":
            values.flat[self._dice.randrange(values.size)] = self._dice.choice([np.nan, np.inf])
            state["tensors"] = state["tensors"] | {name: pack(values)}
        elif fault == "shape":
            state["tensors"] = state["tensors"] | {name: pack(values[..., :-1])}
        data = msgspec.msgpack.encode(state)
        return data[:-20] if fault == "bytes" else data


_WRONG: dict[str, dict[str, Any]] = {
    "ttl": {"state_ttl_s": 1e6}, "range": {"rolling": {"enter": 0.3, "exit": 0.5}}, "field": {"colour": "red"},
    "model": {"model": "nobody"},
}  # fmt: skip
