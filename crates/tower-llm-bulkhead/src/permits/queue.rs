//! Who waits, and whose tenant it is.
//!
//! All of a [`Priority`] go before any of the next. Within one, callers take turns, and a caller's own calls go in the
//! order they came: a thousand waiting calls of one tenant do not delay another's first.
//!
//! A line may be of one key, or of all keys where these share a limit. It therefore has a *lane* for each key with
//! calls that wait, and turns are taken twice. Inside a lane, the caller who was served goes to the end, and the first
//! call of the first caller is the lane's *head*. It alone is looked at, so that no lighter call overtakes one for
//! which there is no room yet. Where a lane is full, one who has fewer calls in it than others on average has the
//! newest call of the one with most pushed out for his (longest queue drop, as in McKenney's stochastic fairness
//! queueing, 1990): else who came first with many would keep all others out. Among the heads, the one goes first whose
//! caller was served longest ago in any lane. A head whose key has no room takes its lane out of the order until
//! something has changed; one for which there is no room in the limit of all keys holds up all.
//!
//! Every step costs some look-ups in trees; one that serves a caller who is at the head of several lanes costs one for
//! each of these.
//!
//! There is no lock here, no counter and no service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, mem,
    task::Waker,
};

use tower_llm_core::Caller;

use crate::{Priority, priority::ByPriority};

/// Who takes turns with whom: callers of a class. Those who are not known share a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tenant {
    pub(crate) priority: Priority,
    pub(crate) caller: Option<Caller>,
}

/// Whether there is room for a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There was, and it is taken.
    Taken,
    /// Not in its key's limit.
    NotInKey,
    /// Not in the limit of all keys.
    NotInAll,
}

pub(super) struct Queue<K> {
    lanes: HashMap<LaneId, Lane<K>>,
    /// The heads of lanes that may have room, in the order they are served.
    ready: BTreeMap<Rank, LaneId>,
    standings: HashMap<Tenant, Standing>,
    waiting: usize,
    /// Tickets that were pushed out and whose holders have not heard of it.
    evicted: HashSet<u64>,
    /// Numbers all that happens, so that what is numbered lower was before.
    clock: u64,
}

/// Which key a lane is of: a number that the key keeps as long as somebody waits for it.
pub(super) type LaneId = usize;

/// A head's permit in the order: its class, when its caller was last served, and its ticket.
type Rank = (Priority, u64, u64);

/// A caller who waits.
#[derive(Default)]
struct Standing {
    /// When he was last served, or else when he came.
    served: u64,
    waiting: usize,
    /// The lanes whose head is his.
    heads: BTreeSet<LaneId>,
}

struct Lane<K> {
    key: K,
    /// What callers wait for, by class and by when their tenant comes.
    queues: BTreeMap<(Priority, u64), CallerQueue>,
    /// When the tenant of each caller comes.
    turns: HashMap<Tenant, u64>,
    waiting: ByPriority,
    callers: ByPriority,
    head: Option<Head>,
}

struct Head {
    tenant: Tenant,
    ticket: u64,
    /// Its permit in the order; `None` while there is no room for it.
    rank: Option<Rank>,
}

/// The calls of one caller in one lane, by ticket.
struct CallerQueue {
    tenant: Tenant,
    calls: BTreeMap<u64, Waiter>,
}

struct Waiter {
    weight: u32,
    waker: Waker,
}

