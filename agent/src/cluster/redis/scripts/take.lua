-- Lets requests through that all nodes count together. KEYS: the counter. ARGV: 'window', most units, microseconds; or 'rate',
-- what a unit adds to the level, what a microsecond takes from it, the highest level; then for each question how many units are
-- asked for, and of what only whole multiples are of use. Who asks first gets first. Answers {how many units more would be let
-- through, the time}, and for each question how many are granted, and the microseconds until one more multiple would be where
-- fewer are than were asked for. All numbers are whole and below 2^53.
local time = redis.call('TIME')
local at = time[1] * 1000000 + time[2]

-- What is granted of so many free units to each of the questions; `wait` tells how long so many units have to be waited for.
local function grant(first, free, wait)
  local total, answer = 0, {}
  for question = first, #ARGV, 2 do
    local count, step = tonumber(ARGV[question]), tonumber(ARGV[question + 1])
    local granted = math.max(math.min(count, free - total), 0)
    granted = granted - granted % step
    total = total + granted
    answer[#answer + 1] = granted
    answer[#answer + 1] = granted < count and wait(total, step) or 0
  end
  table.insert(answer, 1, math.max(free - total, 0))
  table.insert(answer, 2, at)
  return total, answer
end

if ARGV[1] == 'window' then
  local wrong = mistaken(KEYS[1], 'list')
  if wrong then
    return wrong
  end
  local most, span = tonumber(ARGV[2]), tonumber(ARGV[3])
  -- The clock may have been set back.
  at = math.max(at, tonumber(redis.call('LINDEX', KEYS[1], -1) or '') or 0)
  local first = tonumber(redis.call('LINDEX', KEYS[1], 0) or '')
  while first and first + span <= at do
    redis.call('LPOP', KEYS[1])
    first = tonumber(redis.call('LINDEX', KEYS[1], 0) or '')
  end
  local held = redis.call('LLEN', KEYS[1])
  -- So many of the oldest have to go; beyond those that were there, what is granted now.
  local function wait(total, step)
    local last = held + total + step - most - 1
    return math.max((tonumber(last < held and redis.call('LINDEX', KEYS[1], whole(last)) or '') or at) + span - at, 0)
  end
  local total, answer = grant(4, most - held, wait)
  local left, now = total, whole(at)
  while left > 0 do
    local times = {}
    for place = 1, math.min(left, 1000) do
      times[place] = now
    end
    redis.call('RPUSH', KEYS[1], unpack(times))
    left = left - #times
  end
  if total > 0 then
    redis.call('PEXPIRE', KEYS[1], whole(math.ceil(span / 1000) + 1))
  end
  return answer
end
local wrong = mistaken(KEYS[1], 'string')
if wrong then
  return wrong
end
local unit, leak, capacity = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local level, since = string.match(text(KEYS[1]) or '', '^(%d+) (%d+)$')
level, since = tonumber(level or '0'), tonumber(since or '0')
level = math.max(level - math.max(at - since, 0) * leak, 0)
at = math.max(at, since)
local free = math.floor((capacity - level) / unit)
-- The division may have been rounded up.
if free * unit > capacity - level then
  free = free - 1
end
local function wait(total, step)
  return math.max(math.ceil((level + (total + step) * unit - capacity) / leak), 0)
end
local total, answer = grant(5, free, wait)
if total > 0 then
  level = level + total * unit
  redis.call('SET', KEYS[1], whole(level) .. ' ' .. whole(at), 'PX', whole(math.ceil(level / leak / 1000) + 1))
end
return answer
