use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use tower_layer::Layer;
use tower_llm_core::{ConfigError, Described, HttpBody, KeyBy, Registry};

use crate::{
    CutShort, Headers, Limit, RateLimit, RateLimitHandle, Reserve,
    attempt::Shared,
    cell::Cell,
    cost::Pricing,
    engine::Engine,
    learned::Learned,
    scope::{Bound, Clock, Policy, Scope},
    tier::{TierBy, Tiers},
};

/// Limits how many requests and tokens are let through per time; decides in `call`.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// There are two kinds of limit, and a constructor for each. They differ in their defaults:
///
/// | setting | [`for_callers`](Self::for_callers) | [`for_providers`](Self::for_providers) |
/// |---|---|---|
/// | [`key_by`](RateLimitBuilder::key_by) | caller | provider and model |
/// | [`reserve`](RateLimitBuilder::reserve) | input and maximum | like the provider |
/// | [`cut_short`](RateLimitBuilder::cut_short) | charge what was seen | same |
/// | [`count_cached_input`](RateLimitBuilder::count_cached_input) | yes | like the provider |
/// | [`output_weight`](RateLimitBuilder::output_weight) | 1 | 1 |
/// | [`learned_percentile`](RateLimitBuilder::learned_percentile) | 0.95 | 0.95 |
/// | [`max_waiting`](RateLimitBuilder::max_waiting) | 0: refuse at once | 100 for each key |
/// | [`max_wait`](RateLimitBuilder::max_wait) | 30 s | 30 s |
/// | [`learn_from_provider`](RateLimitBuilder::learn_from_provider) | no | yes |
/// | [`headers`](RateLimitBuilder::headers) | as `OpenAI` has them | none |
/// | [`max_keys`](RateLimitBuilder::max_keys) | 10,000 for each kind of key | same |
#[derive(Clone, Debug)]
pub struct RateLimitLayer<W = HttpBody> {
    engine: Arc<Engine>,
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
    learned_ratio: f64,
    max_waiting: usize,
    max_wait: Duration,
    learns: bool,
    headers: Headers,
    max_keys: Option<usize>,
    shared: Option<Shared>,
}

// === impl RateLimitLayer ===

impl RateLimitLayer {
    /// Starts the limits of those who call: plans and fair shares.
    pub fn for_callers() -> RateLimitBuilder {
        RateLimitBuilder {
            settings: Settings::for_callers(),
            watch: HttpBody,
        }
    }

    /// Starts the limits that a provider holds us to, so that its own are not met.
    ///
    /// Without any [`limit`](RateLimitBuilder::limit) it still keeps to what the provider's responses tell.
    pub fn for_providers() -> RateLimitBuilder {
        RateLimitBuilder {
            settings: Settings::for_providers(),
            watch: HttpBody,
        }
    }
}

impl<W> RateLimitLayer<W> {
    /// A handle to look at the state and change the tiers with.
    #[must_use]
    pub fn handle(&self) -> RateLimitHandle {
        RateLimitHandle::new(Arc::clone(&self.engine))
    }
}

impl<S, W: Clone> Layer<S> for RateLimitLayer<W> {
    type Service = RateLimit<S, W>;

    fn layer(&self, inner: S) -> RateLimit<S, W> {
        RateLimit::new(inner, Arc::clone(&self.engine), self.watch.clone())
    }
}

// === impl RateLimitBuilder ===

impl<W> RateLimitBuilder<W> {
    /// Adds a limit. A call takes all of them together, or nothing of any.
    pub fn limit(mut self, limit: Limit) -> Self {
        self.settings.limits.push(limit);
        self
    }

    /// Adds several limits.
    pub fn limits(mut self, limits: impl IntoIterator<Item = Limit>) -> Self {
        self.settings.limits.extend(limits);
        self
    }

