"""How many streams there may be: who is new, until when a newcomer counts, who is turned away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.api.census import RETRY_S, UNHEARD_S, Census
from service.errors import TooManyStreams


def census(most: int) -> Census:
    follower: Any = SimpleNamespace(heard=set(), unheard=())
    nobody: Any = SimpleNamespace()
    return Census(nobody, follower, most)


def test_as_many_new_streams_are_taken_as_may_be_and_not_one_more() -> None:
    three = census(3)
    three.count(1, [])
    for stream in ("a", "b", "a"):
        three.admit(stream)
    with pytest.raises(TooManyStreams, match="there are 3, and at most 3") as refused:
        three.admit("c")
    assert refused.value.retry_after_s == RETRY_S
    three.admit("b")


def test_a_newcomer_counts_until_the_brokers_count_has_it_and_then_once() -> None:
    two = census(2)
    two.admit("a")
    two.count(0, [])
    two._follower.heard.add("a")
    heard = two.heard()
    two.admit("b")
    two.count(1, heard)
    assert not two._follower.heard
    with pytest.raises(TooManyStreams):
        two.admit("c")
    two.count(0, [])  # the broker's was deleted
    two.admit("c")


def test_a_newcomer_that_was_never_answered_is_not_counted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("service.api.census.time.monotonic", lambda: now)
    one = census(1)
    one.admit("a")
    now += UNHEARD_S
    one.count(0, [])
    with pytest.raises(TooManyStreams):
        one.admit("b")
    now += 0.1
    one.count(0, [])
    one.admit("b")
