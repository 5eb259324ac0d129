//! Which circuits a call passes, and what its end says to each.

use std::{iter, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{
    Completion, ConfigError, Described, Evictable, Failure, Key, KeyBy, Keyed, Outcome, Registry,
};

use crate::{
    CircuitId, CircuitOpen, Scope,
    circuit::{Circuit, Pass, Verdict},
    group::Group,
    policy::Policy,
    window::Now,
};

/// Most circuits that one call passes.
const MOST: usize = 4;

/// All circuits of a layer.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) policy: Arc<Policy>,
    /// Found by one look, so that a call need not look for each of its circuits.
    routes: Registry<Route>,
    circuits: Arc<Circuits>,
}

/// The circuits, by whose fault they are about.
#[derive(Debug)]
struct Circuits(Vec<(Scope, Registry<Circuit>)>);

/// The circuits of all calls that are alike.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) policy: Arc<Policy>,
    circuits: [Option<(Scope, Arc<Keyed<Circuit>>)>; MOST],
    has_account: bool,
    /// Whether there was room for each of its circuits.
    is_whole: bool,
    /// Whether a call is watched while it runs.
    pub(crate) is_watched: bool,
}

/// That a call was let through by each circuit of its route.
pub(crate) type Passes = [Pass; MOST];

/// What calls are told apart by.
#[derive(Clone, Debug)]
pub(crate) enum RouteBy {
    /// By whose fault it is, and accounts by this.
    Fault { account: KeyBy },
    /// By this alone.
    Key(KeyBy),
}

const SCOPES: [Scope; MOST] = [
    Scope::Provider,
    Scope::ProviderAndModel,
    Scope::Account,
    Scope::AccountAndModel,
];

impl Board {
    pub(crate) fn new(
        policy: Policy,
        route_by: RouteBy,
        max_keys: Option<usize>,
    ) -> Result<Self, ConfigError> {
        let policy = Arc::new(policy);
        let (scopes, key_by) = match route_by {
            RouteBy::Fault { account } => (&SCOPES[..], KeyBy::route(account)),
            RouteBy::Key(key_by) => (&[Scope::Key][..], key_by),
        };
        let registry = |&scope| {
            let group = Arc::new(Group::new(scope, Arc::clone(&policy)));
            let make = move |key: Option<&Key>| Circuit::new(Arc::clone(&group), key.cloned());
            bounded(Registry::new(KeyBy::shared(), make), max_keys)
                .map(|circuits| (scope, circuits))
        };
        let circuits = scopes.iter().map(registry).collect::<Result<_, _>>()?;
        let circuits = Arc::new(Circuits(circuits));
        let route = {
            let (policy, circuits) = (Arc::clone(&policy), Arc::clone(&circuits));
            move |key: Option<&Key>| circuits.route(Arc::clone(&policy), key)
        };
        Ok(Self {
            routes: bounded(Registry::new(key_by, route), max_keys)?,
            policy,
            circuits,
        })
    }

