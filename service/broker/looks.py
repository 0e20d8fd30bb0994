"""The scripts with which an api process looks at a shard. They change nothing, and leave the bytes of entries where
they are. A head that somebody else wrote, or one at the last possible id, has nothing above it."""

from typing import Final

# KEYS owner head in.  Returns whether the lease is held, the head, the log's length and the id of the first entry
# above low. A script, because XRANGE by itself would send that entry's bytes, frames and all.
SHARD_STATUS: Final = """
local head = redis.pcall('GET', KEYS[2])
if head and type(head) ~= 'string' then head = '?' end
local low = head and string.match(head, '^%S+ %S+ %S+ (%S+)') or '0-0'
local first = redis.pcall('XRANGE', KEYS[3], '(' .. low, '+', 'COUNT', 1)
return {redis.call('EXISTS', KEYS[1]), head or '', redis.call('XLEN', KEYS[3]), first[1] and first[1][1] or ''}
"""

# KEYS in.  A script, because XINFO by itself would send the log's first and last entries too.
LAST_GENERATED: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return '0-0' end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do if info[i] == 'last-generated-id' then return info[i + 1] end end
"""


# KEYS in head.  ARGV stream, its position, how many entries and bytes to look through.
# Entries above the position are counted without sending them. Returns how many are the stream's, and 1 when it saw all.
WAITING: Final = """
local head = redis.pcall('GET', KEYS[2])
local low = string.match(type(head) == 'string' and head or '', '^%S+ %S+ %S+ (%d+%-%d+) ') or '0-0'
local function above(one, other)
  local a, b = string.match(one, '(%d+)-(%d+)')
  local c, d = string.match(other, '(%d+)-(%d+)')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  return a > c or (a == c and b > d)
end
local from = above(low, ARGV[2]) and low or ARGV[2]
local entries, bytes, mine = tonumber(ARGV[3]), tonumber(ARGV[4]), 0
while entries > 0 and bytes > 0 do
  local some = redis.pcall('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', 16)
  for _, entry in ipairs(some) do
    for i = 1, #entry[2], 2 do
      bytes = bytes - #entry[2][i + 1]
      if entry[2][i] == 'stream' and entry[2][i + 1] == ARGV[1] then mine = mine + 1 end
    end
  end
  if #some < 16 then return {mine, 1} end
  from, entries = some[#some][1], entries - 16
end
return {mine, 0}
"""

# KEYS in.  ARGV stream, an id, how many entries and bytes to look through.
# Returns where the next look begins, or nothing at the log's end, and the stream's entries above the id, with their
# bytes. The others' bytes stay where they are.
LOGGED: Final = """
local from, entries, bytes, found = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), {}
while entries > 0 and bytes > 0 do
  local some = redis.call('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', 4)
  for _, entry in ipairs(some) do
    local stream = ''
    for i = 1, #entry[2], 2 do
      bytes = bytes - #entry[2][i + 1]
      if entry[2][i] == 'stream' then stream = entry[2][i + 1] end
    end
    if stream == ARGV[1] then found[#found + 1] = entry end
  end
  if #some < 4 then return {'', found} end
  from, entries = some[#some][1], entries - 4
end
return {from, found}
"""

# KEYS streams pos settings drops restarts.  ARGV streams.
# Of each stream what these hold of it; what somebody else wrote over a key counts as nothing there.
ROWS: Final = """
local commands, rows = {'ZSCORE', 'HGET', 'HGET', 'ZSCORE', 'ZSCORE'}, {}
for at, stream in ipairs(ARGV) do
  rows[at] = {}
  for i, command in ipairs(commands) do
    local value = redis.pcall(command, KEYS[i], stream)
    rows[at][i] = type(value) == 'string' and value
  end
end
return rows
"""
LOOK_ENTRIES: Final = 2048
LOOK_BYTES: Final = 4 << 20
LAG_ENTRIES: Final = 1024  # of a shard
LAG_BYTES: Final = 1 << 20

# KEYS in head pos.  ARGV how many entries and bytes to look through.
# Of each stream that has an unfinished entry its name and the id of the oldest one, in turn, the longest waiting first.
# Where somebody else wrote over the positions none is known.
LAGS: Final = """
local head = redis.pcall('GET', KEYS[2])
local low = string.match(type(head) == 'string' and head or '', '^%S+ %S+ %S+ (%d+%-%d+) ') or '0-0'
local from, entries, bytes = low, tonumber(ARGV[1]), tonumber(ARGV[2])
local last, seen, found = {}, {}, {}
while entries > 0 and bytes > 0 do
  local some = redis.pcall('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', 16)
  for _, entry in ipairs(some) do
    local stream = ''
    for i = 1, #entry[2], 2 do
      bytes = bytes - #entry[2][i + 1]
      if entry[2][i] == 'stream' then stream = entry[2][i + 1] end
    end
    if stream ~= '' and not seen[stream] then
      if not last[stream] then
        local position = redis.pcall('HGET', KEYS[3], stream)
        local ms, seq = string.match(type(position) == 'string' and position or '', '^(%d+)-(%d+)')
        last[stream] = {tonumber(ms or '0'), tonumber(seq or '0')}
      end
      local ms, seq = string.match(entry[1], '(%d+)-(%d+)')
      ms, seq = tonumber(ms), tonumber(seq)
      if ms > last[stream][1] or (ms == last[stream][1] and seq > last[stream][2]) then
        seen[stream] = true
        found[#found + 1] = stream
        found[#found + 1] = entry[1]
      end
    end
  end
  if #some < 16 then return found end
  from, entries = some[#some][1], entries - 16
end
return found
"""

# KEYS head in settings owner streams.  Returns the number of finished entries in the log, its length and bytes, what
# was last written when settings changed, the token under which the shard is held (empty: nobody holds it), its
# commits, and how many streams have a position or settings.
# A commit that trims writes the count from before: a worker that stops right after it leaves that in the head. So
# where nobody holds the shard, the log is asked whether any finished entry is still there. Where somebody does, the
# count holds: finished entries may all lie behind one that takes long.
BACKLOG: Final = """
local length = redis.call('XLEN', KEYS[2])
local bytes = length > 0 and redis.call('MEMORY', 'USAGE', KEYS[2]) or 0
local head = redis.pcall('GET', KEYS[1])
local token, n, low, kept = string.match(type(head) == 'string' and head or '', '^%S+ (%S+) (%d+) (%S+) (%d+)')
kept = tonumber(kept or '0')
local held = redis.call('EXISTS', KEYS[4]) == 1 and token or ''
if kept > 0 and held == '' and #redis.pcall('XRANGE', KEYS[2], '-', low, 'COUNT', 1) == 0 then kept = 0 end
local known = 0
for key, commands in pairs({[KEYS[5]] = {'ZCARD', 'ZSCORE'}, [KEYS[3]] = {'HLEN', 'HGET'}}) do
  local count, aside = redis.pcall(commands[1], key), redis.pcall(commands[2], key, '?')
  if type(count) == 'number' then known = math.max(known, count - (aside and 1 or 0)) end
end
return {kept, length, bytes, redis.call('HGET', KEYS[3], '?') or '', held, tonumber(n or '0'), known}
"""
