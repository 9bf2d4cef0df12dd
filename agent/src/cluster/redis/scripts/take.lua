-- Lets requests through that all nodes count together. KEYS: the counter. ARGV: how many are asked for, then 'window',
-- most requests, microseconds; or 'rate', what a request adds to the level, what a microsecond takes from it, the highest
-- level. Answers {granted, how many more would be, microseconds until one more would be where fewer were granted than
-- were asked for, the time}. All numbers are whole and below 2^53.
local time = redis.call('TIME')
local at = time[1] * 1000000 + time[2]
local count = tonumber(ARGV[1])
if ARGV[2] == 'window' then
  local wrong = mistaken(KEYS[1], 'list')
  if wrong then
    return wrong
  end
  local most, span = tonumber(ARGV[3]), tonumber(ARGV[4])
  -- The clock may have been set back.
  at = math.max(at, tonumber(redis.call('LINDEX', KEYS[1], -1) or '') or 0)
  local first = tonumber(redis.call('LINDEX', KEYS[1], 0) or '')
  while first and first + span <= at do
    redis.call('LPOP', KEYS[1])
    first = tonumber(redis.call('LINDEX', KEYS[1], 0) or '')
  end
  local free = most - redis.call('LLEN', KEYS[1])
  local granted = math.max(math.min(count, free), 0)
  for _ = 1, granted do
    redis.call('RPUSH', KEYS[1], whole(at))
  end
  if granted > 0 then
    redis.call('PEXPIRE', KEYS[1], whole(math.ceil(span / 1000) + 1))
  end
  local wait = 0
  if granted < count then
    wait = (first or at) + span - at
  end
  return {granted, math.max(free - granted, 0), wait, at}
end
local wrong = mistaken(KEYS[1], 'string')
if wrong then
  return wrong
end
local unit, leak, capacity = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local level, since = string.match(text(KEYS[1]) or '', '^(%d+) (%d+)$')
level, since = tonumber(level or '0'), tonumber(since or '0')
level = math.max(level - math.max(at - since, 0) * leak, 0)
at = math.max(at, since)
local free = math.floor((capacity - level) / unit)
-- The division may have been rounded up.
if free * unit > capacity - level then
  free = free - 1
end
local granted = math.max(math.min(count, free), 0)
if granted > 0 then
  level = level + granted * unit
  redis.call('SET', KEYS[1], whole(level) .. ' ' .. whole(at), 'PX', whole(math.ceil(level / leak / 1000) + 1))
end
local wait = 0
if granted < count then
  wait = math.ceil((level + unit - capacity) / leak)
end
return {granted, math.max(free - granted, 0), wait, at}
