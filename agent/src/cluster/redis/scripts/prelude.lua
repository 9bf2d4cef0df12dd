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

-- The revision that a score stands for: others may have put there what none of ours is.
local function counted(score)
  return math.min(math.max(math.floor(tonumber(score) or 1), 1), 9007199254740991)
end

-- The revision of a document; 0 where it is not there. It is there where `revisions` has it and `config` its text, whatever else
-- `deleted` says: who reads and who writes go by this alone, or what somebody put there would hold up all writes.
local function revision_of(revisions, config, id)
  local score = redis.call('ZSCORE', revisions, id)
  return score and redis.call('HGET', config, id) and counted(score) or 0
end

-- The whole number under a key, 0 where nothing is; nil for anything else.
local function number(key)
  local found = tonumber(text(key) or '0')
  return found and found >= 0 and found <= 9007199254740991 and math.floor(found) == found and found or nil
end

