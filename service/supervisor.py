"""What `rollcast up` runs: a broker, an api and workers, as child processes of one supervisor.

A dead child is started again, and that is said; one that gives no sign of life for too long (liveness.py) is killed
first. Stopping goes in order: api, workers, broker. Children are tied to the supervisor (processes.py): even its
SIGKILL leaves none behind.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from service import homes
from service.embedded import EmbeddedBroker
from service.errors import PortInUse, StartError
from service.liveness import LOOK_S, START_S, Sign
from service.processes import stop_signals, tied

FIRST_BACKOFF_S: Final = 0.05  # doubled each time: an entry that ends its worker costs five restarts, 1.6 s of waiting
LONGEST_BACKOFF_S: Final = 10.0
STEADY_S: Final = 30.0  # a child that lived this long starts again without delay
GRACE_S: Final = 8.0  # that the api has to end, and the workers after it, before they are killed
log = logging.getLogger("rollcast.supervisor")


class Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP while it is entered: the first asks to stop, the second to hurry."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupts:
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Child:
    """One process that is kept running. Written only by the supervisor."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        pass_fds: Sequence[int] = (),
        *,
        sign: Sign,
        silence_s: float,  # without a sign of life, once there was one; then it is killed
    ) -> None:
        self.name = name
        self._command, self._pass_fds = list(command), tuple(pass_fds)
        self._sign, self._silence_s = sign, silence_s
        self._heard = False
        self._silent_s = 0.0
        self._looked_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._backoff_s = 0.0
        self._again_at: float | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, environment: Mapping[str, str], output: Path | None) -> None:
        """`output`: a file for what it says; None: our standard error."""
        stream = sys.stderr.buffer if output is None else homes.opened(output, "ab")
        more, fds = self._sign.arguments()
        try:
            self._process = subprocess.Popen(
                tied([*self._command, *more], signal.SIGKILL),  # what it held is in the broker
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=[*self._pass_fds, *fds],
                start_new_session=True,  # Ctrl-C in the terminal is the supervisor's to pass on
            )
        finally:
            if output is not None:
                stream.close()
        self._sign.started()
        self._started, self._again_at = time.monotonic(), None
        self._looked_at, self._silent_s, self._heard = self._started, 0.0, False

    def ended(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def look(self) -> None:
        """Kills it when it was silent for too long. By SIGKILL: what does not even answer handles no signal, and what
        it held is in the broker."""
        now = time.monotonic()
        passed_s, self._looked_at = min(now - self._looked_at, LOOK_S), now
        if self._sign.heard():
            self._heard, self._silent_s = True, 0.0
            return
        self._silent_s += passed_s
        if self._silent_s > (self._silence_s if self._heard else max(START_S, self._silence_s)):
            log.error("%s hangs, killing it", self.name, extra={"silent_s": round(self._silent_s, 1)})
            self.signal(signal.SIGKILL)
            self._silent_s = 0.0

    def close(self) -> None:
        """Looks no more."""
        self._sign.close()

    def due(self) -> bool:
        """Whether an ended child should start again now; the first call after its end sets when."""
        now = time.monotonic()
        if self._again_at is None:
            steady = now - self._started > STEADY_S
            self._backoff_s = (
                FIRST_BACKOFF_S if steady else min(LONGEST_BACKOFF_S, self._backoff_s * 2 or FIRST_BACKOFF_S)
            )
            self._again_at = now + self._backoff_s
            log.warning(
                "%s ended, starting it again", self.name, extra={"how": _how(self.ended()), "in_s": self._backoff_s}
            )
        return now >= self._again_at

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)


class Supervisor:
    """Starts, tends and stops. Called from the main thread only: the children are tied to it."""

    def __init__(
        self,
        *,
        broker: EmbeddedBroker | None,
        api: Child,
        workers: Sequence[Child],
        environment: Callable[[str | None], Mapping[str, str]],
        listener: socket.socket,
        stopping: Callable[[], bool],
        output: Path | None = None,
    ) -> None:
        """`environment`: the children's, given the embedded broker's URL; `listener`: the api's socket, passed on;
        `stopping`: whether somebody asked to stop, so that nothing is waited for any more."""
        self._broker, self._api, self._workers = broker, api, list(workers)
        self._environment, self._listener = environment, listener
        self._stopping, self._output = stopping, output
        self._variables: Mapping[str, str] = {}

    def start(self) -> None:
        """Raises StartError."""
        if self._output is not None:
            homes.claim(self._output.parent)
            homes.opened(self._output, "wb").close()
        url = self._start_broker() if self._broker is not None else None
        if self._stopping():
            return
        self._variables = self._environment(url)
        for child in (*self._workers, self._api):
            child.start(self._variables, self._output)

    def tend(self) -> None:
        """Starts again what has died, kills what hangs; to be called often. Raises StartError when a child cannot start
        at all."""
        if self._broker is not None and not self._broker.alive():
            log.error("the embedded broker has died, starting it again on its data")
            self._start_broker()
        for child in (*self._workers, self._api):
            status = child.ended()
            if status == StartError.exit_code:
                raise StartError(f"{child.name} cannot start. {self.last_words()}")
            if status is None:
                child.look()
            elif child.due():
                child.start(self._variables, self._output)

    def last_words(self) -> str:
        """Where the children's log is, and its end if it is a file."""
        if self._output is None:
            return "The lines above say more"
        lines = self._output.read_text(errors="replace").splitlines()
        return "\n".join([f"{self._output} ends with:", *lines[-5:]])

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """api, then workers, then broker; as soon as `hurry` says so, api and workers are killed. The api gets GRACE_S,
        the workers as much, the broker stop_s."""
        self._listener.close()
        for group in ([self._api], self._workers):
            for child in group:
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while any(child.pid is not None and child.ended() is None for child in group):
                if hurry() or time.monotonic() > deadline:
                    for child in group:
                        child.signal(signal.SIGKILL)
                time.sleep(0.02)
        for child in (self._api, *self._workers):
            child.close()
        if self._broker is not None:
            self._broker.stop()

    def _start_broker(self) -> str:
        assert self._broker is not None
        url = self._broker.start(give_up=self._stopping)
        while self._broker.notices:
            log.warning(self._broker.notices.pop(0))
        return url


def listen(host: str, port: int) -> socket.socket:
    """The api's socket, bound before anything starts. Raises PortInUse."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise PortInUse(
            f"host {host!r}: {error.strerror}; expected an address of this machine (setting host)"
        ) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"port {port} of {host}: {error.strerror}. Choose another one with --port or ROLLCAST_PORT "
            "(make demo PORT=…), or end the program that holds it"
        ) from None
    return listener


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"status {status}"
