//! Which circuits a call passes, and what its outcome means for each.

use std::{iter, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{
    Availability, Call, Completion, ConfigError, Described, Evictable, Failure, Key, KeyBy, Keyed,
    Operation, Outcome, Registry, Subject,
};

use crate::{
    CircuitId, CircuitOpen, Scope,
    circuit::{Circuit, Pass, Shut, Verdict},
    group::Group,
    policy::Policy,
    window::Now,
};

/// Maximum number of circuits that a call passes.
const MOST: usize = 4;

/// All circuits of a layer.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) policy: Arc<Policy>,
    /// All circuits of a call, found by one lookup.
    routes: Registry<Route>,
    /// The same for calls that run no inference; `None` with [`RouteBy::Key`].
    other_routes: Option<Registry<Route>>,
    circuits: Arc<Circuits>,
}

/// The circuits, by scope.
#[derive(Debug)]
struct Circuits(Vec<(Scope, Registry<Circuit>)>);

/// Whether the outcome of a call shows something about a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Inference,
    /// Lists, files, job states, token counts: such calls neither open a model's circuit nor are refused by it.
    Other,
}

/// The circuits that calls with the same key pass.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) policy: Arc<Policy>,
    circuits: [Option<(Scope, Arc<Keyed<Circuit>>)>; MOST],
    scopes: &'static [Scope],
    /// Whether the owner of the credential of these calls is known.
    has_account: bool,
    /// Whether the registries had room for each of its circuits.
    is_whole: bool,
    /// Whether a call is watched while it runs.
    pub(crate) is_watched: bool,
}

/// The passes of an admitted call, one for each circuit of its route.
pub(crate) type Passes = [Pass; MOST];

/// How circuits are chosen.
#[derive(Clone, Debug)]
pub(crate) enum RouteBy {
    /// One for each scope, with this key of the account.
    Fault { account: KeyBy },
    /// One for each key.
    Key(KeyBy),
}

const SCOPES: [Scope; MOST] = [
    Scope::Provider,
    Scope::ProviderAndModel,
    Scope::Account,
    Scope::AccountAndModel,
];

/// The scopes of calls that run no inference.
const OTHER_SCOPES: [Scope; 2] = [Scope::Provider, Scope::Account];

impl Board {
    pub(crate) fn new(
        policy: Policy,
        route_by: RouteBy,
        max_keys: Option<usize>,
    ) -> Result<Self, ConfigError> {
        let policy = Arc::new(policy);
        let (scopes, other_scopes, key_by) = match route_by {
            RouteBy::Fault { account } => {
                (&SCOPES[..], Some(&OTHER_SCOPES[..]), KeyBy::route(account))
            }
            RouteBy::Key(key_by) => (&[Scope::Key][..], None, key_by),
        };
        let registry = |&scope| {
            let group = Arc::new(Group::new(scope, Arc::clone(&policy)));
            let make = move |key: Option<&Key>| Circuit::new(Arc::clone(&group), key.cloned());
            bounded(Registry::new(KeyBy::shared(), make), max_keys)
                .map(|circuits| (scope, circuits))
        };
        let circuits = scopes.iter().map(registry).collect::<Result<_, _>>()?;
        let circuits = Arc::new(Circuits(circuits));
        let routes = |scopes: &'static [Scope]| {
            let (policy, circuits) = (Arc::clone(&policy), Arc::clone(&circuits));
            let route = move |key: Option<&Key>| circuits.route(scopes, Arc::clone(&policy), key);
            bounded(Registry::new(key_by.clone(), route), max_keys)
        };
        Ok(Self {
            routes: routes(scopes)?,
            other_routes: other_scopes.map(routes).transpose()?,
            policy,
            circuits,
        })
    }

    pub(crate) fn route(&self, request: &dyn Described, kind: Kind) -> Arc<Keyed<Route>> {
        let routes = match (kind, &self.other_routes) {
            (Kind::Other, Some(routes)) => routes,
            _ => &self.routes,
        };
        let route = routes.get(request);
        if route.is_whole {
            return route;
        }
        // There was no room for it, or for one of its circuits. There may be now.
        let scopes = route.scopes;
        let key = routes.key_of(request);
        let route = self
            .circuits
            .route(scopes, Arc::clone(&self.policy), Some(&key));
        Arc::new(Keyed::keyless(route))
    }

    /// The circuit, made if there is none; `None` if the layer has no such circuits, or no room.
    pub(crate) fn circuit(&self, id: &CircuitId) -> Option<Arc<Keyed<Circuit>>> {
        let circuit = self.circuits.of(id.scope())?.by_key(id.key());
        circuit.has_key().then_some(circuit)
    }

    pub(crate) fn peek(&self, id: &CircuitId) -> Option<Arc<Keyed<Circuit>>> {
        self.circuits.of(id.scope())?.peek(id.key())
    }

    /// Follows a change that another process reports.
    #[cfg(feature = "redis")]
    pub(crate) fn observe(&self, id: &CircuitId, change: crate::shared::Change, now: Instant) {
        let circuit = match change {
            // A circuit that no call has used is closed anyway.
            crate::shared::Change::Closed => self.peek(id),
            _ => self.circuit(id),
        };
        if let Some(circuit) = circuit {
            circuit.observe(change, now);
        }
    }

    pub(crate) fn for_each(&self, mut each: impl FnMut(Option<&Key>, &Circuit)) {
        for (_, circuits) in &self.circuits.0 {
            circuits.for_each(&mut each);
        }
    }
}

