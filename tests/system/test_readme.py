"""The README's commands do what it says: each block marked as a test is run as it stands, in the order of the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.deployment import ROOT, Up, environment

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh test(.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(deployment: Up, tmp_path: Path) -> dict[str, str]:
    """Variables for the commands: a `rollcast` on PATH, and what stands in for its port and home."""
    needs("curl", "curl")
    needs("redis-cli", "redis-tools")
    command = tmp_path / "rollcast"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    command.chmod(0o755)
    return environment() | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "ROLLCAST_URL": deployment.url,
        "ROLLCAST_SHARDS": "4",
        "HOME_IN_TEST": str(deployment.home),
        "NO_PROXY": "127.0.0.1",
    }


def run(shell: dict[str, str], block: str, limit_s: float) -> str:
    script = block.replace("http://127.0.0.1:8000", shell["ROLLCAST_URL"]).replace(
        ".rollcast/broker.sock", f"{shell['HOME_IN_TEST']}/broker.sock"
    )
    process = subprocess.Popen(
        ["bash", "-euc", script], cwd=ROOT, env=shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 15)
        out, errors = process.communicate()
    else:
        assert process.returncode == 0, errors
    return out


def test_every_way_in_and_out_works_as_written(shell: dict[str, str]) -> None:
    frame, rows, watch, redis, commands = (block for _, block in BLOCKS)
    prediction = json.loads(run(shell, frame, 30))
    assert (prediction["type"], prediction["label"], prediction["stream"]) == ("prediction", "7", "door-7")
    assert json.loads(run(shell, rows, 30)).keys() >= {"id", "stream", "model"}
    added = run(shell, redis, 30).strip()
    events = run(shell, watch, 3)
    assert f"id: {prediction['id']}" in events
    assert f"id: {added}" in events
    said = run(shell, commands, 60)
    assert "door-7" in said
    assert "digits-cnn" in said
    assert len(re.findall(r"step 40 ", said)) == 1
