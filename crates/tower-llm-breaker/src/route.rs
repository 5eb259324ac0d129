//! The circuits that calls with one key pass, all or none.

use std::{iter::zip, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{Availability, BoxError, Completion, Entry, Key, Keyed, Outcome};

use crate::{
    CircuitOpen, Scope, SlowCalls, State,
    circuit::Circuit,
    circuits::Circuits,
    clock::Now,
    machine::Status,
    verdict::{self, Facts},
    word::Pass,
};

#[derive(Debug)]
pub(crate) struct Route {
    circuits: Vec<Arc<Keyed<Circuit>>>,
    /// Of the circuit of the model.
    model: Option<usize>,
    /// Whether the registries had room for each of its circuits.
    pub(crate) is_whole: bool,
    facts: Facts,
    pub(crate) slow: Option<SlowCalls>,
    first_token_is_success: bool,
}

/// The passes of an admitted call, one for each circuit of its route.
pub(crate) type Passes = [Pass; 4];

impl Route {
    /// The route of calls with `key`; without circuits for the overflow route, which is not used.
    pub(crate) fn new(
        circuits: &Circuits,
        scopes: &[Scope],
        key: Option<&Key>,
        ignores_throttled: bool,
    ) -> Self {
        let [provider, account, model] = key.map(Key::parts).unwrap_or_default();
        let of_scope = |scope: Scope, key: &Key| match scope {
            Scope::Provider => circuits.by_key(scope, &Key::new(provider)),
            Scope::ProviderAndModel => circuits.by_key(scope, &Key::pair(provider, model)),
            Scope::Account => circuits.by_key(scope, &Key::pair(provider, account)),
            Scope::AccountAndModel => {
                circuits.by_key(scope, &Key::triple(provider, account, model))
            }
            Scope::Key => circuits.by_key(scope, key),
        };
        let of_key = |key| scopes.iter().filter_map(move |&scope| of_scope(scope, key));
        let found: Vec<_> = key.into_iter().flat_map(of_key).collect();
        let is_of_model = |circuit: &Arc<Keyed<Circuit>>| verdict::is_of_model(circuit.scope());
        Self {
            model: found.iter().position(is_of_model),
            is_whole: key.is_some() && found.iter().all(|circuit| circuit.has_key()),
            circuits: found,
            facts: Facts {
                has_account: !account.is_empty(),
                ignores_throttled,
                ..Facts::default()
            },
            slow: circuits.config.slow,
            first_token_is_success: circuits.config.advanced.first_token_is_success,
        }
    }

    // === a call comes ===

    /// Admits a call through all circuits, or through none.
    pub(crate) fn admit(&self, entry: &Entry<'_>) -> Result<Passes, BoxError> {
        let mut passes = Passes::default();
        for (pass, circuit) in zip(&mut passes, &self.circuits) {
            match circuit.admit_free() {
                Some(free) => *pass = free,
                None => return self.admit_at(entry.now()),
            }
        }
        Ok(passes)
    }

    /// The same, if a circuit needs the time.
    #[cold]
    fn admit_at(&self, now: Instant) -> Result<Passes, BoxError> {
        let mut passes = Passes::default();
        for (index, circuit) in self.circuits.iter().enumerate() {
            match circuit.admit(now) {
                Ok(pass) => passes[index] = pass,
                Err(status) => {
                    for (circuit, &pass) in zip(&self.circuits[..index], &passes) {
                        circuit.was_not_sent(pass, now);
                    }
                    return Err(self.refusal(index, status, now));
                }
            }
        }
        Ok(passes)
    }

    /// The circuit at `index` refuses, and later ones may too. The error names the one that refuses for longest: a client that
    /// waits for a shorter time would be refused again.
    fn refusal(&self, index: usize, status: Status, now: Instant) -> BoxError {
        let mut longest = (&self.circuits[index], status);
        for circuit in &self.circuits[index + 1..] {
            if let Some(status) = circuit.refusal(now)
                && status.lasts() > longest.1.lasts()
            {
                longest = (circuit, status);
            }
        }
        let (circuit, status) = longest;
        circuit.count_refused();
        CircuitOpen::new(circuit.id(), status).into()
    }

    /// When the last of the circuits would admit a call.
    pub(crate) fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        let of_each = self.circuits.iter().map(|circuit| {
            if circuit.admit_free().is_some() {
                return Availability::Now;
            }
            match circuit.refusal(entry.now()) {
                None => Availability::Now,
                Some(status) if status.state == State::ForcedOpen => Availability::Never,
                Some(status) => status
                    .left
                    .map_or(Availability::Unknown, Availability::After),
            }
        });
        of_each.max().unwrap_or(Availability::Now)
    }

    // === a call ends ===

    /// Each circuit counts how a call has ended.
    pub(crate) fn record(
        &self,
        passes: &Passes,
        completion: &Completion,
        is_slow: bool,
        now: &mut Now,
    ) {
        if completion.outcome != Outcome::Success || completion.served.is_some() || is_slow {
            return self.judge(passes, completion, is_slow, now);
        }
        for (circuit, &pass) in zip(&self.circuits, passes) {
            circuit.succeeded(pass, now);
        }
    }

    /// The same for a call that is no plain success.
    #[cold]
    fn judge(&self, passes: &Passes, completion: &Completion, is_slow: bool, now: &mut Now) {
        for (circuit, &pass) in zip(&self.circuits, passes) {
            let facts = Facts {
                is_slow,
                is_probe: pass.is_probe(),
                ..self.facts
            };
            let verdict = verdict::of(circuit.scope(), completion, facts);
            circuit.record(pass, verdict, now);
        }
    }

    /// The circuit of the model counts whether a call was slow.
    pub(crate) fn record_slow(&self, passes: &Passes, is_slow: bool, now: &mut Now) {
        if let Some(index) = self.model {
            self.circuits[index].record_slow(passes[index], is_slow, now);
        }
    }

    /// A probe that is not slow may count as a success at its first token.
    pub(crate) fn first_token(&self, passes: &mut Passes, at: Instant) {
        if !self.first_token_is_success {
            return;
        }
        for (circuit, pass) in zip(&self.circuits, passes) {
            if pass.is_probe() {
                *pass = circuit.first_token(*pass, at);
            }
        }
    }
}