fn bounded<T: Evictable>(
    registry: Registry<T>,
    max_keys: Option<usize>,
) -> Result<Registry<T>, ConfigError> {
    match max_keys {
        Some(max_keys) => registry.max_keys(max_keys),
        None => Ok(registry),
    }
}

impl Circuits {
    fn of(&self, scope: Scope) -> Option<&Registry<Circuit>> {
        let found = self.0.iter().find(|(of, _)| *of == scope);
        found.map(|(_, circuits)| circuits)
    }

    /// Returns the circuits of calls with `key`; none for the overflow route, which is not used.
    fn route(&self, scopes: &'static [Scope], policy: Arc<Policy>, key: Option<&Key>) -> Route {
        let [provider, account, model] = key.map(Key::parts).unwrap_or_default();
        let mut circuits = key.into_iter().flat_map(|key| {
            let of_route = self.0.iter().filter(|(scope, _)| scopes.contains(scope));
            of_route.map(move |(scope, circuits)| {
                let circuit = match scope {
                    Scope::Provider => circuits.by_key(&Key::new(provider)),
                    Scope::ProviderAndModel => circuits.by_key(&Key::pair(provider, model)),
                    Scope::Account => circuits.by_key(&Key::pair(provider, account)),
                    Scope::AccountAndModel => {
                        circuits.by_key(&Key::triple(provider, account, model))
                    }
                    Scope::Key => circuits.by_key(key),
                };
                (*scope, circuit)
            })
        });
        let circuits = std::array::from_fn(|_| circuits.next());
        let has_room = |circuit: &Option<(_, Arc<Keyed<Circuit>>)>| match circuit {
            Some((_, circuit)) => circuit.has_key(),
            None => true,
        };
        Route {
            is_whole: key.is_some() && circuits.iter().all(has_room),
            is_watched: policy.slow.is_some() || policy.stalled_after.is_some(),
            policy,
            circuits,
            scopes,
            has_account: !account.is_empty(),
        }
    }
}

impl Kind {
    /// A request that is not described counts as inference, and so does an unknown operation that names a model.
    pub(crate) fn of(call: Option<&Call>) -> Self {
        let Some(call) = call else {
            return Self::Inference;
        };
        let operation = call.operation();
        let names_model = *operation == Operation::OTHER && call.model().is_some();
        if operation.is_inference() || names_model {
            Self::Inference
        } else {
            Self::Other
        }
    }
}

impl Route {
    fn circuits(&self) -> impl Iterator<Item = (Scope, &Keyed<Circuit>)> {
        let circuits = self.circuits.iter().map_while(Option::as_ref);
        circuits.map(|(scope, circuit)| (*scope, &**circuit))
    }

