"""Blocks of the documentation's pages, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.deployment import ROOT, Up, environment

BLOCK = re.compile(r"^```(sh|python|js) test(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """Those marked as a test, in the order of the page."""
    return [Block(language, text) for language, _, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]


def shell_of(up: Up, folder: Path) -> dict[str, str]:
    """Variables for the commands: a `rollcast` on PATH, and what stands in for its port and home."""
    command = folder / "rollcast"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    command.chmod(0o755)
    return environment() | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "ROLLCAST_URL": up.url,
        "ROLLCAST_SHARDS": "4",
        "HOME_IN_TEST": str(up.home),
        "NO_PROXY": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }


def run(shell: dict[str, str], block: Block, limit_s: float, *, endless: bool = False) -> str:
    """What it printed. `endless`: it is ended after `limit_s`."""
    script = block.text.replace("http://127.0.0.1:8000", shell["ROLLCAST_URL"])
    script = script.replace(".rollcast/broker.sock", f"{shell['HOME_IN_TEST']}/broker.sock").replace("% 32", "% 4")
    command = {
        "sh": ["bash", "-euc", script],
        "python": [sys.executable, "-c", script],
        "js": ["node", "--input-type=module", "-e", script],
    }[block.language]
    process = subprocess.Popen(
        command, cwd=ROOT, env=shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        assert endless, block.text
        os.killpg(process.pid, 15)
        out, errors = process.communicate()
    else:
        assert process.returncode == 0, errors
    return out
