-- Takes the lease if it is free, and raises the epoch above the stored one and the one that the candidate knows.
-- KEYS: leader, epoch, terms. ARGV: node, nonce, known epoch, ttl, channel, length of the history, highest epoch,
-- furthest step of the stored epoch.
-- Answers {0, holder} or {1, epoch, what foreign thing was passed over} or {2}: no epoch is left.
local found = kind(KEYS[1])
if found ~= 'none' and redis.call('PTTL', KEYS[1]) >= 0 then
  return {0, text(KEYS[1]) or ''}
end
local passed = ''
if found ~= 'none' then
  -- No lease is without a time to live, and this would stop elections for ever.
  passed = KEYS[1] .. ' (it never ran out)'
end

local above = tonumber(ARGV[3])
local digits = text(KEYS[2])
local stored = digits and string.match(digits, '^%d+$') and tonumber(digits)
-- An epoch that is far above all that was ever seen was not counted: taken at its word, it would use up all others.
if kind(KEYS[2]) ~= 'none' and (not stored or stored > above + tonumber(ARGV[8])) then
  passed = passed .. ' ' .. KEYS[2]
  stored = nil
end
local epoch = math.max(stored or 0, above) + 1
if epoch > tonumber(ARGV[7]) then
  return {2}
end

local lease = whole(epoch) .. '/' .. ARGV[2] .. '/' .. ARGV[1]
redis.call('SET', KEYS[2], whole(epoch))
if kind(KEYS[3]) ~= 'list' then
  redis.call('DEL', KEYS[3])
end
redis.call('LPUSH', KEYS[3], whole(now()) .. ' ' .. lease)
redis.call('LTRIM', KEYS[3], 0, ARGV[6] - 1)
redis.call('SET', KEYS[1], lease, 'PX', ARGV[4])
redis.call('PUBLISH', ARGV[5], 'leader')
return {1, whole(epoch), passed}
