"""Whether entries left a shard's log before a worker read them: somebody else trims it, or deletes from it.

The broker counts every entry that was ever added. Each of them is known (read by this worker, answered before, or gone)
or lies ahead of its cursor; what is missing left the log unread. A commit says how many are behind it, so that the
next owner goes on counting. Where the broker does not count, nothing is found.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from service.ports import Behind, Looked

LOOK_EVERY_S: Final = 0.25  # at a log of which something is read
WARY_S: Final = 10.0  # after something was missing it is looked at before each read


class Hole(NamedTuple):
    """Entries that left the log unread. Which streams lost some is not known."""

    after: int  # the cursor behind which they are missing
    last: int  # the last entry that was in the log then
    entries: int


class Account:
    """Counts one owned shard's entries. Written only by Worker.run."""

    __slots__ = (
        "_answered_to", "_begun", "_behind", "_due", "_known", "_looked_at", "_stirred", "_sure", "_untold",
        "_wary_until",
    )  # fmt: skip

    def __init__(self, before: Behind | None, begun: bool = True) -> None:
        """`before`: what the last commit said; `begun`: was there one?"""
        self._sure = before is not None  # are these the broker's numbers?
        self._behind, self._answered_to = before or Behind(0, 0)  # answered or gone; an earlier owner's may lie up to
        self._known, self._begun = self._behind, begun
        self._untold = 0  # missing, and no record has said so
        self._stirred = True  # has something come since it was looked at?
        self._looked_at = self._due = self._wary_until = 0.0

    def look(self, now: float) -> bool:
        """Whether to look at the log before the read that is sent now."""
        if not self._stirred or now < self._due:
            return False
        self._looked_at = now
        return True

    def read(self, entries: int) -> None:
        """So many were read that were not answered before."""
        self._known += entries
        self._stirred = True

    def compare(self, log: Looked, cursor: int, now: float) -> int:
        """How many entries left the log unread since this was last known; `log` as it was when all up to `cursor` had
        been read."""
        self._due = self._looked_at + (0.0 if now < self._wary_until else LOOK_EVERY_S)
        if not self._sure and self._begun and not self._answered_to:
            self._answered_to = log.last
        ahead = self._ahead(log, cursor)
        if log.added is None or ahead is None:
            return 0
        self._stirred = False
        missing = log.added - self._known - ahead
        if not self._sure or missing < 0:  # its numbers are learnt, or the log began anew
            self._known, self._behind, self._sure = self._known + missing, self._behind + missing, True
            return 0
        if missing:
            self._known += missing
            self._untold += missing
            self._wary_until = now + WARY_S
        return missing

    def gone(self, entries: int) -> None:
        """So many that were known have left the log unanswered."""
        self._untold += entries

    def told(self, entries: int) -> None:
        """A record says that so many are missing: the next owner need not."""
        entries = min(entries, self._untold)
        self._behind, self._untold = self._behind + entries, self._untold - entries

    def answered(self, entries: int) -> None:
        self._behind += entries

    def behind(self, cursor: int) -> Behind | None:
        """What a commit says of it."""
        return Behind(self._behind, max(cursor, self._answered_to)) if self._sure else None

    def _ahead(self, log: Looked, cursor: int) -> int | None:
        """Entries behind the cursor that nobody has answered; None where that cannot be told."""
        if log.last <= cursor:
            return 0
        if log.first > max(cursor, self._answered_to):
            return log.length
        return log.ahead if cursor >= self._answered_to else None
