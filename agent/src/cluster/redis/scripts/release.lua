-- Gives the lease back if it is still this one. KEYS: leader. ARGV: lease, channel. Answers 1, or 0 if it is not.
if text(KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], 'leader')
return 1
