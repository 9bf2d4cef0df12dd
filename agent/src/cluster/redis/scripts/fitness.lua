-- What the server says of itself, asked of the one that holds our keys. KEYS: leader.
kind(KEYS[1])
return redis.call('INFO')
