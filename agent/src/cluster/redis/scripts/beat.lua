-- A node is there. KEYS: nodes, node:ID. ARGV: node, record, ttl, '1' to tell others, channel, milliseconds after
-- which a node is forgotten.
local wrong = mistaken(KEYS[1], 'zset')
if wrong then
  return wrong
end
local at = now()
-- Others took it for dead.
local back = (tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '') or at + 1) <= at
redis.call('ZADD', KEYS[1], whole(at + ARGV[3]), ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'PX', whole(ARGV[3] * 3))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(at - ARGV[6]))
if ARGV[4] == '1' or back then
  redis.call('PUBLISH', ARGV[5], 'nodes')
end
return 1
