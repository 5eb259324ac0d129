//! How many circuits of a scope may be open at once.
//!
//! The maximum ratio of open circuits is a ratio of the members: the circuits that have counted a call. So neither circuits
//! of invented names nor circuits that were opened manually and get no calls change it. An open member counts until it
//! closes, or until its time passed long ago without a probe: a circuit that gets no more calls must not keep all others
//! closed without end.

use std::{collections::BTreeSet, mem};

use crate::sync::{Mutex, lock};

/// Limits the ratio of open circuits. All times are milliseconds of the layer's clock.
#[derive(Debug)]
pub(crate) struct Ejection {
    /// `None` if all circuits may be open; then none is counted.
    max_ratio: Option<f64>,
    /// For how long an open member counts after its time.
    quiet_after: u64,
    // Locked inside a circuit's lock: when a circuit opens, closes or is probed, and for each failure that would open one.
    members: Mutex<Members>,
}

/// A circuit's membership; it is part of what the circuit's lock protects.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    has_joined: bool,
    /// Set while the circuit counts as an open one.
    slot: Option<Slot>,
}

#[derive(Debug, Default)]
struct Members {
    all: usize,
    open: BTreeSet<Slot>,
    last_number: u64,
}

/// Until when an open member counts, and its number.
type Slot = (u64, u64);

impl Ejection {
    pub(crate) fn new(max_ratio: Option<f64>, quiet_after: u64) -> Self {
        Self {
            max_ratio,
            quiet_after,
            members: Mutex::default(),
        }
    }

    /// Whether circuits have to join.
    pub(crate) fn is_limited(&self) -> bool {
        self.max_ratio.is_some()
    }
}

impl Membership {
    pub(crate) fn join(&mut self, ejection: &Ejection) {
        if ejection.is_limited() && !mem::replace(&mut self.has_joined, true) {
            lock(&ejection.members).all += 1;
        }
    }

    pub(crate) fn leave(&mut self, ejection: &Ejection) {
        if self.has_joined {
            let mut members = lock(&ejection.members);
            members.all -= 1;
            members.remove(self.slot.take());
        }
    }

    /// Whether the other circuits leave room for this one to open; it then counts as open.
    pub(crate) fn may_open(&mut self, ejection: &Ejection, now: u64) -> bool {
        let Some(max_ratio) = ejection.max_ratio else {
            return true;
        };
        // It is in use, though maybe only in another process.
        self.join(ejection);
        let mut members = lock(&ejection.members);
        while members.open.first().is_some_and(|&(until, _)| until <= now) {
            members.open.pop_first();
        }
        // A quotient, as for failures: 29 of 100 is 0.29, but 0.29 times 100 is slightly less than 29.
        let with_one_more = (members.open.len() + 1) as f64 / members.all as f64;
        if with_one_more > max_ratio {
            return false;
        }
        self.slot = Some(members.add(now.saturating_add(ejection.quiet_after)));
        true
    }

    /// Notes until when the circuit is open, if it is.
    pub(crate) fn update(&mut self, ejection: &Ejection, open_until: Option<u64>) {
        if self.has_joined {
            let mut members = lock(&ejection.members);
            members.remove(self.slot.take());
            let counts_until = |until: u64| until.saturating_add(ejection.quiet_after);
            self.slot = open_until.map(|until| members.add(counts_until(until)));
        }
    }
}

impl Members {
    fn add(&mut self, until: u64) -> Slot {
        self.last_number += 1;
        let slot = (until, self.last_number);
        self.open.insert(slot);
        slot
    }

    fn remove(&mut self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.open.remove(&slot);
        }
    }
}
