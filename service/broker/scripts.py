"""The scripts a worker runs on a shard's keys. Each is atomic; none of them is on the hot path."""

from typing import Final

# A full broker refuses what needs memory (SET, ZADD), but lets a script go on that has already written something which
# needs none. So every script here begins with such a write: leases and heartbeats must outlast a full broker, or nobody
# could commit, trim, and so make room.

# Somebody else may have written over a key that is ours: it goes.
OWN: Final = """
local function own(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then redis.call('DEL', key) end
end
"""

# KEYS owner head in feed.  ARGV 1 owner's value  2 lease ms  3 new life  4 token  5 trim finished entries: 1 or 0
# 6 token of this process's last acquisition  7 the last ms that is a time.
# Takes the lease, if no other worker holds it, and rewrites the head, so that every older WATCH on it is dead: whoever
# committed before cannot any more. `kept` is counted anew, since a crash may have lost the last trim's answer; as what
# does not wait, since a log that keeps its finished entries may have millions. The old count is good enough where more
# than 2000 wait.
# It counts as a try, unless the acquisition before it was this living process's own: then only a connection was lost.
# Where nothing waits, nothing has ended anybody: it is the first try.
# A head that cannot be read, or that stands beyond 7, is left as it is, with its shard.
# Returns the head, or nothing, or `! ` and the head that nobody goes on from.
ACQUIRE: Final = """
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'string' and string.match(owner, '^%S+') ~= string.match(ARGV[1], '^%S+') then return false end
local head = redis.pcall('GET', KEYS[2])
local life, n, low, kept, tries = ARGV[3], '0', '0-0', 0, 1
if head then
  local said, token, ms = type(head) == 'string' and head or '', nil, nil
  life, token, n, low, kept, tries = string.match(said, '^([!-~]+) ([!-~]+) (%d+) (%d+%-%d+) (%d+) (%d+)$')
  ms = tonumber(string.match(low or '', '^%d+'))
  local long = ms and (#low > 41 or math.max(#n, #kept, #tries) > 19)
  if not ms or long or ms > tonumber(ARGV[7]) or redis.pcall('XRANGE', KEYS[3], '(' .. low, '0-0').err then
    return '! ' .. string.sub(said, 1, 100)
  end
  kept, tries = tonumber(kept), tonumber(tries)
  if token ~= ARGV[6] then tries = tries + 1 end
end
redis.call('PERSIST', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not head then
  redis.call('DEL', KEYS[4])
end
if #redis.call('XRANGE', KEYS[3], '(' .. low, '+', 'COUNT', 1) == 0 then tries = 1 end
if ARGV[5] == '1' then
  redis.call('XTRIM', KEYS[3], 'MINID', low)
  kept = #redis.call('XRANGE', KEYS[3], '-', low, 'COUNT', 2)
else
  local length, waiting, from, some = redis.call('XLEN', KEYS[3]), 0, '(' .. low, nil
  repeat
    some = redis.call('XRANGE', KEYS[3], from, '+', 'COUNT', 200)
    waiting = waiting + #some
    if #some > 0 then from = '(' .. some[#some][1] end
  until #some < 200 or waiting >= 2000
  kept = #some < 200 and length - waiting or math.min(kept, length)
end
head = table.concat({life, ARGV[4], n, low, kept, tries}, ' ')
redis.call('SET', KEYS[2], head)
redis.pcall('XGROUP', 'CREATE', KEYS[3], 'rollcast', '0', 'MKSTREAM')
return head
"""

# KEYS head in.  ARGV our token, our cursor, how many entries may be counted.  Before a read: changes nothing. A script,
# because XINFO by itself would send the log's first and last entries, too.
# Returns how many entries were ever added (-1: this broker does not count them), how many there are, the ids of the
# first and the last, and how many lie above the cursor (-1: too many to count); nothing when the shard is lost.
LOOK: Final = """
local head = redis.pcall('GET', KEYS[1])
if type(head) ~= 'string' or string.match(head, '^%S+ (%S+)') ~= ARGV[1] then return false end
local info, said = redis.call('XINFO', 'STREAM', KEYS[2]), {}
for i = 1, #info, 2 do said[info[i]] = info[i + 1] end
local first, last, ahead = said['first-entry'], said['last-entry'], -1
if said.length <= tonumber(ARGV[3]) then ahead = #redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+') end
return {said['entries-added'] or -1, said.length, first and first[1] or '0-0', last and last[1] or '0-0', ahead}
"""

