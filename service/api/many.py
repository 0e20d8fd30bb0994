"""A subscriber of many streams: its cursor is a place in every shard's feed, so that it resumes without a gap however
the commits of different shards were mixed. Order holds within a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from service.api.delivery import Delivery, Outgoing
from service.api.follower import Follower
from service.api.notices import Bye, ByeReason, Gap, GapReason, Moved
from service.api.tails import READ, Batch
from service.cursors import BEGINNING, Place, decode_cursor, encode_place, join_places
from service.errors import BrokerAway
from service.ports import FeedItem, OutRecord, Predictions
from service.turns import Turn

COMMITS: Final = 16  # of one shard, read at once; the first of them is known already


class ManyTail:
    """As Tail, for the streams that fit.

    While it catches up it keeps places of its own. Once the follower has handed on all that it has seen, its cursor is
    the one that everybody shares, which is encoded once.
    """

    def __init__(
        self,
        predictions: Predictions,
        follower: Follower,
        fits: Callable[[str], bool],
        places: list[Place] | None,
    ) -> None:
        self.on_gap: Callable[[], None] = lambda: None
        self._predictions, self._follower = predictions, follower
        self._fits = fits  # of a stream's name
        self._places: list[Place] | None = None  # None: "now" is not known yet
        self._encoded: list[bytes] = []  # of the places
        self._shared: str | None = None  # the cursor, once it is everybody's
        if places is not None:
            self._stand_at(places)

    async def begin(self) -> None:
        """ "Now" is what the follower has handed on. While the broker is away it does not know that."""
        if self._places is None:
            if self._follower.away is not None:
                raise BrokerAway(self._follower.away)
            self._stand_at(self._follower.places)

    async def catch_up(self) -> AsyncIterator[Batch]:
        await self.begin()
        if self._shared is not None:
            self._stand_at(decode_cursor(self._shared, self._predictions.shards, "cursor"))
        yield [Outgoing(Moved(), self._cursor())]  # a connection that is lost before the first record loses none
        places = self._own()
        asked = set(range(len(places)))
        while asked:
            since = {shard: places[shard].n for shard in sorted(asked)}
            for shard, commits in zip(since, await self._predictions.feeds(since, COMMITS), strict=True):
                if len(commits) < COMMITS:
                    asked.discard(shard)
                gap = await self._check(shard, commits)
                if gap is not None:
                    yield [gap]
                async for batch in self._read(shard, commits):
                    yield batch

    def advance(self, deliveries: Sequence[Delivery]) -> tuple[Batch, bool]:
        batch: Batch = []
        if self._shared is not None:
            for delivery in deliveries:
                self._shared = delivery.cursor
                batch.append(self._outgoing(delivery, delivery.cursor))
            return batch, True
        places = self._own()
        for delivery in deliveries:
            place, own = delivery.place, places[delivery.shard]
            if place is None or (place.n == own.n and place.token != own.token):
                return batch, False  # the log is not the one that was read
            if place[:2] > own[:2]:
                batch.append(self._outgoing(delivery, self._move(delivery.shard, place)))
        self._share()
        return batch, True

    def skip(self, dropped: int, following: Delivery) -> Batch:
        """The cursor stays before them: who comes back with it gets them after all."""
        return [self._gap(Gap(reason="slow", records=dropped), self._cursor())]

    def standing(self) -> str | None:
        """Silence is heard by all: what was committed since did not fit."""
        if self._places is None:
            return None
        self._share()
        if self._shared is not None:
            self._shared = self._follower.cursor()
        return self._cursor()

    def bye(self, reason: ByeReason) -> Outgoing:
        cursor = None if self._places is None else self._cursor()
        return Outgoing(Bye(reason=reason), cursor)

    # --- reading what was missed ---------------------------------------------------------------------------------

    async def _check(self, shard: int, commits: list[FeedItem]) -> Outgoing | None:
        """Is the commit of the cursor still there, and the same one?"""
        place = self._own()[shard]
        first = commits[0] if commits else None
        if place == BEGINNING:
            if first is None or first.n == 1:
                return None
            return self._jump(shard, Place(first.n - 1, 0, place.token), "trimmed")
        if first is not None and first.n == place.n and first.mark == place.token:
            return None
        if first is not None and first.n > place.n:
            return self._jump(shard, Place(first.n - 1, 0, place.token), "trimmed")
        newest = {item.shard: item for item in await self._predictions.last_commits()}.get(shard)
        commits.clear()
        return self._jump(shard, BEGINNING if newest is None else newest.end, "lost")

    async def _read(self, shard: int, commits: list[FeedItem]) -> AsyncIterator[Batch]:
        """The records of these commits that lie behind the place and fit."""
        begun = self._own()[shard]
        wanted: list[tuple[str, str, Place]] = []
        turn = Turn()
        for item in commits:
            for i, (stream, record_id) in enumerate(item.records, 1):
                if (item.n, i) > begun[:2] and self._fits(stream):
                    wanted.append((stream, record_id, Place(item.n, i, item.mark)))
                if turn.due():
                    await turn.over()
        for start in range(0, len(wanted), READ):
            part = wanted[start : start + READ]
            found = await self._predictions.fetch([(stream, record_id) for stream, record_id, _ in part], replay=True)
            yield [
                self._outgoing(
                    Delivery(stream, record or OutRecord(record_id, "", b"", "0-0"), missing=record is None),
                    self._move(shard, place),
                )
                for (stream, record_id, place), record in zip(part, found, strict=True)
            ]
        if commits:
            self._move(shard, commits[-1].end)

    # --- the cursor ----------------------------------------------------------------------------------------------

    def _own(self) -> list[Place]:
        assert self._places is not None, "catch_up comes first"
        return self._places

    def _stand_at(self, places: Sequence[Place]) -> None:
        self._places, self._shared = list(places), None
        self._encoded = [encode_place(place) for place in places]

    def _move(self, shard: int, place: Place) -> str:
        self._own()[shard] = place
        self._encoded[shard] = encode_place(place)
        return self._cursor()

    def _cursor(self) -> str:
        return join_places(self._encoded) if self._shared is None else self._shared

    def _share(self) -> None:
        """Everything that was pushed has been taken: is there nothing left in which this subscriber is ahead?"""
        if self._shared is None:
            there = zip(self._own(), self._follower.places, strict=True)
            if all(own[:2] <= handed_on[:2] for own, handed_on in there):
                self._shared = self._follower.cursor()

    # --- gaps ----------------------------------------------------------------------------------------------------

    def _outgoing(self, delivery: Delivery, cursor: str) -> Outgoing:
        if not delivery.missing:
            return Outgoing(delivery, cursor)
        return self._gap(Gap(reason="trimmed", stream=delivery.stream, id=delivery.record.id), cursor)

    def _jump(self, shard: int, place: Place, reason: GapReason) -> Outgoing:
        return self._gap(Gap(reason=reason, shard=shard), self._move(shard, place))

    def _gap(self, gap: Gap, cursor: str) -> Outgoing:
        """Says that something cannot be delivered: of a stream one record, of a shard whatever fits, or so many."""
        self.on_gap()
        return Outgoing(gap, cursor)
