-- Meters as `src/meter` has them, in microseconds. All numbers are whole but what a bucket holds, and below 2^53.
--
-- The server's clock is the only one. It may be set back: then no time passes until it has caught up.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local BUCKET, WINDOW, DAY = 0, 1, 2
-- Kept are the slices of a period, one more, so that they cover a period wherever it begins, and the one to come, in
-- which leases are charged.
local SLICES, RING = 12, 14
local EXPIRED_AT_ONCE = 16

-- A time that a debt may take to be paid off; what is longer does not fit into the numbers.
local LONGEST = 2 ^ 52

local FIELDS = 7
local KEYS_EACH = 3

-- The limits of a call, from the script's arguments after the first `from`: `count` of them, of which as many others' keys
-- come first as `before` says.
local function read_limits(from, before, count)
  local limits = {}
  for i = 1, count do
    local at = from + (i - 1) * FIELDS
    local keys_at = (before + i - 1) * KEYS_EACH
    limits[i] = {
      key = KEYS[keys_at + 1],
      holds = KEYS[keys_at + 2],
      marks = KEYS[keys_at + 3],
      kind = tonumber(ARGV[at + 1]),
      amount = tonumber(ARGV[at + 2]),
      capacity = tonumber(ARGV[at + 3]),
      period = tonumber(ARGV[at + 4]),
      -- Of a day: its number, and how long it still is.
      day = tonumber(ARGV[at + 5]),
      day_left = tonumber(ARGV[at + 6]),
      -- Whether what a process held that is gone comes back.
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
  -- A little less than leaks, so that no rounding lets through what a later microsecond would.
  local leaked = math.max(0, now - at) * limit.amount / limit.period * (1 - 1e-12)
  limit.taken, limit.at = math.max(0, taken - leaked), math.max(now, at)
  -- A bucket is filled anew when something is taken and nothing is left of what was: by when that was.
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

-- The first who asks on a day says when it ends; by the server's clock it ends then, whatever others' clocks say.
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

-- Until nothing of it counts any more, in microseconds.
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
  -- As long as it counts, and a second for clocks.
  local keep = math.ceil(full_in(limit) / 1000) + 1000
  redis.call('SET', limit.key, cmsgpack.pack(state), 'PX', string.format('%.0f', keep))
end

-- Until `amount` can be taken, in microseconds: zero if it can now. Below zero if it never can.
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

-- Takes `amount`, whether there is room or not: in the slice to come if `later`. Returns its mark.
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

-- Gives back what was taken with `mark`, if it still counts.
local function give_back(limit, mark, amount)
  if limit.kind == WINDOW then
    if mark < limit.newest - SLICES or mark > limit.newest + 1 then
      return
    end
    amount = math.min(amount, limit.slices[mark % RING])
    limit.slices[mark % RING] = limit.slices[mark % RING] - amount
  elseif limit.kind == DAY and mark ~= limit.day then
    return
  elseif limit.kind == BUCKET and mark ~= limit.filling then
    -- All of it has leaked away since: what there is now is others'.
    return
  end
  limit.taken = math.max(0, limit.taken - amount)
end

-- What a process holds is a member `id:amount:lease`, whose score is when it runs out. The mark of a window's follows from
-- when it was taken. That of the others is kept beside: the day is not always the one that was asked for.

local function member_of(id, amount, lease)
  return string.format('%s:%.0f:%.0f', id, amount, lease)
end

-- As long as what is held counts: it is given back when somebody asks, which may be long after it ran out.
local function keep_hold(limit, member, lease)
  local keep = string.format('%.0f', math.ceil(math.max(lease, full_in(limit)) / 1000) + 1000)
  redis.call('ZADD', limit.holds, string.format('%.0f', now + lease), member)
  redis.call('PEXPIRE', limit.holds, keep)
  return keep
end

local function hold(limit, member, mark, lease)
  local keep = keep_hold(limit, member, lease)
  if limit.kind ~= WINDOW then
    redis.call('HSET', limit.marks, member, string.format('%.0f', mark))
    redis.call('PEXPIRE', limit.marks, keep)
  end
end

-- Lets a member go; returns its mark, or nothing if nobody holds it any more.
local function let_go(limit, member, lease)
  local runs_out = redis.call('ZSCORE', limit.holds, member)
  if not runs_out then
    return nil
  end
  redis.call('ZREM', limit.holds, member)
  if limit.kind == WINDOW then
    return math.floor((tonumber(runs_out) - lease) / slice_of(limit))
  end
  local mark = redis.call('HGET', limit.marks, member)
  redis.call('HDEL', limit.marks, member)
  -- Lost: of no filling and no day that there is.
  return tonumber(mark or -1)
end

-- Of a call that was settled by a second attempt, a hold of nothing: the first may yet come, from before the server froze.

local function settled(id)
  return id .. ':settled:0:0'
end

-- Gives back what nobody has settled in time: its process is gone. Returns whether there was any.
local function sweep(limit)
  local found = redis.call('ZRANGEBYSCORE', limit.holds, '-inf', string.format('%.0f', now), 'LIMIT', 0, EXPIRED_AT_ONCE)
  for _, member in ipairs(found) do
    local amount, lease = string.match(member, ':(%d+):(%d+)$')
    local mark = let_go(limit, member, tonumber(lease))
    if limit.returns and mark then
      give_back(limit, mark, tonumber(amount))
    end
  end
  return #found > 0
end
