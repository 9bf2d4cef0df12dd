-- What changed among the documents, in the order of revisions. KEYS: store, revision, config, revisions, deleted.
-- ARGV: store, revision, how many documents at a time: the server does nothing else meanwhile. What was written at once
-- comes at once, however much it is.
-- Answers {store, revision up to which this is, {{id, revision, text or false}, ...}, 1 if there is more}.
local wrong = mistaken(KEYS[1], 'string') or mistaken(KEYS[2], 'string') or mistaken(KEYS[3], 'hash')
  or mistaken(KEYS[4], 'zset') or mistaken(KEYS[5], 'zset')
if wrong then
  return wrong
end
local store = text(KEYS[1]) or ''
local revision = tonumber(text(KEYS[2]) or '0')
if not revision then
  return foreign(KEYS[2], 'is no number')
end
local after = '(' .. (store == ARGV[1] and ARGV[2] or '0')
local changed = {}
local live = redis.call('ZRANGEBYSCORE', KEYS[4], after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local upto, more = '+inf', 0
if #live == 2 * tonumber(ARGV[3]) then
  local last, whole_ones = live[#live], #live
  while whole_ones > 0 and live[whole_ones] == last do
    whole_ones = whole_ones - 2
  end
  if whole_ones == 0 then
    live = redis.call('ZRANGEBYSCORE', KEYS[4], last, last, 'WITHSCORES')
  else
    for i = #live, whole_ones + 1, -1 do
      live[i] = nil
    end
    last = live[whole_ones]
  end
  upto, more, revision = last, 1, tonumber(last)
end
for i = 1, #live, 2 do
  local body = redis.call('HGET', KEYS[3], live[i])
  if not body then
    -- It was not deleted, so it must not be taken for that.
    return foreign(KEYS[3], 'has no text of ' .. live[i])
  end
  changed[#changed + 1] = {live[i], whole(live[i + 1]), body}
end
local deleted = redis.call('ZRANGEBYSCORE', KEYS[5], after, upto, 'WITHSCORES')
for i = 1, #deleted, 2 do
  changed[#changed + 1] = {deleted[i], whole(deleted[i + 1]), false}
end
return {store, whole(revision), changed, more}
