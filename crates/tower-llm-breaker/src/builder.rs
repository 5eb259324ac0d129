//! Builds a layer.

use std::{sync::Arc, time::Duration};

use tower_llm_core::{ConfigError, HttpBody, KeyBy};

use crate::{
    Advanced, BreakerLayer, Force, SlowCalls,
    circuits::Circuits,
    config::Config,
    routes::{RouteBy, Routes},
    window::Over,
};

/// Builds a [`BreakerLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BreakerBuilder<W = HttpBody> {
    pub(crate) config: Config,
    route_by: RouteBy,
    max_keys: Option<usize>,
    #[cfg(feature = "redis")]
    shared: Option<crate::SharedCircuits>,
    watch: W,
}

impl Default for BreakerBuilder {
    fn default() -> Self {
        Self {
            config: Config::default(),
            route_by: RouteBy::Scope {
                account: KeyBy::credential(),
            },
            max_keys: None,
            #[cfg(feature = "redis")]
            shared: None,
            watch: HttpBody,
        }
    }
}

impl BreakerLayer {
    /// Creates a layer with the defaults.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the defaults are good")]
    pub fn new() -> Self {
        Self::builder().build().expect("the defaults are good")
    }

    /// Starts from the defaults.
    pub fn builder() -> BreakerBuilder {
        BreakerBuilder::default()
    }
}

impl Default for BreakerLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<W> BreakerBuilder<W> {
    /// Judges a circuit by the calls that ended within the last `time`; 10 ms to a day.
    ///
    /// The window moves in tenths: a call counts for at least nine tenths of the time, and at most for all of it.
    pub fn window(mut self, time: Duration) -> Self {
        self.config.over = Over::Time(time);
        self
    }

    /// Judges a circuit by the last `calls` calls; 1 to 16,777,216, at one bit each.
    pub fn window_calls(mut self, calls: usize) -> Self {
        self.config.over = Over::Calls(calls);
        self
    }

    /// Opens a circuit when at least this ratio of the calls in the window has failed; 0 to 1, where 0 is the first failure.
    ///
    /// The ratio is judged when a call fails, and only from [`minimum_calls`](Self::minimum_calls) on.
    pub fn failure_ratio(mut self, ratio: f64) -> Self {
        self.config.failure_ratio = Some(ratio);
        self
    }

    /// Opens no circuit for its failure ratio, and counts no window of failures.
    pub fn without_failure_ratio(mut self) -> Self {
        self.config.failure_ratio = None;
        self
    }

    /// Sets the minimum number of calls in the window before a ratio is judged, of failures or of slow calls.
    pub fn minimum_calls(mut self, calls: usize) -> Self {
        self.config.minimum_calls = Some(calls);
        self
    }

    /// Opens a circuit after this many failures in a row, whatever their ratio. A success in between starts the count again;
    /// a neutral end does not.
    pub fn failure_threshold(mut self, failures: u32) -> Self {
        self.config.failure_threshold = Some(failures);
        self
    }

    /// Opens no circuit for failures in a row.
    pub fn without_failure_threshold(mut self) -> Self {
        self.config.failure_threshold = None;
        self
    }

    /// Opens a circuit for slow calls. A timer then watches each call while nothing arrives.
    pub fn slow_calls(mut self, slow: SlowCalls) -> Self {
        self.config.slow = Some(slow);
        self
    }

    /// Sets how long a circuit is open the first time.
    ///
    /// It is open for longer if the provider says that it is overloaded (503, 529 or an error of that meaning) and names a
    /// time (`Retry-After`). A 429 is not a failure but [a time to wait](Self::throttled_opens). A time named with any
    /// other failure, such as 500 or 502, is ignored.
    pub fn open_for(mut self, time: Duration) -> Self {
        self.config.open_for = time;
        self
    }

    /// Sets the maximum time that a circuit is open, unless the provider asks for more.
    pub fn max_open_for(mut self, time: Duration) -> Self {
        self.config.max_open_for = time;
        self
    }

    /// Sets whether a 429 opens the circuit until the time that the provider names; on unless set. If an inner rate limit
    /// enforces reported limits, switch it off here: the rate limit lets calls wait out short times.
    ///
    /// After that time the circuit continues as before: counts are kept, failures of calls in flight still count and may
    /// open it, and an unfinished [ramp](Advanced::ramp) continues.
    pub fn throttled_opens(mut self, opens: bool) -> Self {
        self.config.throttled_opens = opens;
        self
    }

    /// Sets how many probes of a circuit may be in flight at once; 1 to 4,095.
    pub fn probes(mut self, probes: usize) -> Self {
        self.config.probes = probes;
        self
    }

    /// Sets how many probes must succeed to close the circuit. One failed probe opens it again.
    pub fn success_threshold(mut self, probes: u32) -> Self {
        self.config.success_threshold = probes;
        self
    }

    /// Changes [settings that few services need](Advanced).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_llm_breaker::BreakerLayer;
    ///
    /// let layer = BreakerLayer::builder()
    ///     .advanced(|advanced| advanced.probe_lease(Duration::from_secs(300)).jitter(0.2))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<_, tower_llm_core::ConfigError>(())
    /// ```
    pub fn advanced(mut self, change: impl FnOnce(Advanced) -> Advanced) -> Self {
        self.config.advanced = change(self.config.advanced);
        self
    }

    /// Uses one circuit for each key, opened by any failure, instead of one for each [`Scope`](crate::Scope).
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.route_by = RouteBy::Key(key_by);
        self
    }

    /// Sets what identifies an account of a provider. Unless set, it is the credential that a call carries: the account if
    /// the service has named one, else the caller ([`KeyBy::credential`]). Has no effect with [`key_by`](Self::key_by).
    pub fn account_by(mut self, account_by: KeyBy) -> Self {
        if let RouteBy::Scope { account } = &mut self.route_by {
            *account = account_by;
        }
        self
    }

    /// Sets the maximum number of circuits of each scope, rounded up to a multiple of 16. A new circuit replaces one that
    /// is closed and has counted nothing bad lately; if there is none, calls of the new key pass without a circuit.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = Some(max_keys);
        self
    }

    /// Sets the state in which all circuits start, until manual control ends it ([`close`](crate::BreakerHandle::close)).
    /// Use it to measure before calls are refused. A circuit that was set to another state is never evicted.
    pub fn initial_state(mut self, force: Force) -> Self {
        self.config.initial_state = force.state();
        self
    }

    /// Shares the circuits with other processes.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn shared(mut self, shared: crate::SharedCircuits) -> Self {
        self.shared = Some(shared);
        self
    }

    /// Sets how the end of a response is detected: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> BreakerBuilder<V> {
        BreakerBuilder {
            config: self.config,
            route_by: self.route_by,
            max_keys: self.max_keys,
            #[cfg(feature = "redis")]
            shared: self.shared,
            watch,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting and its value: a ratio outside 0 to 1, a number or a time of zero, a time over a day, a
    /// window shorter than `minimum_calls` or outside its bounds, a `max_open_for` below `open_for`.
    pub fn build(self) -> Result<BreakerLayer<W>, ConfigError> {
        self.config.check()?;
        let scopes = self.route_by.scopes();
        let circuits = Arc::new(Circuits::new(self.config, scopes, self.max_keys)?);
        let routes = Arc::new(Routes::new(&circuits, self.route_by, false)?);
        #[cfg(feature = "redis")]
        if let Some(shared) = self.shared {
            shared.start(&circuits)?;
        }
        Ok(BreakerLayer {
            circuits,
            routes,
            watch: self.watch,
        })
    }
}
