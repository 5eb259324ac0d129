//! The calls that wait for one key.

use std::{
    collections::{BTreeMap, HashMap},
    task::Waker,
};

use super::queue::{Rank, Tenant};
use crate::{Priority, priority::ByPriority};

pub(super) struct Lane<K> {
    pub(super) key: K,
    /// The calls of each caller, by priority and by when the caller's turn comes.
    pub(super) queues: BTreeMap<(Priority, u64), CallerQueue>,
    /// When the turn of each caller comes.
    pub(super) turns: HashMap<Tenant, u64>,
    pub(super) waiting: ByPriority,
    pub(super) callers: ByPriority,
    pub(super) head: Option<Head>,
}

pub(super) struct Head {
    pub(super) tenant: Tenant,
    pub(super) ticket: u64,
    pub(super) weight: u32,
    /// Its position in the order; `None` while its key has no room for it.
    pub(super) rank: Option<Rank>,
    /// When it became the head.
    pub(super) since: u64,
    /// The current batch of calls that have overtaken it: their weight, and how many are in flight.
    pub(super) batch_weight: u64,
    pub(super) batch_in_flight: usize,
}

/// The calls of one caller in one lane, by ticket.
pub(super) struct CallerQueue {
    pub(super) tenant: Tenant,
    pub(super) calls: BTreeMap<u64, Waiter>,
}

pub(super) struct Waiter {
    pub(super) weight: u32,
    pub(super) waker: Waker,
}

/// A call that is about to be served.
pub(super) struct WaitingCall {
    pub(super) tenant: Tenant,
    pub(super) ticket: u64,
    pub(super) weight: u32,
}

impl<K> Lane<K> {
    pub(super) fn new(key: K) -> Self {
        Self {
            key,
            queues: BTreeMap::new(),
            turns: HashMap::new(),
            waiting: [0; 3],
            callers: [0; 3],
            head: None,
        }
    }

    pub(super) fn first(&self) -> Option<(&Tenant, u64, u32)> {
        let queue = self.queues.values().next()?;
        let (&ticket, waiter) = queue.calls.first_key_value()?;
        Some((&queue.tenant, ticket, waiter.weight))
    }

    pub(super) fn is_head(&self, ticket: u64) -> bool {
        self.head.as_ref().is_some_and(|head| head.ticket == ticket)
    }

    pub(super) fn remove(&mut self, tenant: &Tenant, comes: u64, ticket: u64) -> Option<Waiter> {
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

    /// The newest call of the caller with most calls in `tenant`'s priority; `None` if `tenant` has the average or more.
    pub(super) fn to_evict(&self, tenant: &Tenant) -> Option<(Tenant, u64)> {
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

    /// Puts a caller that has more calls behind all others.
    pub(super) fn end_turn(&mut self, tenant: &Tenant, comes: u64, now: u64) {
        if let Some(queue) = self.queues.remove(&(tenant.priority, comes)) {
            self.queues.insert((tenant.priority, now), queue);
            self.turns.insert(tenant.clone(), now);
        }
    }
}

impl Head {
    pub(super) fn call(&self) -> WaitingCall {
        WaitingCall {
            tenant: self.tenant.clone(),
            ticket: self.ticket,
            weight: self.weight,
        }
    }

    /// Its position in the order, if its caller was last `served` then.
    pub(super) fn rank_of(&self, served: u64) -> Rank {
        (self.tenant.priority, served, self.ticket)
    }
}

impl CallerQueue {
    pub(super) fn new(tenant: Tenant) -> Self {
        Self {
            tenant,
            calls: BTreeMap::new(),
        }
    }
}
