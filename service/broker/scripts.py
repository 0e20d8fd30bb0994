"""The scripts a worker runs on a shard's keys. Each is atomic; none of them is on the hot path."""

from typing import Final

# A full broker refuses what needs memory (SET, ZADD), but lets a script go on that has already written something which
# needs none. So every script here begins with such a write: leases and heartbeats must outlast a full broker, or nobody
# could commit, trim, and so make room.

# KEYS owner head in feed.  ARGV 1 owner's value  2 lease ms  3 new life  4 token  5 trim finished entries: 1 or 0
# 6 token of this process's last acquisition.
# Takes the lease, if no other worker holds it, and rewrites the head, so that every older WATCH on it is dead: whoever
# committed before cannot any more. `kept` is counted anew, since a crash may have lost the last trim's answer; as what
# does not wait, since a log that keeps its finished entries may have millions. The old count is good enough where more
# than 2000 wait.
# It counts as a try, unless the acquisition before it was this living process's own: then only a connection was lost.
# Where nothing waits, nothing has ended anybody: it is the first try.
# Returns the head, or nothing.
ACQUIRE: Final = """
local owner = redis.call('GET', KEYS[1])
if owner and string.match(owner, '^%S+') ~= string.match(ARGV[1], '^%S+') then return false end
redis.call('PERSIST', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local head = redis.call('GET', KEYS[2])
local life, n, low, kept, tries = ARGV[3], '0', '0-0', 0, 1
if head then
  local part = {}
  for word in string.gmatch(head, '%S+') do part[#part + 1] = word end
  life, n, low, kept, tries = part[1], part[3], part[4], tonumber(part[5]), tonumber(part[6])
  if part[2] ~= ARGV[6] then tries = tries + 1 end
else
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

# KEYS owner head.  ARGV owner's value, lease ms, token.  A lease that ran out is ours again as long as nobody took it:
# whoever does puts another token into the head.  Returns 1 when the lease is ours, else who has it.
RENEW: Final = """
local owner = redis.call('GET', KEYS[1])
if owner == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if owner then return owner end
redis.call('PERSIST', KEYS[1])
if string.match(redis.call('GET', KEYS[2]) or '', '^%S+ (%S+)') ~= ARGV[3] then return '' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS workers.  ARGV worker, how long one counts as live (ms), how long one is listed (ms).  Server time, so that all
# clocks agree. Who seems to have spoken later than now did so before that clock was put back: if it lives, it speaks
# again soon.  Returns the live workers.
HEARTBEAT: Final = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. ms, '+inf')
redis.call('ZADD', KEYS[1], ms, ARGV[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (ms - ARGV[2]), '+inf')
"""

# KEYS worker:ID.  ARGV what it says of itself, for how long (ms).
ABOUT: Final = """
redis.call('PERSIST', KEYS[1])
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
"""

# KEYS owner head.  ARGV owner's value, token.  Gives the lease back, if it is ours: an orderly end, so that the
# acquisitions before it count no more as tries that ended badly (but a shard in doubt stays in doubt).
# Returns 1 when it was ours.
RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
local head = redis.call('GET', KEYS[2])
if head and string.match(head, '^%S+ (%S+)') == ARGV[2] and tonumber(string.match(head, '%d+$')) < 3 then
  redis.call('SET', KEYS[2], (string.gsub(head, '%d+$', '0')))
end
return 1
"""

# KEYS head in.  ARGV the head as we know it, our low.  Frees memory when a commit does not fit.
# Returns how many entries left the log.
TRIM: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
"""

# KEYS head suspect.  ARGV the head as we know it, an entry's id, how often it may be tried, 1 when this living process
# tried it last.  Before an entry is looked at in careful mode. Returns how often it was tried before, not counting what
# did not end its process, or -1 when the shard is lost.
TRY: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('PERSIST', KEYS[2])
local id, tried = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+)$')
tried = id == ARGV[2] and tonumber(tried) or 0
if ARGV[4] == '1' and tried > 0 then tried = tried - 1 end
if tried < tonumber(ARGV[3]) then redis.call('SET', KEYS[2], ARGV[2] .. ' ' .. (tried + 1)) end
return tried
"""

# KEYS head suspect.  ARGV the head as we know it, an entry's id.  Takes its last try back: this process ends in order
# before the entry did.  The key stays, and so does the shard's doubt.
FORGIVE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PERSIST', KEYS[2])
local id, tried = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+)$')
if id == ARGV[2] and tonumber(tried) > 0 then redis.call('SET', KEYS[2], id .. ' ' .. (tried - 1)) end
return 1
"""

# KEYS head suspect.  ARGV the head as we know it.  Careful mode is over. Returns 0 when the shard is lost.
ACQUIT: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
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

# KEYS dead.  ARGV entries, bytes.  Keeps quarantine within both, the newest ones. Returns how many left it.
# Runs inside a commit's transaction. XTRIM by itself bounds the number only, and one refused image may have 8 MB.
BOUND_DEAD: Final = """
local gone = redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1])
local limit = tonumber(ARGV[2])
while true do
  local entries = redis.call('XLEN', KEYS[1])
  local used = redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)
  if entries == 0 or type(used) ~= 'number' or used <= limit then return gone end
  local some = math.max(1, math.floor((used - limit) * entries / used / 2))
  gone = gone + redis.call('XTRIM', KEYS[1], 'MAXLEN', entries - some)
end
"""
