//! The calls that wait, and the order in which they are served.
//!
//! All calls of a [`Priority`] go before those of the next. Within one, callers take turns and the calls of one caller keep
//! their order: a thousand waiting calls of one caller do not delay another's first. If a queue is full and a call comes
//! from a caller with fewer calls in it than average, the newest call of the caller with most is evicted (longest queue
//! drop, as in McKenney's stochastic fairness queueing, 1990); otherwise the first caller with many calls would block all
//! others.
//!
//! A queue belongs to one key, or to all keys if they share a limit. It has a *lane* for each key with waiting calls, and
//! callers take turns twice. In a lane, a caller that was served goes to the end, and so does one whose first call leaves
//! unserved. The first call of the first caller is the *head* of the lane. Of all heads, the one whose caller was served
//! longest ago goes first. A head that does not fit in its key's limit takes its lane out of that order until something
//! changes.
//!
//! A head that needs more permits than are free may be overtaken by lighter calls: of its lane, and if it waits for the
//! limit of all keys, of other lanes too. Without that, one heavy call would leave permits unused until enough others have
//! ended. To bound this, the calls that overtake a head come in batches: together they weigh at most as much as the head
//! (or the limit, if the head is heavier than that), and the next batch begins when all calls of the last one have ended.
//! If nothing but a batch is in flight, the head is served when it ends, at the latest.
//!
//! Each step costs a few lookups in trees; one that serves a caller with heads in several lanes costs one for each of these.
//! The search for a call that may overtake is bounded.
//!
//! There is no lock here, no counter and no service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, mem,
    ops::Bound::{Excluded, Unbounded},
    task::Waker,
};

use tower_llm_core::Caller;

use super::lane::{CallerQueue, Head, Lane, Waiter, WaitingCall};
use crate::{Priority, priority::ByPriority};

/// Maximum number of calls per lane and queue, and of lanes, that are searched for a call that may overtake.
const MAX_LOOKED_AT: usize = 16;

/// Calls that share a turn: those of a caller in a priority. All calls without a caller share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tenant {
    pub(crate) priority: Priority,
    pub(crate) caller: Option<Caller>,
}

/// Whether there is room for a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There was room, and it is taken.
    Taken,
    /// Not in its key's limit.
    NotInKey,
    /// Not in the limit of all keys.
    NotInAll,
}

/// Identifies a call that was served before a head, until it has ended; none for other calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Overtook(u32);

/// A call that was served.
pub(super) struct Served {
    pub(super) ticket: u64,
    pub(super) waker: Waker,
}

pub(super) struct Queue<K> {
    lanes: HashMap<LaneId, Lane<K>>,
    /// The heads that may find room, in the order they are served.
    ready: BTreeMap<Rank, LaneId>,
    standings: HashMap<Tenant, Standing>,
    waiting: usize,
    /// Evicted tickets whose calls have not been polled since.
    evicted: HashSet<u64>,
    /// Calls in flight that have overtaken heads, and which.
    overtakers: HashMap<Overtook, Vec<HeadId>>,
    /// Served tickets whose calls have overtaken a head and have not been polled since.
    granted: HashMap<u64, Overtook>,
    last_overtook: u32,
    /// Numbers all events in their order.
    clock: u64,
}

/// Identifies a lane: a number that its key keeps as long as a call waits for it.
pub(super) type LaneId = usize;

/// Identifies a head: its lane, and when it became the head.
type HeadId = (LaneId, u64);

/// A head's position in the order: its priority, when its caller was last served, and its ticket.
pub(super) type Rank = (Priority, u64, u64);

/// A caller with waiting calls.
#[derive(Default)]
struct Standing {
    /// When it was last served, or else when it arrived.
    served: u64,
    waiting: usize,
    /// The lanes whose head is its call.
    heads: BTreeSet<LaneId>,
}

impl Overtook {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn is_some(self) -> bool {
        self != Self::NONE
    }
}

