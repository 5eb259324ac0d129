use std::{collections::HashMap, sync::Arc, task::Waker, time::Duration};

use tower_layer::Layer;
use tower_llm_core::{ConfigError, Described, HttpBody, Key, KeyBy, Registry};

use crate::{
    Adaptive, Bulkhead, BulkheadHandle, Priority, ReleaseAt, ReserveLayer, Weigh,
    permit::{Admission, Permit, Ticket},
    places::{AllPlaces, MAX_LIMIT, Places, Turn, Wanted},
    priority::{ByPriority, PriorityBy},
};

/// Limits how many calls run at once, for each key apart; decides in `call`.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// A place is given back when our side of the upstream's body is gone; a connection that has to be closed for that may
/// be closed a little later. A call whose turn has come holds its place although its future is not polled: poll what you
/// have called, or drop it. The same goes for a body that nobody reads: a server must itself bound how long a caller may
/// take nothing. One layer twice in a stack waits for itself.
///
/// | setting | default |
/// |---|---|
/// | limit | as given to [`builder`](Self::builder), for each key |
/// | [`global_limit`](BulkheadBuilder::global_limit) | none: keys have nothing to do with each other |
/// | [`adaptive`](BulkheadBuilder::adaptive) | none: limits stay as they are set |
/// | [`weigh_by`](BulkheadBuilder::weigh_by) | calls |
/// | [`key_by`](BulkheadBuilder::key_by) | provider |
/// | [`priority_by`](BulkheadBuilder::priority_by) | all calls are [`Priority::Normal`] |
/// | [`max_waiting`](BulkheadBuilder::max_waiting) | 100 for each key and class |
/// | [`max_wait`](BulkheadBuilder::max_wait) | 30 s |
/// | [`release_at`](BulkheadBuilder::release_at) | end of the body |
/// | [`max_keys`](BulkheadBuilder::max_keys) | 10,000 |
#[derive(Clone, Debug)]
pub struct BulkheadLayer<W = HttpBody> {
    shared: Arc<Shared>,
    watch: W,
}

/// Builds a [`BulkheadLayer`] or a [`ReserveLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BulkheadBuilder<W = HttpBody> {
    limit: usize,
    limits: HashMap<Key, usize>,
    global_limit: Option<usize>,
    adaptive: Option<Adaptive>,
    weigh: Weigh,
    key_by: KeyBy,
    priority_by: PriorityBy,
    max_keys: Option<usize>,
    max_waiting: ByPriority,
    max_wait: Duration,
    release_at: ReleaseAt,
    watch: W,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) places: Registry<Places>,
    pub(crate) all: Option<Arc<AllPlaces>>,
    pub(crate) adaptive: Option<Adaptive>,
    weigh: Weigh,
    priority_by: PriorityBy,
    max_waiting: ByPriority,
    pub(crate) max_wait: Duration,
    pub(crate) release_at: ReleaseAt,
}

impl BulkheadLayer {
    /// A layer with the defaults and `limit` places for each provider.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `limit` is zero or over 4,294,967,295.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        Self::builder(limit).build()
    }

    /// Starts a layer with `limit` places for each key.
    pub fn builder(limit: usize) -> BulkheadBuilder {
        BulkheadBuilder {
            limit,
            limits: HashMap::new(),
            global_limit: None,
            adaptive: None,
            weigh: Weigh::Calls,
            key_by: KeyBy::provider(),
            priority_by: PriorityBy::NORMAL,
            max_keys: None,
            max_waiting: [100; 3],
            max_wait: Duration::from_secs(30),
            release_at: ReleaseAt::End,
            watch: HttpBody,
        }
    }
}

impl<W> BulkheadLayer<W> {
    /// A handle to look at the state with, and to change limits.
    #[must_use]
    pub fn handle(&self) -> BulkheadHandle {
        BulkheadHandle::new(Arc::clone(&self.shared))
    }
}

impl<W> BulkheadBuilder<W> {
    /// Sets the limit of one key, in place of the one for each. No call has a key with a part over 256 bytes.
    pub fn limit_for(mut self, key: Key, limit: usize) -> Self {
        self.limits.insert(key, limit);
        self
    }

    /// Sets a limit for all keys together, beside their own.
    ///
    /// A call takes both places or waits for both: one that waits for its key holds up no call of another. Calls that wait
    /// take turns over all keys.
    pub fn global_limit(mut self, limit: usize) -> Self {
        self.global_limit = Some(limit);
        self
    }

    /// Lets each key's limit follow what its calls meet, beginning with the limit that is set; see [`Adaptive`] for what
    /// that is worth. The limit of all keys together stays as it is set.
    ///
    /// What was found is forgotten with its key; see [`max_keys`](Self::max_keys).
    pub fn adaptive(mut self, rules: Adaptive) -> Self {
        self.adaptive = Some(rules);
        self
    }

    /// Sets what limits count; calls unless set.
    pub fn weigh_by(mut self, weigh: Weigh) -> Self {
        self.weigh = weigh;
        self
    }

    /// Sets how the class of a call is chosen, if it must wait; [`Priority::Normal`] unless set.
    ///
    /// A header that callers set is theirs to choose: let only those have a high class whom you know.
    pub fn priority_by<F>(mut self, choose: F) -> Self
    where
        F: Fn(&dyn Described) -> Priority + Send + Sync + 'static,
    {
        self.priority_by = PriorityBy::custom(choose);
        self
    }

