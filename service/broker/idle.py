"""Of the worker's side of the broker: entries read again by id, those that no clock gave one, and what idle streams
leave behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.broker import quarantine, scripts
from service.broker.packing import BYTES_SHARE, Keep
from service.broker.wire import Argument, pack
from service.codec import AHEAD_MS, number_id
from service.errors import Fenced
from service.keys import ShardKeys
from service.ports import Expelled, Idle, Tidied

EXPELLED: Final = (1024, 16 << 20)  # entries and bytes that one call takes out of a log
ADOPTED: Final = 100  # settings looked at in one call
DEAD_TIDIED: Final = 100  # refused entries that leave quarantine for their age in one call

# KEYS streams pos open.  ARGV least ms, how long they were silent (ms, by the server's clock), how many to skip and how
# many at most, how long records are kept (ms).
# Returns stream, ms of its last entry, position, 1 where its last record is younger than that and 1 where labels are
# inside in turn, the longest silent first. Changes nothing.
IDLE: Final = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local until_ms = now_ms - ARGV[2]
local found = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], until_ms, 'WITHSCORES', 'LIMIT', ARGV[3], ARGV[4])
local answer = {}
for i = 1, #found, 2 do
  answer[#answer + 1] = found[i]
  answer[#answer + 1] = found[i + 1]
  local position = redis.call('HGET', KEYS[2], found[i]) or ''
  answer[#answer + 1] = position
  local answered = string.match(position, '^(%d+)%S* .* %d%S*$')  -- something came after the last stepped entry
  answer[#answer + 1] = answered and tonumber(answered) > now_ms - ARGV[5] and 1 or 0
  answer[#answer + 1] = type(redis.pcall('ZSCORE', KEYS[3], found[i])) == 'string' and 1 or 0
end
return answer
"""

# Api processes forget the models they remember of a shard when field `?` of its settings changes.
_CHANGED: Final = """
local function changed()
  local now = redis.call('TIME')
  redis.pcall('HSET', settings, '?', string.format('%.0f-0', now[1] * 1000 + math.floor(now[2] / 1000)))
end
"""

# KEYS head pos streams drops restarts settings configured, keys that go.  ARGV the head as we know it, streams whose
# position goes. What their first entry bound goes with it; what somebody set stays, dated by the stream's last entry:
# `configured` names those streams, and settings of more than a model are of such a one in any case.
# Returns 1 when the shard is ours and they are gone. A foreign value over a key keeps nothing else from going.
REMOVE: Final = (
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local settings, configured, bound = KEYS[6], KEYS[7], 0
"""
    + _CHANGED
    + """
for i = 8, #KEYS do redis.call('UNLINK', KEYS[i]) end
for i = 2, #ARGV do
  local name = ARGV[i]
  local last, said = redis.call('ZSCORE', KEYS[3], name), redis.pcall('HGET', settings, name)
  redis.call('HDEL', KEYS[2], name)
  redis.call('ZREM', KEYS[3], name)
  for counts = 4, 5 do redis.pcall('ZREM', KEYS[counts], name) end
  if type(said) == 'string' and name ~= '?' then
    local set = type(redis.pcall('ZSCORE', configured, name)) == 'string'
    if set or not string.match(said, '^{"model":"[^"]*"}$') then
      redis.pcall('ZADD', configured, last or 0, name)
    else
      bound = bound + redis.call('HDEL', settings, name)
    end
  end
end
if bound > 0 then changed() end
return 1
"""
)

# KEYS configured.  ARGV how long they were silent (ms, by the server's clock), how many at most. Changes nothing.
UNSETTLED: Final = """
local now = redis.call('TIME')
local until_ms = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', until_ms, 'LIMIT', 0, ARGV[2])
"""

# KEYS head settings streams configured.  ARGV the head as we know it, streams. The settings go of those that are gone;
# those that came back are dated by their last entry. Returns 1 when the shard is ours.
UNSETTLE: Final = (
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local settings, gone = KEYS[2], 0
"""
    + _CHANGED
    + """
for i = 2, #ARGV do
  redis.call('ZREM', KEYS[4], ARGV[i])
  local last = redis.call('ZSCORE', KEYS[3], ARGV[i])
  if last then
    redis.call('ZADD', KEYS[4], last, ARGV[i])
  else
    gone = gone + redis.call('HDEL', settings, ARGV[i])
  end
end
if gone > 0 then changed() end
return 1
"""
)

