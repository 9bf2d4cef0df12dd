-- Extends the lease if it is still this one. KEYS: leader. ARGV: lease, ttl. Answers 1, or 0 if it is not.
if text(KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
