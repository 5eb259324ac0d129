//! Why a call cannot be admitted now, and in which queues it has had its turn.

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

/// The queues in which a call has had its turn.
///
/// If a call had its turn in one queue and is then blocked by another key, it does not go back behind the calls that joined
/// the first queue later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    /// The queue of which it is the head.
    here: Option<usize>,
    /// The queues of which it has been the head, a bit for each.
    had: u64,
}

impl Turns {
    /// It is the head of a queue.
    pub(crate) fn come(&mut self, group: usize) {
        self.here = Some(group);
        self.had |= Self::bit(group);
    }

    /// The call waits in no queue, because it was admitted elsewhere.
    pub(crate) fn everywhere(self) -> Self {
        Self {
            had: u64::MAX,
            ..self
        }
    }

    pub(crate) fn has(self, group: usize) -> bool {
        self.here == Some(group) || self.had & Self::bit(group) != 0
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
    /// Both of two keys block the call. It stays in the queue of which it is the head if that key blocks it, and otherwise
    /// waits for the key that blocks it longer. The longer of the times is reported.
    pub(crate) fn and(self, other: Self, turns: Turns) -> Self {
        let stays = Some(self.group) == turns.here;
        let moves = Some(other.group) == turns.here || other.here_nanos > self.here_nanos;
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
