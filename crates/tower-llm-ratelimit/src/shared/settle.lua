-- Settles each call once: changes what it took to what it used.
--
-- ARGV: lease; then for each call its id, whether this may have run before, the number of its limits; the limits; and for
-- each the amount taken and the amount used. A hold that does not exist was refunded when it expired or was lost with the
-- server: then all that was used is charged. Or it was settled already, by a script whose response was lost or by a second
-- attempt that arrived earlier. Returns the number of calls with use for which this is not known; they are not charged.

local ONCE, IF_NOT_BEFORE, OR_RAN_OUT = 0, 1, 2

local lease = tonumber(ARGV[1])

-- Returns whether the call is known to be settled now.
local function settle(limit, id, again, taken, used)
  local epoch = remove_hold(limit, member_of(id, taken, lease), lease)
  if epoch and again ~= ONCE then
    keep_hold(limit, settled(id), lease)
  end
  if not epoch then
    local is_open = limit.returns and not redis.call('ZSCORE', limit.holds, settled(id))
    if is_open and again == OR_RAN_OUT and used > 0 then
      return false
    elseif is_open and again == ONCE then
      take(limit, used, false)
    end
  elseif used < taken then
    give_back(limit, epoch, taken - used)
  else
    take(limit, used - taken, false)
  end
  save(limit)
  return true
end

local unknown = 0
local at, before = 1, 0
while at < #ARGV do
  local id, again, count = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local limits = read_limits(at + 3, before, count)
  at, before = at + 3 + count * FIELDS, before + count
  -- All are read before the first is changed, so that an error leaves no call half settled.
  for _, limit in ipairs(limits) do
    load(limit)
  end
  local is_known = true
  for i, limit in ipairs(limits) do
    local taken, used = tonumber(ARGV[at + 2 * i - 1]), tonumber(ARGV[at + 2 * i])
    is_known = settle(limit, id, again, taken, used) and is_known
  end
  unknown = unknown + (is_known and 0 or 1)
  at = at + 2 * count
end
return unknown
