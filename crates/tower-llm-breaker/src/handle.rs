use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    CircuitId, CircuitStats, EventReceiver, Force, State, circuits::Circuits, machine::Input,
};

/// Reads the state of the circuits of a [`BreakerLayer`](crate::BreakerLayer), and opens and closes them; cheap to clone.
///
/// A method that changes a circuit creates it if it does not exist. It does nothing for a circuit of a scope that the layer
/// does not have, or beyond [`max_keys`](crate::BreakerBuilder::max_keys).
#[derive(Clone, Debug)]
pub struct BreakerHandle {
    pub(crate) circuits: Arc<Circuits>,
}

/// As good as no limit.
const MAX_TRIP: Duration = Duration::from_secs(365 * 86_400);

impl BreakerHandle {
    /// The state of every circuit, in no order.
    #[must_use]
    pub fn stats(&self) -> Vec<CircuitStats> {
        let now = Instant::now();
        let mut stats = Vec::new();
        self.circuits
            .for_each(|circuit| stats.push(circuit.stats(now)));
        stats
    }

    /// The state of one circuit; `None` if no call has used it.
    #[must_use]
    pub fn stats_of(&self, circuit: &CircuitId) -> Option<CircuitStats> {
        let circuit = self.circuits.peek(circuit)?;
        Some(circuit.stats(Instant::now()))
    }

    /// The state of a circuit; one that no call has used has the initial state.
    #[must_use]
    pub fn state(&self, circuit: &CircuitId) -> State {
        match self.circuits.peek(circuit) {
            Some(circuit) => circuit.status(Instant::now()).state,
            None => self.circuits.config.initial_state,
        }
    }

    /// Opens a circuit for `time`, at most a year; then it is half-open. A longer opening is not shortened.
    pub fn trip(&self, circuit: &CircuitId, time: Duration) {
        let until = Instant::now() + time.min(MAX_TRIP);
        self.change(circuit, Input::Open(until));
    }

    /// Closes a circuit with empty counts, whatever its state, forced states included.
    pub fn close(&self, circuit: &CircuitId) {
        self.change(circuit, Input::Restart(State::Closed));
    }

    /// Returns a circuit to its [initial state](crate::BreakerBuilder::initial_state) with empty counts.
    pub fn reset(&self, circuit: &CircuitId) {
        self.change(circuit, Input::Restart(self.circuits.config.initial_state));
    }

    /// Holds a circuit in a state until [`close`](Self::close), [`reset`](Self::reset), [`trip`](Self::trip) or another
    /// `force`.
    pub fn force(&self, circuit: &CircuitId, force: Force) {
        self.change(circuit, Input::Force(force.state()));
    }

    fn change(&self, circuit: &CircuitId, input: Input) {
        if let Some(circuit) = self.circuits.get(circuit) {
            circuit.change(input, Instant::now());
        }
    }

    /// Subscribes to the events of all circuits.
    #[must_use]
    pub fn subscribe(&self) -> EventReceiver {
        self.circuits.events.subscribe()
    }
}
