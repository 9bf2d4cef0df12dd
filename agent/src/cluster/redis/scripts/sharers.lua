-- How many nodes are alive. KEYS: nodes.
local wrong = mistaken(KEYS[1], 'zset')
if wrong then
  return wrong
end
local at = now()
local alive = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. whole(at), '+inf')
return #alive
