-- A node goes. KEYS: nodes, node:ID. ARGV: node, channel.
local wrong = mistaken(KEYS[1], 'zset')
if wrong then
  return wrong
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[2], 'nodes')
return 1
