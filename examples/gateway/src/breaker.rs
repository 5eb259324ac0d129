//! The circuit breaker of each provider.

use tower_llm_stack::{
    BreakerHandle, BreakerLayer, KeyBy,
    breaker::{CircuitStats, Force, Scope, State},
};

use crate::{
    BreakerSettings, StartError,
    settings::{BreakerMode, Names},
    sharing::Sharing,
};

/// The circuits of all providers or targets, for the metrics.
pub(crate) type Breakers = Vec<(&'static str, BreakerHandle)>;

/// How many circuits of one scope are in each state, and how many calls they have refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Circuits {
    pub(crate) in_state: [u64; STATES.len()],
    pub(crate) refused: u64,
}

pub(crate) const STATES: [(State, &str); 7] = [
    (State::Closed, "closed"),
    (State::Ramping, "ramping"),
    (State::Open, "open"),
    (State::Throttled, "throttled"),
    (State::HalfOpen, "half_open"),
    (State::Disabled, "disabled"),
    (State::MetricsOnly, "metrics_only"),
];

pub(crate) const SCOPES: [(Scope, &str); 4] = [
    (Scope::Provider, "provider"),
    (Scope::ProviderAndModel, "model"),
    (Scope::Account, "account"),
    (Scope::AccountAndModel, "account_and_model"),
];

/// The circuits of one provider.
///
/// An account is a credential: if callers send their own, one that is refused or has spent its money closes no circuit for the
/// others.
///
/// If gateways share, so do the circuits, unless nothing opens them here.
pub(crate) fn layer(
    settings: &BreakerSettings,
    names: &Names,
    provider: &str,
    account_by: KeyBy,
    sharing: Option<&Sharing>,
) -> Result<BreakerLayer, StartError> {
    let mut builder = BreakerLayer::builder()
        .account_by(account_by)
        // With `--ratelimit-learn false`, callers act on a 429 themselves; else the rate limit does.
        .throttled_opens(false)
        .window(settings.window)
        .failure_ratio(settings.failure_ratio)
        .minimum_calls(settings.minimum_calls)
        .open_for(settings.open_for)
        .max_open_for(settings.max_open_for)
        .success_threshold(settings.success_threshold);
    builder = match settings.failure_threshold {
        0 => builder.without_failure_threshold(),
        failures => builder.failure_threshold(failures),
    };
    builder = match settings.mode {
        BreakerMode::On => match sharing {
            Some(sharing) => builder.shared(sharing.circuits(provider)),
            None => builder,
        },
        BreakerMode::MetricsOnly => builder.initial_state(Force::MetricsOnly),
        BreakerMode::Off => builder.initial_state(Force::Disabled),
    };
    builder.build().map_err(|error| {
        let name = match error.field() {
            "window" => "--breaker-window",
            "failure_ratio" => "--breaker-failure-ratio",
            "minimum_calls" => "--breaker-minimum-calls",
            "failure_threshold" => "--breaker-failure-threshold",
            "success_threshold" => "--breaker-success-threshold",
            "max_open_for" => "--breaker-max-timeout",
            _ => "--breaker-timeout",
        };
        StartError::setting(names.of(name), error)
    })
}

impl Circuits {
    pub(crate) fn of(stats: &[CircuitStats], scope: Scope) -> Self {
        let mut circuits = Self::default();
        for stats in stats {
            if stats.circuit.scope() != scope {
                continue;
            }
            let index = STATES.iter().position(|(state, _)| *state == stats.state);
            if let Some(index) = index {
                circuits.in_state[index] += 1;
            }
            circuits.refused += stats.refused;
        }
        circuits
    }
}
