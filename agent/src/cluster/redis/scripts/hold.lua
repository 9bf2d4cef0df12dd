-- What a node has leased of limits and not used. KEYS: leased:NODE. ARGV: what it says, milliseconds for which that is kept.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
