//! Which target of a group takes a call.

use std::sync::Arc;

use tokio::time::Instant;
use tower_llm_core::KeyBy;

use super::{
    choose::{better_of_two, least, weighted_random},
    load::{Load, Rank},
    rendezvous::{self, Entrant},
    set::Set,
    turns::Turns,
};

/// How a [`Pool`](crate::Pool) picks a target, among those of the best priority that are available and that the call has not
/// tried.
///
/// [`least_in_flight`](Self::least_in_flight) and [`latency`](Self::latency) pass over a target that has failed, for 5 s or
/// for as long as its provider asks: one that fails fast has nothing in flight, and would get all traffic. The others send a
/// call to a failing target as if it were well, and fail over; put a circuit breaker into each target.
#[derive(Clone, Debug)]
pub struct Pick(Policy);

#[derive(Clone, Debug)]
enum Policy {
    RoundRobin,
    Weighted,
    WeightedRandom,
    LeastInFlight,
    Latency,
    Sticky(KeyBy),
    Cheapest,
    InOrder,
}

/// A target as a policy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) load: Arc<Load>,
    pub(crate) entrant: Entrant,
    pub(crate) price: Option<f64>,
}

/// What a policy knows of the call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) streamed: bool,
    /// The digest of its key.
    pub(crate) key: Option<u64>,
    pub(crate) now: Instant,
}

impl Pick {
    /// Each target in turn.
    #[must_use]
    pub const fn round_robin() -> Self {
        Self(Policy::RoundRobin)
    }

    /// Each target in turn, as often as its weight says: with the weights 3 and 1, exactly three of four calls go to the
    /// first. The turns of a target are spread over the cycle.
    #[must_use]
    pub const fn weighted() -> Self {
        Self(Policy::Weighted)
    }

    /// A random target, with a probability in proportion to its weight. Processes that start together do not send in step.
    #[must_use]
    pub const fn weighted_random() -> Self {
        Self(Policy::WeightedRandom)
    }

    /// The target with the fewest calls in flight for its weight; a random one of several. A call is in flight until its
    /// response body ends.
    #[must_use]
    pub const fn least_in_flight() -> Self {
        Self(Policy::LeastInFlight)
    }

    /// The better of two random targets by latency times calls in flight.
    ///
    /// The latency of a stream is the time until its first content token. It jumps to a peak at once, and forgets in tens of
    /// seconds. A call that was given up counts if it had run for longer than that. A target without any latency gets one call
    /// at a time.
    #[must_use]
    pub const fn latency() -> Self {
        Self(Policy::Latency)
    }

    /// The same target for all calls with the same key: prompts that a provider has cached cost a tenth there.
    ///
    /// If that target is not available, or fails, the call goes to the next one in an order that is the key's own; the key
    /// returns when the target does. The order is the same in all processes, and other keys keep their targets when targets
    /// come and go. A target gets a part of the keys in proportion to its weight. A call without a key goes to a random
    /// target.
    #[must_use]
    pub const fn sticky(key_by: KeyBy) -> Self {
        Self(Policy::Sticky(key_by))
    }

    /// The target with the lowest [price](crate::Target::price). Of several, the one with the fewest calls in flight.
    #[must_use]
    pub const fn cheapest() -> Self {
        Self(Policy::Cheapest)
    }

    /// The first target in the order in which they were added: the others take over when it cannot.
    #[must_use]
    pub const fn in_order() -> Self {
        Self(Policy::InOrder)
    }

    /// The policy that reads a key from the call.
    pub(crate) fn key_by(&self) -> Option<&KeyBy> {
        match &self.0 {
            Policy::Sticky(key_by) => Some(key_by),
            _ => None,
        }
    }

    /// Picks one of `group` that is not in `skip`.
    pub(crate) fn pick(
        &self,
        group: &[Candidate],
        turns: &Turns,
        skip: &Set,
        asked: &Asked,
    ) -> Option<usize> {
        match (&self.0, asked.key) {
            (Policy::RoundRobin, _) => turns.next(group.len(), skip),
            (Policy::Weighted, _) => turns.next_by_weight(weights(group), skip),
            (Policy::LeastInFlight, _) => least(group, skip, |candidate| {
                let load = (candidate.load.in_flight() + 1) as f64;
                let load = load / f64::from(candidate.entrant.weight);
                Rank(candidate.load.standing(asked.now), load)
            }),
            (Policy::Latency, _) => better_of_two(group, skip, asked),
            (Policy::Sticky(_), Some(key)) => rendezvous::best(key, entrants(group), skip),
            (Policy::WeightedRandom | Policy::Sticky(_), _) => weighted_random(group, skip),
            (Policy::Cheapest, _) => least(group, skip, |candidate| {
                let price = candidate.price.unwrap_or(f64::INFINITY);
                (price, candidate.load.in_flight())
            }),
            (Policy::InOrder, _) => (0..group.len()).find(|&index| !skip.contains(index)),
        }
    }

    /// The target that was picked is not available: it has not had a turn. `skip` is what it was picked with.
    pub(crate) fn take_back(&self, index: usize, group: &[Candidate], turns: &Turns, skip: &Set) {
        if let Policy::Weighted = self.0 {
            turns.take_back(index, weights(group), skip);
        }
    }
}

fn entrants(group: &[Candidate]) -> impl Iterator<Item = Entrant> {
    group.iter().map(|candidate| candidate.entrant)
}

pub(crate) fn weights(group: &[Candidate]) -> impl Iterator<Item = u32> + Clone {
    group.iter().map(|candidate| candidate.entrant.weight)
}