    /// Sets what calls are counted together by; the provider unless set.
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.key_by = key_by;
        self
    }

    /// Sets how many keys are told apart at most, rounded up to a multiple of 16. A key beyond that takes the place of one
    /// nobody uses; if all are in use, it shares one limit with all others that found no place.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = Some(max_keys);
        self
    }

    /// Sets how many calls of each class may wait for each key's places; at zero, a call that finds none is refused at
    /// once.
    ///
    /// When so many wait, a call of a caller who has fewer among them than others on average takes the place of the newest
    /// of the one who has most, which is refused. Any other is refused itself.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = [calls; 3];
        self
    }

    /// Sets how many calls of one class may wait for each key's places.
    pub fn max_waiting_of(mut self, priority: Priority, calls: usize) -> Self {
        self.max_waiting[priority.index()] = calls;
        self
    }

    /// Sets how long a call may wait for a place; 30 s unless set, at most a day.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets when a call gives its place back.
    pub fn release_at(mut self, release_at: ReleaseAt) -> Self {
        self.release_at = release_at;
        self
    }

    /// Sets how the end of a response is seen: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> BulkheadBuilder<V> {
        BulkheadBuilder {
            limit: self.limit,
            limits: self.limits,
            global_limit: self.global_limit,
            adaptive: self.adaptive,
            weigh: self.weigh,
            key_by: self.key_by,
            priority_by: self.priority_by,
            max_keys: self.max_keys,
            max_waiting: self.max_waiting,
            max_wait: self.max_wait,
            release_at: self.release_at,
            watch,
        }
    }

    /// The layer that decides in `call`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a limit or `max_keys` is zero, a limit is over 4,294,967,295, or
    /// `max_wait` is zero or over a day. With [`adaptive`](Self::adaptive), also if its floor is zero or over its
    /// ceiling, a key's limit is not between them, its factor is not between zero and one, its interval or target is
    /// zero or over a day, or limits count tokens.
    pub fn build(self) -> Result<BulkheadLayer<W>, ConfigError> {
        let default = check_limit("limit", self.limit)?;
        for &limit in self.limits.values() {
            check_limit("limit_for", limit)?;
        }
        let global = self
            .global_limit
            .map(|limit| check_limit("global_limit", limit));
        let max_wait = ConfigError::check_duration("max_wait", self.max_wait)?;
        let adaptive = self.check_adaptive()?;
        let all = global
            .transpose()?
            .map(|limit| Arc::new(AllPlaces::new(limit)));
        let make = {
            let (limits, all) = (self.limits, all.clone());
            move |key: Option<&Key>| {
                let own = key.and_then(|key| limits.get(key));
                let limit = *own.unwrap_or(&default);
                let places = match &all {
                    None => Places::new(limit),
                    Some(all) => Places::within(limit, Arc::clone(all)),
                };
                places.adaptive(adaptive)
            }
        };
        let mut places = Registry::new(self.key_by, make);
        if let Some(max_keys) = self.max_keys {
            places = places.max_keys(max_keys)?;
        }
        Ok(BulkheadLayer {
            shared: Arc::new(Shared {
                places,
                all,
                adaptive,
                weigh: self.weigh,
                priority_by: self.priority_by,
                max_waiting: self.max_waiting,
                max_wait,
                release_at: self.release_at,
            }),
            watch: self.watch,
        })
    }

    fn check_adaptive(&self) -> Result<Option<Adaptive>, ConfigError> {
        let Some(rules) = self.adaptive else {
            return Ok(None);
        };
        let rules = rules.check()?;
        rules.check_limit("limit", self.limit)?;
        for &limit in self.limits.values() {
            rules.check_limit("limit_for", limit)?;
        }
        if self.weigh != Weigh::Calls {
            let reason = "an adaptive limit counts calls";
            return Err(ConfigError::new("weigh_by", self.weigh, reason));
        }
        Ok(Some(rules))
    }

    /// The layer that takes a place in `poll_ready`.
    ///
    /// It knows no request there, so it has one limit for all of them, and its queue is as long as there are
    /// services that wait. What is set of keys, of all keys together, of classes and weights, of adaptation, and
    /// `max_waiting` and `max_wait` do not bear on it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the limit is zero or over 4,294,967,295.
    pub fn build_reserve(self) -> Result<ReserveLayer<W>, ConfigError> {
        let limit = check_limit("limit", self.limit)?;
        Ok(ReserveLayer::new(limit, self.release_at, self.watch))
    }
}

impl<S, W: Clone> Layer<S> for BulkheadLayer<W> {
    type Service = Bulkhead<S, W>;

    fn layer(&self, inner: S) -> Bulkhead<S, W> {
        Bulkhead::new(inner, Arc::clone(&self.shared), self.watch.clone())
    }
}

impl Shared {
    /// Takes a place for `request`, or one in the queue.
    pub(crate) fn admit(&self, request: &dyn Described) -> Admission {
        let weight = self.weigh.weight(request.call().as_deref());
        match Permit::try_acquire(self.places.get(request), weight) {
            Ok(permit) => Admission::Admitted(permit),
            Err(places) => {
                let turn = self.turn(request);
                let max_waiting = self.max_waiting[turn.priority.index()];
                // Nobody polls yet; the future leaves its waker when it is polled first.
                Ticket::join(places, Wanted { weight, turn }, max_waiting, Waker::noop())
            }
        }
    }

    fn turn(&self, request: &dyn Described) -> Turn {
        let caller = request.call().and_then(|call| call.caller().cloned());
        Turn {
            priority: self.priority_by.of(request),
            caller,
        }
    }
}

pub(crate) fn check_limit(field: &'static str, limit: usize) -> Result<usize, ConfigError> {
    if limit > MAX_LIMIT {
        return Err(ConfigError::new(
            field,
            limit,
            "it must be at most 4294967295",
        ));
    }
    ConfigError::check_nonzero(field, limit)
}
