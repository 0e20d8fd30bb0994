"""docs/settings.md has every setting, with its default and the words of --help, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from service.settings import OTHER_VARIABLES, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")


def test_every_setting_has_its_line() -> None:
    lines = re.findall(r"^\| `.*\|$", PAGE, re.MULTILINE)
    expected = [
        f"| `{name}` | {'none' if field.default is None else f'`{field.default}`'} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    assert lines == expected


def test_the_variables_read_elsewhere_are_named() -> None:
    for name in OTHER_VARIABLES:
        assert f"`{name}`" in PAGE
