//! Events of circuits, for subscribers.

use std::{fmt::Debug, sync::OnceLock, time::Duration};

use tokio::{sync::broadcast, time::Instant};

use crate::{CircuitId, State};

/// Maximum number of events that a slow subscriber may be behind.
const MAX_BEHIND: usize = 1_024;

/// An event of a circuit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// Which circuit.
    pub circuit: CircuitId,
    /// When it happened.
    pub at: Instant,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a circuit.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// The circuit went from one state to another.
    Transition {
        /// The state before.
        from: State,
        /// The state from now on.
        to: State,
        /// Why it changed.
        reason: Reason,
        /// How long the new state lasts, if it has an end.
        duration: Option<Duration>,
        /// The number of the generation that the circuit is in now. Each transition begins a generation, except those to
        /// and from [`State::Throttled`] and the end of a ramp, which keep the counts. Transitions that follow each other
        /// closely may arrive in the wrong order; this number gives the right one.
        generation: u32,
    },
    /// The circuit stays open for longer.
    Extended {
        /// Its state: open or throttled.
        state: State,
        /// Why it is extended.
        reason: Reason,
        /// How long the state lasts from now on.
        duration: Duration,
    },
    /// A circuit that only measures would have opened. Reported once for the time it would have been open.
    WouldOpen {
        /// Why it would have opened.
        reason: Reason,
        /// For how long.
        duration: Duration,
    },
    /// The circuit would have opened, here or after another process, but too many circuits of its scope are open already.
    KeptClosed {
        /// Why it would have opened.
        reason: Reason,
    },
    /// The provider throttled a call, and the circuit stays as it is: no time was named, or
    /// [`throttled_opens`](crate::BreakerBuilder::throttled_opens) is off.
    Throttled,
}

/// Why a circuit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The ratio of failures among the last calls.
    FailureRatio,
    /// Failures in a row.
    ConsecutiveFailures,
    /// The ratio of slow calls.
    SlowRatio,
    /// The provider named a time to wait.
    Throttled,
    /// Money or a quota is used up.
    Exhausted,
    /// The provider refused the credential three times in a row, or that of a probe.
    Credential,
    /// The time of the state before is over.
    Elapsed,
    /// A probe failed or was slow.
    ProbeFailed,
    /// Enough probes succeeded.
    ProbesSucceeded,
    /// It was changed through the handle.
    Manual,
    /// Another process changed it.
    Shared,
}

/// Sends events to the subscribers, and to the publisher if circuits are shared.
#[derive(Debug)]
pub(crate) struct Events {
    subscribers: broadcast::Sender<Event>,
    publisher: OnceLock<Box<dyn Publish>>,
}

/// Publishes events to other processes.
pub(crate) trait Publish: Debug + Send + Sync {
    fn publish(&self, event: &Event);
}

/// Receives the events since the call of [`subscribe`](crate::BreakerHandle::subscribe).
///
/// A receiver that is more than 1,024 events behind gets the [number of missed
/// events](broadcast::error::RecvError::Lagged).
pub type EventReceiver = broadcast::Receiver<Event>;

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            subscribers: broadcast::Sender::new(MAX_BEHIND),
            publisher: OnceLock::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> EventReceiver {
        self.subscribers.subscribe()
    }

    /// Has all events published from now on; set once, when the layer is built.
    #[cfg(feature = "redis")]
    pub(crate) fn publish(&self, publisher: impl Publish + 'static) {
        let _ = self.publisher.set(Box::new(publisher));
    }

    /// Sends `event`. A manual close of a closed circuit is only published: other processes may have opened it, but for
    /// subscribers nothing has changed.
    pub(crate) fn send(&self, event: Event) {
        if let Some(publisher) = self.publisher.get() {
            publisher.publish(&event);
        }
        if !event.kind.is_change() {
            return;
        }
        #[cfg(feature = "tracing")]
        event.trace();
        // It fails if there are no subscribers.
        let _ = self.subscribers.send(event);
    }
}

impl EventKind {
    /// Whether the state has changed: a closed circuit that is closed again only loses its counts.
    fn is_change(&self) -> bool {
        !matches!(self, Self::Transition { from, to, .. } if from == to)
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
            EventKind::WouldOpen { reason, duration } => {
                tracing::warn!(%circuit, ?reason, ?duration, "circuit would have opened");
            }
            EventKind::KeptClosed { reason } => {
                tracing::warn!(%circuit, ?reason, "circuit kept closed: too many others are open");
            }
            EventKind::Throttled => tracing::debug!(%circuit, "throttled"),
        }
    }
}
