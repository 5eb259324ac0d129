-- Takes from all limits of a call, or from none.
--
-- ARGV: id, lease; then the limits; then for each the amount that must be available and the amount to take. Returns 1, and
-- for each limit what remains and the time until nothing is taken; or 0, the limit with the longest wait, and that wait; or
-- -1 and the limit that can never admit the amount.

local id, lease = ARGV[1], tonumber(ARGV[2])
local limits = read_limits(2, 0, #KEYS / KEYS_EACH)
local amounts_at = 2 + #limits * FIELDS

local longest, which = 0, 0
for i, limit in ipairs(limits) do
  load(limit)
  if sweep(limit) then
    save(limit)
  end
  local room = tonumber(ARGV[amounts_at + 2 * i - 1])
  local wait = room > 0 and wait_for(limit, room) or 0
  if wait < 0 then
    return { -1, i - 1, 0 }
  elseif wait > longest then
    longest, which = wait, i
  end
end
if which > 0 then
  return { 0, which - 1, longest }
end

local reply = { 1 }
for i, limit in ipairs(limits) do
  local amount = tonumber(ARGV[amounts_at + 2 * i])
  local epoch = take(limit, amount, false)
  hold(limit, member_of(id, amount, lease), epoch, lease)
  save(limit)
  reply[#reply + 1] = math.max(0, math.floor(limit.capacity - limit.taken))
  reply[#reply + 1] = full_in(limit)
end
return reply
