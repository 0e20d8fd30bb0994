"""Bridges, names and published ports for namespaces.py: all inside one network namespace that nobody else sees."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_BRIDGE = "10.200.{}.1"
_ANSWER, _NO_SUCH_NAME = 0x8180, 3  # flags of RFC 1035
Result = TypeVar("Result")


class _Address(NamedTuple):
    pid: int
    service: str
    network: int
    ip: str


class Network:
    """One bridge a network. Containers reach those they share a network with, by address and by service name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}
        self._addresses: list[_Address] = []
        self._given = 1
        self._switch = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(b"\n")
        self._switch.stdin.flush()
        self._switch.stdout.read(1)  # it is there
        lines = ["link set lo up"]
        for number in self._numbers.values():
            address = _BRIDGE.format(number)
            lines += [
                f"link add br{number} type bridge",
                f"addr add {address}/24 dev br{number}",
                f"link set br{number} up",
            ]
        self._ip(self._switch.pid, lines)
        self._sockets: list[socket.socket] = []
        self._closing = threading.Event()
        names_of = [(number, self._inside(lambda n=number: _listen_for_names(n))) for number in self._numbers.values()]
        self._sockets += [listener for _, listener in names_of]
        self._threads = [threading.Thread(target=self._answer_names, args=(dict(names_of),), daemon=True)]
        self._threads[0].start()

    def resolver(self, networks: Sequence[str]) -> str:
        """An /etc/resolv.conf."""
        return f"nameserver {_BRIDGE.format(self._numbers[networks[0]])}\noptions timeout:2 attempts:3\n"

    def attach(self, pid: int, service: str, networks: Sequence[str]) -> None:
        """Gives a process that is alone in its network namespace an interface in each of these networks."""
        outside, inside = [], ["link set lo up"]
        for name in networks:
            number = self._numbers[name]
            self._given += 1
            ip, veth = f"10.200.{number}.{self._given}", f"v{self._given}"
            outside += [
                f"link add {veth} type veth peer name eth{number} netns {pid}",
                f"link set {veth} master br{number}",
                f"link set {veth} up",
            ]
            inside += [f"addr add {ip}/24 dev eth{number}", f"link set eth{number} up"]
            self._addresses.append(_Address(pid, service, number, ip))
        self._ip(self._switch.pid, outside)
        self._ip(pid, inside)

    def forget(self, pid: int) -> None:
        self._addresses = [address for address in self._addresses if address.pid != pid]

    def publish(self, host: str, service: str, port: int) -> int:
        """A port of this machine from which every connection goes on to a container of the service."""
        listener = socket.create_server((host, 0))
        listener.settimeout(0.2)
        self._sockets.append(listener)
        thread = threading.Thread(target=self._forward, args=(listener, service, port), daemon=True)
        self._threads.append(thread)
        thread.start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(60)
        for one in self._sockets:
            one.close()
        self._switch.communicate()

    # --- names ---------------------------------------------------------------------------------------------------

    def _answer_names(self, listeners: dict[int, socket.socket]) -> None:
        """A name server in few words: A records of services, to those who share a network with them."""
        while not self._closing.is_set():
            for ready in select.select(list(listeners.values()), [], [], 0.2)[0]:
                question, asker = ready.recvfrom(512)
                with contextlib.suppress(OSError):
                    ready.sendto(self._answer(question, asker[0]), asker)

    def _answer(self, question: bytes, asker: str) -> bytes:
        words, at = [], 12
        while length := question[at]:
            words.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        end = at + 5
        (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
        pid = next((address.pid for address in self._addresses if address.ip == asker), None)
        shared = {address.network for address in self._addresses if address.pid == pid}
        found = [a.ip for a in self._addresses if a.service == ".".join(words) and a.network in shared]
        ips = found if kind == 1 else []
        head = question[:2] + struct.pack("!HHHHH", _ANSWER | (0 if found else _NO_SUCH_NAME), 1, len(ips), 0, 0)
        records = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(ip) for ip in ips]
        return head + question[12:end] + b"".join(records)

    # --- published ports -----------------------------------------------------------------------------------------

    def _forward(self, listener: socket.socket, service: str, port: int) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                client = listener.accept()[0]
                threading.Thread(target=self._serve, args=(client, service, port), daemon=True).start()

    def _serve(self, client: socket.socket, service: str, port: int) -> None:
        with client:
            try:
                ip = next(address.ip for address in self._addresses if address.service == service)
                server = self._inside(lambda: socket.create_connection((ip, port), 5))
            except (OSError, StopIteration):
                return
            with server:
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()

    def _inside(self, make: Callable[[], Result]) -> Result:
        """What `make` returns, called in the bridges' namespace: a socket stays in the one where it was made."""
        made: list[Any] = []

        def run() -> None:
            with Path(f"/proc/{self._switch.pid}/ns/net").open("rb") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:  # of this thread alone
                    made.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
                    return
            try:
                made.append(make())
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]  # type: ignore[no-any-return]

    @staticmethod
    def _ip(pid: int, lines: Sequence[str]) -> None:
        command = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"]
        subprocess.run(command, input="\n".join(lines).encode(), check=True, capture_output=True)


def _listen_for_names(number: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((_BRIDGE.format(number), 53))
    return listener


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        source.settimeout(None)
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
