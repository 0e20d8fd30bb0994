"""`rollcast doctor --repair`: shards that stand at ids which no clock gives, or whose head cannot be read.

`look` only reads; `mend` needs the rights of a worker. It takes the shard's lease, so that nobody works on the shard
meanwhile, and rewrites its head, so that whoever did cannot commit any more. The head is put right last: where a repair
is cut short, the shard still waits for one, and the next does the rest.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from service.broker import scripts
from service.broker.wire import Argument, Wire, pack
from service.codec import (
    AHEAD_MS,
    NOWHERE,
    Head,
    Position,
    id_number,
    last_honest,
    number_id,
    read_head,
    read_position,
)
from service.doctor.reading import TIMEOUT_S, Reading, text
from service.errors import BrokerAway
from service.keys import ShardKeys, meta_key

LEASE_MS: Final = 60_000  # of a repair; prolonged as it goes on
_SCAN: Final = 500

# KEYS owner head.  ARGV owner's value, lease (ms), the head as it was read or nothing, the head to write.
# Returns 1 when the shard is this repair's: nobody else acquires it, and who had it commits nothing any more.
SEIZE: Final = """
redis.call('PERSIST', KEYS[2])
local head = redis.pcall('GET', KEYS[2])
if head and type(head) ~= 'string' then head = '' end
if (head or '') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], ARGV[4])
return 1
"""

# KEYS owner head pos streams state out.  ARGV 1 owner's value  2 lease (ms)  3 our head  4 stream  5 its new last id
# 6 the ms of that  7 the last honest id  8 seq  9 its id  10 `stepped`; nothing: the state goes.
# Returns 1; 0 when the shard is not this repair's any more.
MEND_STREAM: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local good = {}
if redis.call('TYPE', KEYS[6]).ok == 'stream' then good = redis.call('XRANGE', KEYS[6], '-', ARGV[7]) end
redis.call('DEL', KEYS[6])
for _, item in ipairs(good) do redis.call('XADD', KEYS[6], item[1], unpack(item[2])) end
local stepped = ARGV[10]
if stepped == '' then
  redis.call('DEL', KEYS[5])
  stepped = ARGV[5]
end
local record = #good > 0 and good[#good][1] or '0-0'
redis.call('HSET', KEYS[3], ARGV[4], table.concat({ARGV[5], record, ARGV[8], ARGV[9], stepped}, ' '))
redis.call('ZADD', KEYS[4], ARGV[6], ARGV[4])
return 1
"""

