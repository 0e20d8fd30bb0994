"""Signs of life of child processes, looked for without waiting.

A worker writes a byte into a pipe with every heartbeat; an api is asked for `/livez`. Any answer counts, and so does a
connection that is closed at once: an api that has too many connections lives. Only silence does not.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

START_S: Final = 300.0  # that a starting child may say nothing: it loads its models, and proves them at its first start
LOOK_S: Final = 1.0  # what one look adds to a silence, at most: who looks may itself have been stopped, or had no CPU
QUESTIONS: Final = 8  # unanswered ones, at most
REQUEST: Final = b"GET /livez HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"


class Sign(Protocol):
    """Where a child's signs of life are looked for."""

    def arguments(self) -> tuple[Sequence[str], Sequence[int]]:
        """What the next child is given: words of its command line, and open files. Earlier signs are forgotten."""
        ...

    def started(self) -> None:
        """The child has been given them."""
        ...

    def heard(self) -> bool:
        """Whether there was a sign since this was last asked. Does not wait."""
        ...

    def close(self) -> None: ...


class Pulse:
    """A pipe whose other end a child has: `--pulse FD`."""

    def __init__(self) -> None:
        self._read = self._write = -1

    def arguments(self) -> tuple[Sequence[str], Sequence[int]]:
        self.close()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        return ["--pulse", str(self._write)], [self._write]

    def started(self) -> None:
        os.close(self._write)
        self._write = -1

    def heard(self) -> bool:
        with contextlib.suppress(OSError):  # nothing there
            return bool(os.read(self._read, 65_536))
        return False

    def close(self) -> None:
        for end in (self._read, self._write):
            if end >= 0:
                os.close(end)
        self._read = self._write = -1


def pulse_into(fd: int | None) -> Callable[[], None]:
    """What a child calls with every heartbeat. `fd`: the pipe's end that it was given, if any."""
    if fd is None:
        return lambda: None
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)

    def beat() -> None:
        with contextlib.suppress(OSError):  # full: nobody has looked for hours; closed: nobody will
            os.write(fd, b".")

    return beat


class Questions:
    """`GET /livez` to whoever accepts connections on `listener`, every `every_s`, whether the last was answered or not.

    Each waits for its answer as long as any: an api that is slow to answer all of them lives.
    """

    def __init__(self, listener: socket.socket, every_s: float) -> None:
        self._family, self._address = listener.family, _reached(listener)
        host, port = self._address
        self._request = REQUEST % f"[{host}]:{port}".encode() if ":" in host else REQUEST % f"{host}:{port}".encode()
        self._every_s = every_s
        self._next_at = 0.0
        self._open: dict[socket.socket, bool] = {}  # by question: whether it was sent

    def arguments(self) -> tuple[Sequence[str], Sequence[int]]:
        self.close()
        return (), ()

    def started(self) -> None: ...

    def heard(self) -> bool:
        if (now := time.monotonic()) >= self._next_at and len(self._open) < QUESTIONS:
            self._next_at = now + self._every_s
            self._ask()
        unsent = [question for question, sent in self._open.items() if not sent]
        readable, writable, _ = select.select(list(self._open), unsent, [], 0)
        for question in writable:
            with contextlib.suppress(OSError):  # what came of it is read
                question.send(self._request)
            self._open[question] = True
        if any(self._answered(question) for question in readable):
            self.close()
            return True
        return False

    def close(self) -> None:
        while self._open:
            self._open.popitem()[0].close()

    def _ask(self) -> None:
        question = socket.socket(self._family, socket.SOCK_STREAM)
        question.setblocking(False)
        question.connect_ex(self._address)
        self._open[question] = False

    def _answered(self, question: socket.socket) -> bool:
        """Whether somebody answered, or closed."""
        try:
            question.recv(256)
        except BlockingIOError:
            return False
        except TimeoutError:  # nobody has taken the connection, and nobody will
            del self._open[question]
            question.close()
            return False
        except OSError:
            return True
        return True


def _reached(listener: socket.socket) -> tuple[str, int]:
    """The address at which a process of this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port
