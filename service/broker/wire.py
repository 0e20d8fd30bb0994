"""One connection to the broker, by hand: packed commands out, replies in.

redis-py opens it (URL, password, TLS); hiredis packs and parses. Nothing is ever retried here: a doubled command
would double an entry or a commit. After a doubt the connection is closed, never reused.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry

from service.errors import BrokerAway
from service.urls import safe_url, without_password

Argument = bytes | str | int
_RECEIVE_BYTES = 1 << 18


class Wire:
    """A connected socket and its parser. `timeout_s` bounds every silence: what is large may take longer in all."""

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        try:
            pool = ConnectionPool.from_url(
                url,
                retry=Retry(NoBackoff(), 0),
                retry_on_error=[],
                socket_connect_timeout=timeout_s,
                socket_timeout=timeout_s,
                protocol=2,
            )
            connection: Any = pool.make_connection()
            connection.connect()
        except (redis.RedisError, OSError, ValueError) as error:
            raise BrokerAway(f"broker {safe_url(url)}: {without_password(str(error), url)}") from None
        self._connection = connection
        self.retry: Retry = connection.retry  # asserted by a test: it must never repeat a command
        self._socket: socket.socket = connection._sock  # redis-py has no public way to it
        self._reader = hiredis.Reader()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, packed: bytes) -> None:
        """Raises BrokerAway when the connection is gone; how much arrived is then unknown."""
        try:
            self._socket.settimeout(self._timeout_s)
            left = memoryview(packed)
            while left:
                left = left[self._socket.send(left) :]
        except OSError as error:
            raise BrokerAway(f"connection to the broker lost while sending: {error}") from error

    def reply(self) -> Any:
        """The next reply; an error reply is returned as hiredis.ReplyError. Raises BrokerAway when nothing comes."""
        while (reply := self.parsed()) is False:
            if not self.feed(self._timeout_s):
                raise BrokerAway(f"no answer from the broker within {self._timeout_s:g} s")
        return reply

    def parsed(self) -> Any:
        """A reply that is already complete here, or False. Raises BrokerAway for what is no reply at all."""
        try:
            return self._reader.gets()
        except hiredis.HiredisError as error:
            raise BrokerAway(f"the broker's answer cannot be read: {error}") from error

    def feed(self, timeout_s: float) -> bool:
        """Receives once. Returns False when nothing comes in time."""
        try:
            self._socket.settimeout(timeout_s)
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return False
        except OSError as error:
            raise BrokerAway(f"connection to the broker lost: {error}") from error
        if not data:
            raise BrokerAway("the broker closed the connection")
        self._reader.feed(data)
        return True

    def call(self, *arguments: Argument) -> Any:
        """One command and its reply. Raises hiredis.ReplyError for an error reply."""
        self.send(pack(arguments))
        reply = self.reply()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        self._connection.disconnect()


pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def check_url(url: str) -> None:
    """Raises ValueError, which does not repeat the URL, when no connection can be made of it."""
    try:
        ConnectionPool.from_url(url).make_connection()
    except Exception:  # whatever the client library makes of a wrong port, option or bracket
        raise ValueError(
            "expected SCHEME://USER:PASSWORD@HOST:PORT/NUMBER or unix://USER:PASSWORD@/PATH, "
            "in which special characters of a password are written as %40 (@), %2F (/), %3A (:)"
        ) from None
