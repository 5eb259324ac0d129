-- Grants leases of all limits, or of none; also refunds and charges.
--
-- A lease is charged in the next slice, because it is spent until its end, which is within that slice.
--
-- ARGV: id, lease; then the limits; then for each the amount needed now, the size of the lease, the amount to give back and
-- its epoch, and the amount to charge. Returns 1, and for each limit the amount granted and its epoch; or as `take` if a
-- limit has no room for the amount needed.

local limits = read_limits(2, 0, #KEYS / KEYS_EACH)
local terms_at = 2 + #limits * FIELDS

-- All are read before the first is changed, so that an error leaves nothing half done.
for _, limit in ipairs(limits) do
  load(limit)
end

local longest, which = 0, 0
for i, limit in ipairs(limits) do
  local at = terms_at + (i - 1) * 5
  limit.need, limit.want = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local back, epoch, charge = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  give_back(limit, epoch, back)
  take(limit, charge, false)
  local has_changed = sweep(limit) or back > 0 or charge > 0
  if has_changed then
    save(limit)
  end
  if limit.need > 0 then
    local wait = wait_for(limit, limit.need)
    if wait < 0 then
      wait = math.huge
    end
    if wait > longest then
      longest, which = wait, i
    end
  end
end
if which > 0 then
  if longest == math.huge then
    return { -1, which - 1, 0 }
  end
  return { 0, which - 1, longest }
end

local reply = { 1 }
for _, limit in ipairs(limits) do
  local granted, epoch = 0, 0
  if limit.need > 0 then
    -- Half of what is left stays for other processes.
    local room = math.floor(limit.capacity - limit.taken)
    granted = math.max(limit.need, math.min(limit.want, math.floor(room / 2)))
    epoch = take(limit, granted, true)
    save(limit)
  end
  reply[#reply + 1] = granted
  reply[#reply + 1] = epoch
end
return reply
