//! The states of a circuit, as users see them.

use std::time::Duration;

use crate::CircuitId;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Admits all calls, and counts how they end.
    Closed,
    /// Admits a growing ratio of the calls, after it was open.
    Ramping,
    /// Refuses all calls until its time is over.
    Open,
    /// Refuses all calls until the time that the provider named; then it continues as before, closed or ramping.
    Throttled,
    /// Admits probes, to find out whether it can close.
    HalfOpen,
    /// Refuses all calls until it is changed manually.
    ForcedOpen,
    /// Admits all calls, and counts nothing.
    Disabled,
    /// Admits all calls, counts them, and reports when it would have opened.
    MetricsOnly,
}

/// A state that only manual control ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Force {
    /// [`State::ForcedOpen`]
    Open,
    /// [`State::Disabled`]
    Disabled,
    /// [`State::MetricsOnly`]
    MetricsOnly,
}

/// The state of one circuit, as of now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CircuitStats {
    /// Which circuit.
    pub circuit: CircuitId,
    /// Its state. A circuit whose open time is over is half-open, even if no call has probed it yet.
    pub state: State,
    /// How long the state still lasts, if it has an end.
    pub remaining: Option<Duration>,
    /// Calls in the window that succeeded or failed; zero if the failure ratio is switched off.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Calls in the window that were slow.
    pub slow_calls: u64,
    /// Probes in flight.
    pub probes: usize,
    /// Probes that succeeded since the circuit was created.
    pub probe_successes: u64,
    /// Probes that failed since the circuit was created.
    pub probe_failures: u64,
    /// Calls refused since the circuit was created. If several circuits refuse a call, it counts for the one that the error
    /// names.
    pub refused: u64,
    /// Calls that were not counted, because the circuit opened, closed or was changed manually after they were admitted.
    pub stale: u64,
}

impl State {
    /// Whether all calls are admitted.
    pub(crate) fn is_free(self) -> bool {
        matches!(self, Self::Closed | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether outcomes are counted.
    pub(crate) fn is_counting(self) -> bool {
        matches!(
            self,
            Self::Closed | Self::Ramping | Self::Throttled | Self::MetricsOnly
        )
    }

    /// Whether it was set manually; only manual control ends it.
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, Self::ForcedOpen | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether calls are refused because of failures.
    pub(crate) fn is_ejected(self) -> bool {
        matches!(self, Self::Open | Self::HalfOpen)
    }
}

impl Force {
    pub(crate) fn state(self) -> State {
        match self {
            Self::Open => State::ForcedOpen,
            Self::Disabled => State::Disabled,
            Self::MetricsOnly => State::MetricsOnly,
        }
    }
}
