use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    CircuitId, EventReceiver, Force, State, circuit::Circuit, route::Board, window::Tally,
};

/// Reads the state of the circuits of a [`BreakerLayer`](crate::BreakerLayer), and opens and closes them; cheap to clone.
///
/// A method that changes a circuit creates it if it does not exist. It does nothing for a circuit of a scope that the layer
/// does not have, or beyond [`max_keys`](crate::BreakerBuilder::max_keys).
#[derive(Clone, Debug)]
pub struct BreakerHandle {
    board: Arc<Board>,
}

/// As good as no limit.
const MAX_TRIP: Duration = Duration::from_secs(365 * 86_400);

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

impl BreakerHandle {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self { board }
    }

    /// The state of every circuit, in no order.
    #[must_use]
    pub fn stats(&self) -> Vec<CircuitStats> {
        let now = Instant::now();
        let mut stats = Vec::new();
        self.board.for_each(|key, circuit| {
            if key.is_some() {
                stats.push(CircuitStats::of(circuit, now));
            }
        });
        stats
    }

    /// The state of one circuit; `None` if no call has used it.
    #[must_use]
    pub fn stats_of(&self, circuit: &CircuitId) -> Option<CircuitStats> {
        let circuit = self.board.peek(circuit)?;
        Some(CircuitStats::of(&circuit, Instant::now()))
    }

    /// The state of a circuit; one that no call has used has the initial state.
    #[must_use]
    pub fn state(&self, circuit: &CircuitId) -> State {
        let circuit = self.board.peek(circuit);
        let initial_state = State::of(self.board.policy.initial_state);
        circuit.map_or(initial_state, |circuit| {
            circuit.status(Instant::now()).state
        })
    }

    /// Opens a circuit for `time`, at most a year; then it is half-open. A longer opening is not shortened.
    pub fn trip(&self, circuit: &CircuitId, time: Duration) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.trip(time.min(MAX_TRIP), Instant::now());
        }
    }

    /// Closes a circuit with empty counts, whatever its state, forced states included.
    pub fn close(&self, circuit: &CircuitId) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.close(Instant::now());
        }
    }

    /// Returns a circuit to its [initial state](crate::BreakerBuilder::initial_state) with empty counts.
    pub fn reset(&self, circuit: &CircuitId) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.reset(Instant::now());
        }
    }

    /// Holds a circuit in a state until [`close`](Self::close), [`reset`](Self::reset), [`trip`](Self::trip) or another
    /// `force`.
    pub fn force(&self, circuit: &CircuitId, force: Force) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.force(force.phase(), Instant::now());
        }
    }

    /// Subscribes to the events of all circuits.
    #[must_use]
    pub fn subscribe(&self) -> EventReceiver {
        self.board.policy.events.subscribe()
    }
}

impl CircuitStats {
    fn of(circuit: &Circuit, now: Instant) -> Self {
        let status = circuit.status(now);
        let Tally { bad, total } = circuit.failures(now);
        let (probes, probe_successes, probe_failures) = circuit.probes(now);
        Self {
            circuit: circuit.id(),
            state: status.state,
            remaining: status.retry_after,
            calls: total,
            failures: bad,
            slow_calls: circuit.slow(now).bad,
            probes,
            probe_successes,
            probe_failures,
            refused: circuit.refused(),
            stale: circuit.stale(),
        }
    }
}
