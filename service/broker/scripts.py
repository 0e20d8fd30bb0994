"""The scripts a worker runs on a shard's keys. Each is atomic; none of them is on the hot path."""

from typing import Final

# KEYS owner head in feed pos.  ARGV 1 owner's value  2 lease ms  3 new life  4 token  5 trim finished entries: 1 or 0
# Takes the lease, if no other worker holds it, and rewrites the head, so that every older WATCH on it is dead: whoever
# committed before cannot any more. `kept` is counted anew, since a crash may have lost the last trim's answer.
# Returns the head, or nothing.
ACQUIRE: Final = """
local owner = redis.call('GET', KEYS[1])
if owner and string.match(owner, '^%S+') ~= string.match(ARGV[1], '^%S+') then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local head = redis.call('GET', KEYS[2])
local life, n, low, tries = ARGV[3], '0', '0-0', '0'
if head then
  local part = {}
  for word in string.gmatch(head, '%S+') do part[#part + 1] = word end
  life, n, low, tries = part[1], part[3], part[4], part[6]
else
  redis.call('DEL', KEYS[4])
end
if ARGV[5] == '1' and low ~= '0-0' then redis.call('XTRIM', KEYS[3], 'MINID', low) end
local kept, from = 0, '-'
while low ~= '0-0' do
  local some = redis.call('XRANGE', KEYS[3], from, low, 'COUNT', 500)
  kept = kept + #some
  if #some < 500 then break end
  from = '(' .. some[#some][1]
end
head = table.concat({life, ARGV[4], n, low, kept, tonumber(tries) + 1}, ' ')
redis.call('SET', KEYS[2], head)
redis.pcall('XGROUP', 'CREATE', KEYS[3], 'rollcast', '0', 'MKSTREAM')
return head
"""

# KEYS owner.  ARGV owner's value, lease ms.  Returns 1 when the lease is still ours.
RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS workers.  ARGV worker, how long it counts as live (ms).  Server time, so that all clocks agree.
HEARTBEAT: Final = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[1], ms, ARGV[1])
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - ARGV[2])
"""

# KEYS owner.  ARGV owner's value.  Returns 1 when the lease was ours and is given back.
RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

# KEYS head in.  ARGV the head as we know it, our low.  Frees memory when a commit does not fit. Returns 1 when done.
TRIM: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
return 1
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
