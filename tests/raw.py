"""HTTP and WebSockets byte by byte, as no library of a client would send them."""

from __future__ import annotations

import base64
import os
import socket
import struct

HOST = b"Host: 127.0.0.1\r\n"
TEXT, BINARY, CONT, CLOSE, PING = 1, 2, 0, 8, 9  # opcodes


class Raw:
    """A connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> bool:
        """False when the server has ended it before."""
        try:
            for part in parts:
                self.socket.sendall(part)
        except OSError:
            return False
        return True

    def rest(self) -> bytes:
        """Until the server closes."""
        found = b""
        try:
            while data := self.socket.recv(1 << 16):
                found += data
        except ConnectionResetError:
            pass
        return found

    def reset(self) -> None:
        """Goes away at once, as a process that is killed does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def upgrade(self, *lines: bytes, path: bytes = b"/v1/ws") -> bytes:
        key = b"Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\nSec-WebSocket-Version: 13\r\n"
        wanted = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + key + b"".join(line + b"\r\n" for line in lines)
        self.send(b"GET %b HTTP/1.1\r\n" % path + HOST + wanted + b"\r\n")
        head = b""
        while b"\r\n\r\n" not in head and (data := self.socket.recv(1)):
            head += data
        return head

    def closed_with(self) -> int:
        """The code of the close frame that ends a WebSocket."""
        data, at = b"", 0
        while True:
            if len(data) >= at + 4:
                size, head = data[at + 1] & 127, 2
                if size == 126:
                    size, head = struct.unpack_from(">H", data, at + 2)[0], 4
                if data[at] & 15 == CLOSE:
                    return int(struct.unpack_from(">H", data, at + head)[0])
                if len(data) >= at + head + size:
                    at += head + size
                    continue
            more = self.socket.recv(1 << 16)
            assert more, f"no close frame in {data!r:.200}"
            data += more


def frame(opcode: int, payload: bytes, fin: bool = True, said: int | None = None) -> bytes:
    """As a client sends it: masked (by zeros). `said`: another length than the payload's."""
    size = len(payload) if said is None else said
    head = bytes([128 * fin | opcode])
    if size < 126:
        head += bytes([128 | size])
    elif size < 65_536:
        head += b"\xfe" + struct.pack(">H", size)
    else:
        head += b"\xff" + struct.pack(">Q", size)
    return head + bytes(4) + payload


HELLO = frame(TEXT, b'{"type":"hello"}')
