"""The scripts that write and read quarantine. docs/formats.md describes its three keys.

`dead` holds what is said of refused entries, in the order in which they were refused; their bytes lie apart, so that a
look at many costs what is shown of them. Earlier versions kept the bytes in `dead` itself and wrote no place: those
entries are the oldest, and only their number is known without reading them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from service.broker.scripts import OWN
from service.codec import id_number
from service.keys import ShardKeys, shard_of
from service.ports import DeadEntry, DeadPage, DeadRow

Command = tuple[bytes | str | int, ...]

# KEYS dead dead-data dead-places.
_KEEPING: Final = (
    OWN
    + """
local dead, data, places = KEYS[1], KEYS[2], KEYS[3]
own(dead, 'stream')
own(data, 'hash')
own(places, 'hash')
local function shed(n)
  local gone, length = 0, redis.call('XLEN', dead)
  local unread = length - redis.call('HLEN', places)
  if unread > 0 then gone = redis.call('XTRIM', dead, 'MAXLEN', length - math.min(n, unread)) end
  if gone == n then return gone end
  for _, item in ipairs(redis.call('XRANGE', dead, '-', '+', 'COUNT', n - gone)) do
    for i = 1, #item[2], 2 do
      if item[2][i] == 'id' then
        redis.call('HDEL', data, item[2][i + 1])
        redis.call('HDEL', places, item[2][i + 1])
      end
    end
    gone = gone + redis.call('XDEL', dead, item[1])
  end
  return gone
end
local function bound(most, limit)
  local gone = 0
  if redis.call('XLEN', dead) > most then gone = shed(redis.call('XLEN', dead) - most) end
  while true do
    local entries, used = redis.call('XLEN', dead), 0
    if entries == 0 then
      redis.call('DEL', data, places)
      return gone
    end
    for _, key in ipairs({dead, data, places}) do
      local size = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0)
      if type(size) == 'number' then used = used + size end
    end
    if used <= limit then return gone end
    gone = gone + shed(math.max(1, math.floor((used - limit) * entries / used / 2)))
  end
end
"""
)

# KEYS dead dead-data dead-places.  ARGV entries, bytes, how many this commit put there.
# Notes their places and keeps quarantine within both bounds, the newest ones. Returns how many left it. Runs inside a
# commit's transaction.
BOUND: Final = (
    _KEEPING
    + """
for _, item in ipairs(redis.call('XREVRANGE', dead, '+', '-', 'COUNT', ARGV[3])) do
  for i = 1, #item[2], 2 do
    if item[2][i] == 'id' then redis.call('HSET', places, item[2][i + 1], item[1]) end
  end
end
return bound(tonumber(ARGV[1]), tonumber(ARGV[2]))
"""
)

# KEYS dead dead-data dead-places head.  ARGV the head as we know it, entries, bytes, age ms, how many at once.
# What is older than the age leaves, by the server's clock; what is over the bounds (they may have become smaller); and
# what is kept of entries that somebody removed from `dead` by hand. Where earlier versions' bytes would be read, one
# entry at once. Returns how many left for their age, how many for want of room, and 1 when there may be more to do.
TIDY: Final = (
    _KEEPING
    + """
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return {0, 0, 0} end
if redis.call('HLEN', places) > redis.call('XLEN', dead) then
  local known = redis.call('HGETALL', places)
  for i = 1, #known, 2 do
    if #redis.call('XRANGE', dead, known[i + 1], known[i + 1]) == 0 then
      redis.call('HDEL', data, known[i])
      redis.call('HDEL', places, known[i])
    end
  end
end
local now = redis.call('TIME')
local until_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[4])
local count = tonumber(ARGV[5])
if redis.call('XLEN', dead) > redis.call('HLEN', places) then count = 1 end
local old = 0
if tonumber(until_ms) > 0 then old = #redis.call('XRANGE', dead, '-', until_ms, 'COUNT', count) end
if old > 0 then old = shed(old) end
return {old, bound(tonumber(ARGV[2]), tonumber(ARGV[3])), old == count and 1 or 0}
"""
)

# KEYS dead.  ARGV place after which to begin, how many, stream or nothing, reason or nothing, entry id or nothing, how
# many to look at, how many bytes to read.
# Returns place, id, stream, kind, reason, detail, size of each; where to go on after, or nothing; how many it saw.
LOOK: Final = """
local found, from, limit, looked, bytes, count = {}, ARGV[1], tonumber(ARGV[2]), 0, 0, 1
while true do
  local some = redis.call('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', count)
  for _, item in ipairs(some) do
    local said = {}
    for i = 1, #item[2], 2 do
      said[item[2][i]] = item[2][i + 1]
      bytes = bytes + #item[2][i + 1]
    end
    from, looked = item[1], looked + 1
    local wanted = (ARGV[3] == '' or said.stream == ARGV[3]) and (ARGV[4] == '' or said.reason == ARGV[4])
    if wanted and (ARGV[5] == '' or said.id == ARGV[5]) then
      found[#found + 1] = {
        from, said.id or '', said.stream or '', said.kind or '', said.reason or '', said.detail or '',
        said.data and #said.data or tonumber(said.bytes) or 0
      }
      if #found == limit then return {found, from, looked} end
    end
  end
  if #some < count then return {found, '', looked} end
  if looked >= tonumber(ARGV[6]) or bytes >= tonumber(ARGV[7]) then return {found, from, looked} end
  count = bytes < looked * 16384 and 16 or 1
