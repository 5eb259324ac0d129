use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_llm_core::{ConfigError, GateLayer, HttpBody, KeyBy};

use crate::{
    Breaker, BreakerGate, BreakerHandle, Force, SlowCalls,
    circuit::MOST_PROBES,
    event::Events,
    policy::Policy,
    route::{Board, RouteBy},
    window::Over,
    word::{Clock, Phase},
};

/// Stops calls to a provider, model or account that fails, and probes until it has recovered.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// | setting | default |
/// |---|---|
/// | [`failure_threshold`](BreakerBuilder::failure_threshold) | 5 failures in a row |
/// | [`failure_ratio`](BreakerBuilder::failure_ratio) | 0.5 |
/// | [`minimum_calls`](BreakerBuilder::minimum_calls) | 10, or the length of the window if that is less |
/// | [`window`](BreakerBuilder::window) or [`window_calls`](BreakerBuilder::window_calls) | the last 60 s |
/// | [`slow_calls`](BreakerBuilder::slow_calls), [`stalled_after`](BreakerBuilder::stalled_after) | none |
/// | [`open_for`](BreakerBuilder::open_for) | 30 s, doubled each time up to [5 min](BreakerBuilder::max_open_for), plus up to [a tenth](BreakerBuilder::jitter) |
/// | [`throttled_opens`](BreakerBuilder::throttled_opens) | yes, for at most [an hour](BreakerBuilder::max_retry_after) |
/// | [`exhausted_for`](BreakerBuilder::exhausted_for) | 15 min |
/// | [`probes`](BreakerBuilder::probes) | one at a time, each for at most [60 s](BreakerBuilder::probe_lease) |
/// | [`success_threshold`](BreakerBuilder::success_threshold) | 2 probes |
/// | [`ramp`](BreakerBuilder::ramp), [`max_open_ratio`](BreakerBuilder::max_open_ratio) | none |
/// | [`key_by`](BreakerBuilder::key_by) | by [`Scope`](crate::Scope) |
/// | [`account_by`](BreakerBuilder::account_by) | the credential that the call carries |
/// | [`max_keys`](BreakerBuilder::max_keys) | 10,000 |
#[derive(Clone, Debug)]
pub struct BreakerLayer<W = HttpBody> {
    board: Arc<Board>,
    ignores_throttled: bool,
    watch: W,
}

/// Builds a [`BreakerLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BreakerBuilder<W = HttpBody> {
    pub(crate) settings: Settings,
    watch: W,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    over: Over,
    failure_ratio: Option<f64>,
    minimum_calls: Option<usize>,
    failure_threshold: Option<u32>,
    slow_calls: Option<SlowCalls>,
    stalled_after: Option<Duration>,
    open_for: Duration,
    open_factor: f64,
    max_open_for: Duration,
    jitter: f64,
    throttled_opens: bool,
    max_retry_after: Duration,
    exhausted_for: Duration,
    probes: usize,
    probe_lease: Duration,
    success_threshold: u32,
    first_token_is_success: bool,
    ramp: Option<Duration>,
    max_open_ratio: Option<f64>,
    initial_state: Phase,
    route_by: RouteBy,
    max_keys: Option<usize>,
    #[cfg(feature = "redis")]
    shared: Option<crate::SharedCircuits>,
}

const MINUTE: Duration = Duration::from_secs(60);
/// A ratio of fewer calls means little.
const MINIMUM_CALLS: usize = 10;
/// The usual default of guides and breakers.
const FAILURE_THRESHOLD: u32 = 5;
const SUCCESS_THRESHOLD: u32 = 2;
/// A tenth of it is a whole millisecond.
const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
/// Two megabytes per circuit.
const LONGEST_WINDOW: usize = 1 << 24;

impl BreakerLayer {
    /// Creates a layer with the defaults.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the defaults are good")]
    pub fn new() -> Self {
        Self::builder().build().expect("the defaults are good")
    }

    /// Starts from the defaults.
    pub fn builder() -> BreakerBuilder {
        BreakerBuilder {
            settings: Settings::default(),
            watch: HttpBody,
        }
    }
}

impl Default for BreakerLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<W> BreakerLayer<W> {
    /// Leaves the provider's 429 to an inner rate limit, where calls can wait for it.
    ///
    /// A 429 then opens no circuit, whatever [`throttled_opens`](BreakerBuilder::throttled_opens) says. It applies to
    /// services that this layer makes from now on. Earlier clones are not changed, and share the circuits. `Stack` of
    /// `tower-llm-stack` sets it if its provider limit enforces reported limits.
    pub fn ignore_throttled(&mut self) {
        self.ignores_throttled = true;
    }

