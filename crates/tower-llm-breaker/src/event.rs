//! What happens to circuits, told to whoever listens.

use std::time::Duration;

use tokio::{sync::broadcast, time::Instant};

use crate::{CircuitId, State};

/// Events that a slow listener may be behind.
const KEPT: usize = 1_024;

/// Something that happened to a circuit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// Which circuit.
    pub circuit: CircuitId,
    /// When.
    pub at: Instant,
    /// What.
    pub kind: EventKind,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// It went from one state to another.
    Transition {
        /// What it was.
        from: State,
        /// What it is.
        to: State,
        /// Why.
        reason: Reason,
        /// For how long, where that is set.
        duration: Option<Duration>,
        /// How many generations this circuit has had before. Each transition begins one, but for those to and from
        /// [`State::Throttled`] and the end of a ramp, over which what was counted stays. Two that follow at once may arrive
        /// in the wrong order: this tells.
        generation: u32,
    },
    /// It is open for longer than it was.
    Extended {
        /// What it is: open or throttled.
        state: State,
        /// Why.
        reason: Reason,
        /// For how long from now on.
        duration: Duration,
    },
    /// A circuit that only measures would have opened.
    WouldOpen {
        /// Why.
        reason: Reason,
    },
    /// It should have opened, or has in another process, and too large a share of its group is open already.
    KeptClosed {
        /// Why it should.
        reason: Reason,
    },
    /// The provider's rate limit refused a call, and the circuit stays as it is: no time was told, or none is
    /// [heeded](crate::BreakerBuilder::throttled_opens).
    Throttled,
}

/// Why a circuit has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The share of failures among the last calls.
    FailureRatio,
    /// Failures one after the other.
    ConsecutiveFailures,
    /// The share of slow calls.
    SlowRatio,
    /// The provider said when to come back.
    Throttled,
    /// Money or a long quota is used up, or the credentials are no good.
    Exhausted,
    /// Its time is over.
    Elapsed,
    /// A probe has failed, or was slow.
    ProbeFailed,
    /// Enough probes have succeeded.
    ProbesSucceeded,
    /// Somebody's hand.
    Manual,
    /// Another process.
    Shared,
}

/// Sends events to those who listen.
#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<Event>);

/// What the handle's `subscribe` gives: the events from then on.
///
/// One that is 1,024 events behind is told [how many it has missed](broadcast::error::RecvError::Lagged).
pub type EventReceiver = broadcast::Receiver<Event>;

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }

    pub(crate) fn subscribe(&self) -> EventReceiver {
        self.0.subscribe()
    }

    pub(crate) fn send(&self, event: Event) {
        #[cfg(feature = "tracing")]
        event.trace();
        // Nobody listens: nobody misses it.
        let _ = self.0.send(event);
    }
}

#[cfg(feature = "tracing")]
impl Event {
    fn trace(&self) {
        let Self { circuit, kind, .. } = self;
        match kind {
            EventKind::Transition {
                from,
                to,
                reason,
                duration,
                ..
            } => match to {
                State::Open | State::ForcedOpen => {
                    tracing::warn!(%circuit, ?from, ?to, ?reason, ?duration, "circuit opened");
                }
                _ => tracing::info!(%circuit, ?from, ?to, ?reason, ?duration, "circuit changed"),
            },
            EventKind::Extended {
                reason, duration, ..
            } => {
                tracing::info!(%circuit, ?reason, ?duration, "circuit open for longer");
            }
            EventKind::WouldOpen { reason } => {
                tracing::warn!(%circuit, ?reason, "circuit would have opened");
            }
            EventKind::KeptClosed { reason } => {
                tracing::warn!(%circuit, ?reason, "circuit kept closed: too many of its group are open");
            }
            EventKind::Throttled => tracing::debug!(%circuit, "throttled"),
        }
    }
}