    pub(crate) fn route(&self, request: &dyn Described) -> Arc<Keyed<Route>> {
        let route = self.routes.get(request);
        if route.is_whole {
            return route;
        }
        // There was no room for it, or for one of its circuits: there may be now, and for the others there is.
        let key = self.routes.key_of(request);
        let route = self.circuits.route(Arc::clone(&self.policy), Some(&key));
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

    /// What has happened to a circuit in another process.
    #[cfg(feature = "redis")]
    pub(crate) fn observe(&self, id: &CircuitId, change: crate::shared::Change, now: Instant) {
        let circuit = match change {
            // One that nobody has come by is closed.
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

    /// The circuits of the calls with `key`; none for the route that keys share when there is room for no more, since
    /// nobody goes by it.
    fn route(&self, policy: Arc<Policy>, key: Option<&Key>) -> Route {
        let [provider, account, model] = key.map(Key::parts).unwrap_or_default();
        let mut circuits = key.into_iter().flat_map(|key| {
            self.0.iter().map(move |(scope, circuits)| {
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
            has_account: !account.is_empty(),
        }
    }
}

impl Route {
    fn circuits(&self) -> impl Iterator<Item = (Scope, &Keyed<Circuit>)> {
        let circuits = self.circuits.iter().map_while(Option::as_ref);
        circuits.map(|(scope, circuit)| (*scope, &**circuit))
    }

    /// Lets a call through all circuits, or through none.
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

    /// The same where one of them wants to know the time.
    fn admit_at(&self, now: Instant) -> Result<Passes, CircuitOpen> {
        let mut passes = Passes::default();
        for (index, (_, circuit)) in self.circuits().enumerate() {
            match circuit.admit(now) {
                Ok(pass) => passes[index] = pass,
                Err(shut) => {
                    self.give_back(&passes[..index], now);
                    return Err(CircuitOpen::new(circuit.id(), shut));
                }
            }
        }
        Ok(passes)
    }

    /// A call that some have let through is not sent after all.
    fn give_back(&self, passes: &[Pass], now: Instant) {
        for ((_, circuit), &pass) in self.circuits().zip(passes) {
            circuit.give_back(pass, now);
        }
    }

    /// Has each circuit count that the call went well.
    pub(crate) fn succeeded(&self, passes: &Passes, now: &mut Now) {
        for ((_, circuit), &pass) in self.circuits().zip(passes) {
            circuit.succeeded(pass, now);
        }
    }

    /// Each circuit, what let the call through it, and what `completion` says to it.
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

    /// The circuit that what a model does is counted in, and its place among the passes.
    pub(crate) fn of_model(&self) -> Option<(usize, &Keyed<Circuit>)> {
        let found = |&(_, (scope, _)): &(usize, (Scope, _))| is_of_model(scope);
        let (index, (_, circuit)) = self.circuits().enumerate().find(found)?;
        Some((index, circuit))
    }

    /// Each circuit with its pass, to change that.
    pub(crate) fn with_passes<'a>(
        &'a self,
        passes: &'a mut Passes,
    ) -> impl Iterator<Item = (&'a Keyed<Circuit>, &'a mut Pass)> {
        iter::zip(self.circuits().map(|(_, circuit)| circuit), passes)
    }
}

/// A route can be made anew. Its circuits stay as long as it does.
impl Evictable for Route {
    fn is_evictable(&self) -> bool {
        true
    }
}

/// Whether what a model does is counted in such a circuit.
fn is_of_model(scope: Scope) -> bool {
    matches!(scope, Scope::ProviderAndModel | Scope::Key)
}

/// Whether a slow probe that ends so has shown that all is not well yet. One whose caller leaves has: he waited in vain, and
/// where all do so, nothing else would ever be decided.
fn shows_slowness(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Success | Outcome::Abandoned | Outcome::Superseded
    )
}

/// What a call's end says to a circuit: nothing, unless it is about whose fault that circuit is about.
fn verdict(scope: Scope, completion: &Completion, has_account: bool, is_probe: bool) -> Verdict {
    use Verdict::{Exhausted, Failure as Failed, Neutral, Success, Throttled};
    let fault = Failed { retry_after: None };
    let was_answered = completion.status.is_some();
    let is_unwelcome = matches!(completion.status, None | Some(401 | 403));
    match (completion.outcome, scope) {
        (Outcome::Success, _) => Success,

        // Where a response breaks off, the way to it was good.
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
        (Outcome::Exhausted, Scope::Account | Scope::Key) => Exhausted,
        // A caller's own credentials are a caller's fault; those of an account that the service named are its own.
        (Outcome::ClientError, Scope::Account) if completion.status == Some(401) && has_account => {
            Exhausted
        }

        // Whatever it says, it was reached.
        (Outcome::Failed(_), Scope::Provider) if was_answered => Success,
        (
            Outcome::Overloaded { .. } | Outcome::Throttled { .. } | Outcome::Exhausted,
            Scope::Provider,
        ) => Success,
        // A caller's fault says nothing, but to who asks whether there is an answer at all; and a rate limit, or a request
        // that is no good, only comes to those who may ask.
        (Outcome::ClientError, Scope::Provider) if is_probe && was_answered => Success,
        (Outcome::ClientError, Scope::Account) if is_probe && !is_unwelcome => Success,
        (Outcome::Throttled { .. }, Scope::Account) if is_probe => Success,
        _ => Neutral,
    }
}
