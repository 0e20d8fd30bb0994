"""A proxy between a worker and its broker that cuts, delays, holds and lies on purpose.

It listens on a Unix socket and knows just enough of the protocol to place a fault: where a command ends, and which
reply answers which. What really happened is counted in `counts`, so that a run can prove its faults.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import hiredis

RECEIVE_BYTES: Final = 1 << 18
LONGEST_HOLD_S: Final = 60.0
_pack: Any = hiredis.pack_command


class FaultProxy:
    """One listener. Its faults apply to every connection through it; any thread may order them."""

    def __init__(self, path: Path, broker: Path) -> None:
        self.path, self._broker = path, broker
        self.counts: Counter[str] = Counter()  # cut-reply, cut-request, hold, held, delayed, told, blind
        self.delay_s = 0.0  # before each chunk of bytes, either way
        self.error: bytes | None = None  # what every command is answered with, such as b"LOADING try later"
        self._cuts: Counter[str] = Counter()  # ordered, by kind
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        threading.Thread(target=self._accept, name=f"proxy {path.name}", daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.path))}"

    @property
    def flowing(self) -> bool:
        return self._flowing.is_set()

    def cut_reply(self) -> None:
        """The next reply to an EXEC is cut in its middle, and its connection closed: applied, but nobody told."""
        self._order("cut-reply")

    def cut_request(self) -> None:
        """Half of the next transaction arrives, then its connection is closed."""
        self._order("cut-request")

    def cancel(self, cut: str) -> bool:
        """Takes one order back; False when it was carried out already."""
        with self._lock:
            ordered = self._cuts[cut] > 0
            self._cuts[cut] -= ordered
        return ordered

    def hold(self) -> None:
        """Nothing passes any more, and nobody is told: a partition. What is sent meanwhile arrives at `release`."""
        self._flowing.clear()

    def hold_a_commit(self) -> None:
        """`hold` from the next transaction on: it arrives, whole, when its worker may have lost the shard."""
        self._order("hold")

    def release(self) -> None:
        self._flowing.set()

    def drop(self) -> None:
        """Closes every connection."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.drop()
        self.path.unlink(missing_ok=True)

    # --- for the links -------------------------------------------------------------------------------------------

    def due(self, cut: str) -> bool:
        """Whether this kind of cut was ordered; the order is taken."""
        with self._lock:
            if not self._cuts[cut]:
                return False
            self._cuts[cut] -= 1
        self.count(cut)
        return True

    def ordered(self, cut: str) -> bool:
        return self._cuts[cut] > 0

    def passage(self) -> None:
        """Waits as long as the faults of the moment ask for."""
        if self.delay_s:
            self.count("delayed")
            time.sleep(self.delay_s)
        if not self._flowing.is_set():
            self.count("held")
            self._flowing.wait(LONGEST_HOLD_S)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def leave(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)

    def _order(self, cut: str) -> None:
        with self._lock:
            self._cuts[cut] += 1

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._broker))
            except OSError:
                client.close()
                server.close()
                continue
            link = _Link(self, client, server)
            with self._lock:
                self._links.add(link)
            link.start()


class _Link:
    """One connection through the proxy: a thread a direction."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._unanswered = 0  # commands whose reply has not come; guarded by the lock
        self._transaction = False  # an EXEC is among them
        self._lock = threading.Lock()
        self._open = 2  # directions

    def start(self) -> None:
        for direction in (self._forward_requests, self._forward_replies):
            threading.Thread(target=self._run, args=(direction,), daemon=True).start()

    def close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, direction: Any) -> None:
        with contextlib.suppress(OSError, hiredis.HiredisError):
            direction()
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self._client.close()
            self._server.close()
            self._proxy.leave(self)

    def _forward_requests(self) -> None:
        """Whole commands only, so that a lie never begins in the middle of one."""
        reader = hiredis.Reader()
        while data := self._client.recv(RECEIVE_BYTES):
            reader.feed(data)
            commands = []
            while (command := reader.gets()) is not False:
                commands.append(command)
            if not commands:
                continue
            names = [command[0].upper() for command in commands]
            if b"EXEC" in names and self._proxy.due("hold"):
                self._proxy.hold()
            self._proxy.passage()
            if self._proxy.error is not None:
                self._lie(len(commands), self._proxy.error)
                continue
            packed = b"".join(_pack(tuple(command)) for command in commands)
            self._note(names)
            if self._transaction and self._proxy.due("cut-request"):
                self._server.sendall(packed[: len(packed) // 2])
                self.close()
                return
            self._server.sendall(packed)
        # Its end arrives behind what it had sent, as on a network: the broker still carries that out.
        self._server.shutdown(socket.SHUT_WR)

    def _note(self, names: list[bytes]) -> None:
        with self._lock:
            if names[0] == b"MULTI" and self._unanswered:
                self._proxy.count("blind")
            self._unanswered += len(names)
            self._transaction = self._transaction or b"EXEC" in names

    def _lie(self, commands: int, error: bytes) -> None:
        deadline = time.monotonic() + 5
        while self._unanswered and time.monotonic() < deadline:  # replies keep their order
            time.sleep(0.001)
        for _ in range(commands):
            self._proxy.count("told")
        self._client.sendall(b"-%b\r\n" % error * commands)

    def _forward_replies(self) -> None:
        reader = hiredis.Reader()
        while data := self._server.recv(RECEIVE_BYTES):
            self._proxy.passage()
            if self._transaction and self._proxy.ordered("cut-reply"):
                # of the replies on a connection that commits only EXEC's is an array
                array = 0 if data.startswith(b"*") else data.find(b"\r\n*") + 2
                if (array > 1 or data.startswith(b"*")) and self._proxy.due("cut-reply"):
                    self._client.sendall(data[: array + (len(data) - array) // 2])
                    self.close()
                    return
            reader.feed(data)
            answered = 0
            while reader.gets() is not False:
                answered += 1
            with self._lock:  # before they arrive: who sends a command at once is not blind
                self._unanswered -= answered
                if not self._unanswered:
                    self._transaction = False
            self._client.sendall(data)
        self.close()
