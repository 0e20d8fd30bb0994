"""Patterns: what they fit is what the words say, and what they cost does not depend on what they say."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.patterns import (
    KEPT_CHARACTERS,
    MAX_CHARACTERS,
    MAX_GLOBS,
    MAX_STARS,
    Catalogue,
    Matcher,
    Pattern,
    read_pattern,
)
from service.errors import Busy, Malformed

GLOBS = st.text("ab*?", min_size=1, max_size=8)
NAMES = st.text("abc", max_size=10)


def by_regex(glob: str, name: str) -> bool:
    return re.fullmatch(re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."), name) is not None


@given(st.lists(GLOBS, min_size=1, max_size=5), NAMES)
def test_a_star_is_any_characters_and_a_question_mark_one(globs: list[str], name: str) -> None:
    expected = [n for n, glob in enumerate(globs) if by_regex(glob, name)]
    assert Matcher(globs).find(name) == expected
    assert Matcher(globs).fits(name) == bool(expected)


@given(st.lists(st.tuples(st.booleans(), st.sets(GLOBS, min_size=1, max_size=3)), max_size=12), st.lists(NAMES))
def test_everybody_finds_what_fits_while_others_come_and_go(
    changes: list[tuple[bool, set[str]]], names: list[str]
) -> None:
    catalogue: Catalogue[int] = Catalogue()
    there: dict[int, Pattern] = {}
    for number, (comes, globs) in enumerate(changes):
        if comes or not there:
            there[number] = Pattern(tuple(sorted(globs)))
            catalogue.add(there[number], number)
        else:
            first = min(there)
            catalogue.discard(there.pop(first), first)
        for name in names:
            found = sorted(member for members in catalogue.fitting(name) for member in members)
            assert found == [n for n, p in there.items() if any(by_regex(glob, name) for glob in p.globs)]


def test_after_many_have_come_and_gone_those_that_stay_are_found() -> None:
    catalogue: Catalogue[str] = Catalogue()
    catalogue.add(Pattern(("cam-*",)), "stays")
    for n in range(2000):
        passing = Pattern((f"*{n}", f"cam-{n}"))
        catalogue.add(passing, "passes")
        assert sorted(m for members in catalogue.fitting(f"cam-{n}") for m in members) == ["passes", "stays"]
        catalogue.discard(passing, "passes")
    assert catalogue.fitting("cam-1") == [{"stays"}]


@pytest.mark.parametrize("glob", ["*a*a*a*a*a*a*a*b", "*?*?*?*?*?*?*?b", "*" + "?" * 100 + "b", "*" + "a?" * 60 + "b"])
def test_no_name_is_dear_to_compare(glob: str) -> None:
    (pattern,) = {read_pattern([glob])}
    matcher = Matcher(pattern.globs)
    begun = time.thread_time()
    for _ in range(100):
        assert not matcher.fits("a" * 128)
    assert time.thread_time() - begun < 0.5, "a regular expression would take longer than anybody waits"


def test_as_many_patterns_as_there_may_be_cost_a_stream_little() -> None:
    catalogue: Catalogue[int] = Catalogue()
    patterns = [read_pattern([f"*{count:04}-{n:02}*x" for n in range(16)]) for count in range(1000)]
    most = KEPT_CHARACTERS // patterns[0].size
    for number, pattern in enumerate(patterns[:most]):
        catalogue.add(pattern, number)
    with pytest.raises(Busy, match=f"{KEPT_CHARACTERS:,} characters"):
        catalogue.add(patterns[most], most)
    begun = time.thread_time()
    for n in range(20):
        assert catalogue.fitting(f"user-{n}-with-a-long-name") == []
    assert time.thread_time() - begun < 1.0


@pytest.mark.parametrize(
    ("globs", "words"),
    [
        (["*a" * (MAX_STARS + 1)], f"{MAX_STARS + 1} stars, expected at most {MAX_STARS}"),
        ([f"cam-{n}" for n in range(MAX_GLOBS + 1)], f"{MAX_GLOBS + 1} streams or patterns"),
        ([f"{n:0128}" for n in range(20)], f"expected at most {MAX_CHARACTERS} together"),
        (["a" * 129], "stands for any characters"),
    ],
)
def test_what_is_beyond_a_limit_is_said_so(globs: list[str], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read_pattern(globs)


def test_neighbouring_stars_are_one() -> None:
    pattern = read_pattern(["a" + "*" * 100 + "b"])
    assert Matcher(pattern.globs).fits("a-b")
