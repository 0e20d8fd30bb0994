"""A proxy in front of a server, which passes so many bytes of a request or an answer and then cuts the connection."""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self


class Cutting:
    """`cuts`: for each connection in turn, bytes of its answers that pass before it is cut; later ones are whole.
    `dies`: the same of its requests; where there is none, requests arrive whole, so that what was asked was done."""

    def __init__(self, port: int, at: int = 0) -> None:
        """`at`: the proxy's own port; else any that is free."""
        self.port = port  # of the server; of the next one, when the test says so
        self.cuts: deque[int] = deque()
        self.dies: deque[int] = deque()
        self.cut = 0  # connections that were
        self._listener = socket.create_server(("127.0.0.1", at))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._listener, *self._open):
            _end(one)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.port))
                self._open += [client, server]
                left = self.cuts.popleft() if self.cuts else None
                asked = self.dies.popleft() if self.dies else None
                threading.Thread(target=self._pass, args=(client, server, asked), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, left), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if left is not None and len(data) >= left:
                    sink.sendall(data[:left])
                    self.cut += 1
                    break
                sink.sendall(data)
                left = None if left is None else left - len(data)
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
