"""What clients may hold of this process before they have asked for anything: connections, time, memory.

One `Doors` a server. Its connections (http_door.py, websocket_door.py) say what they wait for; it bounds their number,
ends those that wait too long, and keeps what unfinished bodies take below a bound. Where there is no room, the
connection that has waited longest for its client is closed in favour of a new one: a client that sends what it has is
served, however many others keep silent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from collections import Counter as Counts
from dataclasses import dataclass
from typing import Final, Protocol

from service.errors import Crowded, RollcastError, TooSlow
from service.metrics import ApiMetrics

HOLD: Final = "rollcast.hold"  # extension of a request's scope: called with how many bytes more it holds
HELLO_BYTES: Final = 64 * 2**10  # of the first message of a WebSocket
LINGER_S: Final = 1.0  # how long a refused client may take to read its answer, while what it still sends is thrown away
LINGERING: Final = 256  # connections that may do so at once; others are cut
LOOKS: Final = 8  # in the shortest time limit
RETRY_S: Final = 1.0
_SLOW: Final = {"head": "no whole head of a request within {:g} s", "body": "nothing of the body came for {:g} s"}
REASONS: Final = (
    "head_bytes", "head_s", "body_s", "answer_s", "connections", "unfinished_bytes", "malformed", "message_bytes",
    "frames", "hello_s", "host", "origin", "encoding",
)  # fmt: skip


@dataclass(frozen=True)
class DoorLimits:
    """As settings.py says. `message_bytes`: of one WebSocket message."""

    head_bytes: int = 64 * 2**10
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 5.0
    answer_s: float = 30.0
    connections: int = 4096
    client_connections: int = 2048
    unfinished_bytes: int = 128 * 2**20
    message_bytes: int = 16 * 2**20


class Door(Protocol):
    """One connection, as `Doors` sees it."""

    peer: str  # the client's address; empty: none that could be counted

    def turn_away(self, error: RollcastError, reason: str) -> None:
        """Answers with `error` where the protocol allows it, and closes."""

    def paused(self) -> bool:
        """Nothing is read from it, by our choice: it is not the client that is waited for."""

    def unsent(self) -> int:
        """Bytes of answers that the client has not read."""

    def cut(self) -> None:
        """Closes at once; what was not sent is lost."""


class Doors:
    """Written only by the event loop."""

    def __init__(self, limits: DoorLimits, metrics: ApiMetrics) -> None:
        self.limits = limits
        self.told = metrics.problems
        self._refused = {reason: metrics.requests_refused.labels(reason) for reason in REASONS}
        self._open, self._unfinished_shown = metrics.connections, metrics.unfinished_bytes
        self._crowded = metrics.turned_away.labels(Crowded.reason)
        self._doors: dict[Door, None] = {}
        self._clients: Counts[str] = Counts()
        self._waiting: dict[str, dict[Door, float]] = {
            what: {} for what in ("head", "idle", "body")
        }  # since, oldest first
        self._waits: dict[Door, str] = {}
        self._held: dict[Door, int] = {}  # bytes; those that began first come first
        self._whole: set[Door] = set()  # of these: what they hold is complete, and is being answered
        self._bytes = 0
        self._unread: dict[Door, tuple[int, float]] = {}  # answers: bytes, and since when they are that many
        self._leaving: dict[Door, float] = {}  # when it is cut
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Begins to look after time limits, in the running loop."""
        limits = self.limits
        every_s = min(limits.head_s, limits.body_s, limits.answer_s, LINGER_S) / LOOKS
        loop = asyncio.get_running_loop()

        def look(expected: float, calm: bool) -> None:
            """After a pause of the loop, what has come meanwhile is read before anybody is found too slow."""
            now = loop.time()
            if on_time := now < expected + every_s or not calm:
                self._look(now)
            self._timer = loop.call_later(every_s, look, now + every_s, on_time)

        look(loop.time(), True)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # --- connections ---------------------------------------------------------------------------------------------

    def admit(self, door: Door) -> bool:
        """A new connection; False: there is no room, and the caller must turn it away."""
        limits = self.limits
        if limits.client_connections and door.peer and self._clients[door.peer] >= limits.client_connections:
            room = self._make_room(door.peer)
        else:
            room = not limits.connections or len(self._doors) < limits.connections or self._make_room(None)
        if room:
            self.enter(door)
        return room

    def enter(self, door: Door) -> None:
        """One that has its place already: a request that became a WebSocket."""
        self._doors[door] = None
        self._clients[door.peer] += 1
        self._open.set(len(self._doors))

    def leave(self, door: Door) -> None:
        """It is closed, or another takes its place."""
        self.waits(door, None)
        self.holds(door, 0)
        self._leaving.pop(door, None)
        self._unread.pop(door, None)
        if door in self._doors:
            del self._doors[door]
            self._clients[door.peer] -= 1
            if not self._clients[door.peer]:
                del self._clients[door.peer]
            self._open.set(len(self._doors))

    def refused(self, reason: str) -> None:
        self._refused[reason].inc()

    def _make_room(self, peer: str | None) -> bool:
        """Closes the connection that has waited longest for its client, of `peer` where one is given. Those that never
        asked for anything go first, then those between two requests, then those in a body."""
        for what in ("head", "idle", "body"):
            for door in self._waiting[what]:
                if peer is None or door.peer == peer:
                    door.turn_away(Crowded("too many connections: this one waited longest", RETRY_S), "connections")
                    return True
        return False

    # --- time ----------------------------------------------------------------------------------------------------

    def waits(self, door: Door, what: str | None, *, again: bool = False) -> None:
        """`door` waits for its client: for a "head", for another request ("idle"), for more of a "body"; None: the
        client waits for us. `again`: something came, its time begins anew."""
        before = self._waits.get(door)
        if door not in self._doors or (before == what and not again):
            return
        if before is not None:
            del self._waiting[before][door]
        if what is None:
            self._waits.pop(door, None)
        else:
            self._waits[door] = what
            self._waiting[what][door] = asyncio.get_running_loop().time()

    def leaves(self, door: Door) -> None:
        """It was answered for the last time and has no place any more: it is cut unless its client closes it soon."""
        self.leave(door)
        self._leaving[door] = asyncio.get_running_loop().time() + LINGER_S
        if len(self._leaving) > LINGERING:
            self._leaving_first().cut()

    def answered(self, door: Door) -> None:
        """All of an answer was handed over. What the client has not read of it is bounded in time and in bytes."""
        if size := door.unsent():
            self._unread[door] = size, asyncio.get_running_loop().time()
            while sum(size for size, _ in self._unread.values()) > self.limits.unfinished_bytes:
                self._cut_unread(next(iter(self._unread)))

    def _leaving_first(self) -> Door:
        door = next(iter(self._leaving))
        del self._leaving[door]
        return door

    def _cut_unread(self, door: Door) -> None:
        del self._unread[door]
        self.refused("answer_s")
        door.cut()

    def _look(self, now: float) -> None:
        for what, limit_s in (("head", self.limits.head_s), ("body", self.limits.body_s)):
            for door in _before(self._waiting[what], now - limit_s):
                if door.paused():
                    self.waits(door, what, again=True)
                else:
                    door.turn_away(TooSlow(_SLOW[what].format(limit_s)), f"{what}_s")
        while self._leaving and next(iter(self._leaving.values())) <= now:
            self._leaving_first().cut()
        for door, (size, since) in list(self._unread.items()):
            unsent = door.unsent()
            if not unsent:
                del self._unread[door]
            elif unsent < size:
                self._unread[door] = unsent, now
            elif now - since >= self.limits.answer_s:
                self._cut_unread(door)

    # --- memory --------------------------------------------------------------------------------------------------

    def holds(self, door: Door, size: int, *, whole: bool = False) -> None:
        """How many bytes of the client's are in memory for `door`. `whole`: nothing more of them is to come, they are
        being answered. Unfinished ones that began first are turned away where the sum is above its bound. What is said
        late of a connection that has left is not counted: nothing would take it back."""
        if door not in self._doors:
            return
        before = self._held.get(door, 0)
        self._bytes += size - before
        if size:
            self._held[door] = size
        elif before:
            del self._held[door]
        if size and whole:
            self._whole.add(door)
        else:
            self._whole.discard(door)
        if size > before and self._bytes > self.limits.unfinished_bytes:
            self._let_go()
        self._unfinished_shown.set(self._bytes)

    def check_room(self) -> None:
        """For who holds more than came. Raises Crowded where turning unfinished bodies away made no room."""
        if self._bytes > self.limits.unfinished_bytes:
            self._crowded.inc()
            self.refused("unfinished_bytes")
            raise Crowded(f"bodies take more than {self.limits.unfinished_bytes} bytes", RETRY_S)

    def _let_go(self) -> None:
        for door in list(self._held):
            if self._bytes <= self.limits.unfinished_bytes:
                return
            if door not in self._whole:
                self._crowded.inc()
                self.holds(door, 0)
                told = f"unfinished bodies take more than {self.limits.unfinished_bytes} bytes: this one began first"
                door.turn_away(Crowded(told, RETRY_S), "unfinished_bytes")


def _before(since: dict[Door, float], limit: float) -> list[Door]:
    """Of doors in the order of their times, those up to `limit`."""
    return list(itertools.takewhile(lambda door: since[door] <= limit, since))


def client_of(peername: object) -> str:
    """By what a client is counted: its IPv4 address, or the network of its IPv6 address, in which it may take any.

    >>> client_of(("192.0.2.7", 4711)), client_of(("2001:db8:0:1::7", 4711, 0, 0)), client_of(("::ffff:192.0.2.7", 1))
    ('192.0.2.7', '2001:db8:0:1::/64', '192.0.2.7')
    >>> client_of("")  # a Unix socket
    ''
    """
    if not isinstance(peername, tuple):
        return ""
    address = ipaddress.ip_address(peername[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