    /// Returns a handle that reads the state of the circuits, and opens and closes them.
    #[must_use]
    pub fn handle(&self) -> BreakerHandle {
        BreakerHandle::new(Arc::clone(&self.board))
    }
}

impl<W> BreakerBuilder<W> {
    /// Judges a circuit by the calls that ended within the last `time`; 10 ms to a day.
    ///
    /// The window moves in tenths: a call counts for at least nine tenths of the time, and at most for all of it.
    pub fn window(mut self, time: Duration) -> Self {
        self.settings.over = Over::Time(time);
        self
    }

    /// Judges a circuit by the last `calls` calls; 1 to 16,777,216, at one bit each.
    pub fn window_calls(mut self, calls: usize) -> Self {
        self.settings.over = Over::Calls(calls);
        self
    }

    /// Opens a circuit when at least this ratio of the calls in the window has failed; 0 to 1, where 0 is the first failure.
    ///
    /// The ratio is judged when a call fails, and only from [`minimum_calls`](Self::minimum_calls) on.
    pub fn failure_ratio(mut self, ratio: f64) -> Self {
        self.settings.failure_ratio = Some(ratio);
        self
    }

    /// Opens no circuit for its failure ratio, and counts no window of failures.
    pub fn without_failure_ratio(mut self) -> Self {
        self.settings.failure_ratio = None;
        self
    }

    /// Sets the minimum number of calls in the window before a ratio is judged, of failures or of slow calls.
    pub fn minimum_calls(mut self, calls: usize) -> Self {
        self.settings.minimum_calls = Some(calls);
        self
    }

    /// Opens a circuit after this many failures in a row, whatever their ratio. A success in between starts the count again;
    /// a neutral end does not.
    pub fn failure_threshold(mut self, failures: u32) -> Self {
        self.settings.failure_threshold = Some(failures);
        self
    }

    /// Opens no circuit for failures in a row.
    pub fn without_failure_threshold(mut self) -> Self {
        self.settings.failure_threshold = None;
        self
    }

    /// Opens a circuit for slow calls. A timer then watches each call while nothing arrives.
    pub fn slow_calls(mut self, slow: SlowCalls) -> Self {
        self.settings.slow_calls = Some(slow);
        self
    }

    /// Counts a stream as failed as soon as no content has arrived for `time` after the first token, whatever follows. The
    /// stream is not cut: use a timeout for that.
    pub fn stalled_after(mut self, time: Duration) -> Self {
        self.settings.stalled_after = Some(time);
        self
    }

    /// Sets how long a circuit is open the first time.
    ///
    /// It is open for longer if the provider says that it is overloaded (503, 529 or an error of that meaning) and names a
    /// time (`Retry-After`). A 429 is not a failure but [a time to wait](Self::throttled_opens). A time named with any
    /// other failure, such as 500 or 502, is ignored.
    pub fn open_for(mut self, time: Duration) -> Self {
        self.settings.open_for = time;
        self
    }

    /// Sets the factor by which each opening lasts longer than the one before; at least 1. It restarts when the circuit has
    /// stayed closed for as long as [`open_for`](Self::open_for).
    pub fn open_factor(mut self, factor: f64) -> Self {
        self.settings.open_factor = factor;
        self
    }

    /// Sets the maximum time that a circuit is open, unless the provider asks for more.
    pub fn max_open_for(mut self, time: Duration) -> Self {
        self.settings.max_open_for = time;
        self
    }

    /// Extends each opening by a random time up to this ratio of it, so that not all calls return at once; 0 to 1.
    pub fn jitter(mut self, ratio: f64) -> Self {
        self.settings.jitter = ratio;
        self
    }

    /// Sets whether a 429 opens the circuit until the time that the provider names; on unless set. If an inner rate limit
    /// enforces reported limits, switch it off here: the rate limit lets calls wait out short times.
    ///
    /// After that time the circuit continues as before: counts are kept, failures of calls in flight still count and may
    /// open it, and an unfinished [ramp](Self::ramp) continues.
    pub fn throttled_opens(mut self, opens: bool) -> Self {
        self.settings.throttled_opens = opens;
        self
    }

    /// Sets the longest time to wait that is accepted from the provider.
    pub fn max_retry_after(mut self, time: Duration) -> Self {
        self.settings.max_retry_after = time;
        self
    }

    /// Sets how long a circuit is open when money or a quota is used up, or when the credential is refused three times in a row.
    pub fn exhausted_for(mut self, time: Duration) -> Self {
        self.settings.exhausted_for = time;
        self
    }

    /// Sets how many probes of a circuit may be in flight at once; 1 to 4,095.
    pub fn probes(mut self, probes: usize) -> Self {
        self.settings.probes = probes;
        self
    }

