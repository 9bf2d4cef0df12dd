-- The table as it was last written whole. KEYS: table. ARGV: most bytes of it. Answers {body, position} or false.
local wrong = mistaken(KEYS[1], 'hash')
if wrong then
  return wrong
end
if kind(KEYS[1]) == 'none' then
  return false
end
if redis.call('HSTRLEN', KEYS[1], 'body') > tonumber(ARGV[1]) then
  return foreign(KEYS[1], 'is larger than any table')
end
local found = redis.call('HMGET', KEYS[1], 'body', 'position')
if not found[1] or not found[2] then
  return foreign(KEYS[1], 'is no table')
end
return found
