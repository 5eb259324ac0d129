//! What the targets of a pool have done.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{members::Slot, standing::Standing};

/// What a target has done and how it stands; see [`Pool::stats`](crate::Pool::stats).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TargetStats {
    /// Its name.
    pub name: Arc<str>,
    /// Its weight.
    pub weight: u32,
    /// Its priority.
    pub priority: u32,
    /// Calls that are in flight, to the end of their response bodies.
    pub in_flight: usize,
    /// Calls that were sent and have ended.
    pub calls: u64,
    /// Those among them that failed at the provider.
    pub failures: u64,
    /// Those that were given up because another branch of their call had the answer.
    pub superseded: u64,
    /// The ratio of all [`calls`](Self::calls) to the targets of the pool; 0 as long as there are none.
    pub ratio: f64,
    /// The average time of a whole answer, sensitive to peaks; `None` if it is not known.
    pub latency: Option<Duration>,
    /// The average time until the first content token of a stream; `None` if it is not known.
    pub first_token: Option<Duration>,
    /// How long [`Pick::latency`](crate::Pick::latency) and [`Pick::least_in_flight`](crate::Pick::least_in_flight) pass over
    /// it; zero if they do not.
    pub passed_over_for: Duration,
}

/// The statistics of targets.
pub(crate) fn of<S>(slots: &[Slot<S>], now: Instant) -> Vec<TargetStats> {
    let total: u64 = slots.iter().map(|slot| slot.candidate.load.ended()).sum();
    let stats = slots.iter().map(|slot| {
        let load = &slot.candidate.load;
        let calls = load.ended();
        let [latency, first_token] = load.latencies();
        TargetStats {
            name: Arc::clone(&slot.member.name),
            weight: slot.candidate.entrant.weight,
            priority: slot.priority,
            in_flight: load.in_flight(),
            calls,
            failures: load.failed(),
            superseded: load.superseded(),
            ratio: match total {
                0 => 0.0,
                total => calls as f64 / total as f64,
            },
            latency,
            first_token,
            passed_over_for: match load.standing(now) {
                Standing::Penalised(time) => time,
                Standing::Good | Standing::Probed => Duration::ZERO,
            },
        }
    });
    stats.collect()
}
