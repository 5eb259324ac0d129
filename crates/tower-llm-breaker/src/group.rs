//! Circuits of one kind: what they go by, and how many of them are open.

use std::sync::Arc;

use crate::{
    Scope,
    policy::Policy,
    sync::{AtomicU64, Ordering},
};

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) scope: Scope,
    pub(crate) policy: Arc<Policy>,
    members: AtomicU64,
    open: AtomicU64,
}

impl Group {
    pub(crate) fn new(scope: Scope, policy: Arc<Policy>) -> Self {
        Self {
            scope,
            policy,
            members: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }

    /// Whether the ends of calls are counted, or single ones open its circuits.
    pub(crate) fn counts(&self) -> bool {
        match self.scope {
            Scope::Key | Scope::Provider | Scope::ProviderAndModel => true,
            Scope::Account | Scope::AccountAndModel => false,
        }
    }

    /// Whether one more may open; if so, it counts as open from now on.
    pub(crate) fn may_open(&self) -> bool {
        let Some(share) = self.policy.max_open_share else {
            self.opened();
            return true;
        };
        let members = self.members.load(Ordering::Relaxed) as f64;
        // A quotient, as of failures: 29 of 100 are 0.29, and 0.29 of 100 are not quite 29.
        let one_more = |open| ((open + 1) as f64 / members <= share).then_some(open + 1);
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more)
            .is_ok()
    }

    pub(crate) fn opened(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn entered(&self) {
        self.members.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn left(&self, was_member: bool, was_open: bool) {
        if was_member {
            self.members.fetch_sub(1, Ordering::Relaxed);
        }
        if was_open {
            self.closed();
        }
    }
}
