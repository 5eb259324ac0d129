//! The states of a circuit, as users see them.

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