# KEYS owner head suspect.  ARGV owner's value, our head, the head from which the shard goes on.  Returns as above.
FINISH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('DEL', KEYS[3], KEYS[1])
return 1
"""


class Harm(NamedTuple):
    """What is wrong with one shard."""

    shard: int
    said: bytes  # its head, as it was read
    head: Head | None  # None: it cannot be read
    bad_low: bool  # the head stands beyond the clock, or cannot be read
    last: int  # the last id that the log gave
    streams: dict[str, Position]  # those whose position lies beyond the clock
    newest: int  # the highest honest id: of the log, and of the positions of all other streams
    honest: int  # the last id that the broker's clock may have given

    def __str__(self) -> str:
        found = []
        if self.bad_low and self.head is None:
            found.append("its head cannot be read")
        if self.bad_low and self.head is not None:
            found.append(f"its head stands at {number_id(self.head.low).decode()}")
        if self.last > self.honest:
            found.append(f"its log's last id is {number_id(self.last).decode()}")
        if self.streams:
            found.append(f"the positions of {len(self.streams)} streams lie beyond the clock")
        return f"shard {self.shard}: {', '.join(found)}"

    @property
    def plan(self) -> str:
        """What `mend` will do."""
        steps = [
            f"new entries get ids of now, above {number_id(self.newest).decode()}",
            "what lies beyond is quarantined",
        ]
        if self.streams:
            steps.append(f"{len(self.streams)} streams lose what they recorded beyond, and a state that was made there")
        return f"shard {self.shard}: {'; '.join(steps)}"

    @property
    def low(self) -> int:
        """Up to here everything is finished."""
        if self.head is None:
            return 0  # nobody knows: positions tell what was finished
        return self.newest if self.bad_low else self.head.low


def look(reading: Reading, prefix: str, shards: int) -> list[Harm]:
    """The shards that wait for a repair. Changes nothing. Raises BrokerAway."""
    now_ms = int(reading.now_s * 1000)
    honest = last_honest(now_ms, 0)
    harms = []
    for shard in range(shards):
        keys = ShardKeys(prefix, shard)
        said, about = reading.ask(("GET", keys.head), ("XINFO", "STREAM", keys.inbox))
        fields = dict(zip(about[::2], about[1::2], strict=True)) if isinstance(about, list) else {}
        last = id_number(text(fields.get(b"last-generated-id")) or "0-0")
        foreign = isinstance(said, hiredis.ReplyError) and str(said).startswith("WRONGTYPE")
        value = said if isinstance(said, bytes) else b""
        head = read_head(value)
        streams: dict[str, Position] = {}
        newest = 0
        for name, stored in _fields(reading, keys.pos):
            position = read_position(stored) or NOWHERE
            if position.last > honest:
                streams[name.decode(errors="replace")] = position
            else:
                newest = max(newest, position.last)
        if last > honest or (head is None or head.low > honest or streams):
            (kept,) = reading.ask(("XREVRANGE", keys.inbox, number_id(honest), "-", "COUNT", 1))
            newest = max(newest, id_number(kept[0][0]) if isinstance(kept, list) and kept else 0)
        unread = head is None and (foreign or bool(value))
        bad_low = unread or (head is not None and head.low > honest)
        if bad_low or last > honest or streams:
            harms.append(Harm(shard, value, head, bad_low, last, streams, newest, honest))
    return harms


def _fields(reading: Reading, key: bytes) -> Iterator[tuple[bytes, bytes]]:
    cursor: bytes = b"0"
    while True:
        (said,) = reading.ask(("HSCAN", key, cursor, "COUNT", _SCAN))
        if not isinstance(said, list):
            return
        cursor, fields = said
        yield from zip(fields[::2], fields[1::2], strict=True)
        if cursor == b"0":
            return


def repair(url: str, prefix: str, tell: Callable[[str], None]) -> None:
    """Mends what `look` finds; tells before each step what it will do, and after it what it did. Raises BrokerAway."""
    reading = Reading(url)
    try:
        (there,) = reading.ask(("HGET", meta_key(prefix), "shards"))
        shards = text(there)
        harms = look(reading, prefix, int(shards) if shards.isdecimal() else 0)
    finally:
        reading.close()
    if not harms:
        tell("no shard waits for a repair")
        return
    mending = Repair(url, prefix)
    try:
        for harm in harms:
            tell(f"{harm}")
            tell(f"will do: {harm.plan}")
            tell(f"did: {mending.mend(harm)}")
    finally:
        mending.close()


class Repair:
    """Mends shards, one after the other. Raises BrokerAway; what it then left is found by the next `look`."""

    def __init__(self, url: str, prefix: str) -> None:
        self._wire, self._prefix = Wire(url, TIMEOUT_S), prefix

    def mend(self, harm: Harm) -> str:
        """Returns what was done, in words."""
        keys, token = ShardKeys(self._prefix, harm.shard), secrets.token_hex(8)
        owner = f"doctor-{secrets.token_hex(4)} {token}".encode()
        head = harm.head
        ours = head._replace(token=token).encode() if head is not None else b"unreadable %b" % token.encode()
        if not self._script(SEIZE, (keys.owner, keys.head), owner, LEASE_MS, harm.said, ours):
            return f"shard {harm.shard}: its head has changed meanwhile, nothing was done: ask again"
        for stream, position in harm.streams.items():
            if not self._mend_stream(keys, owner, ours, harm, stream, position):
                return _lost(harm)
        if head is not None and harm.bad_low:
            after = number_id(min(head.low + 1, (1 << 128) - 1))  # all up to its low is finished
            self._script(scripts.TRIM, (keys.head, keys.inbox), ours, after)
        counted = b"-" if head is None else number_id(head.low)
        newest = number_id(max(harm.low, harm.newest))
        found = self._script(
            scripts.EXPEL, (keys.head, keys.inbox, keys.dead, keys.dead_data, keys.dead_places),
            ours, number_id(harm.low), AHEAD_MS, 1 << 40, 1 << 50, 1, counted, newest, 1 << 40,
        )  # fmt: skip
        if found is None:
            return _lost(harm)
        life, n = (head.life, head.n) if head is not None else (secrets.token_hex(4), self._commits(keys))
        mended = Head(life, token, n, harm.low, 0, 0).encode()
        if not self._script(FINISH, (keys.owner, keys.head, keys.suspect), owner, ours, mended):
            return _lost(harm)
        return (
            f"shard {harm.shard}: mended; {found[1]} entries quarantined as bad_id, {found[2]} moved to ids of now, "
            f"{len(harm.streams)} streams put back"
        )

    def close(self) -> None:
        self._wire.close()

    def _mend_stream(
        self, keys: ShardKeys, owner: bytes, ours: bytes, harm: Harm, stream: str, position: Position
    ) -> bool:
        word = position.stepped.removesuffix(b"+")
        stays = word if not word[:1].isdigit() or id_number(word) <= harm.honest else b""
        seq = b"-" if position.seq is None else b"%d" % position.seq
        seq_id = position.seq_id
        if seq_id != b"-" and id_number(seq_id) > harm.honest:
            seq_id = number_id(harm.newest)
        done = self._script(
            MEND_STREAM, (keys.owner, keys.head, keys.pos, keys.streams, keys.state(stream), keys.out(stream)),
            owner, LEASE_MS, ours, stream, number_id(harm.newest), harm.newest >> 64, number_id(harm.honest), seq,
            seq_id, position.stepped if stays else b"",
        )  # fmt: skip
        return bool(done == 1)

    def _commits(self, keys: ShardKeys) -> int:
        """Of a shard whose head is lost: its feed goes on from its last item."""
        said = self._call("XREVRANGE", keys.feed, "+", "-", "COUNT", 1)
        return id_number(said[0][0]) >> 64 if said else 0

    def _script(self, script: str, keys: Sequence[bytes], *arguments: Argument) -> Any:
        return self._call("EVAL", script, len(keys), *keys, *arguments)

    def _call(self, *command: Argument) -> Any:
        self._wire.send(pack(command))
        reply = self._wire.reply()
        if isinstance(reply, hiredis.ReplyError):
            raise BrokerAway(f"the repair stopped: the broker answered {reply}")
        return reply


def _lost(harm: Harm) -> str:
    return f"shard {harm.shard}: the repair took too long, and another has the shard: ask again"
