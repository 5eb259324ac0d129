//! Whether a call that is dropped was ever sent.
//!
//! A call that is dropped while it waits in an inner layer's queue cost the provider nothing, and every outer layer must
//! know. The drop itself reports it: a layer's future drops the inner future first, and that leaves its report in a
//! thread-local for the guard around it. This needs no request type and no state shared between layers.

use std::cell::Cell;

thread_local! {
    static DROPPED: Cell<Dropped> = const { Cell::new(Dropped::Unknown) };
}

/// What the drops within the current one have reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    Unknown,
    Unsent,
    /// Wins over [`Unsent`](Self::Unsent): one branch that was sent is enough.
    Sent,
}

impl Dropped {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Sent, _) | (_, Self::Sent) => Self::Sent,
            (Self::Unsent, _) | (_, Self::Unsent) => Self::Unsent,
            _ => Self::Unknown,
        }
    }
}

/// Held by a layer's future as long as its call waits and was not sent on.
///
/// If the future is dropped meanwhile, the guards of outer layers end as [`Outcome::Refused`](crate::Outcome::Refused),
/// which refunds everything, and not as [`Outcome::Abandoned`](crate::Outcome::Abandoned). Dropped at any other time, it
/// has no effect.
#[derive(Debug, Default)]
#[must_use = "a call counts as sent as soon as this is dropped"]
pub struct Unsent(());

impl Unsent {
    /// Creates the report of a call that was not sent yet.
    pub const fn new() -> Self {
        Self(())
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        DROPPED.set(DROPPED.get().and(Dropped::Unsent));
    }
}

/// Runs `drop`, which drops an inner future, and returns whether that reported that its call was never sent.
pub(super) fn while_dropping(drop: impl FnOnce()) -> bool {
    let around = DROPPED.replace(Dropped::Unknown);
    drop();
    // A client, or a layer of another crate, reports nothing: its calls count as sent.
    let inner = match DROPPED.get() {
        Dropped::Unsent => Dropped::Unsent,
        Dropped::Unknown | Dropped::Sent => Dropped::Sent,
    };
    DROPPED.set(around.and(inner));
    inner == Dropped::Unsent
}
