-- What the texts of documents are, for whoever has them. KEYS: store, revision, config. ARGV: the documents' ids: so many that the
-- server is not kept busy by them. Answers {store, revision, {SHA-1 in hexadecimal digits or false, ...}}.
local wrong = mistaken(KEYS[1], 'string') or mistaken(KEYS[2], 'string') or mistaken(KEYS[3], 'hash')
if wrong then
  return wrong
end
local sums = {}
for i = 1, #ARGV do
  local body = redis.call('HGET', KEYS[3], ARGV[i])
  sums[i] = body and redis.sha1hex(body)
end
return {text(KEYS[1]) or '', text(KEYS[2]) or '0', sums}
