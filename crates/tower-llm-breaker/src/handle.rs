use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    CircuitId, EventReceiver, Force, State, circuit::Circuit, route::Board, window::Tally,
};

/// Looks at the circuits of a [`BreakerLayer`](crate::BreakerLayer), and opens and closes them by hand; cheap to clone.
///
/// A circuit that no call has come by yet is made when a hand is laid on it. What is done to one of a kind that the layer
/// does not have, or for which there is no room, is done to nothing.
#[derive(Clone, Debug)]
pub struct BreakerHandle {
    board: Arc<Board>,
}

/// As good as for ever.
const MAX_TRIP: Duration = Duration::from_secs(365 * 86_400);

/// The state of one circuit, as of now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CircuitStats {
    /// Which circuit.
    pub circuit: CircuitId,
    /// What it does with calls. One whose open time is over is half-open, though no call has come yet to probe it.
    pub state: State,
    /// How long it stays so, where that is set.
    pub remaining: Option<Duration>,
    /// Calls in the window that ended well or badly; none where no share of failures opens a circuit.
    pub calls: u64,
    /// Those that ended badly.
    pub failures: u64,
    /// Calls in the window that were slow.
    pub slow_calls: u64,
    /// Probes that hold a place.
    pub probes: usize,
    /// Calls that it has refused since it was first seen, or was seen again after it had been forgotten.
    pub refused: u64,
    /// Calls whose end was not counted, since they had been let through before it opened, closed or was changed by hand.
    pub stale: u64,
}

impl BreakerHandle {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self { board }
    }

    /// The state of each circuit that has been seen, in no order.
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

    /// The state of one circuit; `None` if no call has come by it.
    #[must_use]
    pub fn stats_of(&self, circuit: &CircuitId) -> Option<CircuitStats> {
        let circuit = self.board.peek(circuit)?;
        Some(CircuitStats::of(&circuit, Instant::now()))
    }

    /// What a circuit does with calls; one that no call has come by is closed.
    #[must_use]
    pub fn state(&self, circuit: &CircuitId) -> State {
        let circuit = self.board.peek(circuit);
        let initial_state = State::of(self.board.policy.initial_state);
        circuit.map_or(initial_state, |circuit| {
            circuit.standing(Instant::now()).state
        })
    }

    /// Opens a circuit for `time`, a year at most, after which it is probed; if it is open for longer already, it stays so.
    pub fn trip(&self, circuit: &CircuitId, time: Duration) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.trip(time.min(MAX_TRIP), Instant::now());
        }
    }

    /// Closes a circuit, whatever it was, with nothing counted: also one that a hand has set to something else, or the
    /// builder's [`initial_state`](crate::BreakerBuilder::initial_state) has.
    pub fn close(&self, circuit: &CircuitId) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.close(Instant::now());
        }
    }

    /// Makes a circuit what it was before any call had come: closed, unless the builder's
    /// [`initial_state`](crate::BreakerBuilder::initial_state) says otherwise, with nothing counted and nothing forced.
    pub fn reset(&self, circuit: &CircuitId) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.reset(Instant::now());
        }
    }

    /// Holds a circuit in a state until a hand ends that: [`close`](Self::close), [`reset`](Self::reset),
    /// [`trip`](Self::trip) or another force.
    pub fn force(&self, circuit: &CircuitId, force: Force) {
        if let Some(circuit) = self.board.circuit(circuit) {
            circuit.force(force.phase(), Instant::now());
        }
    }

    /// What happens to the circuits from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventReceiver {
        self.board.policy.events.subscribe()
    }
}

impl CircuitStats {
    fn of(circuit: &Circuit, now: Instant) -> Self {
        let standing = circuit.standing(now);
        let Tally { bad, total } = circuit.failures(now);
        Self {
            circuit: circuit.id(),
            state: standing.state,
            remaining: standing.retry_after,
            calls: total,
            failures: bad,
            slow_calls: circuit.slow(now).bad,
            probes: circuit.probes(now),
            refused: circuit.refused(),
            stale: circuit.stale(),
        }
    }
}
