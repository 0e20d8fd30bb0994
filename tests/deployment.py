"""`rollcast up` as a process of its own, for tests that need the whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "service.cli"]


def environment() -> dict[str, str]:
    """Ours, without settings, and so that the commands run from any folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROLLCAST_")}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def rollcast(*arguments: str, stdin: bytes = b"", limit_s: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
    """One command, run to its end."""
    done = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, env=environment() | more, timeout=limit_s, check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def interruptible() -> None:
    """`preexec_fn` of a program that a test ends by SIGINT or SIGHUP. Tests that run in the background or under nohup
    ignore them, and what they start inherits that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def await_true(condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


DEFAULTS = {"ROLLCAST_DEFAULT_MODEL_FRAME": "digits-cnn", "ROLLCAST_DEFAULT_MODEL_SAMPLES": "activity-lstm"}


class Up:
    """A running `rollcast up` with its log lines, as JSON, read as they come."""

    def __init__(self, home: Path, *arguments: str, **more: str) -> None:
        """`more`: variables of its environment. With the zoo, entries that name no model go to those of DEFAULTS."""
        if "--models" not in arguments:
            more = DEFAULTS | more
        self.home = home
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [
                *COMMAND, "up", "--home", str(home), "--port", "0", "--metrics-port", "0", "--shards", "4",
                "--lease-s", "5", "--log-format", "json", *arguments,  # a busy machine is no dead worker
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment() | more,
            preexec_fn=interruptible,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line.decode(errors="replace"), "process": "?"})

    @property
    def url(self) -> str:
        await_true(lambda: self.said("started") or self.process.poll() is not None, "up says where it listens", 120)
        assert self.said("started"), self.lines
        return str(self.said("started")[0]["url"])

    def said(self, event: str, process: str | None = None) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event and process in (None, line["process"])]

    def ready(self) -> Up:
        url = self.url

        def answers() -> bool:
            assert self.process.poll() is None, self.lines
            try:
                return httpx.get(f"{url}/readyz", trust_env=False, verify=False).status_code == 200
            except httpx.TransportError:
                return False

        await_true(answers, "the api is ready", 120)
        return self

    def family(self) -> list[int]:
        """The pids of up and all its descendants."""
        parents = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    stat = (folder / "stat").read_text()
                except OSError:
                    continue
                parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
