"""Decoding in a process that can be killed: OpenCV cannot be interrupted, and a picture may cost more than it says.

`DecoderProcess` is the worker's side: one child that decodes one picture at a time. Run as a program, this file is the
child. They talk over one socket, the child's standard input:

    request   length of the spec, length of the picture, max_pixels, seconds, bytes (as _REQUEST); spec (JSON); picture
    answer    b"P", length, pixels (H, W, C) uint8    or    b"E", length, JSON of [reason, detail]

The child bounds itself by the system's own limits before each picture: CPU time (RLIMIT_CPU; the system ends it) and
memory (RLIMIT_AS; an allocation fails). The worker's side waits no longer than WALL times as long, and kills it.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from service.contracts import FrameInput
from service.errors import BadImage, EntryError, TooLarge, UnsupportedMedia
from service.processes import tied

WALL: Final = 4  # times the CPU time: a decoder may have to share its CPU with others
START_S: Final = 60.0  # that a child may take to be ready
_LAST_S: Final = 5.0  # that one whose socket broke may take to end
NICE: Final = 5  # stepping, and small pictures, go first
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy's pools would only take memory
_REQUEST: Final = struct.Struct("<IIQdQ")
_ANSWER: Final = struct.Struct("<cI")
_READY: Final = b"\0"
_ERRORS: Final = {error.reason: error for error in (BadImage, TooLarge, UnsupportedMedia)}


class DecoderDied(Exception):
    """It did not answer, and is gone; the text says why."""


class DecoderProcess:
    """One child. Used by one thread, which starts it: where Linux ties the two, the child ends with that thread."""

    def __init__(self) -> None:
        """Raises OSError or DecoderDied when it cannot be started."""
        self._socket, theirs = socket.socketpair()
        variables = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(_import_path())}
        command = tied([sys.executable, "-P", "-m", "service.unpacking"], signal.SIGKILL)
        try:
            with theirs:
                self._process = subprocess.Popen(  # a decoder's own lines have no place between those of our log
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables
                )
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(START_S)
        with contextlib.suppress(TimeoutError):
            if self._received(1) == _READY:
                return
        self.close()
        raise DecoderDied("it did not start")

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def decode(
        self, data: bytes, spec: FrameInput, *, max_pixels: int, limit_s: float, memory_bytes: int
    ) -> np.ndarray:
        """As `decode.decode_frame`, whose errors it raises. Raises DecoderDied after which it is of no more use."""
        described = msgspec.json.encode(spec)
        self._socket.settimeout(WALL * limit_s)
        try:
            head = _REQUEST.pack(len(described), len(data), max_pixels, limit_s, memory_bytes)
            self._socket.sendall(head + described)
            self._socket.sendall(data)
        except OSError as error:
            raise self._died(limit_s, error) from None
        kind, length = _ANSWER.unpack(self._answer(_ANSWER.size, limit_s))
        body = self._answer(length, limit_s)
        if kind == b"P":
            return np.frombuffer(bytearray(body), np.uint8).reshape(spec.height, spec.width, spec.channels)
        reason, detail = msgspec.json.decode(body)
        raise _ERRORS.get(reason, EntryError)(detail)

    def lives(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """May be called by another thread than the one that waits for an answer, which then raises DecoderDied."""
        self._process.kill()

    def close(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _answer(self, size: int, limit_s: float) -> bytes:
        try:
            found = self._received(size)
        except OSError as error:
            raise self._died(limit_s, error) from None
        if len(found) < size:
            raise self._died(limit_s, None)
        return found

    def _received(self, size: int) -> bytes:
        """Fewer bytes when it has ended. Raises OSError, TimeoutError among them."""
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(min(size - len(parts), 1 << 20))
            except ConnectionResetError:
                break
            if not part:
                break
            parts += part
        return bytes(parts)

    def _died(self, limit_s: float, error: OSError | None) -> DecoderDied:
        if isinstance(error, TimeoutError):
            self.close()
            return DecoderDied(f"it took longer than {WALL * limit_s:g} s")
        try:
            status = self._process.wait(_LAST_S)
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        if status == -signal.SIGXCPU:
            return DecoderDied(f"it took more than {limit_s:g} s of CPU")
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return DecoderDied(f"the decoder ended by {name}")


def _import_path() -> list[str]:
    """Where this package lies, and what the environment adds."""
    home = str(Path(__file__).parents[1])
    return [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


# --- the child ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Answers requests until the socket ends."""
    from service.decode import decode_frame  # the worker's side has it already; the child pays for it here, once

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what a terminal sends to all at once is the worker's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one that is ended leaves nothing behind
    with contextlib.suppress(OSError):
        os.nice(NICE)
    line = socket.socket(fileno=os.dup(0))
    line.sendall(_READY)
    requests = line.makefile("rb", 1 << 20)
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        spec_size, size, max_pixels, limit_s, memory_bytes = _REQUEST.unpack(head)
        spec = msgspec.json.decode(requests.read(spec_size), type=FrameInput)
        data = requests.read(size)
        kind, body = b"P", b""
        try:
            with _bounded(limit_s, memory_bytes):
                body = decode_frame(data, spec, max_pixels=max_pixels).tobytes()
        except MemoryError:
            kind, body = b"E", _described(BadImage("decoding failed"), memory_bytes)
        except EntryError as error:
            kind, body = b"E", _described(error, memory_bytes)
        except Exception as error:  # whatever a decoder does to itself, it is this picture's fault alone
            kind, body = b"E", _described(BadImage(f"decoding failed: {error}"), memory_bytes)
        line.sendall(_ANSWER.pack(kind, len(body)) + body)


def _described(error: EntryError, memory_bytes: int) -> bytes:
    """A decoder that gets no more memory says only that it failed: so the bound is named."""
    bound = f"; it may take {memory_bytes:,} bytes of memory" if isinstance(error, BadImage) else ""
    return msgspec.json.encode([error.reason, error.detail + bound])


@contextlib.contextmanager
def _bounded(limit_s: float, memory_bytes: int) -> Iterator[None]:
    """The system's limits, for what comes now; the time is rounded up to a second."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_s = usage.ru_utime + usage.ru_stime
    _set_limit(resource.RLIMIT_CPU, math.ceil(used_s + limit_s))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _set_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)
    try:
        yield
    finally:
        _set_limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        _set_limit(resource.RLIMIT_CPU, resource.RLIM_INFINITY)


def _set_limit(what: int, limit: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > hard):
        limit = hard
    resource.setrlimit(what, (limit, hard))


if __name__ == "__main__":
    main()
