"""The worker processes of a run: each behind a proxy of its own, killed, stopped, and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.chaos.proxy import FaultProxy
from service.errors import StartError
from service.processes import tied

RESIDENT: Final = 64  # streams in a worker's memory: the fewest that can be set, so that states leave and return
PROGRAM: Final = (sys.executable, "-m", "service.cli")


@dataclass(frozen=True)
class WorkerOptions:
    """What `rollcast worker` is given, beside its broker and name."""

    home: Path
    models: Path
    shards: int
    lease_s: float
    state_ttl_s: float
    history_s: float  # how long finished entries stay in the log
    program: Sequence[str] = PROGRAM  # tests give one whose fence is off


class ChaosWorker:
    """One worker process after the other. Called from the main thread: they are tied to it."""

    def __init__(self, number: int, broker: Path, options: WorkerOptions) -> None:
        self.number = number
        self.proxy = FaultProxy(options.home / f"worker-{number}.sock", broker)
        self.log = options.home / f"worker-{number}.log"
        self.name = ""
        self.stopped = False  # by SIGSTOP
        self.crashes = 0  # ends that nobody ordered
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._lives = 0
        self._killed = False
        self._again_at = 0.0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Every other life under the name of the one before: it may take its shards back at once."""
        self.name = f"chaos-{self.number}-{self._lives // 2}"
        self._lives += 1
        options = self._options
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                tied(
                    [
                        *options.program, "worker", "--broker", self.proxy.url, "--home", str(options.home),
                        "--models", str(options.models), "--shards", str(options.shards),
                        "--lease-s", str(options.lease_s), "--state-ttl-s", str(options.state_ttl_s),
                        "--max-resident-streams", str(RESIDENT), "--input-history-s", str(options.history_s),
                        "--output-history-s", "100000000", "--records-kept", "1000000000", "--metrics-port", "0",
                        "--number", str(self.number), "--name", self.name, "--log-format", "json",
                    ],
                    signal.SIGKILL,
                ),
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._killed = self.stopped = False

    def tend(self) -> None:
        """Starts it again when it has ended, half a second later. Raises StartError when it cannot start at all."""
        if self._process is None or (status := self._process.poll()) is None:
            return
        if self._again_at == 0.0:
            self._again_at = time.monotonic() + 0.5
            if status == StartError.exit_code:
                raise StartError(f"a worker cannot start; {self.log} says why")
            self.crashes += not (self._killed and status == -signal.SIGKILL)
        elif time.monotonic() >= self._again_at:
            self._again_at = 0.0
            self.start()

    def kill(self) -> bool:
        """SIGKILL; True when it ran until then."""
        if not self.running():
            return False
        self._killed = True
        os.kill(self.pid, signal.SIGKILL)
        return True

    def freeze(self) -> bool:
        """SIGSTOP; True once the system says that it is stopped."""
        if not self.running() or self.stopped:
            return False
        os.kill(self.pid, signal.SIGSTOP)
        seen = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self.stopped = seen is not None and seen.si_code == os.CLD_STOPPED
        return self.stopped

    def thaw(self) -> None:
        if self.stopped and self.running():
            os.kill(self.pid, signal.SIGCONT)
        self.stopped = False

    def stop(self) -> bool:
        """SIGTERM; True when it ended by itself: with status 0, or by the signal, while it was still starting."""
        self.thaw()
        if self._process is None:
            return True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return self._process.wait(15) in (0, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.proxy.close()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Without settings: a run is what its command line says."""
    return {name: value for name, value in ours.items() if not name.startswith("ROLLCAST_")}
