//! Responses that cost no call of their own.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use crate::{Completion, Usage};

/// How a response came to its caller without a call to the provider that was made for it.
///
/// A cache puts it into the response's extensions, and the layers around it find it as
/// [`Completion::served`](crate::Completion::served): its usage was paid for by another call, and it says nothing of how the
/// provider does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Served {
    /// From the store.
    Hit,
    /// From a call in flight that another caller began.
    Follower,
}

/// Whether, and for what, a caller of a shared call comes to pay after its response headers.
///
/// A cache puts it into a response's extensions. Beside [`Served::Follower`], it may be [set](Self::set): the caller that began
/// the call may leave before its end; a follower then takes the call over, and
/// [`Completion::served`](crate::Completion::served) is `None` for it. A caller that pays may also leave when other callers have
/// read more than it has: it is then [charged](Self::charge) what they have read.
#[derive(Clone, Debug, Default)]
pub struct TakenOver(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_set: AtomicBool,
    used: OnceLock<Used>,
}

/// What a call has used, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) usage: Option<Usage>,
    pub(crate) output_seen: u64,
}

impl TakenOver {
    /// Creates one that changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the follower pay for the call.
    pub fn set(&self) {
        self.0.is_set.store(true, Ordering::Relaxed);
    }

    /// Whether the follower pays for the call.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed)
    }

    /// Makes a caller that pays, and that is about to leave, pay for what the call has used, of which it may have read less.
    pub fn charge(&self, call: &Completion) {
        let used = Used {
            usage: call.usage,
            output_seen: call.output_seen,
        };
        // A caller leaves once.
        let _ = self.0.used.set(used);
    }

    pub(crate) fn used(&self) -> Option<Used> {
        self.0.used.get().copied()
    }
}
