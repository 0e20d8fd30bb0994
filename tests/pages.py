"""Blocks of the documentation's pages, run as they stand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def run(shell: dict[str, str], block: Block, limit_s: float = 120) -> str:
    """What it printed."""
    with started(shell, block) as process:
        out, errors = process.communicate(timeout=limit_s)
        assert process.returncode == 0, errors
    return out


def follow(shell: dict[str, str], block: Block, *wanted: str, limit_s: float = 120) -> str:
    """What an endless one printed until all of this was there, which is when it is ended."""
    with started(shell, block) as process:
        assert process.stdout is not None
        timer = threading.Timer(limit_s, end, (process,))
        timer.start()
        out = ""
        while not all(text in out for text in wanted) and (line := process.stdout.readline()):
            out += line
        timer.cancel()
    assert all(text in out for text in wanted), (wanted, out)
    return out


@contextmanager
def started(shell: dict[str, str], block: Block) -> Iterator[subprocess.Popen[str]]:
    """Its process, ended with all that it started."""
    script = block.text.replace("http://127.0.0.1:8000", shell["ROLLCAST_URL"])
    script = script.replace(".rollcast/broker.sock", f"{shell['HOME_IN_TEST']}/broker.sock").replace("% 32", "% 4")
    command = {
        "sh": ["bash", "-euc", script],
        "python": [sys.executable, "-c", script],
        "js": ["node", "--input-type=module", "-e", script],
    }[block.language]
    with subprocess.Popen(
        command, cwd=ROOT, env=shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """With all that it started, which may hold its output open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
