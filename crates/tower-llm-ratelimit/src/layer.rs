use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use tower_layer::Layer;
use tower_llm_core::{ConfigError, Described, GateLayer, HttpBody, KeyBy, Registry};

#[cfg(test)]
use crate::shared::memory::MemoryStore;
use crate::{
    CutShort, Headers, Limit, RateLimit, RateLimitGate, RateLimitHandle, Reserve,
    calendar::WallClock,
    checked_limit::{CheckedLimit, Sharing},
    group::{Clock, Evicted, LimitGroup, LimitedKey},
    limiter::Limiter,
    output_lengths::OutputLengths,
    pricing::Pricing,
    shared::backend::Shared,
    tier::{TierBy, Tiers},
};

/// Limits requests and tokens per period; decides in `call`.
///
/// All clones of a layer, and all services that it builds, share its state.
///
/// There are two constructors, which differ in their defaults:
///
/// | setting | [`for_callers`](Self::for_callers) | [`for_providers`](Self::for_providers) |
/// |---|---|---|
/// | [`key_by`](RateLimitBuilder::key_by) | caller | provider and model |
/// | [`reserve`](RateLimitBuilder::reserve) | input and maximum output | as the provider does |
/// | [`cut_short`](RateLimitBuilder::cut_short) | charge what was seen | same |
/// | [`count_cached_input`](RateLimitBuilder::count_cached_input) | yes | as the provider does |
/// | [`output_weight`](RateLimitBuilder::output_weight) | 1 | same |
/// | [`output_percentile`](RateLimitBuilder::output_percentile) | 0.95 | same |
/// | [`max_waiting`](RateLimitBuilder::max_waiting) | 0: refuse at once | 100 per key |
/// | [`max_wait`](RateLimitBuilder::max_wait) | 30 s | same |
/// | [`enforce_reported_limits`](RateLimitBuilder::enforce_reported_limits) | no | yes |
/// | [`headers`](RateLimitBuilder::headers) | `x-ratelimit-*` as from `OpenAI` | none |
/// | [`max_keys`](RateLimitBuilder::max_keys) | 10,000 per kind of key | same |
#[derive(Clone, Debug)]
pub struct RateLimitLayer<W = HttpBody> {
    limiter: Arc<Limiter>,
    watch: W,
}

/// Builds a [`RateLimitLayer`].
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct RateLimitBuilder<W = HttpBody> {
    settings: Settings,
    watch: W,
}

#[derive(Clone)]
struct Settings {
    limits: Vec<Limit>,
    key_by: KeyBy,
    tier_by: Option<TierBy>,
    pricing: Pricing,
    output_percentile: f64,
    max_waiting: usize,
    max_wait: Duration,
    observes: bool,
    headers: Headers,
    max_keys: Option<usize>,
    #[cfg(feature = "redis")]
    shared: Option<crate::SharedLimits>,
    #[cfg(test)]
    in_memory: Option<MemoryStore>,
}

// === impl RateLimitLayer ===

impl RateLimitLayer {
    /// Starts a layer that limits the callers of a service.
    pub fn for_callers() -> RateLimitBuilder {
        RateLimitBuilder {
            settings: Settings::for_callers(),
            watch: HttpBody,
        }
    }

    /// Starts a layer that stays within the limits of a provider.
    ///
    /// Without a [`limit`](RateLimitBuilder::limit), it enforces only the limits that the provider's responses report.
    pub fn for_providers() -> RateLimitBuilder {
        RateLimitBuilder {
            settings: Settings::for_providers(),
            watch: HttpBody,
        }
    }
}

impl<W> RateLimitLayer<W> {
    /// Returns whether the layer enforces what the provider's responses report, and so acts on a 429.
    #[must_use]
    pub fn enforces_reported_limits(&self) -> bool {
        self.limiter.groups.iter().any(|(group, _)| group.observes)
    }

