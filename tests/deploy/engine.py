"""The same as namespaces.Host, by a real container engine: `docker compose` itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.deploy.composed import COMPOSE, DEMO


def there() -> bool:
    """Whether `docker compose` and an engine behind it answer."""
    if shutil.which("docker") is None:
        return False
    asked = (["docker", "compose", "version"], ["docker", "info"])
    return all(subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0 for words in asked)


class Engine:
    """One compose project, with ports of this machine that are free."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._name = f"rollcast-test-{os.getpid()}"

    def up(self, **scale: int) -> None:
        counts = [word for service, count in scale.items() for word in ("--scale", f"{service}={count}")]
        self._compose("up", "--build", "--detach", "--wait", "--no-recreate", *counts, *scale)

    def url(self, service: str) -> str:
        inner = {"api": "8000", "grafana": "3000"}[service]
        return f"http://{self._compose('port', service, inner).stdout.decode().strip()}"

    def run(self, service: str, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        index = str(len(self._ids(service)))
        return self._compose("exec", "-T", "--index", index, service, *command, stdin=stdin, check=False)

    def said(self, service: str) -> str:
        done = subprocess.run(["docker", "logs", self._ids(service)[-1]], capture_output=True, check=True)
        return (done.stdout + done.stderr).decode()

    def stop(self, service: str) -> tuple[int, str]:
        container = self._ids(service)[-1]
        self._docker("stop", container)  # SIGTERM, and its own grace period
        status, said = int(self._docker("inspect", "--format", "{{.State.ExitCode}}", container)), self.said(service)
        self._docker("rm", container)
        return status, said

    def close(self) -> None:
        self._compose("down", "--volumes", "--timeout", "30")

    def _ids(self, service: str) -> list[str]:
        """The oldest first."""
        found = self._compose("ps", "--quiet", "--all", service).stdout.decode().split()
        return sorted(found, key=lambda one: self._docker("inspect", "--format", "{{.Name}}", one))

    def _compose(self, *words: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        free = {"API_PORT": "0", "GRAFANA_PORT": "0"}
        files = [word for name in (COMPOSE.name, DEMO.name) for word in ("--file", str(self._project / name))]
        command = ["docker", "compose", "--project-name", self._name, *files]
        done = subprocess.run(
            [*command, *words], input=stdin, capture_output=True, check=False, env=os.environ | free, timeout=900
        )
        assert not check or done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stderr.decode()}"
        return done

    @staticmethod
    def _docker(*words: str) -> str:
        return subprocess.run(["docker", *words], capture_output=True, check=True, text=True).stdout.strip()
