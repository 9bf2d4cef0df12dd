-- Adds a delta if the lease is still this one and the delta follows what is stored. KEYS: leader, table, log.
-- ARGV: lease, previous digest, digest, delta, channel, most deltas, most bytes of all deltas.
-- Answers {1}, {0, holder or ''} or {2}: it needs a snapshot.
local held = text(KEYS[1]) or ''
if held ~= ARGV[1] then
  return {0, held}
end
local wrong = mistaken(KEYS[2], 'hash') or mistaken(KEYS[3], 'stream')
if wrong then
  return wrong
end
local known = redis.call('HMGET', KEYS[2], 'head', 'deltas', 'bytes')
local deltas = tonumber(known[2] or '') or 0
local bytes = (tonumber(known[3] or '') or 0) + #ARGV[4]
-- A log that holds more or less than was added leads nobody from the table to here.
if known[1] ~= ARGV[2] or redis.call('XLEN', KEYS[3]) ~= deltas
  or deltas >= tonumber(ARGV[6]) or bytes > tonumber(ARGV[7]) then
  return {2}
end
local id = redis.call('XADD', KEYS[3], '*', 'd', ARGV[4])
redis.call('HSET', KEYS[2], 'head', ARGV[3], 'last', id, 'deltas', whole(deltas + 1), 'bytes', whole(bytes))
redis.call('PUBLISH', ARGV[5], 'table')
return {1}