    /// Sets how long a probe may take, waits in inner layers included, before another one is admitted beside it, so that a probe
    /// that never ends does not block the circuit. Its result still counts if it ends later and the circuit has not changed.
    pub fn probe_lease(mut self, time: Duration) -> Self {
        self.settings.probe_lease = time;
        self
    }

    /// Sets how many probes must succeed to close the circuit. One failed probe opens it again.
    pub fn success_threshold(mut self, probes: u32) -> Self {
        self.settings.success_threshold = probes;
        self
    }

    /// Counts a probe as a success at its first content token instead of at its end, which may be minutes away. If it fails
    /// later, that counts like the failure of any call. Off unless set.
    pub fn first_token_is_success(mut self, is_success: bool) -> Self {
        self.settings.first_token_is_success = is_success;
        self
    }

    /// Admits calls gradually when a circuit closes: a tenth of them at first, all of them after `time`.
    pub fn ramp(mut self, time: Duration) -> Self {
        self.settings.ramp = Some(time);
        self
    }

    /// Keeps a circuit closed if failures would open it while more than this ratio of the layer's circuits of its scope
    /// would then be open; 0 to 1. Only circuits whose calls have succeeded, failed or been slow count. Use it for pools:
    /// if all members fail, some must still be called.
    ///
    /// Manual control, a 429 with a time, exhausted accounts and failed probes open a circuit in any case. An open circuit
    /// counts until it closes. It also stops counting if it gets no probe after its time for as long as the window or
    /// [`max_open_for`](Self::max_open_for), whichever is longer; with the next probe it counts again.
    ///
    /// If processes share circuits (feature `redis`), each applies its own ratio. A circuit that another process has opened counts
    /// here too; it opens here if the ratio allows it, and stays closed otherwise. Circuits of accounts open in any case.
    pub fn max_open_ratio(mut self, ratio: f64) -> Self {
        self.settings.max_open_ratio = Some(ratio);
        self
    }

    /// Uses one circuit for each key, opened by any failure, instead of one for each [`Scope`](crate::Scope).
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.settings.route_by = RouteBy::Key(key_by);
        self
    }

    /// Sets what identifies an account of a provider. Unless set, it is the credential that a call carries: the account if
    /// the service has named one, else the caller ([`KeyBy::credential`]). Has no effect with [`key_by`](Self::key_by).
    pub fn account_by(mut self, account_by: KeyBy) -> Self {
        if let RouteBy::Fault { account } = &mut self.settings.route_by {
            *account = account_by;
        }
        self
    }

    /// Sets the maximum number of circuits of each scope, rounded up to a multiple of 16. A new circuit replaces one that
    /// is closed and has counted nothing bad lately; if there is none, calls of the new key pass without a circuit.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.settings.max_keys = Some(max_keys);
        self
    }

    /// Sets the state in which all circuits start, until manual control ends it ([`close`](crate::BreakerHandle::close)).
    /// Use it to measure before calls are refused. A circuit that was set to another state is never evicted.
    pub fn initial_state(mut self, force: Force) -> Self {
        self.settings.initial_state = force.phase();
        self
    }

    /// Shares the circuits with other processes.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn shared(mut self, shared: crate::SharedCircuits) -> Self {
        self.settings.shared = Some(shared);
        self
    }

    /// Sets how the end of a response is detected: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> BreakerBuilder<V> {
        BreakerBuilder {
            settings: self.settings,
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
        let policy = self.settings.policy()?;
        let board = Arc::new(Board::new(
            policy,
            self.settings.route_by,
            self.settings.max_keys,
        )?);
        #[cfg(feature = "redis")]
        if let Some(shared) = self.settings.shared {
            shared.start(&board)?;
        }
        Ok(BreakerLayer {
            board,
            ignores_throttled: false,
            watch: self.watch,
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            over: Over::Time(MINUTE),
            failure_ratio: Some(0.5),
            minimum_calls: None,
            failure_threshold: Some(FAILURE_THRESHOLD),
            slow_calls: None,
            stalled_after: None,
            open_for: MINUTE / 2,
            open_factor: 2.0,
            max_open_for: 5 * MINUTE,
            jitter: 0.1,
            throttled_opens: true,
            max_retry_after: 60 * MINUTE,
            exhausted_for: 15 * MINUTE,
            probes: 1,
            probe_lease: MINUTE,
            success_threshold: SUCCESS_THRESHOLD,
            first_token_is_success: false,
            ramp: None,
            max_open_ratio: None,
            initial_state: Phase::Closed,
            route_by: RouteBy::Fault {
                account: KeyBy::credential(),
            },
            max_keys: None,
            #[cfg(feature = "redis")]
            shared: None,
        }
    }
}

