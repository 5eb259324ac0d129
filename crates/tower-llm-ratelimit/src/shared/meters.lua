-- The meters of `src/meter`, in microseconds. All numbers are below 2^53, and whole except the level of a bucket.
--
-- The server's clock is the only one. It may be set back: then no time passes until it has caught up.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local BUCKET, WINDOW, DAY = 0, 1, 2
-- Stored are the slices of a period, one more so that they cover a period wherever it begins, and the next one, in which
-- leases are charged.
local SLICES, RING = 12, 14
local EXPIRED_AT_ONCE = 16

-- Longest time to pay off a debt; longer ones do not fit into the numbers.
local LONGEST = 2 ^ 52

local FIELDS = 7
local KEYS_EACH = 3

-- Reads `count` limits from the arguments after the first `from`, and their keys after those of `before` other limits.
local function read_limits(from, before, count)
  local limits = {}
  for i = 1, count do
    local at = from + (i - 1) * FIELDS
    local keys_at = (before + i - 1) * KEYS_EACH
    limits[i] = {
      key = KEYS[keys_at + 1],
      holds = KEYS[keys_at + 2],
      epochs = KEYS[keys_at + 3],
      kind = tonumber(ARGV[at + 1]),
      amount = tonumber(ARGV[at + 2]),
      capacity = tonumber(ARGV[at + 3]),
      period = tonumber(ARGV[at + 4]),
      -- For a day: its number, and the time left of it.
      day = tonumber(ARGV[at + 5]),
      day_left = tonumber(ARGV[at + 6]),
      -- Whether a reservation is refunded if its process is gone.
      returns = ARGV[at + 7] == '1',
    }
  end
  return limits
end

local function slice_of(limit)
  return math.ceil(limit.period / SLICES)
end

local function load_bucket(limit, state)
  local taken, at = state and state[1] or 0, state and state[2] or now
  -- Slightly less than the exact leak, so that rounding never admits a call a microsecond early.
  local leaked = math.max(0, now - at) * limit.amount / limit.period * (1 - 1e-12)
  limit.taken, limit.at = math.max(0, taken - leaked), math.max(now, at)
  -- A filling starts when something is taken from the empty bucket, and is identified by that time.
  limit.filling = state and state[3] or 0
end

local function load_window(limit, state)
  limit.newest = math.floor(now / slice_of(limit))
  limit.slices, limit.taken = {}, 0
  if state and state[1] > limit.newest then
    limit.newest = state[1]
  end
  for i = 0, RING - 1 do
    limit.slices[i] = 0
  end
  if state then
    local before = state[1]
    for number = math.max(limit.newest - SLICES, before - SLICES), before + 1 do
      local amount = state[2 + number % RING]
      limit.slices[number % RING] = amount
      limit.taken = limit.taken + amount
    end
  end
end

-- The first call of a day sets its end by the server's clock, whatever the clocks of other processes.
local function load_day(limit, state)
  limit.ends = now + limit.day_left
  limit.taken = 0
  if state and state[1] >= limit.day then
    limit.day, limit.taken, limit.ends = state[1], state[2], state[3]
  end
end

local function load(limit)
  local packed = redis.call('GET', limit.key)
  local state = packed and cmsgpack.unpack(packed)
  if limit.kind == BUCKET then
    load_bucket(limit, state)
  elseif limit.kind == WINDOW then
    load_window(limit, state)
  else
    load_day(limit, state)
  end
end

-- The time until nothing of it counts any more, in microseconds.
local function full_in(limit)
  if limit.taken <= 0 then
    return 0
  elseif limit.kind == BUCKET then
    return math.min(LONGEST, math.ceil(limit.taken * limit.period / limit.amount))
  elseif limit.kind == WINDOW then
    for number = limit.newest + 1, limit.newest - SLICES, -1 do
      if limit.slices[number % RING] > 0 then
        return math.max(0, (number + SLICES + 1) * slice_of(limit) - now)
      end
    end
  end
  return math.max(0, limit.ends - now)
end

local function save(limit)
  local state
  if limit.kind == BUCKET then
    state = { limit.taken, limit.at, limit.filling }
  elseif limit.kind == WINDOW then
    state = { limit.newest }
    for i = 0, RING - 1 do
      state[i + 2] = limit.slices[i]
    end
  else
    state = { limit.day, limit.taken, limit.ends }
  end
  -- As long as it counts, plus a second for clock differences.
  local keep = math.ceil(full_in(limit) / 1000) + 1000
  redis.call('SET', limit.key, cmsgpack.pack(state), 'PX', string.format('%.0f', keep))
