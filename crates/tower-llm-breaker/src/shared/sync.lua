-- Takes in what has happened to circuits here, and tells what has happened to any since the caller asked last.
--
-- KEYS: the number of each circuit's last change; the circuits' states.
-- ARGV: a new epoch, should there be none; the epoch and the last change that the caller knows; then for each circuit that
-- has changed: its name, what it is now, for how many ms still, and how many ms ago it changed.
--
-- An epoch ends when the server has forgotten all, which is how the others learn that they must tell it again.

local CLOSED = '0'
local MOST, KEPT_MS = 10000, 30 * 86400000
local versions, states = KEYS[1], KEYS[2]

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local epoch = redis.call('HGET', states, 'epoch')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', states, 'epoch', epoch)
end
local last = epoch == ARGV[2] and ARGV[3] or '0'

local function read(name)
  local state = redis.call('HGET', states, name)
  if state then
    local kind, till, at = string.match(state, '^(%d+):(%d+):(%d+)$')
    return kind, tonumber(till), tonumber(at)
  end
end

local function write(name, kind, till, at)
  redis.call('HSET', states, name, string.format('%s:%.0f:%.0f', kind, till, at))
end

-- Of two times until which it is open the later counts, and a closing what comes after the last opening.
local function is_news(name, kind, till, at)
  local was, was_till, was_at = read(name)
  if not was then
    return true
  elseif kind == CLOSED then
    return was ~= CLOSED and at >= was_at
  elseif was == CLOSED then
    return at >= was_at
  elseif till > was_till then
    return true
  end
  -- No longer than it is open anyway, but opened once more.
  write(name, was, was_till, math.max(at, was_at))
  return false
end

for i = 4, #ARGV, 4 do
  local name, kind = ARGV[i], ARGV[i + 1]
  local till, at = now + tonumber(ARGV[i + 2]), now - tonumber(ARGV[i + 3])
  if is_news(name, kind, till, at) then
    local version = redis.call('HINCRBY', states, 'version', 1)
    write(name, kind, till, at)
    redis.call('ZADD', versions, version, name)
  end
end
if #ARGV >= 4 then
  while redis.call('ZCARD', versions) > MOST do
    redis.call('HDEL', states, redis.call('ZPOPMIN', versions)[1])
  end
end
redis.call('PEXPIRE', states, KEPT_MS)
redis.call('PEXPIRE', versions, KEPT_MS)

local reply = { epoch, tonumber(redis.call('HGET', states, 'version') or '0') }
for _, name in ipairs(redis.call('ZRANGEBYSCORE', versions, '(' .. last, '+inf')) do
  local kind, till = read(name)
  if kind then
    table.insert(reply, name)
    table.insert(reply, tonumber(kind))
    table.insert(reply, math.max(till - now, 0))
  end
end
return reply
