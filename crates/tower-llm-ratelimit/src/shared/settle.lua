-- Changes what a call has taken to what it has used, once.
--
-- ARGV: id, lease; then the limits; then for each what was taken, and what was used; and whether it may have run before.
-- What nobody holds any more was given back when it ran out, or was lost with the server: all that was used is charged. Or it
-- was settled already, by a script whose answer was lost.

local id, lease = ARGV[1], tonumber(ARGV[2])
local limits = read_limits(2)
local amounts_at = 2 + #limits * FIELDS
local again = ARGV[amounts_at + 2 * #limits + 1] == '1'

for i, limit in ipairs(limits) do
  local taken, used = tonumber(ARGV[amounts_at + 2 * i - 1]), tonumber(ARGV[amounts_at + 2 * i])
  local day = limit.day
  load(limit)
  local mark = let_go(limit, member_of(limit, id, taken, lease), day, lease)
  if not mark then
    if limit.returns and not again then
      take(limit, used, false)
    end
  elseif used < taken then
    give_back(limit, mark, taken - used)
  else
    take(limit, used - taken, false)
  end
  save(limit)
end
return 1
