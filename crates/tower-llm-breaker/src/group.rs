//! Circuits of one kind: what they go by, and how many of them are open.
//!
//! Where no more than a share of them may open, it is a share of the members: of those circuits in which something was
//! counted. Neither names that somebody invents make it larger, nor what was opened by hand and is called by nobody fills
//! it. An open member counts until it closes, or until its time has been over for long and nobody has probed it: what is
//! not called any more must not keep all others closed for ever.

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
    // A mutex within a circuit's: it is taken when one opens, closes or is probed, and for each failure that would open one.
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    all: usize,
    open: BTreeSet<OpenSlot>,
    last_number: u64,
}

/// That a member counts as open: until when, in the clock's milliseconds, and which one it is.
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

    /// Whether the ends of calls are counted, or single ones open its circuits.
    pub(crate) fn counts(&self) -> bool {
        match self.scope {
            Scope::Key | Scope::Provider | Scope::ProviderAndModel => true,
            Scope::Account | Scope::AccountAndModel => false,
        }
    }

    /// A place for one more member that opens; `None` if too many are open.
    pub(crate) fn may_open(&self, now: Instant) -> Option<OpenSlot> {
        let Some(share) = self.policy.max_open_ratio else {
            return Some(OpenSlot::default());
        };
        let now = self.policy.clock.millis(now);
        let mut members = lock(&self.members);
        members.forget_until(now);
        // A quotient, as of failures: 29 of 100 are 0.29, and 0.29 of 100 are not quite 29.
        let with_one_more = (members.open.len() + 1) as f64 / members.all as f64;
        (with_one_more <= share).then(|| members.add(self.counts_until(now)))
    }

    /// The place of a member that is open until `until`, or is probed then; it may have had one before.
    pub(crate) fn is_open(&self, had: Option<OpenSlot>, until: u64) -> OpenSlot {
        if self.policy.max_open_ratio.is_none() {
            return OpenSlot::default();
        }
        let mut members = lock(&self.members);
        members.remove(had);
        members.add(self.counts_until(until))
    }

    /// A member is closed that may have had a place.
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
