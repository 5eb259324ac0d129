//! All circuits of a layer, by scope.

use std::sync::Arc;

use tower_llm_core::{ConfigError, Evictable, Key, KeyBy, Keyed, Registry};

use crate::{CircuitId, Scope, circuit::Circuit, config::Config, events::Events, group::Group};

#[derive(Debug)]
pub(crate) struct Circuits {
    pub(crate) config: Arc<Config>,
    pub(crate) events: Arc<Events>,
    /// Maximum number of circuits of each scope, and of routes to them.
    max_keys: Option<usize>,
    by_scope: Vec<(Scope, Registry<Circuit>)>,
}

impl Circuits {
    pub(crate) fn new(
        config: Config,
        scopes: &[Scope],
        max_keys: Option<usize>,
    ) -> Result<Self, ConfigError> {
        let (config, events) = (Arc::new(config), Arc::new(Events::new()));
        let mut circuits = Self {
            config,
            events,
            max_keys,
            by_scope: Vec::new(),
        };
        for &scope in scopes {
            let (config, events) = (&circuits.config, &circuits.events);
            let group = Group::new(scope, Arc::clone(config), Arc::clone(events));
            let group = Arc::new(group);
            let make = move |key: Option<&Key>| Circuit::new(Arc::clone(&group), key.cloned());
            let registry = circuits.registry(KeyBy::shared(), make)?;
            circuits.by_scope.push((scope, registry));
        }
        Ok(circuits)
    }

    /// Makes a registry with the layer's maximum of keys.
    pub(crate) fn registry<T: Evictable>(
        &self,
        key_by: KeyBy,
        make: impl Fn(Option<&Key>) -> T + Send + Sync + 'static,
    ) -> Result<Registry<T>, ConfigError> {
        let registry = Registry::new(key_by, make);
        match self.max_keys {
            Some(max_keys) => registry.max_keys(max_keys),
            None => Ok(registry),
        }
    }

    /// The circuit of `key`, made if there is none; the overflow circuit if there is no room.
    pub(crate) fn by_key(&self, scope: Scope, key: &Key) -> Option<Arc<Keyed<Circuit>>> {
        Some(self.of(scope)?.by_key(key))
    }

    /// The circuit, made if there is none; `None` if the layer has no such circuits, or no room.
    pub(crate) fn get(&self, id: &CircuitId) -> Option<Arc<Keyed<Circuit>>> {
        let circuit = self.by_key(id.scope(), id.key())?;
        circuit.has_key().then_some(circuit)
    }

    /// The circuit if there is one.
    pub(crate) fn peek(&self, id: &CircuitId) -> Option<Arc<Keyed<Circuit>>> {
        self.of(id.scope())?.peek(id.key())
    }

    /// Runs `each` on every circuit that has a key.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&Circuit)) {
        for (_, circuits) in &self.by_scope {
            circuits.for_each(|key, circuit| {
                if key.is_some() {
                    each(circuit);
                }
            });
        }
    }

    fn of(&self, scope: Scope) -> Option<&Registry<Circuit>> {
        let found = self.by_scope.iter().find(|(of, _)| *of == scope);
        found.map(|(_, circuits)| circuits)
    }
}
