-- Changes what calls have taken to what they have used, each once.
--
-- ARGV: lease; then for each call its id, whether that may have run before, the number of its limits; the limits; and for each
-- what was taken, and what was used.
-- What nobody holds any more was given back when it ran out, or was lost with the server: all that was used is charged. Or it
-- was settled already, by a script whose answer was lost, or by a second one that came before this.

local lease = tonumber(ARGV[1])

local function settle(limit, id, again, taken, used)
  local mark = let_go(limit, member_of(id, taken, lease), lease)
  if mark and again then
    keep_hold(limit, settled(id), lease)
  end
  if not mark then
    if limit.returns and not again and not redis.call('ZSCORE', limit.holds, settled(id)) then
      take(limit, used, false)
    end
  elseif used < taken then
    give_back(limit, mark, taken - used)
  else
    take(limit, used - taken, false)
  end
  save(limit)
end

local at, before = 1, 0
while at < #ARGV do
  local id, again, count = ARGV[at + 1], ARGV[at + 2] == '1', tonumber(ARGV[at + 3])
  local limits = read_limits(at + 3, before, count)
  at, before = at + 3 + count * FIELDS, before + count
  -- All before the first is changed: what cannot be read leaves no call settled by half.
  for _, limit in ipairs(limits) do
    load(limit)
  end
  for i, limit in ipairs(limits) do
    settle(limit, id, again, tonumber(ARGV[at + 2 * i - 1]), tonumber(ARGV[at + 2 * i]))
  end
  at = at + 2 * count
end
return 1