    /// Returns a handle to read the statistics and to change the tiers.
    #[must_use]
    pub fn handle(&self) -> RateLimitHandle {
        RateLimitHandle::new(Arc::clone(&self.limiter))
    }
}

impl<W: Clone> GateLayer for RateLimitLayer<W> {
    type Gate = RateLimitGate;
    type Watch = W;

    fn gate(&self) -> RateLimitGate {
        RateLimitGate::new(Arc::clone(&self.limiter))
    }

    fn watch(&self) -> W {
        self.watch.clone()
    }
}

impl<S, W: Clone> Layer<S> for RateLimitLayer<W> {
    type Service = RateLimit<S, W>;

    fn layer(&self, inner: S) -> RateLimit<S, W> {
        RateLimit::new(inner, self.gate(), self.watch())
    }
}

// === impl RateLimitBuilder ===

impl<W> RateLimitBuilder<W> {
    /// Adds a limit. A call reserves in all of its limits together, or in none.
    pub fn limit(mut self, limit: Limit) -> Self {
        self.settings.limits.push(limit);
        self
    }

    /// Adds several limits.
    pub fn limits(mut self, limits: impl IntoIterator<Item = Limit>) -> Self {
        self.settings.limits.extend(limits);
        self
    }

    /// Sets the kind of key for limits that do not set [their own](Limit::by), and for reported limits.
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.settings.key_by = key_by;
        self
    }

    /// Sets the policy that chooses the [`tier`](Limit::tier) of a call; a name that no limit uses means no tier.
    ///
    /// The policy runs on every call, and again each time that a waiting call tries again, so it should be quick.
    /// [`RateLimitHandle::set_tier_by`] replaces it.
    pub fn tier_by<F>(mut self, policy: F) -> Self
    where
        F: Fn(&dyn Described) -> Cow<'static, str> + Send + Sync + 'static,
    {
        self.settings.tier_by = Some(Arc::new(policy));
        self
    }

    /// Sets how many tokens a call reserves.
    pub fn reserve(mut self, reserve: Reserve) -> Self {
        self.settings.pricing.reserve = reserve;
        self
    }

    /// Sets what a call that ends early is charged.
    pub fn cut_short(mut self, cut_short: CutShort) -> Self {
        self.settings.pricing.cut_short = cut_short;
        self
    }

    /// Sets whether input from the provider's prompt cache counts when a call is settled.
    ///
    /// Unless set, a provider's limits count it as the provider does: Anthropic does not, the others do. If cached input
    /// does not count, no input is too large for a limit, because it may be cached: it reserves at most the whole limit.
    pub fn count_cached_input(mut self, count: bool) -> Self {
        self.settings.pricing.count_cached_input = Some(count);
        self
    }

    /// Sets how many tokens each output token counts as when a call is settled: 5 to 15 for some models on Bedrock.
    pub fn output_weight(mut self, weight: u32) -> Self {
        self.settings.pricing.output_weight = weight;
        self
    }

    /// Sets the percentile of observed output lengths to reserve for a call that names no maximum; over 0 and at most 1.
    ///
    /// Lengths are observed per provider and model, for up to 1,000 pairs, from calls whose maximum does not cut them off.
    /// Recent calls count more.
    pub fn output_percentile(mut self, ratio: f64) -> Self {
        self.settings.output_percentile = ratio;
        self
    }

    /// Sets how many calls may wait per key; at zero, a call that cannot be admitted is refused at once.
    ///
    /// Callers take turns; the calls of one caller go in the order in which they were made. A call that cannot be admitted
    /// within [`max_wait`](Self::max_wait), by what is known, is refused at once and does not wait.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.settings.max_waiting = calls;
        self
    }

    /// Sets how long a call may wait; 30 s unless set, at most one day.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait = wait;
        self
    }

    /// Sets whether the limits that the provider reports in its responses are enforced: after a 429 no call is sent before
    /// its retry time, and never more than the headers say remains.
    ///
    /// Supported are the headers of `OpenAI`, Azure, Anthropic, Groq, Mistral and Cerebras, and the delay in Gemini's errors.
    pub fn enforce_reported_limits(mut self, enforce: bool) -> Self {
        self.settings.observes = enforce;
        self
    }

    /// Sets which headers responses get that state the limits.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.settings.headers = headers;
        self
    }

    /// Sets the maximum number of keys of each kind, rounded up to a multiple of 16.
    ///
    /// A key beyond that replaces an idle key. If no key is idle, it shares one limit with all other keys beyond the
    /// maximum. So a flood of invented keys gets no fresh budgets, and evicts no key that is over its limit.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.settings.max_keys = Some(max_keys);
        self
    }

    /// Shares these limits with other processes.
    ///
    /// Every call that is not refused at once then asks Redis, and waits for the answer for at most its
    /// [`command_timeout`](tower_llm_redis::RedisBuilder::command_timeout). Each process enforces what the provider reports
    /// by itself.
    ///
    /// [`build`](Self::build) starts the task that settles. Layers that are built from clones of a builder have tasks of
    /// their own, and share their limits as two processes do.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn shared(mut self, shared: crate::SharedLimits) -> Self {
        self.settings.shared = Some(shared);
        self
    }

    /// Shares the limits through a store in memory.
    #[cfg(test)]
    pub(crate) fn in_memory(mut self, store: MemoryStore) -> Self {
        self.settings.in_memory = Some(store);
        self
    }

    /// Sets how the end of a response is detected: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> RateLimitBuilder<V> {
        RateLimitBuilder {
            settings: self.settings,
            watch,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting:
    ///
    /// - there is no limit, and reported limits are not enforced;
    /// - a limit's amount, burst, period or zone is invalid, or it names a tier twice;
    /// - limits have tiers without [`tier_by`](Self::tier_by), or the other way round;
    /// - `output_percentile` is not over 0 and at most 1, `output_weight` is zero or over 1,000, `max_keys` is zero, or
    ///   `max_wait` is zero or over one day;
    /// - of shared limits, the name is empty or contains braces, the number of replicas is zero, `hold_for` is below one
    ///   second or over one day, `lease_for` is zero or over one day, or there is no tokio runtime.
    pub fn build(self) -> Result<RateLimitLayer<W>, ConfigError> {
        Ok(RateLimitLayer {
            limiter: Arc::new(self.settings.limiter()?),
            watch: self.watch,
        })
    }
}