    /// Sets what calls are counted together by for limits that do not say so themselves, and for what is learned from
    /// the provider.
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.settings.key_by = key_by;
        self
    }

    /// Sets the policy that says which [`tier`](Limit::tier) a call is in; a name that no limit has means none.
    ///
    /// It runs on every call and should be quick. [`RateLimitHandle::set_tier_by`] puts another in its place.
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

    /// Sets what a call that broke off is charged.
    pub fn cut_short(mut self, cut_short: CutShort) -> Self {
        self.settings.pricing.cut_short = cut_short;
        self
    }

    /// Sets whether input that the provider had in its prompt cache counts when a call is settled.
    ///
    /// Unless set, a provider's limits count it as the provider does: Anthropic does not, the others do. Where it does not
    /// count, no input is too large for a limit: it may be cached. It reserves the whole limit then.
    pub fn count_cached_input(mut self, count: bool) -> Self {
        self.settings.pricing.count_cached_input = Some(count);
        self
    }

    /// Sets how many tokens one of output counts as when a call is settled: 5 to 15 for some models of Bedrock.
    pub fn output_weight(mut self, weight: u32) -> Self {
        self.settings.pricing.output_weight = weight;
        self
    }

    /// Sets which part of the outputs seen the expected length is not to be below; over 0, at most 1.
    ///
    /// It is learned for each provider and model, from calls that name no maximum or are expected to stay below it; what
    /// was long ago counts less. Up to 1,000 pairs are told apart.
    pub fn learned_percentile(mut self, ratio: f64) -> Self {
        self.settings.learned_ratio = ratio;
        self
    }

    /// Sets how many calls may wait for each key; at zero, a call that finds no room is refused at once.
    ///
    /// Calls wait in the order in which their futures are polled first. One that could not be admitted within
    /// [`max_wait`](Self::max_wait), by what is known, does not wait at all.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.settings.max_waiting = calls;
        self
    }

    /// Sets how long a call may wait; 30 s unless set, at most a day.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait = wait;
        self
    }

    /// Sets whether the limits that the provider tells in its responses are kept to: nothing is sent before the time that
    /// a 429 asks to wait for, and no more than the headers say remains.
    ///
    /// Understood are the headers of `OpenAI`, Azure, Anthropic, Groq, Mistral and Cerebras, and the delay in Gemini's errors.
    pub fn learn_from_provider(mut self, learn: bool) -> Self {
        self.settings.learns = learn;
        self
    }

    /// Sets in which form responses tell how the limits stand.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.settings.headers = headers;
        self
    }

    /// Sets how many keys of one kind are told apart at most, rounded up to a multiple of 16.
    ///
    /// A key beyond that takes the place of one of which nothing is taken any more; if there is none, it shares one limit
    /// with all others that found no place. So who invents keys gets no fresh budgets, and evicts nobody who is over his.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.settings.max_keys = Some(max_keys);
        self
    }

    /// Has many processes keep these limits together.
    ///
    /// Every call that is not refused at once then asks Redis, and waits for its answer no longer than its
    /// [`command_timeout`](tower_llm_redis::RedisBuilder::command_timeout). What the provider tells is learned by each
    /// process for itself.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if the name is empty or has braces, the number of replicas is zero, or
    /// `hold_for` is below a second or over a day; or if there is no tokio runtime.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn shared(mut self, shared: crate::SharedLimits) -> Result<Self, ConfigError> {
        self.settings.shared = Some(shared.start()?);
        Ok(self)
    }

    /// Sets how the end of a response is seen: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> RateLimitBuilder<V> {
        RateLimitBuilder {
            settings: self.settings,
            watch,
        }
    }

    /// The layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if there is neither a limit nor anything to learn; if a limit's amount, burst,
    /// period or zone cannot be, or it names a tier twice; if there are tiers and no [`tier_by`](Self::tier_by), or the other
    /// way round; if the percentile is not over 0 and at most 1, `output_weight` is zero or over 1,000,
    /// `max_keys` is zero, or `max_wait` is zero or over a day.
    pub fn build(self) -> Result<RateLimitLayer<W>, ConfigError> {
        Ok(RateLimitLayer {
            engine: Arc::new(self.settings.engine()?),
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
            learned_ratio: 0.95,
            max_waiting: 0,
            max_wait: Duration::from_secs(30),
            learns: false,
            headers: Headers::OpenAi,
            max_keys: None,
            shared: None,
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
            learns: true,
            headers: Headers::None,
            ..callers
        }
    }

    fn engine(self) -> Result<Engine, ConfigError> {
        self.check()?;
        let max_wait = ConfigError::check_duration("max_wait", self.max_wait)?;
        let tiers = Tiers::new(&self.limits, self.tier_by)?;
        let policy = Arc::new(Policy {
            pricing: self.pricing,
            learned: Registry::new(KeyBy::provider_and_model(), |_| Learned::new())
                .max_keys(LEARNED_KEYS)?,
            learned_ratio: self.learned_ratio,
            headers: self.headers,
            shared: self.shared,
        });
        let clock = Clock::start();
        let mut scopes = Vec::new();
        let mut names = Vec::new();
        for (key_by, limits) in group(self.limits, &self.key_by, self.learns) {
            let mut bounds = limits
                .into_iter()
                .map(|limit| Bound::new(limit, &key_by, tiers.names(), policy.shared.as_ref()))
                .collect::<Result<Box<[_]>, _>>()?;
            for bound in &mut bounds {
                bound.tell_apart(&mut names);
            }
            let learns = self.learns && key_by == self.key_by;
            let scope = Arc::new(Scope::new(bounds, clock, Arc::clone(&policy), learns));
            let of_cells = Arc::clone(&scope);
            let mut cells = Registry::new(key_by, move |_| Cell::new(Arc::clone(&of_cells)));
            if let Some(max_keys) = self.max_keys {
                cells = cells.max_keys(max_keys)?;
            }
            scopes.push((scope, cells));
        }
        Ok(Engine {
            scopes: scopes.into(),
            tiers,
            policy,
            clock,
            max_waiting: self.max_waiting,
            max_wait,
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.limits.is_empty() && !self.learns {
            let reason = "there is no limit to keep, and nothing to learn";
            return Err(ConfigError::new("limit", self.limits.len(), reason));
        }
        let ratio = self.learned_ratio;
        if !(ratio > 0.0 && ratio <= 1.0) {
            let reason = "it must be over 0 and at most 1";
            return Err(ConfigError::new("learned_percentile", ratio, reason));
        }
        let weight = self.pricing.output_weight;
        if weight == 0 || weight > 1_000 {
            let reason = "it must be at least one and at most 1000";
            return Err(ConfigError::new("output_weight", weight, reason));
        }
        Ok(())
    }
}

/// Pairs of provider and model whose output lengths are learned.
const LEARNED_KEYS: usize = 1_000;

/// The limits of each kind of key, in the order in which the kinds come first.
fn group(limits: Vec<Limit>, key_by: &KeyBy, learns: bool) -> Vec<(KeyBy, Vec<Limit>)> {
    let mut groups: Vec<(KeyBy, Vec<Limit>)> = Vec::new();
    if learns {
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
