-- Replaces the table if the lease is still this one. KEYS: leader, table, log. ARGV: lease, digest, body, channel.
-- Answers {1} or {0, holder or ''}.
local held = text(KEYS[1]) or ''
if held ~= ARGV[1] then
  return {0, held}
end
local wrong = mistaken(KEYS[2], 'hash') or mistaken(KEYS[3], 'stream')
if wrong then
  return wrong
end
-- The log begins anew: whoever reads on in the old one sees by the digest that the table is another. Only trimmed, it would go
-- on after whatever number somebody else has put there.
redis.call('HSET', KEYS[2], 'body', ARGV[3], 'digest', ARGV[2], 'lease', ARGV[1], 'position', '0-0',
  'head', ARGV[2], 'last', '0-0', 'deltas', '0', 'bytes', '0')
redis.call('DEL', KEYS[3])
redis.call('PUBLISH', ARGV[4], 'table')
return {1}
