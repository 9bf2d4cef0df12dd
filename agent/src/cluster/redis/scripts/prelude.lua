-- What every script begins with.

-- An error that names a key of ours under which something foreign is.
local function foreign(key, what)
  return redis.error_reply('FOREIGN ' .. key .. ' ' .. what)
end

-- The type of what is under a key; 'none' for nothing.
local function kind(key)
  return redis.call('TYPE', key).ok
end

-- An error if something of another type is under a key than we keep there.
local function mistaken(key, expected)
  local found = kind(key)
  if found ~= expected and found ~= 'none' then
    return foreign(key, 'is a ' .. found .. ' and not a ' .. expected)
  end
end

-- A short text, cut where it is longer than any of ours; false for anything else.
local function text(key)
  return kind(key) == 'string' and redis.call('GETRANGE', key, 0, 1023)
end

-- Milliseconds since 1970 by the server's clock.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A whole number as text, without exponent.
local function whole(number)
  return string.format('%.0f', number)
end

