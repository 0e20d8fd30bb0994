"""How many streams the deployment has. Beyond its bound a new one is turned away; those that are there go on."""

from __future__ import annotations

import time
from typing import Final

from service.api.follower import Follower
from service.errors import TooManyStreams
from service.ports import Predictions

UNHEARD_S: Final = 60.0  # a newcomer that was not answered for so long is not counted any more: it may never come
RETRY_S: Final = 60.0  # streams go when they were idle for long: nobody knows when the next one does


class Census:
    """The broker's count, polled with the backlog, and this process's newcomers: a new stream is one from its admission
    until a poll that was sent after its first record. Written by Backlog; all on one event loop."""

    def __init__(self, predictions: Predictions, follower: Follower, most: int) -> None:
        self.most = most
        self.known = 0  # in the broker, as of the last poll
        self._predictions, self._follower = predictions, follower
        self._newcomers: dict[str, float] = {}  # stream -> when it was admitted
        follower.unheard = self._newcomers

    async def is_new(self, stream: str, bound: bool) -> bool:
        """Whether an entry of this stream would make one more. `bound`: its model is known, so it is there. The broker
        is asked only where the answer decides."""
        if bound or stream in self._newcomers:
            return False
        if self.known + len(self._newcomers) < self.most:
            return True
        row = await self._predictions.position(stream), await self._predictions.settings(stream)
        return row == (None, None)

    def admit(self, stream: str) -> None:
        """Counts a new stream. Raises TooManyStreams."""
        if stream in self._newcomers:
            return
        count = self.known + len(self._newcomers)
        if count >= self.most:
            raise TooManyStreams(
                f"stream {stream!r} would be a new one: there are {count:,}, and at most {self.most:,} may be "
                "(max_streams); those that are idle for long go by themselves",
                retry_after_s=RETRY_S,
            )
        self._newcomers[stream] = time.monotonic()

    def heard(self) -> list[str]:
        """Newcomers whose first record was seen: what is asked of the broker from now on counts them."""
        return list(self._follower.heard)

    def count(self, known: int, heard: list[str]) -> None:
        """What the broker said, asked after `heard`."""
        self.known = known
        self._follower.heard.difference_update(heard)
        for stream in heard:
            self._newcomers.pop(stream, None)
        until = time.monotonic() - UNHEARD_S
        while self._newcomers and next(iter(self._newcomers.values())) < until:
            del self._newcomers[next(iter(self._newcomers))]
