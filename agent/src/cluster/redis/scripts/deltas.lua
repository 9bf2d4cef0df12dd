-- Deltas after a position. KEYS: log, table. ARGV: position, most deltas, most bytes. Answers {position, {delta, ...}, digest},
-- the digest being that of the table as it was last written whole.
local wrong = mistaken(KEYS[1], 'stream')
if wrong then
  return wrong
end
local position = string.match(ARGV[1], '^%d+%-%d+$') or '0-0'
local found = redis.pcall('XREAD', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], position)
if found and found.err then
  -- It has the form of a position, and is out of range.
  position = '0-0'
  found = redis.call('XREAD', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], position)
end
local deltas, bytes = {}, 0
for _, entry in ipairs(found and found[1][2] or {}) do
  position = entry[1]
  -- Entries of others have other fields.
  if entry[2][1] == 'd' then
    bytes = bytes + #entry[2][2]
    if bytes > tonumber(ARGV[3]) then
      return foreign(KEYS[1], 'is larger than any log')
    end
    deltas[#deltas + 1] = entry[2][2]
  end
end
local digest = kind(KEYS[2]) == 'hash' and redis.call('HGET', KEYS[2], 'digest') or ''
return {position, deltas, digest or ''}
