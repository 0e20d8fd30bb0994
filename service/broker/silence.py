"""Of the worker's side of the broker: streams with labels inside, looked at for silence, and the controls that say so.

`open` holds them by when each is to be looked at next (ms). A commit whose events open a stream puts it there, to be
looked at at once; whoever looks says when it is worth looking again. So an entry costs nothing, and a worker that takes
the shard over finds all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.broker.wire import Argument
from service.codec import number_id
from service.keys import ShardKeys
from service.ports import Look, Overdue

# KEYS open in pos settings.  ARGV an id up to which the log was read, how many at most.
# Returns the ms up to which every entry was read, the clock (ms), then stream, position and settings in turn; nothing
# where no stream is to be looked at. Changes nothing. What somebody else wrote over a key counts as nothing there.
OVERDUE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.pcall('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
if #due == 0 then return {} end
local unread = redis.pcall('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', 1)[1]
local found = {unread and math.min(now, tonumber(string.match(unread[1], '^%d+'))) or now, now}
for _, name in ipairs(due) do
  found[#found + 1] = name
  for key = 3, 4 do
    local value = redis.pcall('HGET', KEYS[key], name)
    found[#found + 1] = type(value) == 'string' and value or ''
  end
end
return found
"""

# KEYS head in pos open.  ARGV the head as we know it; then of each stream its name, position, a control's data (empty:
# none), and when to look again (ms; empty: nothing is inside). A control is appended only where the position still
# stands: nothing of the stream was answered since.
SILENCE: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 4 do
  local name, position, data, look = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if data ~= '' and redis.pcall('HGET', KEYS[3], name) == position then
    local added = redis.pcall('XADD', KEYS[2], '*', 'stream', name, 'kind', 'control', 'data', data)
    if type(added) == 'table' and not string.find(added.err, 'exhausted', 1, true) then return added end
  end
  if look == '' then redis.pcall('ZREM', KEYS[4], name) else redis.pcall('ZADD', KEYS[4], 'XX', look, name) end
end
return 1
"""


class Silences(ABC):
    """The part of RedisLog that knows of streams with labels inside."""

    _keys: list[ShardKeys]

    @abstractmethod
    def _ask(self, *commands: tuple[Argument, ...]) -> list[Any]: ...

    def overdue(self, cursors: Mapping[int, int], limit: int) -> dict[int, Overdue]:
        commands: list[tuple[Argument, ...]] = []
        for shard, cursor in cursors.items():
            keys = self._keys[shard]
            where = keys.open, keys.inbox, keys.pos, keys.settings
            commands.append(("EVAL", OVERDUE, len(where), *where, number_id(cursor), limit))
        overdue = {}
        for shard, found in zip(cursors, self._ask(*commands), strict=True):
            if found:
                read_ms, now_ms, *rows = found
                named = zip(rows[::3], rows[1::3], rows[2::3], strict=True)
                streams = [(name.decode(), position or None, settings or None) for name, position, settings in named]
                overdue[shard] = Overdue(read_ms, now_ms, streams)
        return overdue

    def silence(self, looks: Mapping[int, tuple[bytes, Sequence[Look]]]) -> None:
        commands: list[tuple[Argument, ...]] = []
        for shard, (head, mine) in looks.items():
            keys = self._keys[shard]
            said: list[Argument] = []
            for look in mine:
                said += [look.stream, look.position, look.data, "" if look.next_ms is None else look.next_ms]
            where = keys.head, keys.inbox, keys.pos, keys.open
            commands.append(("EVAL", SILENCE, len(where), *where, head, *said))
        self._ask(*commands)
