//! One target of a pool.

use std::{fmt, sync::Arc};

use tower_llm_core::{Availability, Call, ConfigError, Described, Entry, Gate, RefusalKind};

use super::{
    load::Load,
    members::Slot,
    pick::Candidate,
    rendezvous::{Entrant, digest},
};

/// One of the services that a [`Pool`](crate::Pool) sends calls to: an account at a provider, with layers of its own.
///
/// A clone is for another pool: both count their own calls, and share the layers.
#[derive(Clone)]
pub struct Target<S> {
    name: Arc<str>,
    weight: u32,
    priority: u32,
    price: Option<f64>,
    service: S,
    looks: Vec<Look>,
    describe: Option<Describe>,
}

type Describe = Arc<dyn Fn(&Call) -> Call + Send + Sync>;

/// Asks one layer of a target whether it would admit a call.
#[derive(Clone)]
struct Look {
    /// What a refusal of this layer is about.
    kind: RefusalKind,
    ask: Arc<dyn Fn(&Entry<'_>) -> Availability + Send + Sync>,
}

/// What the calls to a target need; shared with those in flight.
pub(crate) struct Member<S> {
    pub(crate) name: Arc<str>,
    pub(crate) service: S,
    pub(crate) load: Arc<Load>,
    looks: Vec<Look>,
    describe: Option<Describe>,
}

/// When a target would admit a call, and what is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) availability: Availability,
    pub(crate) kind: RefusalKind,
}

// === impl Target ===

impl<S> Target<S> {
    /// A target with a weight of 1 and a priority of 0. Its name must be the only one of its kind in the pool. It appears in
    /// [reports](crate::Report) and statistics.
    pub fn new(name: impl Into<Arc<str>>, service: S) -> Self {
        Self {
            name: name.into(),
            weight: 1,
            priority: 0,
            price: None,
            service,
            looks: Vec::new(),
            describe: None,
        }
    }

    /// Sets how much traffic it gets beside the others: for [`weighted`](crate::Pick::weighted) and
    /// [`weighted_random`](crate::Pick::weighted_random), [`sticky`](crate::Pick::sticky) and
    /// [`least_in_flight`](crate::Pick::least_in_flight); 1 unless set.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets its priority, 0 unless set. Targets of a lower number come first; others take calls only if none of those can.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets its price, in any unit that all targets share, for [`Pick::cheapest`](crate::Pick::cheapest). Targets without a
    /// price come last.
    #[must_use]
    pub fn price(mut self, price: f64) -> Self {
        self.price = Some(price);
        self
    }

    /// Decides whether it can take a call; asked before a call is sent there. A target that cannot take it at once is passed
    /// over. Every condition that is set must hold.
    ///
    /// The closure runs for each call, without a lock.
    #[must_use]
    pub fn availability<F>(self, ask: F) -> Self
    where
        F: Fn(&Entry<'_>) -> Availability + Send + Sync + 'static,
    {
        self.look(RefusalKind::Unavailable, ask)
    }

    /// Asks a [`Gate`] of its service, such as a circuit breaker or a bulkhead. A pair of gates is a gate.
    #[must_use]
    pub fn gate(self, gate: impl Gate + Sync) -> Self {
        self.look(RefusalKind::Unavailable, move |entry| {
            gate.would_admit(entry)
        })
    }

    /// Asks a rate limit of its service, as [`gate`](Self::gate) does.
    ///
    /// A call that all targets are without tokens for is refused as [`RefusalKind::RateLimited`] then.
    #[must_use]
    pub fn limit(self, gate: impl Gate + Sync) -> Self {
        self.look(RefusalKind::RateLimited, move |entry| {
            gate.would_admit(entry)
        })
    }

    fn look<F>(mut self, kind: RefusalKind, ask: F) -> Self
    where
        F: Fn(&Entry<'_>) -> Availability + Send + Sync + 'static,
    {
        let ask = Arc::new(ask);
        self.looks.push(Look { kind, ask });
        self
    }

    /// Describes a call as this target sees it: with its provider, its account, and the model that it calls the caller's by.
    ///
    /// Its layers read that description, and so do [`availability`](Self::availability) and [`gate`](Self::gate). The
    /// request itself is not changed otherwise: its body still names the caller's model. Requests of other types than
    /// [`http::Request`] must implement [`Described::set_call`].
    ///
    /// ```
    /// use tower_llm_fanout::Target;
    ///
    /// let service = tower::service_fn(|_: http::Request<()>| async { Ok::<_, std::io::Error>(()) });
    /// let target = Target::new("openai-a", service)
    ///     .describe(|call| call.to_builder().account("a").model("gpt-5-2025-08-07").build());
    /// # let _ = target;
    /// ```
    #[must_use]
    pub fn describe(mut self, describe: impl Fn(&Call) -> Call + Send + Sync + 'static) -> Self {
        self.describe = Some(Arc::new(describe));
        self
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Checks what its setters take as it is.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        check_weight(self.weight)?;
        match self.price {
            Some(price) if !(price >= 0.0 && price.is_finite()) => {
                let reason = "it must be zero or more";
                Err(ConfigError::new("price", price, reason))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn into_slot(self) -> Slot<S> {
        let member = Member {
            name: self.name,
            service: self.service,
            load: Arc::default(),
            looks: self.looks,
            describe: self.describe,
        };
        Slot {
            priority: self.priority,
            candidate: Candidate {
                load: Arc::clone(&member.load),
                entrant: Entrant {
                    name: digest(member.name.bytes()),
                    weight: self.weight,
                },
                price: self.price,
            },
            member: Arc::new(member),
        }
    }
}

pub(crate) fn check_weight(weight: u32) -> Result<(), ConfigError> {
    ConfigError::check_nonzero("weight", weight as usize).map(drop)
}

// === impl Member ===

impl<S> Member<S> {
    /// The description of `call` as this target sees it.
    pub(crate) fn describe(&self, call: &Call) -> Option<Call> {
        self.describe.as_ref().map(|describe| describe(call))
    }

    /// Whether it would admit the call at once.
    pub(crate) fn look(&self, request: &dyn Described, reports_usage: bool) -> Seen {
        let mut worst = Seen {
            availability: Availability::Now,
            kind: RefusalKind::Unavailable,
        };
        if self.looks.is_empty() {
            return worst;
        }
        let entry = Entry::new(request, reports_usage);
        for look in &self.looks {
            let availability = (look.ask)(&entry);
            if availability > worst.availability {
                let kind = look.kind;
                worst = Seen { availability, kind };
            }
        }
        worst
    }
}

impl<S> fmt::Debug for Target<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .field("priority", &self.priority)
            .field("price", &self.price)
            .finish_non_exhaustive()
    }
}
