use std::{error::Error, fmt, time::Duration};

use tower_llm_core::{Refusal, RefusalKind};

use crate::{CircuitId, State, machine::Status};

/// A circuit is open: the call was not sent.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct CircuitOpen {
    circuit: CircuitId,
    state: State,
    refusal: Refusal,
}

impl CircuitOpen {
    pub(crate) fn new(circuit: CircuitId, status: Status) -> Self {
        let kind = match status.state {
            State::Throttled => RefusalKind::RateLimited,
            _ => RefusalKind::Unavailable,
        };
        let refusal = Refusal::new(kind, "breaker");
        Self {
            circuit,
            state: status.state,
            refusal: match status.left {
                Some(time) => refusal.after(time),
                None => refusal,
            },
        }
    }

    /// The circuit that refused; if several did, the one that will be open for longest.
    #[must_use]
    pub fn circuit(&self) -> &CircuitId {
        &self.circuit
    }

    /// The state of that circuit.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Time until a call may be admitted: the rest of the open time, or a few seconds while the circuit is half-open or
    /// ramping. `None` if it is not known, as for a circuit that was forced open.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { circuit, .. } = self;
        match self.state {
            State::Throttled => write!(f, "throttled by the provider: {circuit}"),
            State::HalfOpen => write!(f, "circuit half-open, probes in flight: {circuit}"),
            State::Ramping => write!(f, "circuit closing gradually: {circuit}"),
            State::ForcedOpen => write!(f, "circuit forced open: {circuit}"),
            _ => write!(f, "circuit open: {circuit}"),
        }
    }
}

impl Error for CircuitOpen {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