# KEYS owner head.  ARGV owner's value, lease ms, token.  A lease that ran out is ours again as long as nobody took it:
# whoever does puts another token into the head.  Returns 1 when the lease is ours, else who has it.
RENEW: Final = """
local owner, head = redis.pcall('GET', KEYS[1]), redis.pcall('GET', KEYS[2])
if owner == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if type(owner) == 'string' then return owner end
redis.call('PERSIST', KEYS[1])
if type(head) ~= 'string' or string.match(head, '^%S+ (%S+)') ~= ARGV[3] then return '' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS workers.  ARGV worker, how long one counts as live (ms), how long one is listed (ms).  Server time, so that all
# clocks agree. Who seems to have spoken later than now did so before that clock was put back: if it lives, it speaks
# again soon.  Returns the live workers.
HEARTBEAT: Final = (
    OWN
    + """
own(KEYS[1], 'zset')
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. ms, '+inf')
redis.call('ZADD', KEYS[1], ms, ARGV[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (ms - ARGV[2]), '+inf')
"""
)

# KEYS worker:ID.  ARGV what it says of itself, for how long (ms).
ABOUT: Final = """
redis.call('PERSIST', KEYS[1])
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
"""

# KEYS owner head.  ARGV owner's value, token.  Gives the lease back, if it is ours: an orderly end, so that the
# acquisitions before it count no more as tries that ended badly (but a shard in doubt stays in doubt).
# Returns 1 when it was ours.
RELEASE: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
local head = redis.pcall('GET', KEYS[2])
local token = type(head) == 'string' and string.match(head, '^%S+ (%S+)')
if token == ARGV[2] and tonumber(string.match(head, '%d+$')) < 3 then
  redis.call('SET', KEYS[2], (string.gsub(head, '%d+$', '0')))
end
return 1
"""

# KEYS head in.  ARGV the head as we know it, our low.  Frees memory when a commit does not fit.
# Returns how many entries left the log.
TRIM: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
"""

# KEYS head in dead dead-data dead-places.  ARGV 1 the head as we know it  2 every entry up to here is finished  3 how
# far beyond the clock an id may lie (ms)  4, 5 how many entries and bytes at once  6 carry honest entries that wait,
# and begin the log anew in any case: 1 or 0  7 the last finished id, as the broker counted; `-`: not known, nothing is
# moved  8 the id after which the log goes on  9 an entry with more bytes than that is kept without them.
# The broker's count of entries ever added loses what was refused, since that has no record, and does not count twice
# what was moved; where the log begins anew in any case it begins anew, too.
# Takes out of the log what no clock gives. Behind such an id the broker counts on by one: so entries of honest
# producers are known, and moved in their order; all else goes into quarantine. XDEL is no way to do it, since the last
# id of a log cannot be set below one that was deleted.
# Returns the clock (ms), how many went into quarantine, how many were moved, the id of the first, and 1 where there are
# more; nothing when the shard is lost; none where what comes before them is not finished yet.
EXPEL: Final = (
    OWN
    + """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return false end
local low, carry = ARGV[2], ARGV[6] == '1'
redis.call('XTRIM', KEYS[2], 'MINID', low)
local function counted()
  local info, said = redis.call('XINFO', 'STREAM', KEYS[2]), {}
  for i = 1, #info, 2 do said[info[i]] = info[i + 1] end
  return said
end
local added = counted()['entries-added']
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = math.max(0, tonumber(string.match(low, '^%d+')))
if last <= now + ARGV[3] then last = now end
local first = string.format('%.0f-0', last + ARGV[3] + 1)
local waiting = {}
if carry then
  waiting = redis.call('XRANGE', KEYS[2], '(' .. low, '(' .. first)
elseif #redis.call('XRANGE', KEYS[2], '(' .. low, '(' .. first, 'COUNT', 1) > 0 then
  return {now, 0, 0, '', 0}
end

local names = {'model', 'shape', 'end', 'interval_s', 'retry_of', 'seq', 'start', 'time', 'traceparent'}
local function known(words)
  local said, fields = {}, {}
  for i = 1, #words, 2 do said[words[i]] = words[i + 1] end
  for _, name in ipairs(names) do
    if said[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = string.sub(said[name], 1, 1024)
    end
  end
  return said, fields
end
for at, kind in pairs({[3] = 'stream', [4] = 'hash', [5] = 'hash'}) do own(KEYS[at], kind) end
local function refuse(item)
  local said, fields = known(item[2])
  local stream = said.stream or ''
  if #stream > 128 or not string.match(stream, '^[A-Za-z0-9][A-Za-z0-9._:-]*$') then stream = '?' end
  local clock = string.format('%.0f', now)
  local detail = 'id ' .. item[1] .. ': expected one that the broker gave; its clock stood at ' .. clock
  local data = said.data or ''
  local before = redis.call('HGET', KEYS[5], item[1])
  if before then redis.pcall('XDEL', KEYS[3], before) end
  local place = redis.call('XADD', KEYS[3], '*', 'id', item[1], 'stream', stream,
    'kind', string.sub(said.kind or '', 1, 60), 'reason', 'bad_id', 'detail', detail, 'bytes', #data, unpack(fields))
  redis.call('HSET', KEYS[5], item[1], place)
  if #data <= tonumber(ARGV[9]) then redis.call('HSET', KEYS[4], item[1], data) end
end
local function plus_one(digits)
  local before, digit, nines = string.match(digits, '^(.-)([0-8]?)(9*)$')
  return before .. (digit == '' and '1' or digit + 1) .. string.rep('0', #nines)
end
local function next_of(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  if seq == '18446744073709551615' then return plus_one(ms) .. '-0' end
  return ms .. '-' .. plus_one(seq)
end

local found, size, from, more = {}, 0, first, nil
while true do
  local item = redis.pcall('XRANGE', KEYS[2], from, '+', 'COUNT', 1)[1]
  if not item then break end
  if #found >= tonumber(ARGV[4]) or size >= tonumber(ARGV[5]) then more = item[1] break end
  found[#found + 1] = item
  for _, word in ipairs(item[2]) do size = size + #word end
  from = '(' .. item[1]  -- an error behind the last possible id: nothing is there
end
if #found == 0 and not carry then return {now, 0, 0, '', 0} end

local moved, refused, known_before = {}, 0, ARGV[7] ~= '-'
local expected = known_before and next_of(ARGV[7])
for _, item in ipairs(found) do
  if item[1] == expected and known_before and not more and #item[2] <= 256 then
    moved[#moved + 1] = item[2]
  else
    refuse(item)
    refused = refused + 1
  end
  expected = next_of(item[1])
end
if more then
  redis.call('XTRIM', KEYS[2], 'MINID', more)
else
  redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)
  redis.pcall('XGROUP', 'CREATE', KEYS[2], 'rollcast', '0', 'MKSTREAM')
  if redis.pcall('XSETID', KEYS[2], low).err then
    redis.call('DEL', KEYS[2])
    redis.call('XGROUP', 'CREATE', KEYS[2], 'rollcast', '0', 'MKSTREAM')
    redis.call('XSETID', KEYS[2], low)
  end
  for _, item in ipairs(waiting) do
    if #item[2] <= 4000 then redis.call('XADD', KEYS[2], item[1], unpack(item[2])) else refuse(item) end
  end
  redis.call('XSETID', KEYS[2], ARGV[8])
  for _, words in ipairs(moved) do redis.call('XADD', KEYS[2], '*', unpack(words)) end
end
local after = counted()
added = added and (carry and after.length or added - refused)
if added then redis.pcall('XSETID', KEYS[2], after['last-generated-id'], 'ENTRIESADDED', added) end
return {now, refused, #moved, found[1] and found[1][1] or '', more and 1 or 0}
"""
)

# KEYS head suspect.  ARGV the head as we know it, an entry's id, how often it may be tried, 1 when this living process
# tried it last.  Before an entry is looked at in careful mode. Returns how often it was tried before, not counting what
# did not end its process, or -1 when the shard is lost.
TRY: Final = (
    OWN
    + """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('PERSIST', KEYS[2])
own(KEYS[2], 'string')
local id, tried = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+)$')
tried = id == ARGV[2] and tonumber(tried) or 0
if ARGV[4] == '1' and tried > 0 then tried = tried - 1 end
if tried < tonumber(ARGV[3]) then redis.call('SET', KEYS[2], ARGV[2] .. ' ' .. (tried + 1)) end
return tried
"""
)

# KEYS head suspect.  ARGV the head as we know it, an entry's id.  Takes its last try back: this process ends in order
# before the entry did.  The key stays, and so does the shard's doubt.
FORGIVE: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PERSIST', KEYS[2])
local suspect = redis.pcall('GET', KEYS[2])
local id, tried = string.match(type(suspect) == 'string' and suspect or '', '^(%S+) (%d+)$')
if id == ARGV[2] and tonumber(tried) > 0 then redis.call('SET', KEYS[2], id .. ' ' .. (tried - 1)) end
return 1
"""

# KEYS head suspect.  ARGV the head as we know it.  Careful mode is over. Returns 0 when the shard is lost.
ACQUIT: Final = """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
return 1
"""

# Inside a commit, behind its fence. KEYS a stream.  ARGV id of its last good item, then an item: id, fields and values.
# Writes the item that a foreign value made fail: what is not a stream goes, and so does every item above the good ones.
REPAIR_ITEM: Final = """
local good = {}
if redis.call('TYPE', KEYS[1]).ok == 'stream' then good = redis.call('XRANGE', KEYS[1], '-', ARGV[1]) end
redis.call('DEL', KEYS[1])
for _, item in ipairs(good) do redis.call('XADD', KEYS[1], item[1], unpack(item[2])) end
return redis.call('XADD', KEYS[1], unpack(ARGV, 2))
"""

# Inside a commit, behind its fence. KEYS a key.  ARGV its type, a command, the command's arguments after the key.
# Does again what a key of another type made fail.
REPAIR_KEY: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= ARGV[1] then redis.call('DEL', KEYS[1]) end
return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))
"""