    /// Admits a call through all circuits, or through none.
    pub(crate) fn admit(&self) -> Result<Passes, CircuitOpen> {
        let mut passes = Passes::default();
        let free = self
            .circuits()
            .zip(&mut passes)
            .all(|((_, circuit), pass)| {
                let free = circuit.admit_free();
                *pass = free.unwrap_or_default();
                free.is_some()
            });
        if free {
            return Ok(passes);
        }
        self.admit_at(Instant::now())
    }

    /// The same, if a circuit needs the time.
    fn admit_at(&self, now: Instant) -> Result<Passes, CircuitOpen> {
        let mut passes = Passes::default();
        for (index, (_, circuit)) in self.circuits().enumerate() {
            match circuit.admit(now) {
                Ok(pass) => passes[index] = pass,
                Err(shut) => {
                    self.give_back(&passes[..index], now);
                    return Err(self.refusal(index, shut, now));
                }
            }
        }
        Ok(passes)
    }

    /// The circuit at `index` refuses with `shut`, and later ones may too. The error names the one that refuses for
    /// longest: a client that waits for a shorter time would be refused again.
    fn refusal(&self, index: usize, shut: Shut, now: Instant) -> CircuitOpen {
        let refusing = self
            .circuits()
            .skip(index)
            .enumerate()
            .filter_map(|(n, (_, circuit))| {
                let shut = if n == 0 { shut } else { circuit.refusal(now)? };
                Some((circuit, shut))
            });
        let longest = refusing.reduce(|longest, other| {
            if other.1.lasts() > longest.1.lasts() {
                other
            } else {
                longest
            }
        });
        let (circuit, shut) = longest.expect("the first one refuses");
        circuit.count_refused();
        CircuitOpen::new(circuit.id(), shut)
    }

    /// When the last of the circuits would admit a call. A circuit whose traffic grows counts as closed.
    pub(crate) fn would_admit(&self, now: impl Fn() -> Instant) -> Availability {
        let refusals = self.circuits().filter_map(|(_, circuit)| {
            let is_free = circuit.admit_free().is_some();
            if is_free {
                None
            } else {
                circuit.refusal(now())
            }
        });
        let times = refusals.map(|shut| shut.retry_after);
        let times = times.map(|time| time.map_or(Availability::Unknown, Availability::After));
        times.max().unwrap_or(Availability::Now)
    }

    /// A call that some circuits have admitted is not sent.
    fn give_back(&self, passes: &[Pass], now: Instant) {
        for ((_, circuit), &pass) in self.circuits().zip(passes) {
            circuit.give_back(pass, now);
        }
    }

    /// Each circuit counts a success.
    pub(crate) fn succeeded(&self, passes: &Passes, now: &mut Now) {
        for ((_, circuit), &pass) in self.circuits().zip(passes) {
            circuit.succeeded(pass, now);
        }
    }

    /// Each circuit, the call's pass, and what `completion` means for it.
    pub(crate) fn judged(
        &self,
        passes: &Passes,
        completion: &Completion,
        is_slow: bool,
    ) -> impl Iterator<Item = (&Keyed<Circuit>, Pass, Verdict)> {
        let of_each = self.circuits().zip(passes);
        of_each.map(move |((scope, circuit), &pass)| {
            let is_slow_probe = is_slow && pass.is_probe() && is_of_model(scope);
            let verdict = if is_slow_probe && shows_slowness(completion.outcome) {
                Verdict::Failure { retry_after: None }
            } else {
                verdict(scope, completion, self.has_account, pass.is_probe())
            };
            (circuit, pass, verdict)
        })
    }

    /// The circuit of the model, and the index of its pass.
    pub(crate) fn of_model(&self) -> Option<(usize, &Keyed<Circuit>)> {
        let found = |&(_, (scope, _)): &(usize, (Scope, _))| is_of_model(scope);
        let (index, (_, circuit)) = self.circuits().enumerate().find(found)?;
        Some((index, circuit))
    }

    /// Each circuit with its pass.
    pub(crate) fn with_passes<'a>(
        &'a self,
        passes: &'a mut Passes,
    ) -> impl Iterator<Item = (&'a Keyed<Circuit>, &'a mut Pass)> {
        iter::zip(self.circuits().map(|(_, circuit)| circuit), passes)
    }
}

