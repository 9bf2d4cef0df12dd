-- Who leads and who led. KEYS: leader, terms. ARGV: length of the history.
-- Answers {lease or false, milliseconds left, {'MILLISECONDS LEASE', ...}}.
local wrong = mistaken(KEYS[1], 'string')
if wrong then
  return wrong
end
local held, left = text(KEYS[1]), redis.call('PTTL', KEYS[1])
if held and left < 0 then
  return foreign(KEYS[1], 'has no time to live')
end
-- The next leader begins a new history where there is none of ours.
local terms = kind(KEYS[2]) == 'list' and redis.call('LRANGE', KEYS[2], 0, ARGV[1] - 1) or {}
return {held, left, terms}
