"""Streams by name: globs, and who wants what fits them. The work is bounded by what is read, whatever a glob says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from service.contracts import STREAM_CHARACTERS
from service.errors import Busy, Malformed

MAX_GLOBS: Final = 64  # of one subscription
MAX_GLOB: Final = 128  # characters of one glob, as of a stream's name
MAX_STARS: Final = 8  # of one glob; neighbours count as one
MAX_CHARACTERS: Final = 2048  # of one subscription's globs together
KEPT_CHARACTERS: Final = 131_072  # of the globs of all subscriptions of a process; the same pattern counts once
_BLOCK: Final = 2048  # characters of globs that are looked for at once
_REMEMBERED: Final = 100_000  # streams of which it is known who wants them
_LEGAL: Final = re.compile(rf"[*?{STREAM_CHARACTERS}]{{1,{MAX_GLOB}}}")
_STARS: Final = re.compile(r"\*+")
Member = TypeVar("Member")


class Pattern(NamedTuple):
    """Streams by name: each glob is a name in which `*` stands for any characters and `?` for one."""

    globs: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.globs))


def read_pattern(globs: Iterable[str]) -> Pattern:
    """Raises Malformed."""
    found = tuple(sorted(set(globs)))
    if len(found) > MAX_GLOBS:
        raise Malformed(f"{len(found)} streams or patterns: expected at most {MAX_GLOBS} in one subscription")
    for glob in found:
        if not _LEGAL.fullmatch(glob):
            raise Malformed(
                f"stream={glob[:60]!r}: expected a stream's name, in which * stands for any characters and ? for one"
            )
        if (stars := len(_STARS.findall(glob))) > MAX_STARS:
            raise Malformed(f"stream={glob[:60]!r}: {stars} stars, expected at most {MAX_STARS}")
    pattern = Pattern(found)
    if pattern.size > MAX_CHARACTERS:
        raise Malformed(
            f"patterns of {pattern.size} characters: expected at most {MAX_CHARACTERS} together in one subscription"
        )
    return pattern


class Matcher:
    """Many globs looked for in one pass over a name.

    A set of globs is an automaton whose states are the bits of one number: a state stands for what was read of a glob,
    a character moves each state that expects it on by one, a star lets a state stay (the bit-parallel Shift-And of
    Baeza-Yates and Gonnet, 1992). So a name costs its length times the globs' characters / 30, whatever they are.

    >>> Matcher(["cam-*", "belt-?"]).find("belt-7")
    [1]
    """

    def __init__(self, globs: Sequence[str]) -> None:
        expecting: dict[str, int] = {}
        self._begin = self._stay = self._any = self._end = 0
        self._glob_at: dict[int, int] = {}  # the bit of a glob's end -> its place among the globs
        at = 0
        for number, glob in enumerate(globs):
            self._begin |= 1 << at
            for character in glob:
                if character == "*":
                    self._stay |= 1 << at
                    continue
                at += 1
                if character == "?":
                    self._any |= 1 << at
                else:
                    expecting[character] = expecting.get(character, 0) | 1 << at
            self._end |= 1 << at
            self._glob_at[at] = number
            at += 1
        self._expecting = {character: bits | self._any for character, bits in expecting.items()}

    def fits(self, name: str) -> bool:
        return bool(self._read(name))

    def find(self, name: str) -> list[int]:
        """Places of the globs that fit, ascending."""
        found, ended = [], self._read(name)
        while ended:
            lowest = ended & -ended
            found.append(self._glob_at[lowest.bit_length() - 1])
            ended ^= lowest
        return found

    def _read(self, name: str) -> int:
        states, stay, others, expecting = self._begin, self._stay, self._any, self._expecting
        for character in name:
            states = states << 1 & expecting.get(character, others) | states & stay
            if not states:
                return 0
        return states & self._end


class Catalogue(Generic[Member]):
    """Who wants what fits which pattern. A stream is compared with each pattern once, however often it is asked for
    and whoever else comes and goes; with those that came since, when it is asked for again."""

    def __init__(self, refused: Callable[[], object] = lambda: None) -> None:
        self._refused = refused  # called with each Busy
        self._groups: dict[Pattern, set[Member]] = {}
        self._blocks: list[_Block[Member]] = []  # only the last one grows
        self._known: dict[str, _Known[Member]] = {}
        self._changes = 0
        self._size = self._gone = 0  # characters of the patterns that are wanted, and of those that were

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, pattern: Pattern, member: Member) -> None:
        """Raises Busy when there are too many different patterns."""
        if pattern not in self._groups:
            if self._size + pattern.size > KEPT_CHARACTERS:
                self._refused()
                raise Busy(f"patterns of all subscriptions: {KEPT_CHARACTERS:,} characters, and no more may be added")
            self._groups[pattern] = set()
            self._put(pattern)
        self._groups[pattern].add(member)

    def discard(self, pattern: Pattern, member: Member) -> None:
        members = self._groups[pattern]
        members.discard(member)
        if members:
            return
        del self._groups[pattern]
        self._changes += 1
        self._size -= pattern.size
        self._gone += pattern.size
        if self._gone > max(self._size, _BLOCK):
            self._blocks, self._size, self._gone = [], 0, 0
            self._known.clear()
            for kept in self._groups:
                self._put(kept)

    def members(self) -> list[Member]:
        return [member for members in self._groups.values() for member in members]

    def fitting(self, stream: str) -> list[set[Member]]:
        """The members of each pattern that the stream fits."""
        if not self._groups:
            return []
        known = self._known.get(stream)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[stream] = _Known()
        if known.changes != self._changes:
            while known.compared < len(self._blocks) - 1:
                known.settled += self._blocks[known.compared].fitting(stream)
                known.compared += 1
            known.found = [members for members in known.settled + self._blocks[-1].fitting(stream) if members]
            known.changes = self._changes
        return known.found

    def _put(self, pattern: Pattern) -> None:
        if not self._blocks or self._blocks[-1].size + pattern.size > _BLOCK:
            self._blocks.append(_Block())
        self._blocks[-1].put(pattern, self._groups[pattern])
        self._size += pattern.size
        self._changes += 1


class _Block(Generic[Member]):
    """Some patterns, in one Matcher."""

    def __init__(self) -> None:
        self.size = 0
        self._globs: list[str] = []
        self._members: list[set[Member]] = []  # of each glob
        self._matcher = Matcher([])

    def put(self, pattern: Pattern, members: set[Member]) -> None:
        self._globs += pattern.globs
        self._members += [members] * len(pattern.globs)
        self._matcher = Matcher(self._globs)
        self.size += pattern.size

    def fitting(self, stream: str) -> list[set[Member]]:
        """Each once, though several of its globs may fit: those of a pattern are neighbours."""
        found: list[set[Member]] = []
        for place in self._matcher.find(stream):
            if not found or found[-1] is not self._members[place]:
                found.append(self._members[place])
        return found


class _Known(Generic[Member]):
    """What is known of one stream."""

    __slots__ = ("changes", "compared", "found", "settled")

    def __init__(self) -> None:
        self.changes = -1  # of the catalogue, when `found` was made
        self.compared = 0  # so many blocks will not change any more; `settled` is what was found in them
        self.settled: list[set[Member]] = []
        self.found: list[set[Member]] = []
