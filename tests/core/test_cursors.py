"""Cursors over many streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cursors import BEGINNING, Place, decode_cursor, encode_cursor, encode_place, join_places
from service.errors import BadCursor

places = st.builds(
    Place, st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.binary(min_size=2, max_size=2).map(bytes.hex)
)


@given(st.lists(places, min_size=1, max_size=64))
def test_a_cursor_says_what_it_was_made_of(found: list[Place]) -> None:
    text = encode_cursor(found)
    assert decode_cursor(text, len(found), "after") == found
    assert text == join_places([encode_place(place) for place in found])
    assert text.isascii()
    assert not set(text) & set("+/= \n")


def test_zero_is_before_everything() -> None:
    assert decode_cursor("0", 3, "after") == [BEGINNING] * 3


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_said_so(text: str) -> None:
    if text != "0":
        with pytest.raises(BadCursor, match="after"):
            decode_cursor(text, 4, "after")


@pytest.mark.parametrize(
    "text", ["17-0", "", "A", "AQ", "AQIA", encode_cursor([BEGINNING] * 4)[:-2], encode_cursor([BEGINNING]) + "AAAA"]
)
def test_an_id_or_a_piece_of_a_cursor_is_none(text: str) -> None:
    with pytest.raises(BadCursor, match="not a cursor over many streams"):
        decode_cursor(text, 4, "Last-Event-ID")


def test_a_cursor_of_a_deployment_with_another_number_of_shards_is_refused() -> None:
    with pytest.raises(BadCursor, match="2 shards; this one has 4"):
        decode_cursor(encode_cursor([BEGINNING] * 2), 4, "after")


@pytest.mark.parametrize("shards", [1, 2, 16_384])
def test_the_longest_cursor_that_a_deployment_can_give_is_taken(shards: int) -> None:
    found = [Place(2**64 - 1, 2**64 - 1, "ffff")] * shards
    assert decode_cursor(encode_cursor(found), shards, "after") == found
    with pytest.raises(BadCursor):
        decode_cursor("A" * 40_000 * (shards + 1), shards, "after")


def test_a_number_without_an_end_is_no_cursor() -> None:
    with pytest.raises(BadCursor):
        decode_cursor("AQEA" + "_" * 40, 1, "after")


@pytest.mark.parametrize("number", [1 << 64, (1 << 70) - 1, 1 << 200])
@pytest.mark.parametrize("at", ["n", "i"])
def test_a_number_above_64_bits_is_no_cursors(number: int, at: str) -> None:
    """A broker would not take it as an id."""
    place = Place(number, 0, "ab12") if at == "n" else Place(0, number, "ab12")
    with pytest.raises(BadCursor):
        decode_cursor(encode_cursor([place]), 1, "after")


def test_the_largest_numbers_are_a_cursors() -> None:
    places = [Place((1 << 64) - 1, (1 << 64) - 1, "ab12")]
    assert decode_cursor(encode_cursor(places), 1, "after") == places
