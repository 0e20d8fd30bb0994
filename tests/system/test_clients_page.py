"""The examples of docs/clients.md, run as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.deployment import Up
from tests.pages import blocks, follow, run, shell_of


@pytest.fixture
def shell(as_shipped: Up, tmp_path: Path) -> dict[str, str]:
    return shell_of(as_shipped, tmp_path)


def test_the_examples_print_what_they_promise(shell: dict[str, str]) -> None:
    needs("curl", "curl")
    needs("node", "nodejs")
    first, numbered, awaited, gateway, lines, watched, node, redis = blocks("docs/clients.md")
    said = run(shell, first)
    assert said.startswith("7 ")
    assert "pump-1 1 " in said
    assert run(shell, numbered).splitlines()[0] == "steps 3 seq 2"
    assert sorted(line.split()[0] for line in run(shell, awaited).splitlines()) == [f"pump-{n}" for n in range(10, 14)]
    many = run(shell, gateway).splitlines()
    assert many[0].startswith("64 in the log, the last one is ")
    assert many[1].startswith("pump-")
    assert [json.loads(line)["stream"] for line in run(shell, lines).splitlines()] == ["pump-4", "pump-5"]
    followed = follow(shell, watched, '"stream":"pump-4"', '"stream":"pump-5"')
    assert '"stream":"hall-1"' not in followed
    assert run(shell, node).splitlines()[1] == "1"
    assert run(shell, redis).strip()
