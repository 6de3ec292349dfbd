-- A key's limits as `limits.TokenBucket` and `limits.MovingWindow` keep them, by Redis' own clock. Redis runs it as a whole.
-- KEYS: a hash (tokens of the bucket, at: when, sum: of the window), a sorted set of entries by when they began, a hash
-- of what each takes, a mark that this entry was taken: who lost the answer asks again. ARGV of a call that begins:
-- "take", the entry, rate, burst, most, window in seconds, how many; of one that ended: "settle", the entry, how many it
-- was. Answers "", "calls" or "tokens", and the seconds to wait.
local state, entries, nums = KEYS[1], KEYS[2], KEYS[3]
local entry = ARGV[2]

local function number(name)
  return tonumber(redis.call('HGET', state, name) or '0')
end

if ARGV[1] == 'settle' then
  local was = redis.call('HGET', nums, entry)
  if was then -- else its time is over
    redis.call('HSET', nums, entry, ARGV[3])
    redis.call('HINCRBY', state, 'sum', tonumber(ARGV[3]) - tonumber(was))
  end
  return {'', '0'}
end

if redis.call('EXISTS', KEYS[4]) == 1 then
  return {'', '0'}
end
local rate, burst, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local window_s, num = tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

if most > 0 then
  for _, over in ipairs(redis.call('ZRANGEBYSCORE', entries, '-inf', now - window_s)) do
    redis.call('HINCRBY', state, 'sum', -tonumber(redis.call('HGET', nums, over) or '0'))
    redis.call('HDEL', nums, over)
    redis.call('ZREM', entries, over)
  end
  if redis.call('EXISTS', entries) == 0 then -- whatever became of the other two
    redis.call('DEL', nums)
    redis.call('HDEL', state, 'sum')
  end
  local missing = number('sum') + num - most
  local from = 0
  while missing > 0 do
    local some = redis.call('ZRANGE', entries, from, from + 99, 'WITHSCORES')
    if #some == 0 then
      return {'tokens', tostring(window_s)}
    end
    for place = 1, #some, 2 do
      missing = missing - tonumber(redis.call('HGET', nums, some[place]) or '0')
      if missing <= 0 then
        return {'tokens', string.format('%.6f', tonumber(some[place + 1]) + window_s - now)}
      end
    end
    from = from + 100
  end
end

local wait_s = 0
if rate > 0 then
  local tokens = burst
  if redis.call('HEXISTS', state, 'tokens') == 1 then
    tokens = math.min(burst, number('tokens') + rate * math.max(0, now - number('at')))
  end
  if tokens >= 1 then
    tokens = tokens - 1
  else
    wait_s = (1 - tokens) / rate
  end
  redis.call('HSET', state, 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now))
end
if most > 0 and wait_s == 0 then
  redis.call('ZADD', entries, string.format('%.6f', now), entry)
  redis.call('HSET', nums, entry, num)
  redis.call('HINCRBY', state, 'sum', num)
end
if wait_s == 0 then
  redis.call('SET', KEYS[4], '', 'EX', 5)
end
for key = 1, 3 do
  redis.call('EXPIRE', KEYS[key], math.ceil(math.max(window_s, rate > 0 and burst / rate or 0)) + 1)
end
return {wait_s > 0 and 'calls' or '', string.format('%.6f', wait_s)}