end
"""
LOOK_ENTRIES: Final = 256  # some 1 ms of the broker
LOOK_BYTES: Final = 2 << 20
LOOKS: Final = 64  # for one refused entry among those that have no place noted


class Quarantine(ABC):
    """The part of RedisPredictions that is about refused entries."""

    _keys: list[ShardKeys]
    _shards: int
    _looks: Any  # the connections for such questions

    @abstractmethod
    async def _ask(self, *commands: Command, foreign: bool = False, pool: Any = None) -> list[Any]: ...

    async def dead(
        self, shard: int, after: str, limit: int, stream: str | None = None, reason: str | None = None
    ) -> DeadPage:
        return await self._look(shard, after, limit, stream or "", reason or "")

    async def dead_entry(self, stream: str, entry_id: str) -> DeadEntry | None:
        """In any shard: an entry may have been refused because it was in a wrong one."""
        home = shard_of(stream, self._shards)
        shards = sorted(range(self._shards), key=lambda shard: shard != home)
        asked: list[Command] = []
        for keys in (self._keys[shard] for shard in shards):
            asked += [("HGET", keys.dead_places, entry_id), ("HLEN", keys.dead_places), ("XLEN", keys.dead)]
        said = iter(await self._ask(*asked, pool=self._looks))
        unread = []
        for shard, (place, known, kept) in zip(shards, zip(*[said] * 3, strict=True), strict=True):
            found = None if place is None else await self._dead_at(shard, place.decode(), entry_id)
            if found is not None and found.row.stream == stream:
                return found
            if kept > known:
                unread.append(shard)
        return await self._dead_unread(unread, stream, entry_id)

    async def _dead_at(self, shard: int, place: str, entry_id: str) -> DeadEntry | None:
        keys = self._keys[shard]
        items, data = await self._ask(
            ("XRANGE", keys.dead, place, place), ("HGET", keys.dead_data, entry_id), pool=self._looks
        )
        if not items:
            return None
        fields = {k.decode(): v for k, v in zip(items[0][1][::2], items[0][1][1::2], strict=True)}
        if data is not None:
            fields["data"] = data
        size = int(fields["bytes"]) if "bytes" in fields else len(fields.get("data", b""))
        said = [fields.get(name, b"") for name in ("id", "stream", "kind", "reason", "detail")]
        return DeadEntry(_dead_row(shard, [place.encode(), *said, size]), fields)

    async def _dead_unread(self, shards: Sequence[int], stream: str, entry_id: str) -> DeadEntry | None:
        """Among what earlier versions put there, which only looks find: from the entry's time on, since it was refused
        after it came; as far as that is cheap. An id that lies ahead of the clock says nothing of that time."""
        ms = id_number(entry_id) >> 64
        after = f"{max(0, ms - 1) if ms <= time.time() * 1000 else 0}-0"
        looks_left = LOOKS
        for shard in shards:
            place: str | None = after
            while place is not None and looks_left > 0:
                looks_left -= 1
                page = await self._look(shard, place, 1, stream, "", entry_id)
                if page.rows:
                    return await self._dead_at(shard, page.rows[0].at, entry_id)
                place = page.next
        return None

    async def _look(self, shard: int, after: str, limit: int, *wanted: str) -> DeadPage:
        """`wanted`: stream, reason, and perhaps an entry's id; empty: any."""
        stream, reason, *entry_id = wanted
        bounds = LOOK_ENTRIES, LOOK_BYTES
        sought = stream, reason, entry_id[0] if entry_id else ""
        command = ("EVAL", LOOK, 1, self._keys[shard].dead, after, limit, *sought, *bounds)
        ((found, last, looked),) = await self._ask(command, pool=self._looks)
        return DeadPage([_dead_row(shard, item) for item in found], last.decode() or None, looked)

    async def drop_dead(self, rows: Sequence[DeadRow]) -> int:
        if not rows:
            return 0
        keys, ids = self._keys[rows[0].shard], [row.id for row in rows]
        *_, done = await self._ask(
            ("MULTI",),
            ("XDEL", keys.dead, *(row.at for row in rows)),
            ("HDEL", keys.dead_data, *ids),
            ("HDEL", keys.dead_places, *ids),
            ("EXEC",),
            pool=self._looks,
        )
        return int(done[0])


def _dead_row(shard: int, item: Sequence[Any]) -> DeadRow:
    at, entry_id, stream, kind, reason, detail = (word.decode(errors="replace") for word in item[:6])
    return DeadRow(shard, at, entry_id, stream, kind, reason, detail, item[6])
