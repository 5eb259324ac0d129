//! Responses that cost no call of their own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

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

/// Whether a follower has come to pay for the call that it follows.
///
/// A cache puts it into a response's extensions beside [`Served::Follower`]. The caller that began the call may leave before
/// its end; a follower then takes the call over, and [`Completion::served`](crate::Completion::served) is `None` for it.
#[derive(Clone, Debug, Default)]
pub struct TakenOver(Arc<AtomicBool>);

impl TakenOver {
    /// Creates one for a call that another caller pays for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the follower pay for the call.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the follower pays for the call.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
