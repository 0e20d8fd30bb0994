"""Who goes next: at most one of each stream in a batch, in order per stream, the oldest first."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.batching import Scheduler


@dataclass(eq=False)
class Piece:
    number: int
    key: str
    ready: bool = True


def numbers(batch: list[Piece]) -> list[int]:
    return [piece.number for piece in batch]


def test_a_batch_holds_one_item_of_each_stream_oldest_first() -> None:
    scheduler: Scheduler[Piece] = Scheduler()
    for number, key in enumerate("abacb"):
        scheduler.offer(Piece(number, key))
    assert numbers(scheduler.take(10)) == [0, 1, 3]
    assert numbers(scheduler.take(10)) == [2, 4]
    assert scheduler.take(10) == []


def test_a_limit_leaves_the_youngest() -> None:
    scheduler: Scheduler[Piece] = Scheduler()
    for number, key in enumerate("abcde"):
        scheduler.offer(Piece(number, key))
    assert numbers(scheduler.take(2)) == [0, 1]
    scheduler.offer(Piece(9, "a"))
    assert numbers(scheduler.take(3)) == [2, 3, 4]
    assert len(scheduler) == 1


def test_what_is_not_decoded_holds_back_its_own_stream_only() -> None:
    scheduler: Scheduler[Piece] = Scheduler()
    slow = Piece(0, "a", ready=False)
    for piece in (slow, Piece(1, "a"), Piece(2, "b")):
        scheduler.offer(piece)
    assert numbers(scheduler.take(10)) == [2]
    assert not scheduler.has_ready
    slow.ready = True
    scheduler.wake(slow)
    assert [numbers(scheduler.take(10)) for _ in range(3)] == [[0], [1], []]


def test_what_is_dropped_never_comes() -> None:
    scheduler: Scheduler[Piece] = Scheduler()
    for number, key in enumerate("abab"):
        scheduler.offer(Piece(number, key))
    scheduler.drop(lambda piece: piece.key == "a")
    assert numbers(list(scheduler)) == [1, 3]
    assert [numbers(scheduler.take(10)) for _ in range(3)] == [[1], [3], []]


Action = tuple[str, str, bool]  # offer a stream's next item, decoded or not; wake; take; drop a stream
kinds = st.sampled_from(["offer", "offer", "offer", "wake", "take", "drop"])
actions = st.lists(st.tuples(kinds, st.sampled_from("abcd"), st.booleans()), max_size=80)


@given(actions, st.integers(1, 5))
def test_any_interleaving_yields_each_stream_once_and_in_order(script: list[Action], limit: int) -> None:
    scheduler: Scheduler[Piece] = Scheduler()
    waiting: dict[str, list[Piece]] = {key: [] for key in "abcd"}  # the oracle: plain lists
    number = 0
    for action, key, ready in [*script, *[("wake", key, True) for key in "abcd" for _ in range(80)]]:
        if action == "offer":
            number += 1
            piece = Piece(number, key, ready)
            waiting[key].append(piece)
            scheduler.offer(piece)
        elif action == "wake" and (asleep := [piece for piece in waiting[key] if not piece.ready]):
            asleep[-1].ready = True  # decoding ends in any order
            scheduler.wake(asleep[-1])
        elif action == "drop":
            scheduler.drop(lambda piece, gone=key: piece.key == gone)  # type: ignore[misc]
            waiting[key] = []
        elif action == "take":
            heads = [pieces[0] for pieces in waiting.values() if pieces and pieces[0].ready]
            expected = sorted(heads, key=lambda piece: piece.number)[:limit]
            assert scheduler.take(limit) == expected
            for piece in expected:
                waiting[piece.key].pop(0)
        assert len(scheduler) == sum(map(len, waiting.values()))
    while batch := scheduler.take(limit):
        for piece in batch:
            assert waiting[piece.key].pop(0) is piece
    assert not any(waiting.values())
