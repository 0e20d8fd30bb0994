"""Of the worker's side of the broker: entries read again by id, those that no clock gave one, and what idle streams
leave behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.broker import scripts
from service.broker.packing import Keep
from service.broker.wire import Argument, pack
from service.codec import AHEAD_MS, number_id
from service.errors import Fenced
from service.keys import ShardKeys
from service.ports import Expelled, Idle

EXPELLED: Final = (1024, 16 << 20)  # entries and bytes that one call takes out of a log

# KEYS streams pos.  ARGV least ms, how long they were silent (ms, by the server's clock), how many to skip and how many
# at most.
# Returns stream, ms of its last entry, position in turn, the longest silent first. Changes nothing.
IDLE: Final = """
local now = redis.call('TIME')
local until_ms = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[2]
local found = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], until_ms, 'WITHSCORES', 'LIMIT', ARGV[3], ARGV[4])
local answer = {}
for i = 1, #found, 2 do
  answer[#answer + 1] = found[i]
  answer[#answer + 1] = found[i + 1]
  answer[#answer + 1] = redis.call('HGET', KEYS[2], found[i]) or ''
end
return answer
"""

# KEYS head pos streams drops restarts, keys that go.  ARGV the head as we know it, streams whose position goes.
# Returns 1 when the shard is ours and they are gone. A foreign value over the counts keeps nothing else from going.
REMOVE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 6, #KEYS do redis.call('UNLINK', KEYS[i]) end
for i = 2, #ARGV do
  redis.call('HDEL', KEYS[2], ARGV[i])
  redis.call('ZREM', KEYS[3], ARGV[i])
  for counts = 4, 5 do redis.pcall('ZREM', KEYS[counts], ARGV[i]) end
end
return 1
"""


class Housekeeping(ABC):
    """The part of RedisLog that is off the hot path."""

    _keys: list[ShardKeys]
    _keep: Keep

    @abstractmethod
    def _ask_all(self, commands: Sequence[bytes], foreign: bool = False) -> list[Any]: ...

    def fetch(self, wanted: Mapping[int, Sequence[int]]) -> dict[int, list[tuple[bytes, list[bytes]] | None]]:
        commands: list[tuple[Argument, ...]] = []
        for shard, numbers in wanted.items():
            for entry_id in map(number_id, numbers):
                commands.append(("XRANGE", self._keys[shard].inbox, entry_id, entry_id))
        replies = iter(self._ask_all([pack(command) for command in commands]))
        return {
            shard: [tuple(found[0]) if (found := next(replies)) else None for _ in numbers]
            for shard, numbers in wanted.items()
        }

    def idle(self, shard: int, after_ms: int, silent_ms: int, limit: int, skip: int = 0) -> list[Idle]:
        keys = self._keys[shard]
        found = self._ask(("EVAL", IDLE, 2, keys.streams, keys.pos, after_ms, silent_ms, skip, limit))[0] or []
        return [
            Idle(name.decode(), int(float(score)), position or None)
            for name, score, position in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]

    def remove(self, shard: int, head: bytes, records: Sequence[str], streams: Sequence[str]) -> bool:
        keys = self._keys[shard]
        gone = [keys.out(name) for name in (*records, *streams)] + [keys.state(name) for name in streams]
        named = (keys.head, keys.pos, keys.streams, keys.drops, keys.restarts, *gone)
        (reply,) = self._ask(("EVAL", REMOVE, len(named), *named, head, *streams))
        return bool(reply == 1)

    def expel(self, shard: int, head: bytes) -> Expelled:
        keys, keep = self._keys[shard], self._keep
        low, expel = head.split(b" ")[3], ("EVAL", scripts.EXPEL, 3, keys.head, keys.inbox, keys.dead)
        found, overflow = self._ask_all(
            [
                pack((*expel, head, low, AHEAD_MS, *EXPELLED, 0, low, low)),
                pack(("EVAL", scripts.BOUND_DEAD, 1, keys.dead, keep.dead, keep.dead_bytes)),
            ]
        )
        if found is None:
            raise Fenced(f"shard {shard}: head is not what this worker wrote")
        now_ms, refused, moved, first, more = found
        return Expelled(now_ms, refused, moved, first.decode(), more == 1, overflow)

    def known(self, shards: Sequence[int]) -> int:
        return sum(count or 0 for count in self._ask(*(("ZCARD", self._keys[shard].streams) for shard in shards)))

    def _ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """What somebody else wrote over a key can wait for the next commit, which repairs it."""
        return self._ask_all([pack(command) for command in commands], foreign=True)
