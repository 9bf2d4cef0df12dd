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
-- The stream counts on after the last delta, so that what follows the table is what comes after that.
local position = redis.call('HGET', KEYS[2], 'last') or '0-0'
redis.call('HSET', KEYS[2], 'body', ARGV[3], 'digest', ARGV[2], 'lease', ARGV[1], 'position', position,
  'head', ARGV[2], 'last', position, 'deltas', '0', 'bytes', '0')
redis.call('XTRIM', KEYS[3], 'MAXLEN', 0)
redis.call('PUBLISH', ARGV[4], 'table')
return {1}
