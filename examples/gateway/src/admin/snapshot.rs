//! `GET /admin/snapshot`: what the gateway has counted and the state of its layers, as of one moment.

use serde_json::{Map, Value, json};
use tower_llm_stack::{
    BreakerHandle, BulkheadHandle, CacheHandle, MonitorHandle, RateLimitHandle, breaker::Scope,
    ratelimit::Unit,
};

use super::cache;
use crate::{
    breaker::{Breakers, Circuits, SCOPES, STATES},
    limits::Limiters,
    targets::Healths,
};

/// Where a snapshot is read.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) monitor: MonitorHandle,
    pub(crate) bulkhead: BulkheadHandle,
    pub(crate) limiters: Limiters,
    pub(crate) breakers: Breakers,
    pub(crate) health: Healths,
    pub(crate) cache: Option<CacheHandle>,
}

impl Sources {
    /// Names are those of providers, targets and models that are configured; no key, and no caller.
    pub(super) fn snapshot(&self) -> Value {
        let callers = self.limiters.callers.iter();
        let callers = callers.map(|handle| ("caller", handle));
        let providers = self.limiters.providers.iter();
        let providers = providers.map(|(provider, handle)| (*provider, handle));
        let limits = callers.chain(providers).flat_map(limits);
        let breakers = self.breakers.iter();
        let circuits = breakers.flat_map(|(provider, handle)| circuits(provider, handle));
        let health = self.health.iter();
        let health = health.map(|(target, health)| ((*target).to_owned(), health.is_up().into()));
        json!({
            "calls": self.monitor.snapshot(),
            "cache": self.cache.as_ref().map(|handle| cache::stats(&handle.stats())),
            "permits": permits(&self.bulkhead),
            "limits": limits.collect::<Vec<_>>(),
            "circuits": circuits.collect::<Vec<_>>(),
            "is_up": health.collect::<Map<_, _>>(),
        })
    }
}

fn permits(handle: &BulkheadHandle) -> Vec<Value> {
    let stats = handle.stats().into_iter();
    let permits = stats.map(|stats| {
        json!({
            "of": stats.key.map(|key| key.to_string()),
            "limit": stats.limit,
            "in_flight": stats.in_flight,
            "waiting": stats.waiting,
            "refused": stats.refused,
        })
    });
    permits.collect()
}

fn limits((of, handle): (&str, &RateLimitHandle)) -> Vec<Value> {
    let limits = handle.stats().into_iter().map(|stats| {
        json!({
            "of": of,
            "unit": unit(stats.limit.unit()),
            "amount": stats.limit.amount(),
            "period_seconds": stats.limit.period().as_secs_f64(),
            // For the key that has the least.
            "remaining": stats.remaining,
            "keys": stats.keys,
            "waiting": stats.waiting,
            "consumed": stats.consumed,
            "admitted": stats.admitted,
            "refused": stats.refused,
            "violations": stats.violations,
        })
    });
    limits.collect()
}

/// The name of a unit, here and in the metrics.
pub(crate) fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Requests => "requests",
        Unit::InputTokens => "input_tokens",
        Unit::OutputTokens => "output_tokens",
        Unit::Cost => "cost",
        _ => "tokens",
    }
}

/// How many circuits of each scope are in each state; none of a scope that has no circuit yet.
fn circuits(of: &str, handle: &BreakerHandle) -> Vec<Value> {
    let stats = handle.stats();
    let has_circuit = |scope: Scope| stats.iter().any(|stats| stats.circuit.scope() == scope);
    let scopes = SCOPES.iter().filter(|(scope, _)| has_circuit(*scope));
    let circuits = scopes.map(|(scope, name)| {
        let circuits = Circuits::of(&stats, *scope);
        let states = STATES.iter().zip(circuits.in_state);
        let states = states.filter(|(_, number)| *number > 0);
        let states: Map<_, _> = states
            .map(|((_, state), number)| ((*state).to_owned(), number.into()))
            .collect();
        json!({ "of": of, "scope": name, "states": states, "refused": circuits.refused })
    });
    circuits.collect()
}
