-- All nodes. KEYS: nodes. ARGV: what the keys of their records begin with, milliseconds after which a node is
-- forgotten, most bytes of a record. Answers {{node, 1 if it is alive, record or false}, ...}.
-- The records' keys are known only here; they share the slot of KEYS[1] by their hash tag.
local wrong = mistaken(KEYS[1], 'zset')
if wrong then
  return wrong
end
local at = now()
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. whole(at - ARGV[2]), '+inf', 'WITHSCORES')
local members = {}
for i = 1, #found, 2 do
  local key = ARGV[1] .. found[i]
  local ours = kind(key) == 'string' and redis.call('STRLEN', key) <= tonumber(ARGV[3])
  local alive = tonumber(found[i + 1]) > at and 1 or 0
  members[#members + 1] = {found[i], alive, ours and redis.call('GET', key)}
end
return members