/// A route can be made again, and holds its circuits while it exists.
impl Evictable for Route {
    fn is_evictable(&self) -> bool {
        true
    }
}

/// Whether a circuit of that scope counts the outcomes of a model.
fn is_of_model(scope: Scope) -> bool {
    matches!(scope, Scope::ProviderAndModel | Scope::Key)
}

/// Whether a slow probe with this outcome has failed. A disconnect counts as failed: if callers abandon all slow probes,
/// the circuit would never decide.
fn shows_slowness(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Success
            | Outcome::Abandoned
            | Outcome::Superseded
            | Outcome::Failed(Failure::Slow)
    )
}

/// What the outcome of a call means for a circuit: nothing, unless it concerns the scope of the circuit.
fn verdict(scope: Scope, completion: &Completion, has_account: bool, is_probe: bool) -> Verdict {
    use Verdict::{Credential, Exhausted, Failure as Failed, Neutral, Success, Throttled};
    let fault = Failed { retry_after: None };
    let was_answered = completion.status.is_some();
    let refused_as = refused_credential(completion);
    let is_forbidden = completion.status == Some(403);
    let is_of_one_model = completion.subject == Some(Subject::Model);
    match (completion.outcome, scope) {
        (Outcome::Success, _) => Success,

        // It showed signs of life: it was slow, which is counted separately.
        (Outcome::Failed(Failure::Slow), Scope::Provider) => Success,
        (Outcome::Failed(Failure::Slow), _) => Neutral,

        // If a response breaks off, the connection to the provider had worked.
        (Outcome::Failed(Failure::Panic), Scope::Provider) => fault,
        (Outcome::Failed(Failure::Panic), Scope::ProviderAndModel) => Neutral,
        (Outcome::Failed(Failure::Transport), Scope::Provider) if !was_answered => fault,
        (Outcome::Failed(Failure::Transport), Scope::ProviderAndModel) if !was_answered => Neutral,
        (Outcome::Failed(_), Scope::ProviderAndModel | Scope::Key) => fault,

        (Outcome::Overloaded { retry_after }, Scope::ProviderAndModel | Scope::Key) => {
            Failed { retry_after }
        }

        (Outcome::Throttled { retry_after }, Scope::AccountAndModel | Scope::Key) => {
            Throttled { retry_after }
        }
        (Outcome::Exhausted, Scope::AccountAndModel) if is_of_one_model => Exhausted,
        (Outcome::Exhausted, Scope::Account) if !is_of_one_model => Exhausted,
        (Outcome::Exhausted, Scope::Key) => Exhausted,
        // If the owner of the credential is unknown, callers with different credentials share the circuit.
        (Outcome::ClientError, _) if has_account && refused_as == Some(scope) => Credential,

        // Whatever the answer, the provider was reached.
        (Outcome::Failed(_), Scope::Provider) if was_answered => Success,
        (
            Outcome::Overloaded { .. } | Outcome::Throttled { .. } | Outcome::Exhausted,
            Scope::Provider,
        ) => Success,
        // A client error means nothing, except as a probe of what it shows to work: the connection to the provider, or an
        // account whose credential was accepted. A rate limit also comes after that check.
        (Outcome::ClientError, Scope::Provider) if is_probe && was_answered => Success,
        (Outcome::ClientError, Scope::Account)
            if is_probe && was_answered && !is_forbidden && refused_as.is_none() =>
        {
            Success
        }
        (Outcome::Throttled { .. } | Outcome::Exhausted, Scope::Account) if is_probe => Success,
        _ => Neutral,
    }
}

/// The scope for which the provider refuses the credential, if it does: the account, or with a 403 the model that the call
/// asked for.
fn refused_credential(completion: &Completion) -> Option<Scope> {
    match (completion.subject, completion.status) {
        (Some(Subject::Credential), Some(403)) => Some(Scope::AccountAndModel),
        (Some(Subject::Credential), _) | (None, Some(401)) => Some(Scope::Account),
        _ => None,
    }
}
