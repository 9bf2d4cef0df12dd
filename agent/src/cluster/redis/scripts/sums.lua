-- What the texts of documents are, for whoever has them. KEYS: store, revision, config, revisions, deleted. ARGV: the documents'
-- ids: so many that the server is not kept busy by them. Answers {store, revision, {SHA-1 in hexadecimal digits or false where
-- the document is not there, or not as we leave one, ...}, how many documents there are}.
local wrong = mistaken(KEYS[1], 'string') or mistaken(KEYS[2], 'string') or mistaken(KEYS[3], 'hash')
  or mistaken(KEYS[4], 'zset') or mistaken(KEYS[5], 'zset')
if wrong then
  return wrong
end
local sums = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local body = redis.call('HGET', KEYS[3], id)
  local good = body and redis.call('ZSCORE', KEYS[4], id) and not redis.call('ZSCORE', KEYS[5], id)
  sums[i] = good and redis.sha1hex(body) or false
end
return {text(KEYS[1]) or '', text(KEYS[2]) or '0', sums, redis.call('ZCARD', KEYS[4])}
