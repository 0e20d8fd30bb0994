"""The README's commands do what it says: each block marked as a test is run as it stands, in the order of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.deployment import Up
from tests.pages import blocks, follow, run, shell_of


@pytest.fixture
def shell(as_shipped: Up, tmp_path: Path) -> dict[str, str]:
    needs("curl", "curl")
    needs("redis-cli", "redis-tools")
    return shell_of(as_shipped, tmp_path)


def test_every_way_in_and_out_works_as_written(shell: dict[str, str]) -> None:
    frame, rows, watch, redis, commands, post, watched = blocks("README.md")
    prediction = json.loads(run(shell, frame))
    assert (prediction["type"], prediction["label"], prediction["stream"]) == ("prediction", "7", "door-7")
    assert json.loads(run(shell, rows)).keys() >= {"id", "stream", "model"}
    added = run(shell, redis).strip()
    follow(shell, watch, f"id: {prediction['id']}\n", f"id: {added}\n")
    said = run(shell, commands)
    assert "door-7" in said
    assert "digits-cnn" in said
    assert len(re.findall(r"step 40 ", said)) == 1
    assert run(shell, post) == "7\n"
    follow(shell, watched, "door-7 7\n", "door-8 7\n")