impl Settings {
    pub(crate) fn policy(&self) -> Result<Policy, ConfigError> {
        let (over, minimum_calls) = self.window()?;
        let time = ConfigError::check_duration;
        let open_for = time("open_for", self.open_for)?;
        let max_open_for = time("max_open_for", self.max_open_for)?;
        if max_open_for < open_for {
            let reason = "it must not be shorter than open_for";
            return Err(ConfigError::new("max_open_for", max_open_for, reason));
        }
        if !(1.0..=1_000.0).contains(&self.open_factor) {
            let reason = "it must be from 1 to 1000";
            return Err(ConfigError::new("open_factor", self.open_factor, reason));
        }
        if self.failure_threshold == Some(0) {
            let reason = "it must be at least one";
            return Err(ConfigError::new("failure_threshold", 0, reason));
        }
        if self.success_threshold == 0 {
            let reason = "it must be at least one";
            return Err(ConfigError::new("success_threshold", 0, reason));
        }
        if self.probes > MOST_PROBES {
            let reason = "it must be at most 4095";
            return Err(ConfigError::new("probes", self.probes, reason));
        }
        let or_none =
            |field, value: Option<Duration>| value.map(|value| time(field, value)).transpose();
        let ratio =
            |field, value: Option<f64>| value.map(|value| check_ratio(field, value)).transpose();
        Ok(Policy {
            clock: Clock::new(Instant::now()),
            events: Events::new(),
            #[cfg(feature = "redis")]
            publisher: std::sync::OnceLock::new(),
            initial_state: self.initial_state,
            over,
            failure_ratio: ratio("failure_ratio", self.failure_ratio)?,
            minimum_calls,
            failure_threshold: self.failure_threshold,
            slow: self.slow_calls.map(SlowCalls::check).transpose()?,
            stalled_after: or_none("stalled_after", self.stalled_after)?,
            open_for,
            open_factor: self.open_factor,
            max_open_for,
            jitter: check_ratio("jitter", self.jitter)?,
            throttled_opens: self.throttled_opens,
            max_retry_after: time("max_retry_after", self.max_retry_after)?,
            exhausted_for: time("exhausted_for", self.exhausted_for)?,
            probes: ConfigError::check_nonzero("probes", self.probes)?,
            probe_lease: time("probe_lease", self.probe_lease)?,
            success_threshold: self.success_threshold,
            first_token_is_success: self.first_token_is_success,
            ramp: or_none("ramp", self.ramp)?,
            max_open_ratio: ratio("max_open_ratio", self.max_open_ratio)?,
        })
    }

    /// Returns the window and the minimum number of calls.
    fn window(&self) -> Result<(Over, u64), ConfigError> {
        let minimum = self.minimum_calls.unwrap_or(MINIMUM_CALLS);
        let minimum = ConfigError::check_nonzero("minimum_calls", minimum)?;
        let minimum = match self.over {
            Over::Time(time) => {
                let time = ConfigError::check_duration("window", time)?;
                if time < SHORTEST_WINDOW {
                    let reason = "it must be at least 10 ms";
                    return Err(ConfigError::new("window", time, reason));
                }
                minimum
            }
            Over::Calls(calls) => {
                ConfigError::check_nonzero("window_calls", calls)?;
                if calls > LONGEST_WINDOW {
                    let reason = "it must be at most 16777216";
                    return Err(ConfigError::new("window_calls", calls, reason));
                }
                if self.minimum_calls.is_some_and(|minimum| minimum > calls) {
                    let reason = "it must not be larger than the window";
                    return Err(ConfigError::new("minimum_calls", minimum, reason));
                }
                minimum.min(calls)
            }
        };
        Ok((self.over, minimum as u64))
    }
}

impl SlowCalls {
    fn check(self) -> Result<Self, ConfigError> {
        check_ratio("slow_calls", self.ratio)?;
        let times = [
            ("slow_calls.first_token", self.first_token),
            ("slow_calls.gap", self.gap),
            ("slow_calls.total", self.total),
        ];
        for (field, time) in times {
            if let Some(time) = time {
                ConfigError::check_duration(field, time)?;
            }
        }
        Ok(self)
    }
}

impl<W: Clone> GateLayer for BreakerLayer<W> {
    type Gate = BreakerGate;
    type Watch = W;

    fn gate(&self) -> BreakerGate {
        BreakerGate::new(Arc::clone(&self.board), self.ignores_throttled)
    }

    fn watch(&self) -> W {
        self.watch.clone()
    }
}

impl<S, W: Clone> Layer<S> for BreakerLayer<W> {
    type Service = Breaker<S, W>;

    fn layer(&self, inner: S) -> Breaker<S, W> {
        Breaker::new(inner, self.gate(), self.watch())
    }
}

fn check_ratio(field: &'static str, ratio: f64) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio)
    } else {
        Err(ConfigError::new(field, ratio, "it must be from 0 to 1"))
    }
}
