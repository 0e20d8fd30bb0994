"""docs/conventions.md draws the files that are there, and the layers that are checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")


def test_the_layers_are_those_of_the_check() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "\n".join(["```", *layers, "```"]) in PAGE


def test_every_module_of_service_is_drawn_and_no_other() -> None:
    drawn = set(re.findall(r"^  (\w+)(?:\.py|/) ", PAGE, re.MULTILINE))
    there = {
        path.stem for path in (ROOT / "service").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert drawn == there - {"__init__"}


def test_links_between_pages_lead_somewhere() -> None:
    seen: set[str] = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            seen.add(f"{page.name} {target}")
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert seen >= {"README.md docs/architecture.md", "http.md problems.md"}
    assert len(seen) >= 40
