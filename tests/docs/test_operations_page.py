"""docs/operations.md has a line for every check of `rollcast doctor`, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

from service.doctor import CHECKS

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_check_of_the_doctor_has_its_line() -> None:
    section = PAGE.split("\n## rollcast doctor\n")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == CHECKS
