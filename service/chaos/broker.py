"""A broker to be ill-treated: killed, robbed of its log's tail, emptied, starved of memory."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.embedded import EmbeddedBroker

MOST_LOST: Final = 3000  # commands
STARVED_SHARE: Final = 0.9  # of what is used: nothing more fits
_DEATH_S: Final = 10.0


class Torn(NamedTuple):
    """What a cut of the append-only file took away."""

    commands: int
    bytes: int


class ChaosBroker:
    """An embedded broker on a folder of its own. Called from the main thread: the broker is tied to it."""

    def __init__(self, home: Path, binary: str | None = None) -> None:
        self.home = home
        self._embedded = EmbeddedBroker(home, binary)
        self._embedded.start()
        self.path = Path(self._embedded.url.removeprefix("unix://"))
        self._seen = Path(), 0  # a log, and where a command of it ends: longer ones are not read from their beginning
        self._client: redis.Redis | None = None
        self.lives: list[Path] = []  # the data of brokers that were replaced by an empty one

    def client(self) -> redis.Redis:
        return connect(self.path)

    def asked(self) -> redis.Redis:
        """A client that is kept, until `hang_up`."""
        if self._client is None:
            self._client = self.client()
        return self._client

    def hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def stop(self) -> None:
        self.hang_up()
        self._embedded.stop()

    def kill(self) -> None:
        """SIGKILL: what the kernel had taken is on disk, nothing else is said to anybody."""
        self.hang_up()
        pid = self._embedded.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _DEATH_S
        while self._embedded.alive() and time.monotonic() < deadline:
            time.sleep(0.002)

    def start(self) -> None:
        """Again, on the data that are there."""
        self._embedded.start()

    def tear(self, chance: random.Random) -> Torn:
        """While it is dead: its log loses its last commands, and half the time a few bytes of the one before, too."""
        path = log_of(self.home)
        before = path.stat().st_size
        known, offset = self._seen
        if known != path or offset > before:  # it was rewritten, or robbed of more
            offset = 0
        with path.open("rb") as file:
            file.seek(offset)
            ends = [offset + end for end in command_ends(file.read())]
        lost = min(len(ends) - 1, chance.randint(1, max(1, min(len(ends) // 5, MOST_LOST))))
        if lost < 1:
            return Torn(0, 0)
        end = ends[-1 - lost]
        safe = len(ends) - 1 - lost - 2 * MOST_LOST  # a whole transaction goes when its end does
        self._seen = path, ends[safe] if safe > 0 else offset
        if chance.random() < 0.5 and not _inside_a_transaction(path.read_bytes()[:end]):
            end -= 3  # a command is 14 bytes at least
        os.truncate(path, end)
        return Torn(lost, before - end)

    def replace_by_an_empty_one(self) -> None:
        """While it is dead: its data are set aside, so that they can still be judged."""
        aside = self.home / f"life-{len(self.lives) + 1}"
        aside.mkdir()
        shutil.move(str(log_of(self.home).parent), aside / "appendonlydir")
        self.lives.append(aside)
        self._seen = Path(), 0

    def starve(self) -> None:
        """From now on nothing that needs memory is taken."""
        with self.client() as client:
            info: Any = client.info("memory")
            client.config_set("maxmemory", max(1, int(info["used_memory"] * STARVED_SHARE)))

    def feed(self) -> None:
        with self.client() as client:
            client.config_set("maxmemory", 0)


def connect(path: Path, timeout_s: float = 5.0) -> redis.Redis:
    """A client that repeats nothing."""
    return redis.Redis(unix_socket_path=str(path), socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def log_of(home: Path) -> Path:
    """The file that a broker on `home` appends to (Redis 7, Valkey)."""
    return max((home / "appendonlydir").glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))


def _inside_a_transaction(log: bytes) -> bool:
    """Cut inside a command of a transaction, Redis and Valkey keep the commands before it, and carry them out at the
    next start together with what was appended since: records without a position, by no fault of the worker's."""
    return log.count(b"$5\r\nMULTI\r\n") > log.count(b"$4\r\nEXEC\r\n")


def command_ends(log: bytes) -> list[int]:
    """Where each whole command of an append-only file ends.

    >>> command_ends(b"*1\\r\\n$4\\r\\nPING\\r\\n#TS:1\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n*1\\r\\n$4")
    [14, 35]
    """
    ends: list[int] = []
    at = 0
    while at < len(log):
        line_end = log.find(b"\r\n", at)
        if line_end < 0:
            return ends
        if log[at : at + 1] == b"#":  # an annotation
            at = line_end + 2
            continue
        words, at = int(log[at + 1 : line_end]), line_end + 2
        for _ in range(words):
            line_end = log.find(b"\r\n", at)
            if line_end < 0:
                return ends
            at = line_end + 2 + int(log[at + 1 : line_end]) + 2
        if at > len(log):
            return ends
        ends.append(at)
    return ends
