-- What changed among the documents, in the order of revisions. KEYS: store, revision, config, revisions, deleted.
-- ARGV: store, revision or where the answer before said to go on or '' for the beginning, how many documents at a time: the server does nothing else
-- meanwhile. What was written at once comes at once, however much it is. Last an id that is told of whether it changed or not.
-- Answers {store, revision, {{id, revision, text or false}, ...}, {{id, what the keys say of it that we never leave so}, ...},
-- where to go on or ''}.
local wrong = mistaken(KEYS[1], 'string') or mistaken(KEYS[2], 'string') or mistaken(KEYS[3], 'hash')
  or mistaken(KEYS[4], 'zset') or mistaken(KEYS[5], 'zset')
if wrong then
  return wrong
end
local store = text(KEYS[1]) or ''
local revision = number(KEYS[2])
if not revision then
  return foreign(KEYS[2], 'is no number')
end
-- The beginning is below all numbers: others may have put something there.
local after = store == ARGV[1] and ARGV[2] ~= '' and '(' .. ARGV[2] or '-inf'
local changed, odd = {}, {}
local live = redis.call('ZRANGEBYSCORE', KEYS[4], after, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local upto, more = '+inf', ''
if #live == 2 * tonumber(ARGV[3]) then
  -- By its number: -0 is 0.
  local last, whole_ones = live[#live], #live
  while whole_ones > 0 and tonumber(live[whole_ones]) == tonumber(last) do
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
  upto, more = last, last
end
for i = 1, #live, 2 do
  local body = redis.call('HGET', KEYS[3], live[i])
  if body then
    changed[#changed + 1] = {live[i], whole(counted(live[i + 1])), body}
  else
    -- It was not deleted, so it must not be taken for that.
    odd[#odd + 1] = {live[i], 'textless'}
  end
end
local at, body = redis.call('ZSCORE', KEYS[4], ARGV[4]), redis.call('HGET', KEYS[3], ARGV[4])
if at and body then
  changed[#changed + 1] = {ARGV[4], whole(counted(at)), body}
end
local deleted = redis.call('ZRANGEBYSCORE', KEYS[5], after, upto, 'WITHSCORES')
for i = 1, #deleted, 2 do
  if redis.call('ZSCORE', KEYS[4], deleted[i]) then
    odd[#odd + 1] = {deleted[i], redis.call('HSTRLEN', KEYS[3], deleted[i]) > 0 and 'deleted' or 'textless'}
  else
    changed[#changed + 1] = {deleted[i], whole(counted(deleted[i + 1])), false}
    if redis.call('HSTRLEN', KEYS[3], deleted[i]) > 0 then
      odd[#odd + 1] = {deleted[i], 'left'}
    end
  end
end
return {store, whole(revision), changed, odd, more}