impl<K> Queue<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many calls of each priority wait in `lane`.
    pub(super) fn waiting_in(&self, lane: LaneId) -> ByPriority {
        self.lanes.get(&lane).map_or([0; 3], |lane| lane.waiting)
    }

    /// Whether the head of `lane` found no room in its key.
    pub(super) fn is_blocked(&self, lane: LaneId) -> bool {
        let head = self.lanes.get(&lane).and_then(|lane| lane.head.as_ref());
        head.is_some_and(|head| head.rank.is_none())
    }

    /// Adds a call; returns its ticket.
    pub(super) fn join(
        &mut self,
        lane_id: LaneId,
        key: impl FnOnce() -> K,
        tenant: &Tenant,
        weight: u32,
        waker: Waker,
    ) -> u64 {
        let ticket = self.tick();
        self.waiting += 1;
        let standing = self.standings.entry(tenant.clone()).or_default();
        if standing.waiting == 0 {
            standing.served = ticket;
        }
        standing.waiting += 1;

        let lane = self
            .lanes
            .entry(lane_id)
            .or_insert_with(|| Lane::new(key()));
        lane.waiting[tenant.priority.index()] += 1;
        let comes = *lane.turns.entry(tenant.clone()).or_insert_with(|| {
            lane.callers[tenant.priority.index()] += 1;
            ticket
        });
        let queue = lane.queues.entry((tenant.priority, comes));
        let queue = queue.or_insert_with(|| CallerQueue::new(tenant.clone()));
        queue.calls.insert(ticket, Waiter { weight, waker });
        self.refresh(lane_id);
        // It may overtake the head.
        self.open(lane_id);
        ticket
    }

    /// The waker of a waiting call; `None` if it was served.
    pub(super) fn waker(
        &mut self,
        lane: LaneId,
        tenant: &Tenant,
        ticket: u64,
    ) -> Option<&mut Waker> {
        let lane = self.lanes.get_mut(&lane)?;
        let comes = *lane.turns.get(tenant)?;
        let queue = lane.queues.get_mut(&(tenant.priority, comes))?;
        queue.calls.get_mut(&ticket).map(|waiter| &mut waiter.waker)
    }

    /// Removes a waiting call; `None` if it was served.
    pub(super) fn leave(&mut self, lane_id: LaneId, tenant: &Tenant, ticket: u64) -> Option<Waker> {
        let now = self.tick();
        let lane = self.lanes.get_mut(&lane_id)?;
        let comes = *lane.turns.get(tenant)?;
        let waiter = lane.remove(tenant, comes, ticket)?;
        // Otherwise a caller's next call would be the head, and a few heavy calls of one caller would block the lane in turn.
        if lane.is_head(ticket) {
            lane.end_turn(tenant, comes, now);
            self.restamp(tenant, now);
        }
        self.left(lane_id, tenant);
        Some(waiter.waker)
    }

    /// Makes room for a call of `tenant` that has just joined `lane`, if that is fair: the waker of the evicted call.
    pub(super) fn evict(&mut self, lane_id: LaneId, tenant: &Tenant) -> Option<Waker> {
        let (most, newest) = self.lanes.get(&lane_id)?.to_evict(tenant)?;
        let waker = self.leave(lane_id, &most, newest)?;
        self.evicted.insert(newest);
        Some(waker)
    }

    /// Whether the call with `ticket` was evicted; true once.
    pub(super) fn was_evicted(&mut self, ticket: u64) -> bool {
        self.evicted.remove(&ticket)
    }

    /// What the call with `ticket` was served with; once.
    pub(super) fn granted(&mut self, ticket: u64) -> Overtook {
        self.granted.remove(&ticket).unwrap_or_default()
    }

    /// The key of `lane` may have room again.
    pub(super) fn open(&mut self, lane_id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&lane_id)
            && let Some(head) = &mut lane.head
            && head.rank.is_none()
        {
            let rank = head.rank_of(self.standings[&head.tenant].served);
            head.rank = Some(rank);
            self.ready.insert(rank, lane_id);
        }
    }

    /// The limit of all keys has changed, and with it which calls may overtake a head.
    pub(super) fn open_all(&mut self) {
        let lanes: Vec<_> = self.lanes.keys().copied().collect();
        lanes.into_iter().for_each(|lane| self.open(lane));
    }

    /// A call that has overtaken heads has ended.
    pub(super) fn ended(&mut self, overtook: Overtook) {
        for (lane_id, since) in self.overtakers.remove(&overtook).unwrap_or_default() {
            if let Some(lane) = self.lanes.get_mut(&lane_id)
                && let Some(head) = &mut lane.head
                && head.since == since
            {
                head.batch_in_flight -= 1;
                if head.batch_in_flight == 0 {
                    head.batch_weight = 0;
                    self.open(lane_id);
                }
            }
        }
    }

    /// Serves the next call for which `take` finds room. `free` is how many permits of a key and of the queue's limit are
    /// free, `limit` that limit.
    pub(super) fn serve(
        &mut self,
        limit: u64,
        free: impl Fn(&K) -> (u64, u64),
        mut take: impl FnMut(&K, u32) -> Room,
    ) -> Option<Served> {
        // The head that waits for the limit of all keys: calls that are served after it overtake it.
        let mut first = None;
        let mut next = self.ready.first_key_value();
        for _ in 0..MAX_LOOKED_AT {
            let (&rank, &lane_id) = next?;
            let lane = &self.lanes[&lane_id];
            let head = lane.head.as_ref()?;
            if self.may_overtake(first, head.weight, limit) {
                let room = take(&lane.key, head.weight);
                if room == Room::Taken {
                    return self.serve_call(lane_id, head.call(), first);
                }
                let (in_key, in_all) = free(&lane.key);
                if let Some(call) = self.lighter(lane_id, first, in_key.min(in_all), limit)
                    && take(&lane.key, call.weight) == Room::Taken
                {
                    return self.serve_call(lane_id, call, first);
                }
                if in_all == 0 {
                    return None;
                }
                if room == Room::NotInAll {
                    first = first.or(Some(lane_id));
                } else if self.lighter(lane_id, None, in_key, limit).is_none() {
                    // No call of the lane waits for the limit of all keys alone.
                    self.ready.remove(&rank);
                    self.lanes.get_mut(&lane_id)?.head.as_mut()?.rank = None;
                }
            }
            next = self.ready.range((Excluded(rank), Unbounded)).next();
        }
        None
    }

    /// Whether a call of `weight` may overtake the head of a lane; true if there is none.
    fn may_overtake(&self, lane: Option<LaneId>, weight: u32, limit: u64) -> bool {
        let lane = lane.and_then(|lane| self.lanes.get(&lane));
        let head = lane.and_then(|lane| lane.head.as_ref());
        head.is_none_or(|head| {
            weight < head.weight
                && head.batch_weight + u64::from(weight) <= u64::from(head.weight).min(limit)
        })
    }

    /// The first call in a lane that fits in `free` and may overtake the lane's head and that of lane `first`.
    fn lighter(
        &self,
        lane_id: LaneId,
        first: Option<LaneId>,
        free: u64,
        limit: u64,
    ) -> Option<WaitingCall> {
        if free == 0 {
            return None;
        }
        let lane = self.lanes.get(&lane_id)?;
        let queues = lane.queues.values().take(MAX_LOOKED_AT);
        let mut calls = queues.flat_map(|queue| {
            let calls = queue.calls.iter().take(MAX_LOOKED_AT);
            calls.map(move |(&ticket, waiter)| (&queue.tenant, ticket, waiter.weight))
        });
        let (tenant, ticket, weight) = calls.find(|&(_, _, weight)| {
            u64::from(weight) <= free
                && self.may_overtake(Some(lane_id), weight, limit)
                && self.may_overtake(first, weight, limit)
        })?;
        Some(WaitingCall {
            tenant: tenant.clone(),
            ticket,
            weight,
        })
    }

    fn serve_call(
        &mut self,
        lane_id: LaneId,
        call: WaitingCall,
        first: Option<LaneId>,
    ) -> Option<Served> {
        let now = self.tick();
        let WaitingCall {
            tenant,
            ticket,
            weight,
        } = call;
        let lane = self.lanes.get_mut(&lane_id)?;
        let head = lane.head.as_ref()?;
        let (is_head, is_own) = (head.ticket == ticket, head.tenant == tenant);
        let of_lane = (!is_head).then_some(lane_id);
        self.note_overtaking(
            ticket,
            weight,
            [first, of_lane.filter(|_| first != of_lane)],
        );
        let lane = self.lanes.get_mut(&lane_id)?;
        let comes = *lane.turns.get(&tenant)?;
        let waiter = lane.remove(&tenant, comes, ticket)?;
        // A call that overtakes another one of its caller does not use up its caller's turn.
        if is_head || !is_own {
            lane.end_turn(&tenant, comes, now);
            self.restamp(&tenant, now);
        }
        self.left(lane_id, &tenant);
        Some(Served {
            ticket,
            waker: waiter.waker,
        })
    }

    /// A call of `weight` overtakes the heads of `lanes`.
    fn note_overtaking(&mut self, ticket: u64, weight: u32, lanes: [Option<LaneId>; 2]) {
        let mut overtaken = Vec::new();
        for lane_id in lanes.into_iter().flatten() {
            let lane = self.lanes.get_mut(&lane_id);
            if let Some(head) = lane.and_then(|lane| lane.head.as_mut()) {
                head.batch_weight += u64::from(weight);
                head.batch_in_flight += 1;
                overtaken.push((lane_id, head.since));
            }
        }
        if !overtaken.is_empty() {
            let overtook = self.free_number();
            self.overtakers.insert(overtook, overtaken);
            self.granted.insert(ticket, overtook);
        }
    }

    /// A number that no call in flight has.
    fn free_number(&mut self) -> Overtook {
        loop {
            self.last_overtook = self.last_overtook.wrapping_add(1);
            let number = Overtook(self.last_overtook);
            if number.is_some() && !self.overtakers.contains_key(&number) {
                return number;
            }
        }
    }

    /// A caller was served `now`: its heads in other lanes go behind those of other callers.
    fn restamp(&mut self, tenant: &Tenant, now: u64) {
        let Some(standing) = self.standings.get_mut(tenant) else {
            return;
        };
        standing.served = now;
        for lane_id in &standing.heads {
            let lane = self.lanes.get_mut(lane_id);
            let head = lane.and_then(|lane| lane.head.as_mut());
            if let Some(head) = head
                && let Some(old) = head.rank
            {
                let rank = head.rank_of(standing.served);
                head.rank = Some(rank);
                self.ready.remove(&old);
                self.ready.insert(rank, *lane_id);
            }
        }
    }

    /// One call fewer waits.
    fn left(&mut self, lane_id: LaneId, tenant: &Tenant) {
        self.waiting -= 1;
        self.refresh(lane_id);
        if let Some(standing) = self.standings.get_mut(tenant) {
            standing.waiting -= 1;
            if standing.waiting == 0 {
                self.standings.remove(tenant);
            }
        }
    }

    /// Finds the head of a lane in which something has changed. A new one may find room.
    fn refresh(&mut self, lane_id: LaneId) {
        let since = self.clock;
        let Some(lane) = self.lanes.get_mut(&lane_id) else {
            return;
        };
        let first = lane.first();
        if first.map(|(_, ticket, _)| ticket) == lane.head.as_ref().map(|head| head.ticket) {
            return;
        }
        let head = first.map(|(tenant, ticket, weight)| {
            let tenant = tenant.clone();
            let standing = self.standings.entry(tenant.clone()).or_default();
            standing.heads.insert(lane_id);
            let mut head = Head {
                tenant,
                ticket,
                weight,
                rank: None,
                since,
                batch_weight: 0,
                batch_in_flight: 0,
            };
            let rank = head.rank_of(standing.served);
            head.rank = Some(rank);
            self.ready.insert(rank, lane_id);
            head
        });
        let is_empty = head.is_none();
        let tenant = head.as_ref().map(|head| head.tenant.clone());
        if let Some(old) = mem::replace(&mut lane.head, head) {
            if let Some(rank) = old.rank {
                self.ready.remove(&rank);
            }
            if tenant.as_ref() != Some(&old.tenant)
                && let Some(standing) = self.standings.get_mut(&old.tenant)
            {
                standing.heads.remove(&lane_id);
            }
        }
        if is_empty {
            self.lanes.remove(&lane_id);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

// Not derived: that would need `K: Default`.
impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            ready: BTreeMap::new(),
            standings: HashMap::new(),
            waiting: 0,
            evicted: HashSet::new(),
            overtakers: HashMap::new(),
            granted: HashMap::new(),
            last_overtook: 0,
            clock: 0,
        }
    }
}

// Not derived: a lane's key may hold the queue.
impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("lanes", &self.lanes.len())
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}
