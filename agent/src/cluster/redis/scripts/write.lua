-- Writes all documents or none. KEYS: store, revision, config, revisions, deleted. ARGV: an id for the store if it
-- needs one, channel, most deleted documents, '' or a revision that the new one must be above (the store is then another
-- one), then for each document its id, the revision that it must have or '', and '=TEXT' or '-'. Answers {1, revision} or {0, {{id, revision}, ...}}: these have another revision.
local wrong = mistaken(KEYS[1], 'string') or mistaken(KEYS[2], 'string') or mistaken(KEYS[3], 'hash')
  or mistaken(KEYS[4], 'zset') or mistaken(KEYS[5], 'zset')
if wrong then
  return wrong
end
local revision = number(KEYS[2])
if not revision then
  return foreign(KEYS[2], 'is no number')
end

local conflicts = {}
for i = 5, #ARGV, 3 do
  local found = revision_of(KEYS[4], KEYS[3], ARGV[i])
  if ARGV[i + 1] ~= '' and tonumber(ARGV[i + 1]) ~= found then
    conflicts[#conflicts + 1] = {ARGV[i], whole(found)}
  end
end
if #conflicts > 0 then
  return {0, conflicts}
end

-- Somebody has deleted the count: it goes on above all that was counted, or what was said of a revision would come to mean another.
if kind(KEYS[2]) == 'none' then
  for _, key in ipairs({KEYS[4], KEYS[5]}) do
    local count = redis.call('ZCARD', key)
    local last = count > 0 and redis.call('ZRANGEBYSCORE', key, '-inf', '+inf', 'WITHSCORES', 'LIMIT', count - 1, 1)[2]
    local highest = last and counted(last) or 0
    -- What is near the end is none of ours.
    revision = highest < 9007199254740991 / 2 and math.max(revision, highest) or revision
  end
end

local above = tonumber(ARGV[4])
local changes, next = 0, whole(math.max(revision, above or 0) + 1)
for i = 5, #ARGV, 3 do
  local id, change = ARGV[i], ARGV[i + 2]
  if change ~= '-' then
    redis.call('HSET', KEYS[3], id, string.sub(change, 2))
    redis.call('ZADD', KEYS[4], next, id)
    redis.call('ZREM', KEYS[5], id)
    changes = changes + 1
  elseif redis.call('ZSCORE', KEYS[4], id) or redis.call('HSTRLEN', KEYS[3], id) > 0 then
    -- What is left of one that is not there goes too.
    redis.call('ZADD', KEYS[5], next, id)
    redis.call('ZREM', KEYS[4], id)
    redis.call('HDEL', KEYS[3], id)
    changes = changes + 1
  end
end
if changes == 0 and not above then
  return {1, whole(revision)}
end
redis.call('SET', KEYS[2], next)
local over = redis.call('ZCARD', KEYS[5]) > tonumber(ARGV[3])
if over or above or (text(KEYS[1]) or '') == '' then
  redis.call('SET', KEYS[1], ARGV[1])
end
if over then
  redis.call('DEL', KEYS[5])
end
redis.call('PUBLISH', ARGV[2], 'documents')
return {1, next}
