-- Applies the caller's changes of circuits, and returns all changes since the caller's last sync.
--
-- KEYS: the number of each circuit's last change; the circuits' states. ARGV: a new epoch, used if there is none; the epoch
-- and the last change that the caller knows; then for each changed circuit: its name, its state, the remaining ms, and how
-- many ms ago it changed. A circuit with an unpublished close before that is listed twice.
--
-- A new epoch shows that the server has lost its data, so processes must publish again.

-- Any other state is paused until the time that the provider named.
local CLOSED, OPEN = '0', '1'
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

-- Merges a change into the state of a circuit. The later of two ends wins, and a close wins if it is after the last
-- opening. A circuit that is both open and paused is open: after a pause, no call would probe it.
local function merge(name, kind, till, at)
  local was, was_till, was_at = read(name)
  if not was then
    return kind, till, at
  elseif kind == CLOSED or was == CLOSED then
    if kind == was or at < was_at then
      return was, was_till, was_at
    end
    return kind, till, at
  elseif was == OPEN and was_till > now then
    kind = OPEN
  end
  return kind, math.max(till, was_till), math.max(at, was_at)
end

local in_vain = {}
for i = 4, #ARGV, 4 do
  local name, change = ARGV[i], ARGV[i + 1]
  local was, was_till = read(name)
  local kind, till, at = merge(name, change, now + tonumber(ARGV[i + 2]), now - tonumber(ARGV[i + 3]))
  write(name, kind, till, at)
  if kind ~= was or till ~= was_till then
    local version = redis.call('HINCRBY', states, 'version', 1)
    redis.call('ZADD', versions, version, name)
  elseif change ~= CLOSED or kind ~= CLOSED then
    table.insert(in_vain, name)
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
local is_in = {}
local function add(names)
  for _, name in ipairs(names) do
    local kind, till = read(name)
    if kind and not is_in[name] then
      is_in[name] = true
      table.insert(reply, name)
      table.insert(reply, tonumber(kind))
      table.insert(reply, math.max(till - now, 0))
    end
  end
end
add(redis.call('ZRANGEBYSCORE', versions, '(' .. last, '+inf'))
-- The caller may have skipped the state of these circuits when it was new, because it had its own change.
add(in_vain)
return reply
