"""How much of a shard is read, and which streams a worker remembers: bounds that are kept without a broker."""

from __future__ import annotations

import pytest

from service.codec import NOWHERE, Head, id_number
from service.contracts import StreamSettings
from service.worker import inbox
from service.worker.residence import Residence
from service.worker.shard import Shard, Stream


def owned() -> Shard:
    return Shard(0, Head("life", "token", 7, id_number("10-0"), 0, 0).encode())


def test_a_shard_that_was_full_is_read_on_when_half_of_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "SHARD_ENTRIES", 10)
    shard, room = owned(), []
    for held in (9, 10, 9, 5, 4, 9, 10):
        shard.held = held
        room.append(inbox.room_in(shard))
    assert room == [True, False, False, False, True, True, False]


def streams_of(shard: Shard, *names: str) -> list[Stream]:
    return [Stream(name, shard, NOWHERE, StreamSettings()) for name in names]


def test_what_was_removed_counts_as_resident_no_longer_and_costs_no_other_its_place() -> None:
    forgotten: list[str] = []
    residence, shard = Residence(4, lambda stream: forgotten.append(stream.name)), owned()
    for stream in streams_of(shard, "a", "b", "c", "d"):
        residence.add(stream, 1)
    for name in "bd":
        residence.remove(shard.streams[name])
    assert (len(residence), forgotten, list(shard.streams)) == (2, ["b", "d"], ["a", "c"])
    residence.make_room(2, pinned=lambda stream: False)
    for stream in streams_of(shard, "e", "f"):
        residence.add(stream, 2)
    assert (len(residence), residence.evicted, list(shard.streams)) == (4, 0, ["a", "c", "e", "f"])
    residence.make_room(1, pinned=lambda stream: False)
    assert (len(residence), residence.evicted, forgotten) == (3, 1, ["b", "d", "a"])


def test_who_comes_back_after_it_was_removed_is_another_and_stays() -> None:
    residence, shard = Residence(2, lambda stream: None), owned()
    for name in ("a", "b"):
        residence.add(*streams_of(shard, name), 1)
    residence.remove(shard.streams["a"])
    residence.add(*streams_of(shard, "a"), 2)
    assert len(residence) == 2
    residence.make_room(1, pinned=lambda stream: False)
    assert (len(residence), list(shard.streams)) == (1, ["a"]), "b was there before it"


def test_streams_of_a_lost_shard_count_no_longer() -> None:
    residence, lost, kept = Residence(4, lambda stream: None), owned(), owned()
    for shard, name in ((lost, "a"), (kept, "b"), (lost, "c"), (kept, "d")):
        residence.add(*streams_of(shard, name), 1)
    residence.remove(kept.streams["b"])
    lost.lost = True
    residence.drop_lost()
    assert len(residence) == 1