# KEYS head settings streams configured.  ARGV the head as we know it, HSCAN's cursor, about how many.
# Settings that belong to no stream, as earlier versions left them, are dated by now. Returns the next cursor, or
# nothing when the shard is another's.
ADOPT: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local found = redis.call('HSCAN', KEYS[2], ARGV[2], 'COUNT', ARGV[3])
for i = 1, #found[2], 2 do
  local name = found[2][i]
  if name ~= '?' and not redis.call('ZSCORE', KEYS[3], name) then redis.call('ZADD', KEYS[4], 'NX', ms, name) end
end
return found[1]
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

    def idle(
        self, shard: int, after_ms: int, silent_ms: int, limit: int, skip: int = 0, *, kept_ms: int = 0
    ) -> list[Idle]:
        keys = self._keys[shard]
        where = keys.streams, keys.pos, keys.open
        found = self._ask(("EVAL", IDLE, len(where), *where, after_ms, silent_ms, skip, limit, kept_ms))[0] or []
        return [
            Idle(name.decode(), int(float(score)), position or None, young == 1, inside == 1)
            for name, score, position, young, inside in zip(*(found[at::5] for at in range(5)), strict=True)
        ]

    def remove(self, shard: int, head: bytes, records: Sequence[str], streams: Sequence[str]) -> bool:
        keys = self._keys[shard]
        gone = [keys.out(name) for name in (*records, *streams)] + [keys.state(name) for name in streams]
        named = (
            keys.head, keys.pos, keys.streams, keys.drops, keys.restarts, keys.settings, keys.configured, *gone,
        )  # fmt: skip
        (reply,) = self._ask(("EVAL", REMOVE, len(named), *named, head, *streams))
        return bool(reply == 1)

    def expel(self, shard: int, head: bytes) -> Expelled:
        keys, keep, low = self._keys[shard], self._keep, head.split(b" ")[3]
        where = keys.head, keys.inbox, keys.dead, keys.dead_data, keys.dead_places
        most = int(BYTES_SHARE * keep.dead_bytes)
        (found,) = self._ask(
            ("EVAL", scripts.EXPEL, len(where), *where, head, low, AHEAD_MS, *EXPELLED, 0, low, low, most)
        )
        if found is None:
            raise Fenced(f"shard {shard}: head is not what this worker wrote")
        now_ms, refused, moved, first, more = found
        overflow = self.tidy_dead(shard, head, now_ms).overflow if refused else 0
        return Expelled(now_ms, refused, moved, first.decode(), more == 1, overflow)

    def unsettled(self, shard: int, silent_ms: int, limit: int) -> list[str]:
        found = self._ask(("EVAL", UNSETTLED, 1, self._keys[shard].configured, silent_ms, limit))[0] or []
        return [name.decode() for name in found]

    def unsettle(self, shard: int, head: bytes, streams: Sequence[str]) -> bool:
        (reply,) = self._ask(("EVAL", UNSETTLE, 4, *self._settings_of(shard), head, *streams))
        return bool(reply == 1)

    def adopt(self, shard: int, head: bytes, cursor: bytes) -> bytes | None:
        reply: bytes | None = self._ask(("EVAL", ADOPT, 4, *self._settings_of(shard), head, cursor, ADOPTED))[0]
        return reply

    def tidy_dead(self, shard: int, head: bytes, older_ms: int) -> Tidied:
        keys, keep = self._keys[shard], self._keep
        where = keys.dead, keys.dead_data, keys.dead_places, keys.head
        bounds = keep.dead, keep.dead_bytes, older_ms, DEAD_TIDIED
        aged, over, more = self._ask(("EVAL", quarantine.TIDY, len(where), *where, head, *bounds))[0] or (0, 0, 0)
        return Tidied(aged, over, more == 1)

    def _settings_of(self, shard: int) -> tuple[bytes, ...]:
        keys = self._keys[shard]
        return keys.head, keys.settings, keys.streams, keys.configured

    def known(self, shards: Sequence[int]) -> int:
        return sum(count or 0 for count in self._ask(*(("ZCARD", self._keys[shard].streams) for shard in shards)))

    def _ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """What somebody else wrote over a key can wait for the next commit, which repairs it."""
        return self._ask_all([pack(command) for command in commands], foreign=True)
