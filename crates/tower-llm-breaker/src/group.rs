//! The circuits of one scope: their policy, and how many of them are open.
//!
//! The maximum ratio of open circuits is a ratio of the members: the circuits that have counted a call. So neither circuits
//! of invented names nor circuits that were opened manually and get no calls change it. An open member counts until it
//! closes, or until its time passed long ago without a probe: a circuit that gets no more calls must not keep all others
//! closed without end.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use crate::{
    Scope,
    policy::Policy,
    sync::{Mutex, lock},
};

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) scope: Scope,
    pub(crate) policy: Arc<Policy>,
    // Locked inside a circuit's lock: when a circuit opens, closes or is probed, and for each failure that would open one.
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    all: usize,
    open: BTreeSet<OpenSlot>,
    last_number: u64,
}

/// An open member: until when it counts, in the clock's milliseconds, and its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpenSlot {
    until: u64,
    number: u64,
}

impl Group {
    pub(crate) fn new(scope: Scope, policy: Arc<Policy>) -> Self {
        Self {
            scope,
            policy,
            members: Mutex::default(),
        }
    }

    /// Whether its circuits count calls; if not, single calls open them.
    pub(crate) fn counts(&self) -> bool {
        match self.scope {
            Scope::Key | Scope::Provider | Scope::ProviderAndModel => true,
            Scope::Account | Scope::AccountAndModel => false,
        }
    }

    /// Returns a slot for one more open member; `None` if too many are open.
    pub(crate) fn may_open(&self, now: Instant) -> Option<OpenSlot> {
        let Some(ratio) = self.policy.max_open_ratio else {
            return Some(OpenSlot::default());
        };
        let now = self.policy.clock.millis(now);
        let mut members = lock(&self.members);
        members.forget_until(now);
        // A quotient, as for failures: 29 of 100 is 0.29, but 0.29 times 100 is slightly less than 29.
        let with_one_more = (members.open.len() + 1) as f64 / members.all as f64;
        (with_one_more <= ratio).then(|| members.add(self.counts_until(now)))
    }

    /// Returns the slot of a member that is open, or half-open, until `until`; it may have had one before.
    pub(crate) fn is_open(&self, had: Option<OpenSlot>, until: u64) -> OpenSlot {
        if self.policy.max_open_ratio.is_none() {
            return OpenSlot::default();
        }
        let mut members = lock(&self.members);
        members.remove(had);
        members.add(self.counts_until(until))
    }

    /// A member that may have had a slot is closed.
    pub(crate) fn is_closed(&self, had: Option<OpenSlot>) {
        if had.is_some() {
            lock(&self.members).remove(had);
        }
    }

    pub(crate) fn entered(&self) {
        lock(&self.members).all += 1;
    }

    /// A member is gone.
    pub(crate) fn left(&self, had: Option<OpenSlot>) {
        let mut members = lock(&self.members);
        members.all -= 1;
        members.remove(had);
    }

    fn counts_until(&self, until: u64) -> u64 {
        until.saturating_add(self.policy.quiet_after().as_millis() as u64)
    }
}

impl Members {
    fn add(&mut self, until: u64) -> OpenSlot {
        self.last_number += 1;
        let slot = OpenSlot {
            until,
            number: self.last_number,
        };
        self.open.insert(slot);
        slot
    }

    fn remove(&mut self, slot: Option<OpenSlot>) {
        if let Some(slot) = slot {
            self.open.remove(&slot);
        }
    }

    fn forget_until(&mut self, now: u64) {
        while self.open.first().is_some_and(|slot| slot.until <= now) {
            self.open.pop_first();
        }
    }
}
