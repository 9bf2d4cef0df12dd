-- All nodes. KEYS: nodes. ARGV: what the keys of their records begin with, milliseconds after which a node is
-- forgotten, most bytes of a record and of all of them. Answers {{node, 1 if it is alive, record or false}, ...}.
-- The records' keys are known only here; they share the slot of KEYS[1] by their hash tag.
local wrong = mistaken(KEYS[1], 'zset')
if wrong then
  return wrong
end
local at = now()
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. whole(at - ARGV[2]), '+inf', 'WITHSCORES')
local members, bytes = {}, 0
for i = 1, #found, 2 do
  local key = ARGV[1] .. found[i]
  local size = kind(key) == 'string' and redis.call('STRLEN', key)
  local ours = size and size <= tonumber(ARGV[3]) and bytes + size <= tonumber(ARGV[4])
  bytes = bytes + (ours and size or 0)
  local alive = tonumber(found[i + 1]) > at and 1 or 0
  members[#members + 1] = {found[i], alive, ours and redis.call('GET', key)}
end
return members
