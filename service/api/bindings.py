"""The model each stream is bound to, remembered: asking the broker at every post would double its round trips."""

from __future__ import annotations

from typing import Final

from service.api.backlog import Backlog
from service.api.follower import Follower
from service.codec import read_settings
from service.ports import Predictions

MAX_BINDINGS: Final = 100_000  # streams whose model is remembered


class Bindings:
    """What is remembered of a shard is forgotten when a control changed settings there: within a poll of Backlog."""

    def __init__(self, predictions: Predictions, follower: Follower, backlog: Backlog) -> None:
        self._predictions, self._follower, self._backlog = predictions, follower, backlog
        self._models: dict[str, tuple[str, str]] = {}  # stream -> revision, model
        self._connections = 0

    async def model(self, stream: str) -> str | None:
        if self._connections != self._follower.connections or len(self._models) > MAX_BINDINGS:
            self._models.clear()  # the broker was away: it may have come back without its tail
            self._connections = self._follower.connections
        revision = self._backlog.revision(stream)
        known = self._models.get(stream)
        if known is not None and known[0] == revision:
            return known[1]
        model = read_settings(await self._predictions.settings(stream)).model
        if model is not None and self._follower.away is None:
            self._models[stream] = revision, model
        return model

    def forget(self, stream: str) -> bool:
        """Returns whether anything was remembered."""
        return self._models.pop(stream, None) is not None