// === impl Settings ===

impl Settings {
    fn for_callers() -> Self {
        Self {
            limits: Vec::new(),
            key_by: KeyBy::caller(),
            tier_by: None,
            pricing: Pricing {
                reserve: Reserve::InputAndMaximum,
                cut_short: CutShort::ChargeSeen,
                count_cached_input: Some(true),
                output_weight: 1,
            },
            output_percentile: 0.95,
            max_waiting: 0,
            max_wait: Duration::from_secs(30),
            observes: false,
            headers: Headers::OpenAi,
            max_keys: None,
            #[cfg(feature = "redis")]
            shared: None,
            #[cfg(test)]
            in_memory: None,
        }
    }

    fn for_providers() -> Self {
        let callers = Self::for_callers();
        Self {
            key_by: KeyBy::provider_and_model(),
            pricing: Pricing {
                reserve: Reserve::LikeProvider,
                count_cached_input: None,
                ..callers.pricing
            },
            max_waiting: 100,
            observes: true,
            headers: Headers::None,
            ..callers
        }
    }

    fn limiter(self) -> Result<Limiter, ConfigError> {
        self.check()?;
        let max_wait = ConfigError::check_duration("max_wait", self.max_wait)?;
        let tiers = Tiers::new(&self.limits, self.tier_by)?;
        #[cfg(feature = "redis")]
        let shared: Option<Shared> = self.shared.map(crate::SharedLimits::start).transpose()?;
        #[cfg(not(feature = "redis"))]
        let shared: Option<Shared> = None;
        #[cfg(test)]
        let shared = shared.or(self.in_memory.map(MemoryStore::shared));
        let sharing = shared.as_ref().map_or(Sharing::NONE, |shared| Sharing {
            processes: shared.processes,
            lease: shared.lease.unwrap_or_default(),
        });
        let clock = Clock::start();
        #[expect(
            clippy::disallowed_methods,
            reason = "the edge where the wall clock comes in; it is read when a calendar day ends"
        )]
        let wall_clock: WallClock = Timestamp::now;
        let mut groups = Vec::new();
        let mut names = Vec::new();
        for (key_by, limits) in group(self.limits, &self.key_by, self.observes) {
            let mut limits = limits
                .into_iter()
                .map(|limit| CheckedLimit::new(limit, &key_by, tiers.names(), sharing, wall_clock))
                .collect::<Result<Box<[_]>, _>>()?;
            for checked in &mut limits {
                checked.tell_apart(&mut names);
            }
            let group = Arc::new(LimitGroup {
                evicted: Evicted::new(limits.len()),
                is_exact: limits.iter().all(CheckedLimit::is_exact),
                limits,
                clock,
                pricing: self.pricing,
                headers: self.headers,
                store: shared.as_ref().map(|shared| Arc::clone(&shared.store)),
                observes: self.observes && key_by == self.key_by,
            });
            let of_keys = Arc::clone(&group);
            let mut keys = Registry::new(key_by, move |_| LimitedKey::new(Arc::clone(&of_keys)));
            if let Some(max_keys) = self.max_keys {
                keys = keys.max_keys(max_keys)?;
            }
            groups.push((group, keys));
        }
        Ok(Limiter {
            groups: groups.into(),
            tiers,
            pricing: self.pricing,
            observed: Registry::new(KeyBy::provider_and_model(), |_| OutputLengths::new())
                .max_keys(OBSERVED_KEYS)?,
            output_percentile: self.output_percentile,
            headers: self.headers,
            clock,
            max_waiting: self.max_waiting,
            max_wait,
            shared: shared.map(Arc::new),
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.limits.is_empty() && !self.observes {
            let reason = "there is no limit, and reported limits are not enforced";
            return Err(ConfigError::new("limit", self.limits.len(), reason));
        }
        let ratio = self.output_percentile;
        if !(ratio > 0.0 && ratio <= 1.0) {
            let reason = "must be over 0 and at most 1";
            return Err(ConfigError::new("output_percentile", ratio, reason));
        }
        let weight = self.pricing.output_weight;
        if weight == 0 || weight > 1_000 {
            let reason = "must be at least 1 and at most 1000";
            return Err(ConfigError::new("output_weight", weight, reason));
        }
        Ok(())
    }
}

/// Pairs of provider and model whose output lengths are observed.
const OBSERVED_KEYS: usize = 1_000;

/// The limits of each kind of key, in the order of the first limit of each kind.
fn group(limits: Vec<Limit>, key_by: &KeyBy, observes: bool) -> Vec<(KeyBy, Vec<Limit>)> {
    let mut groups: Vec<(KeyBy, Vec<Limit>)> = Vec::new();
    if observes {
        groups.push((key_by.clone(), Vec::new()));
    }
    for limit in limits {
        let of_limit = limit.key_by.as_ref().unwrap_or(key_by);
        match groups.iter_mut().find(|(key_by, _)| key_by == of_limit) {
            Some((_, limits)) => limits.push(limit),
            None => groups.push((of_limit.clone(), vec![limit])),
        }
    }
    groups
}

impl<W> fmt::Debug for RateLimitBuilder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitBuilder")
            .field("limits", &self.settings.limits)
            .field("key_by", &self.settings.key_by)
            .finish_non_exhaustive()
    }
}
