//! The state of a circuit, for users.

use std::time::Duration;

use crate::{CircuitId, State};

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
