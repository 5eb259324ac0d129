//! Which circuits a call passes: found by one look-up.

use std::sync::Arc;

use tower_llm_core::{Call, ConfigError, Entry, Evictable, Key, KeyBy, Keyed, Operation, Registry};

use crate::{Scope, circuits::Circuits, route::Route};

/// How circuits are chosen.
#[derive(Clone, Debug)]
pub(crate) enum RouteBy {
    /// One for each scope, with this key of the account.
    Scope { account: KeyBy },
    /// One for each key.
    Key(KeyBy),
}

#[derive(Debug)]
pub(crate) struct Routes {
    circuits: Arc<Circuits>,
    route_by: RouteBy,
    ignores_throttled: bool,
    inference: Registry<Route>,
    /// For calls that run no inference; `None` with [`RouteBy::Key`].
    other: Option<Registry<Route>>,
}

const SCOPES: [Scope; 4] = [
    Scope::Provider,
    Scope::ProviderAndModel,
    Scope::Account,
    Scope::AccountAndModel,
];

/// The scopes of calls that run no inference: such calls neither open a model's circuit nor are refused by it.
const OTHER_SCOPES: [Scope; 2] = [Scope::Provider, Scope::Account];

impl RouteBy {
    /// The scopes of the circuits.
    pub(crate) fn scopes(&self) -> &'static [Scope] {
        match self {
            Self::Scope { .. } => &SCOPES,
            Self::Key(_) => &[Scope::Key],
        }
    }
}

impl Routes {
    /// Routes of calls whose 429s open circuits, unless it `ignores_throttled`.
    pub(crate) fn new(
        circuits: &Arc<Circuits>,
        route_by: RouteBy,
        ignores_throttled: bool,
    ) -> Result<Self, ConfigError> {
        let (key_by, has_other) = match &route_by {
            RouteBy::Scope { account } => (KeyBy::route(account.clone()), true),
            RouteBy::Key(key_by) => (key_by.clone(), false),
        };
        let registry = |scopes: &'static [Scope]| {
            let of = Arc::clone(circuits);
            let make = move |key: Option<&Key>| Route::new(&of, scopes, key, ignores_throttled);
            circuits.registry(key_by.clone(), make)
        };
        Ok(Self {
            inference: registry(route_by.scopes())?,
            other: has_other.then(|| registry(&OTHER_SCOPES)).transpose()?,
            circuits: Arc::clone(circuits),
            route_by,
            ignores_throttled,
        })
    }

    /// Routes to the same circuits, of calls whose 429s open none.
    pub(crate) fn ignoring_throttled(&self) -> Self {
        let routes = Self::new(&self.circuits, self.route_by.clone(), true);
        routes.expect("the maximum of keys is good")
    }

    /// The route of a call.
    pub(crate) fn find(&self, entry: &Entry<'_>) -> Arc<Keyed<Route>> {
        let (routes, scopes) = match &self.other {
            Some(other) if !shows_a_model(entry.call()) => (other, &OTHER_SCOPES[..]),
            _ => (&self.inference, self.route_by.scopes()),
        };
        let route = routes.get(entry);
        if route.is_whole {
            return route;
        }
        // There was no room for it, or for one of its circuits. There may be now.
        let key = Some(routes.key_of(entry));
        let again = Route::new(&self.circuits, scopes, key.as_ref(), self.ignores_throttled);
        Arc::new(Keyed::keyless(again))
    }
}

/// Whether the end of a call shows something about a model. A request that is not described counts as inference, and so does
/// an unknown operation that names a model.
fn shows_a_model(call: Option<&Call>) -> bool {
    call.is_none_or(|call| {
        let operation = call.operation();
        let names_model = *operation == Operation::OTHER && call.model().is_some();
        operation.is_inference() || names_model
    })
}

/// A route can be made again, and holds its circuits while it exists.
impl Evictable for Route {
    fn is_evictable(&self) -> bool {
        true
    }
}
