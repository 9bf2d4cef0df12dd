-- Takes back what was let through and not used. KEYS: the counter. ARGV: how many, then 'window' and the time that they were
-- granted at; or 'rate' and what a request adds to the level.
local count = tonumber(ARGV[1])
if ARGV[2] == 'window' then
  return kind(KEYS[1]) == 'list' and redis.call('LREM', KEYS[1], whole(-count), ARGV[3]) or 0
end
local level, since = string.match(text(KEYS[1]) or '', '^(%d+) (%d+)$')
if level then
  level = math.max(tonumber(level) - count * tonumber(ARGV[3]), 0)
  redis.call('SET', KEYS[1], whole(level) .. ' ' .. since, 'KEEPTTL')
end
return 1