end

-- The time until `amount` can be taken, in microseconds: zero if it can be now, negative if it never can.
local function wait_for(limit, amount)
  local over = limit.taken + amount - limit.capacity
  if over <= 0 then
    return 0
  elseif amount > limit.capacity then
    return -1
  elseif limit.kind == BUCKET then
    return math.min(LONGEST, math.ceil(over * limit.period / limit.amount) + 1)
  elseif limit.kind == WINDOW then
    for number = limit.newest - SLICES, limit.newest + 1 do
      over = over - limit.slices[number % RING]
      if over <= 0 then
        return math.max(1, (number + SLICES + 1) * slice_of(limit) - now)
      end
    end
  end
  return math.max(1, limit.ends - now)
end

-- Takes `amount`, whether there is room or not; in the next slice if `later`. Returns its epoch.
local function take(limit, amount, later)
  if limit.kind == BUCKET and limit.taken <= 0 then
    limit.filling = now
  end
  limit.taken = limit.taken + amount
  if limit.kind == WINDOW then
    local number = limit.newest + (later and 1 or 0)
    limit.slices[number % RING] = limit.slices[number % RING] + amount
    return number
  elseif limit.kind == BUCKET then
    return limit.filling
  end
  return limit.day
end

-- Gives back what was taken with `epoch`, if it still counts.
local function give_back(limit, epoch, amount)
  if limit.kind == WINDOW then
    if epoch < limit.newest - SLICES or epoch > limit.newest + 1 then
      return
    end
    amount = math.min(amount, limit.slices[epoch % RING])
    limit.slices[epoch % RING] = limit.slices[epoch % RING] - amount
  elseif limit.kind == DAY and epoch ~= limit.day then
    return
  elseif limit.kind == BUCKET and epoch ~= limit.filling then
    -- All of it has leaked since: what is left belongs to other calls.
    return
  end
  limit.taken = math.max(0, limit.taken - amount)
end

-- A hold is a member `id:amount:lease` with its expiry as score. The epoch of a window's hold follows from the time it was
-- taken. Other epochs are stored beside it, because the day may differ from the requested one.

local function member_of(id, amount, lease)
  return string.format('%s:%.0f:%.0f', id, amount, lease)
end

-- Stored as long as it counts, because it is given back by a later call, which may be long after it expired.
local function keep_hold(limit, member, lease)
  local keep = string.format('%.0f', math.ceil(math.max(lease, full_in(limit)) / 1000) + 1000)
  redis.call('ZADD', limit.holds, string.format('%.0f', now + lease), member)
  redis.call('PEXPIRE', limit.holds, keep)
  return keep
end

local function hold(limit, member, epoch, lease)
  local keep = keep_hold(limit, member, lease)
  if limit.kind ~= WINDOW then
    redis.call('HSET', limit.epochs, member, string.format('%.0f', epoch))
    redis.call('PEXPIRE', limit.epochs, keep)
  end
end

-- Removes a hold; returns its epoch, or nil if it does not exist.
local function remove_hold(limit, member, lease)
  local runs_out = redis.call('ZSCORE', limit.holds, member)
  if not runs_out then
    return nil
  end
  redis.call('ZREM', limit.holds, member)
  if limit.kind == WINDOW then
    return math.floor((tonumber(runs_out) - lease) / slice_of(limit))
  end
  local epoch = redis.call('HGET', limit.epochs, member)
  redis.call('HDEL', limit.epochs, member)
  -- Lost: matches no filling and no day.
  return tonumber(epoch or -1)
end

-- An empty hold marks a call that a second attempt settled: the first attempt may still arrive if the server was frozen.

local function settled(id)
  return id .. ':settled:0:0'
end

-- Gives back expired holds, whose processes are gone. Returns whether there were any.
local function sweep(limit)
  local found = redis.call('ZRANGEBYSCORE', limit.holds, '-inf', string.format('%.0f', now), 'LIMIT', 0, EXPIRED_AT_ONCE)
  for _, member in ipairs(found) do
    local amount, lease = string.match(member, ':(%d+):(%d+)$')
    local epoch = remove_hold(limit, member, tonumber(lease))
    if limit.returns and epoch then
      give_back(limit, epoch, tonumber(amount))
    end
  end
  return #found > 0
end