impl<K> Queue<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many of each class wait in `lane`.
    pub(super) fn waiting_in(&self, lane: LaneId) -> ByPriority {
        self.lanes.get(&lane).map_or([0; 3], |lane| lane.waiting)
    }

    /// Whether the next in `lane` found no room in its key.
    pub(super) fn is_blocked(&self, lane: LaneId) -> bool {
        let head = self.lanes.get(&lane).and_then(|lane| lane.head.as_ref());
        head.is_some_and(|head| head.rank.is_none())
    }

    /// Joins the line; returns the ticket.
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
        ticket
    }

    /// The waker of the one with `ticket`; `None` if he was served.
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

    /// Leaves the line; `None` if he was served.
    pub(super) fn leave(&mut self, lane_id: LaneId, tenant: &Tenant, ticket: u64) -> Option<Waker> {
        let lane = self.lanes.get_mut(&lane_id)?;
        let comes = *lane.turns.get(tenant)?;
        let waiter = lane.remove(tenant, comes, ticket)?;
        self.left(lane_id, tenant);
        Some(waiter.waker)
    }

    /// Makes room for a call of `tenant` that has joined `lane` just now, if that is fair: the waker of the one who had to go.
    pub(super) fn evict(&mut self, lane_id: LaneId, tenant: &Tenant) -> Option<Waker> {
        let (most, newest) = self.lanes.get(&lane_id)?.to_evict(tenant)?;
        let waker = self.leave(lane_id, &most, newest)?;
        self.evicted.insert(newest);
        Some(waker)
    }

    /// Whether the one with `ticket` was pushed out; says so once.
    pub(super) fn was_evicted(&mut self, ticket: u64) -> bool {
        self.evicted.remove(&ticket)
    }

    /// Says that there may be room again in the key of `lane`.
    pub(super) fn open(&mut self, lane_id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&lane_id)
            && let Some(head) = &mut lane.head
            && head.rank.is_none()
        {
            let rank = head.rank_of(&self.standings[&head.tenant]);
            head.rank = Some(rank);
            self.ready.insert(rank, lane_id);
        }
    }

    /// Serves the next for whom `take` finds room: his ticket and his waker.
    pub(super) fn serve(&mut self, mut take: impl FnMut(&K, u32) -> Room) -> Option<(u64, Waker)> {
        loop {
            let (&rank, &lane_id) = self.ready.first_key_value()?;
            let lane = self.lanes.get_mut(&lane_id)?;
            match take(&lane.key, lane.weight_of_head()?) {
                Room::Taken => return self.serve_head(lane_id),
                Room::NotInKey => {
                    self.ready.remove(&rank);
                    lane.head.as_mut()?.rank = None;
                }
                Room::NotInAll => return None,
            }
        }
    }

    fn serve_head(&mut self, lane_id: LaneId) -> Option<(u64, Waker)> {
        let now = self.tick();
        let lane = self.lanes.get_mut(&lane_id)?;
        let head = lane.head.as_ref()?;
        let (tenant, ticket) = (head.tenant.clone(), head.ticket);
        let comes = *lane.turns.get(&tenant)?;
        let waiter = lane.remove(&tenant, comes, ticket)?;
        lane.end_turn(&tenant, comes, now);
        self.restamp(&tenant, now);
        self.left(lane_id, &tenant);
        Some((ticket, waiter.waker))
    }

    /// A caller was served `now`: his other heads go behind those of others.
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
                let rank = head.rank_of(standing);
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

    /// Looks who is the head of a lane in which something has changed. A new one may find room.
    fn refresh(&mut self, lane_id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&lane_id) else {
            return;
        };
        let first = lane.first();
        if first.map(|(_, ticket)| ticket) == lane.head.as_ref().map(|head| head.ticket) {
            return;
        }
        let head = first.map(|(tenant, ticket)| {
            let tenant = tenant.clone();
            let standing = self.standings.entry(tenant.clone()).or_default();
            standing.heads.insert(lane_id);
            let mut head = Head {
                tenant,
                ticket,
                rank: None,
            };
            let rank = head.rank_of(standing);
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

impl<K> Lane<K> {
    fn new(key: K) -> Self {
        Self {
            key,
            queues: BTreeMap::new(),
            turns: HashMap::new(),
            waiting: [0; 3],
            callers: [0; 3],
            head: None,
        }
    }

    fn first(&self) -> Option<(&Tenant, u64)> {
        let queue = self.queues.values().next()?;
        let (&ticket, _) = queue.calls.first_key_value()?;
        Some((&queue.tenant, ticket))
    }

    fn weight_of_head(&self) -> Option<u32> {
        let queue = self.queues.values().next()?;
        let (_, waiter) = queue.calls.first_key_value()?;
        Some(waiter.weight)
    }

    fn remove(&mut self, tenant: &Tenant, comes: u64, ticket: u64) -> Option<Waiter> {
        let at = (tenant.priority, comes);
        let queue = self.queues.get_mut(&at)?;
        let waiter = queue.calls.remove(&ticket)?;
        self.waiting[tenant.priority.index()] -= 1;
        if queue.calls.is_empty() {
            self.queues.remove(&at);
            self.turns.remove(tenant);
            self.callers[tenant.priority.index()] -= 1;
        }
        Some(waiter)
    }

    /// The newest call of the caller who has most of `tenant`'s class; `None` if that one's own are not fewer than average.
    fn to_evict(&self, tenant: &Tenant) -> Option<(Tenant, u64)> {
        let (class, comes) = (tenant.priority, *self.turns.get(tenant)?);
        let own = self.queues.get(&(class, comes))?.calls.len();
        if own * self.callers[class.index()] >= self.waiting[class.index()] {
            return None;
        }
        let of_class = self.queues.range((class, 0)..=(class, u64::MAX));
        let (_, most) = of_class.max_by_key(|(_, queue)| queue.calls.len())?;
        let (&newest, _) = most.calls.last_key_value()?;
        Some((most.tenant.clone(), newest))
    }

    /// Puts a caller who has more calls behind all others.
    fn end_turn(&mut self, tenant: &Tenant, comes: u64, now: u64) {
        if let Some(queue) = self.queues.remove(&(tenant.priority, comes)) {
            self.queues.insert((tenant.priority, now), queue);
            self.turns.insert(tenant.clone(), now);
        }
    }
}

impl Head {
    fn rank_of(&self, standing: &Standing) -> Rank {
        (self.tenant.priority, standing.served, self.ticket)
    }
}

impl CallerQueue {
    fn new(tenant: Tenant) -> Self {
        Self {
            tenant,
            calls: BTreeMap::new(),
        }
    }
}

// Not derived: a line with no key in it is empty too.
impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            ready: BTreeMap::new(),
            standings: HashMap::new(),
            waiting: 0,
            evicted: HashSet::new(),
            clock: 0,
        }
    }
}

// A lane's key may hold the line.
impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("lanes", &self.lanes.len())
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}
