//! Why a call cannot be admitted now, and which queues it has passed.

use std::time::Duration;

use tower_llm_core::Availability;

use crate::Unit;

/// Why a call cannot be admitted now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    /// The key in whose queue it waits.
    pub(crate) group: usize,
    /// How long that key blocks it at most, unless other calls come.
    pub(crate) here_nanos: u64,
    /// The longest time that any key blocks it, by what is known to be used.
    pub(crate) known_nanos: u64,
    /// What blocks it for that long, and at which key.
    pub(crate) why: Why,
    pub(crate) why_group: usize,
}

/// How long one key blocks a call, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    /// At most, unless other calls come.
    pub(crate) nanos: u64,
    /// By what is known to be used.
    pub(crate) known_nanos: u64,
    pub(crate) why: Why,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    Limit(usize),
    Reported(Unit),
    Closed,
    Queue,
    /// The lease of a shared limit is used up.
    Lease,
    /// The store of shared limits is unavailable.
    Store,
}

/// The queues of which a call has been the head.
///
/// If a call was the head of one queue and is then blocked by another key, it does not go back behind the calls that joined
/// the first queue later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueuesPassed {
    /// The queue of which it is the head now.
    head_of: Option<usize>,
    /// All of them, a bit for each.
    passed: u64,
}

impl QueuesPassed {
    /// The call is the head of the queue of `group`.
    pub(crate) fn add(&mut self, group: usize) {
        self.head_of = Some(group);
        self.passed |= Self::bit(group);
    }

    /// The call waits in no queue, because it was admitted elsewhere.
    pub(crate) fn and_all(self) -> Self {
        Self {
            passed: u64::MAX,
            ..self
        }
    }

    pub(crate) fn has(self, group: usize) -> bool {
        self.head_of == Some(group) || self.passed & Self::bit(group) != 0
    }

    /// None for more kinds of key than there are bits: calls wait there again.
    fn bit(group: usize) -> u64 {
        u32::try_from(group)
            .ok()
            .and_then(|group| 1_u64.checked_shl(group))
            .unwrap_or(0)
    }
}

// === impl Blocked ===

impl Blocked {
    /// Only the key of `group` blocks the call.
    pub(crate) fn at(group: usize, waits: Waits) -> Self {
        Self {
            group,
            here_nanos: waits.nanos,
            known_nanos: waits.known_nanos,
            why: waits.why,
            why_group: group,
        }
    }

    /// Both of two keys block the call. It stays in the queue of which it is the head if that key blocks it, and otherwise
    /// waits for the key that blocks it longer. The longer of the times is reported.
    pub(crate) fn and(self, other: Self, passed: QueuesPassed) -> Self {
        let stays = Some(self.group) == passed.head_of;
        let moves = Some(other.group) == passed.head_of || other.here_nanos > self.here_nanos;
        let here = if moves && !stays { other } else { self };
        let longest = if other.is_known_longer_than(&self) {
            other
        } else {
            self
        };
        Self {
            group: here.group,
            here_nanos: here.here_nanos,
            ..longest
        }
    }

    /// When the call would be admitted.
    pub(crate) fn availability(self) -> Availability {
        match self.known_nanos {
            0 => Availability::Unknown,
            u64::MAX => Availability::Never,
            nanos => Availability::After(Duration::from_nanos(nanos)),
        }
    }

    fn is_known_longer_than(&self, other: &Self) -> bool {
        (self.known_nanos, self.here_nanos) > (other.known_nanos, other.here_nanos)
    }
}

// === impl Waits ===

impl Waits {
    /// Blocked, but not for a time.
    pub(crate) fn none(why: Why) -> Self {
        Self {
            nanos: 0,
            known_nanos: 0,
            why,
        }
    }

    /// Both: the longer of the times, and why for that.
    pub(crate) fn and(self, other: Self) -> Self {
        let is_longer = (other.known_nanos, other.nanos) > (self.known_nanos, self.nanos);
        Self {
            nanos: self.nanos.max(other.nanos),
            known_nanos: self.known_nanos.max(other.known_nanos),
            why: if is_longer { other.why } else { self.why },
        }
    }
}
