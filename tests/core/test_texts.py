"""Texts become tokens in one way: whole words, each by itself, bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.texts import learn_tokenizer
from service.contracts import TOKEN_BYTES, TextInput
from service.decode import decode_text
from service.errors import EntryError, Malformed, TooLarge, WrongShape

TEXTS = ["a film with a heart , and no head", "no film is as good as a good film", "it isn't a film , is it ?"]
TOKENIZER = learn_tokenizer(TEXTS, seen=1)
SPEC = TextInput(max_tokens=20)


def ids(text: str | bytes, spec: TextInput = SPEC) -> list[int]:
    data = text if isinstance(text, bytes) else text.encode()
    found = decode_text(data, TOKENIZER, spec)
    assert found.dtype == np.int64
    return found.tolist()


def test_words_and_signs_are_tokens_whatever_their_case() -> None:
    assert ids("Film, GOOD") == ids("film , good")
    assert len(set(ids("film good head no"))) == 4


def test_an_unknown_word_is_the_unknown_token() -> None:
    assert ids("zebra") == ids("人") == [0]
    assert 0 not in ids("film")


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8), st.data())
def test_a_text_cut_where_words_end_gives_the_tokens_of_the_whole(words: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(words)))
    spec = TextInput(max_tokens=500)

    def tokens(part: list[str]) -> list[int]:
        try:
            return ids(" ".join(part), spec)
        except WrongShape:
            return []  # nothing but whitespace in it

    assert tokens(words) == tokens(words[:cut]) + tokens(words[cut:])


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", WrongShape, "without a word"),
        (b" \n\t ", WrongShape, "without a word"),
        (b"caf\xe9", Malformed, "byte 3 is 0xe9"),
        (b"film " * 21, TooLarge, "21 tokens: the model takes 20"),
        (b"x" * (TOKEN_BYTES * 20 + 1), TooLarge, "1281 bytes"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(data: bytes, error: type[EntryError], said: str) -> None:
    with pytest.raises(error, match=said):
        ids(data)
