use std::{error::Error, fmt, time::Duration};

use tower_llm_core::{Refusal, RefusalKind};

use crate::{CircuitId, State, circuit::Shut};

/// A circuit is open: the call was not sent.
///
/// The text may change; what the getters say will not.
#[derive(Clone, Debug)]
pub struct CircuitOpen {
    circuit: CircuitId,
    state: State,
    refusal: Refusal,
}

impl CircuitOpen {
    pub(crate) fn new(circuit: CircuitId, shut: Shut) -> Self {
        let kind = match shut.state {
            State::Throttled => RefusalKind::RateLimited,
            _ => RefusalKind::Unavailable,
        };
        let refusal = Refusal::new(kind, "breaker");
        Self {
            circuit,
            state: shut.state,
            refusal: match shut.retry_after {
                Some(time) => refusal.after(time),
                None => refusal,
            },
        }
    }

    /// Which circuit.
    #[must_use]
    pub fn circuit(&self) -> &CircuitId {
        &self.circuit
    }

    /// What state it is in.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Time until a call may be let through: the rest of the open time; if it is being probed, until a probe's place is
    /// free at the latest. `None` if nobody knows, as when it was forced open.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { circuit, .. } = self;
        match self.state {
            State::Throttled => write!(f, "the provider has asked to wait: {circuit}"),
            State::HalfOpen => write!(f, "the circuit is being probed: {circuit}"),
            State::Ramping => write!(f, "the circuit is closing by and by: {circuit}"),
            State::ForcedOpen => write!(f, "the circuit was opened by hand: {circuit}"),
            _ => write!(f, "the circuit is open: {circuit}"),
        }
    }
}

impl Error for CircuitOpen {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
