"""The README's commands do what it says: each block marked as a test is run as it stands, in the order of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.deployment import Up
from tests.pages import blocks, run, shell_of


@pytest.fixture
def shell(as_shipped: Up, tmp_path: Path) -> dict[str, str]:
    needs("curl", "curl")
    needs("redis-cli", "redis-tools")
    return shell_of(as_shipped, tmp_path)


def test_every_way_in_and_out_works_as_written(shell: dict[str, str]) -> None:
    frame, rows, watch, redis, commands, post, follow = blocks("README.md")
    prediction = json.loads(run(shell, frame, 30))
    assert (prediction["type"], prediction["label"], prediction["stream"]) == ("prediction", "7", "door-7")
    assert json.loads(run(shell, rows, 30)).keys() >= {"id", "stream", "model"}
    added = run(shell, redis, 30).strip()
    events = run(shell, watch, 3, endless=True)
    assert f"id: {prediction['id']}" in events
    assert f"id: {added}" in events
    said = run(shell, commands, 60)
    assert "door-7" in said
    assert "digits-cnn" in said
    assert len(re.findall(r"step 40 ", said)) == 1
    assert run(shell, post, 30) == "7\n"
    assert {"door-7 7", "door-8 7"} <= set(run(shell, follow, 5, endless=True).splitlines())
