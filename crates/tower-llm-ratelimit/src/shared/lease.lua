-- Grants shares of all limits, or of none; gives back and charges what else there is.
--
-- A share is charged in the slice to come, since it is spent until its lease ends, which is within that.
--
-- ARGV: id, lease; then the limits; then for each what there must be room for, what is wanted, what goes back and its mark,
-- and what is charged.
-- Returns 1, and for each limit what is granted and its mark; or as `take` if there is no room for a limit's need.

local limits = read_limits(2, 0, #KEYS / KEYS_EACH)
local terms_at = 2 + #limits * FIELDS

-- All before the first is changed: what cannot be read leaves nothing done by half.
for _, limit in ipairs(limits) do
  load(limit)
end

local longest, which = 0, 0
for i, limit in ipairs(limits) do
  local at = terms_at + (i - 1) * 5
  limit.need, limit.want = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local back, mark, charge = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  give_back(limit, mark, back)
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
  local granted, mark = 0, 0
  if limit.need > 0 then
    -- Of what is left, half stays for others.
    local room = math.floor(limit.capacity - limit.taken)
    granted = math.max(limit.need, math.min(limit.want, math.floor(room / 2)))
    mark = take(limit, granted, true)
    save(limit)
  end
  reply[#reply + 1] = granted
  reply[#reply + 1] = mark
end
return reply
