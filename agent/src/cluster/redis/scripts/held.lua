-- What nodes that are alive have leased of limits and not used. KEYS: nodes. ARGV: what the keys of it begin with, most bytes of
-- what one says and of all of it. Answers {{node, what it says or false, milliseconds for which that is kept}, ...}.
-- The keys are known only here; they share the slot of KEYS[1] by their hash tag.
local wrong = mistaken(KEYS[1], 'zset')
if wrong then
  return wrong
end
local alive = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. whole(now()), '+inf')
local held, bytes = {}, 0
for i, node in ipairs(alive) do
  local key = ARGV[1] .. node
  local size = kind(key) == 'string' and redis.call('STRLEN', key)
  local ours = size and size <= tonumber(ARGV[2]) and bytes + size <= tonumber(ARGV[3])
  bytes = bytes + (ours and size or 0)
  held[i] = {node, ours and redis.call('GET', key), redis.call('PTTL', key)}
end
return held
