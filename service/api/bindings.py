"""The model each stream is bound to, remembered: asking the broker at every post would double its round trips."""

from __future__ import annotations

from typing import Final

from service.api.follower import Follower
from service.codec import decode_settings
from service.ports import Predictions

MAX_BINDINGS: Final = 100_000  # streams whose model is remembered


class Bindings:
    """Cached: only a control entry could change it, and none does yet."""

    def __init__(self, predictions: Predictions, follower: Follower) -> None:
        self._predictions, self._follower = predictions, follower
        self._models: dict[str, str] = {}
        self._connections = 0

    async def model(self, stream: str) -> str | None:
        if self._connections != self._follower.connections or len(self._models) > MAX_BINDINGS:
            self._models.clear()  # the broker was away: it may have come back without its tail
            self._connections = self._follower.connections
        model = self._models.get(stream)
        if model is None:
            found = await self._predictions.settings(stream)
            model = decode_settings(found).model if found else None
            if model is not None and self._follower.away is None:
                self._models[stream] = model
        return model
