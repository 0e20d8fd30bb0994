"""A Dockerfile, read as far as ours need it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    name: str  # FROM, RUN, …
    words: str  # the rest, with its line continuations joined


class Stage(NamedTuple):
    base: str
    name: str
    steps: list[Step]

    def last(self, name: str) -> str:
        """The words of the last instruction of that name."""
        return next(step.words for step in reversed(self.steps) if step.name == name)

    def command(self, name: str) -> list[str]:
        """Of ENTRYPOINT or CMD, in the form that runs without a shell."""
        words = json.loads(self.last(name))
        assert isinstance(words, list)
        return words

    def healthcheck(self) -> list[str]:
        words = json.loads(self.last("HEALTHCHECK").partition(" CMD ")[2])
        assert isinstance(words, list)
        return words

    def environment(self) -> dict[str, str]:
        return {
            name: value
            for step in self.steps
            if step.name == "ENV"
            for name, _, value in (word.partition("=") for word in shlex.split(step.words))
        }


def read(path: Path) -> list[Stage]:
    """Its stages, with arguments before the first FROM put in."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, words = line.partition(" ")
        words = words.strip()
        if name == "ARG" and not stages:
            key, _, value = words.partition("=")
            arguments[key] = value
        elif name == "FROM":
            base, *called = re.split(r"\s+AS\s+", words)
            for key, value in arguments.items():
                base = base.replace(f"${{{key}}}", value)
            stages.append(Stage(base, called[0] if called else "", []))
        else:
            stages[-1].steps.append(Step(name, words))
    return stages
