"""A stream that goes silent with labels inside: its source will not say that they are over, so the shard's owner does.

The owner appends a control to the stream's log, which takes its turn like any entry. What decides is in the log then:
whoever carries the control out does the same. The clock only says when to append, and a control too many does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from service.codec import RESTORED, read_position, read_settings
from service.contracts import idle_exit_s_of
from service.controls import Control, encode_control
from service.ports import Log, Look, Overdue
from service.worker.model import ServedModel
from service.worker.shard import Shard, Stream

PORTION: Final = 100  # streams of one shard at once
EVERY_S: Final = 1.0
AGAIN_S: Final = 0.05  # after a full portion
SOON_MS: Final = 1_000  # a stream is looked at again when what waits was read and answered,
TOLD_MS: Final = 10_000  # when its control has had its turn, or was lost,
UNSERVED_MS: Final = 60_000  # when its model may be served again


class Silence:
    """All shards at a call. Used by Worker.run only, when no commit of them is in flight."""

    def __init__(self, broker: Log, models: Mapping[str, ServedModel], *, state_ttl_s: float) -> None:
        self._broker, self._models, self._ttl_s = broker, models, state_ttl_s
        self.next_at = 0.0  # by this process's clock

    def sweep(self, shards: Collection[Shard], now: float, pinned: Callable[[Stream], bool]) -> None:
        """Raises CommitRefused when the broker takes nothing at present."""
        self.next_at = now + EVERY_S
        quiet = {shard.number: shard for shard in shards if shard.in_flight is None}
        if not quiet:
            return
        cursors = {number: shard.cursor for number, shard in quiet.items()}
        looks = {}
        for number, overdue in self._broker.overdue(cursors, PORTION).items():
            shard = quiet[number]
            looks[number] = shard.written, [self._look(shard, overdue, row, pinned) for row in overdue.streams]
        if looks:
            self._broker.silence(looks)  # where a shard is another's the next commit finds out
        if any(len(mine) == PORTION for _, mine in looks.values()):
            self.next_at = now + AGAIN_S

    def _look(
        self,
        shard: Shard,
        overdue: Overdue,
        row: tuple[str, bytes | None, bytes | None],
        pinned: Callable[[Stream], bool],
    ) -> Look:
        """What becomes of one stream: silent up to where the log was read, of which nothing waits, or to be looked at
        again."""
        name, found, told = row
        position, settings = read_position(found), read_settings(told)
        if found is None or position is None or not position.stepped[:1].isdigit():
            return Look(name, None)  # its state ended, and its exits were told then
        stepped = position.stepped.removesuffix(RESTORED).decode()
        stepped_ms = int(stepped.partition("-")[0])
        model = self._models.get(settings.model or "")
        if model is None:  # nobody here can name its labels
            over = overdue.now_ms - stepped_ms > 1000 * self._ttl_s
            return Look(name, None if over else overdue.now_ms + UNSERVED_MS)
        due_ms = stepped_ms + int(1000 * idle_exit_s_of(settings, model.manifest, self._ttl_s))
        if overdue.read_ms < due_ms:
            return Look(name, due_ms if due_ms > overdue.now_ms else overdue.now_ms + SOON_MS)
        stream = shard.streams.get(name)
        if stream is not None and pinned(stream):
            return Look(name, overdue.now_ms + SOON_MS)
        control = Control("silence", after=stepped)
        return Look(name, overdue.now_ms + TOLD_MS, found, encode_control(control))
