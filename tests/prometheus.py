"""A real Prometheus on 127.0.0.1, with a configuration of the test's."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from service.processes import stop, tied
from tests.conftest import needs
from tests.deployment import await_true


class Prometheus:
    """`with Prometheus(folder, config) as prometheus: prometheus.now("up")`. `config`: text of prometheus.yml."""

    def __init__(self, folder: Path, config: str) -> None:
        self._program = needs("prometheus", "prometheus")
        self._folder = folder
        (folder / "prometheus.yml").write_text(config)

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [
            self._program, f"--config.file={self._folder / 'prometheus.yml'}", "--log.level=warn",
            f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(tied(command, signal.SIGKILL), stdout=log, stderr=log)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        await_true(self._ready, "Prometheus is ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        stop(self._process, 10)

    def now(self, expr: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series, of this moment or of `at`. A query that does not parse fails."""
        params = {"query": expr} | ({} if at is None else {"time": str(at)})
        return [(one["metric"], float(one["value"][1])) for one in self._ask("query", params)]

    def one(self, expr: str, at: float | None = None) -> float | None:
        """The only value, or None."""
        found = self.now(expr, at)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def over(self, expr: str, start: float, end: float, step_s: float = 1.0) -> list[float]:
        """Every value that is a number, of all series."""
        params = {"query": expr, "start": str(start), "end": str(end), "step": str(step_s)}
        values = (float(value) for one in self._ask("query_range", params) for _, value in one["values"])
        return [value for value in values if math.isfinite(value)]

    def _ask(self, call: str, params: dict[str, str]) -> list[Any]:
        answer = self.http.get(f"/api/v1/{call}", params=params).json()
        assert answer["status"] == "success", (params["query"], answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False
