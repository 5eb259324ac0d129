use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_llm_core::{ConfigError, HttpBody, KeyBy};

use crate::{
    Breaker, BreakerHandle, Force, SlowCalls,
    circuit::MOST_PROBES,
    event::Events,
    policy::Policy,
    route::{Board, RouteBy},
    window::Over,
    word::{Clock, Phase},
};

/// Stops calling what is failing, and probes it back.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// | setting | default |
/// |---|---|
/// | window | the last [60 s](BreakerBuilder::window) |
/// | [`failure_ratio`](BreakerBuilder::failure_ratio) | 0.5 |
/// | [`minimum_calls`](BreakerBuilder::minimum_calls) | 10, or the window's length if that is less |
/// | [`failure_threshold`](BreakerBuilder::failure_threshold), [`slow_calls`](BreakerBuilder::slow_calls), [`stalled_after`](BreakerBuilder::stalled_after) | none |
/// | [`open_for`](BreakerBuilder::open_for) | 30 s, twice as long each time, at most 5 min, and up to a tenth more |
/// | [`throttled_opens`](BreakerBuilder::throttled_opens) | yes, for [an hour](BreakerBuilder::max_retry_after) at most |
/// | [`exhausted_for`](BreakerBuilder::exhausted_for) | 15 min |
/// | [`probes`](BreakerBuilder::probes) | one at a time, for [60 s](BreakerBuilder::probe_lease) at most |
/// | [`success_threshold`](BreakerBuilder::success_threshold) | 1 |
/// | [`ramp`](BreakerBuilder::ramp), [`max_open_ratio`](BreakerBuilder::max_open_ratio) | none |
/// | [`key_by`](BreakerBuilder::key_by) | by whose fault it is |
/// | [`max_keys`](BreakerBuilder::max_keys) | 10,000 |
#[derive(Clone, Debug)]
pub struct BreakerLayer<W = HttpBody> {
    board: Arc<Board>,
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
/// Fewer calls than that say little.
const MINIMUM_CALLS: usize = 10;
/// A tenth of it is a whole millisecond.
const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
/// Two megabytes for each circuit.
const LONGEST_WINDOW: usize = 1 << 24;

impl BreakerLayer {
    /// A layer with the defaults.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the defaults are good")]
    pub fn new() -> Self {
        Self::builder().build().expect("the defaults are good")
    }

    /// Starts a layer with the defaults.
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
    /// A handle to look at the circuits with, and to open and close them by hand.
    #[must_use]
    pub fn handle(&self) -> BreakerHandle {
        BreakerHandle::new(Arc::clone(&self.board))
    }
}

impl<W> BreakerBuilder<W> {
    /// Judges a circuit by the calls that ended within the last `time`: 10 ms to a day.
    ///
    /// It is counted in tenths, so that a call counts for at least nine tenths of the time and at most all of it.
    pub fn window(mut self, time: Duration) -> Self {
        self.settings.over = Over::Time(time);
        self
    }

    /// Judges a circuit by the last so many calls: 1 to 16,777,216, at one bit each.
    pub fn window_calls(mut self, calls: usize) -> Self {
        self.settings.over = Over::Calls(calls);
        self
    }

    /// Opens a circuit when at least this share of its calls has failed; `0..=1`, where zero is the first failure.
    ///
    /// It is looked at when a call has failed: a success opens nothing.
    pub fn failure_ratio(mut self, ratio: f64) -> Self {
        self.settings.failure_ratio = Some(ratio);
        self
    }

    /// Opens no circuit for the share of its failures, and keeps no window of them.
    pub fn without_failure_ratio(mut self) -> Self {
        self.settings.failure_ratio = None;
        self
    }

    /// Sets of how many calls a share is taken at least: those that are missing count as good. So with a ratio of 0.5
    /// and a minimum of 10, five failures open a circuit if there was nothing else.
    pub fn minimum_calls(mut self, calls: usize) -> Self {
        self.settings.minimum_calls = Some(calls);
        self
    }

    /// Opens a circuit when so many calls have failed one after the other.
    pub fn failure_threshold(mut self, failures: u32) -> Self {
        self.settings.failure_threshold = Some(failures);
        self
    }

    /// Opens a circuit for slow calls. A call is watched by a timer then, while nothing comes.
    pub fn slow_calls(mut self, slow: SlowCalls) -> Self {
        self.settings.slow_calls = Some(slow);
        self
    }

    /// Counts a stream as failed as soon as no content has come for so long, once it has begun; how it goes on does not
    /// matter then. The caller gets it all the same: a time-out would cut it.
    pub fn stalled_after(mut self, time: Duration) -> Self {
        self.settings.stalled_after = Some(time);
        self
    }

    /// Sets how long a circuit is open the first time.
    ///
    /// It is open for longer if the provider asks for that (`Retry-After`) and says that it is overloaded: by 503 or 529, or
    /// an error that means the same. A 429 is no failure but [a clock](Self::throttled_opens). With any other failure, a 500
    /// or a 502 say, the time that is asked for is not heeded.
    pub fn open_for(mut self, time: Duration) -> Self {
        self.settings.open_for = time;
        self
    }

    /// Sets by what factor it is open longer each time, until it has stayed closed for as long as it is open the first
    /// time; at least 1.
    pub fn open_factor(mut self, factor: f64) -> Self {
        self.settings.open_factor = factor;
        self
    }

    /// Sets how long it is open at most, unless the provider asks for more.
    pub fn max_open_for(mut self, time: Duration) -> Self {
        self.settings.max_open_for = time;
        self
    }

    /// Sets up to what share of its time a circuit is open longer, by chance, so that not all come back at once; `0..=1`.
    pub fn jitter(mut self, share: f64) -> Self {
        self.settings.jitter = share;
        self
    }

    /// Sets whether a circuit is open while the provider's rate limit says to wait; it is unless set. Where a rate limit
    /// stands inside of this layer that learns from the provider, leave it to that: it lets short waits be waited out.
    ///
    /// It goes on then as it was: what was counted stays, failures of calls that are under way count meanwhile and may open
    /// it, and a [ramp](Self::ramp) goes on if it is not over.
    pub fn throttled_opens(mut self, opens: bool) -> Self {
        self.settings.throttled_opens = opens;
        self
    }

    /// Sets how long a time is believed that the provider asks for.
    pub fn max_retry_after(mut self, time: Duration) -> Self {
        self.settings.max_retry_after = time;
        self
    }

    /// Sets how long an account's circuit is open when its money or its quota is used up, or its credentials are refused.
    pub fn exhausted_for(mut self, time: Duration) -> Self {
        self.settings.exhausted_for = time;
        self
    }

    /// Sets how many probes of a circuit may be under way at once; 1 to 4,095.
    pub fn probes(mut self, probes: usize) -> Self {
        self.settings.probes = probes;
        self
    }

    /// Sets how long a probe keeps its place, its wait in layers inside of this one included: then another is let through, lest one that never ends holds up all. What it
    /// tells later counts, unless it was decided meanwhile.
    pub fn probe_lease(mut self, time: Duration) -> Self {
        self.settings.probe_lease = time;
        self
    }

    /// Sets how many probes must succeed for the circuit to close; one that fails opens it again.
    pub fn success_threshold(mut self, probes: u32) -> Self {
        self.settings.success_threshold = probes;
        self
    }

    /// Takes a probe for a success when its first content token comes, rather than when it has ended after minutes; if it
    /// fails later, that counts as any call's failure. Off unless set.
    pub fn first_token_is_success(mut self, is_success: bool) -> Self {
        self.settings.first_token_is_success = is_success;
        self
    }

    /// Lets calls through by and by when a circuit closes: a tenth of them at first, all of them after `time`.
    pub fn ramp(mut self, time: Duration) -> Self {
        self.settings.ramp = Some(time);
        self
    }

    /// Keeps a circuit closed that failures would open, if more than this share of the layer's circuits of its kind, of those
    /// by which calls have succeeded, failed or been slow, would be open then; `0..=1`. For pools: where all fail, somebody
    /// must be asked.
    ///
    /// What opens by a hand, the provider's clock or for want of money does not ask, nor what opens again for a probe that has
    /// failed. One that is open counts until it closes, or until its time has been over for the window or
    /// [`max_open_for`](Self::max_open_for), whichever is longer, and nobody has probed it; when somebody does, it counts
    /// again.
    ///
    /// Where processes share their circuits (feature `redis`), each keeps its own share. A circuit that another process has
    /// opened, for whatever reason, is then one of this process' circuits too, and opens here if there is room; else it stays
    /// closed here. Those of accounts open in any case.
    pub fn max_open_ratio(mut self, share: f64) -> Self {
        self.settings.max_open_ratio = Some(share);
        self
    }

    /// Has one circuit for each key, opened by whatever fails, in place of circuits by [whose fault](crate::Scope) it is.
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.settings.route_by = RouteBy::Key(key_by);
        self
    }

    /// Sets what a provider's accounts are told apart by; the call's account unless set. Where callers send credentials
    /// of their own, each is one: [`KeyBy::caller`]. Has no effect with a [`key_by`](Self::key_by).
    pub fn account_by(mut self, account_by: KeyBy) -> Self {
        if let RouteBy::Fault { account } = &mut self.settings.route_by {
            *account = account_by;
        }
        self
    }

    /// Sets how many circuits of each kind there may be, rounded up to a multiple of 16. One more takes the place of one
    /// that is closed, and of which nothing bad was heard lately; if there is none, its calls pass without.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.settings.max_keys = Some(max_keys);
        self
    }

    /// Has all circuits begin in a state that a hand has to end ([`close`](crate::BreakerHandle::close)): to measure before
    /// anything is refused. A circuit that a hand has made something else keeps its place among the
    /// [`max_keys`](Self::max_keys).
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

    /// Sets how the end of a response is seen: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> BreakerBuilder<V> {
        BreakerBuilder {
            settings: self.settings,
            watch,
        }
    }

    /// The layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting and its value: a share outside of `0..=1`, a number or a time of zero, a time
    /// over a day, a window shorter than its minimum of calls or longer than it may be, a `max_open_for` below `open_for`.
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
            failure_threshold: None,
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
            success_threshold: 1,
            first_token_is_success: false,
            ramp: None,
            max_open_ratio: None,
            initial_state: Phase::Closed,
            route_by: RouteBy::Fault {
                account: KeyBy::account(),
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
        let share =
            |field, value: Option<f64>| value.map(|value| check_ratio(field, value)).transpose();
        Ok(Policy {
            clock: Clock::new(Instant::now()),
            events: Events::new(),
            #[cfg(feature = "redis")]
            publisher: std::sync::OnceLock::new(),
            initial_state: self.initial_state,
            over,
            failure_ratio: share("failure_ratio", self.failure_ratio)?,
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
            max_open_ratio: share("max_open_ratio", self.max_open_ratio)?,
        })
    }

    /// The window, and of how many calls a share is taken at least.
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
                    let reason = "it must not be over the window's calls";
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

impl<S, W: Clone> Layer<S> for BreakerLayer<W> {
    type Service = Breaker<S, W>;

    fn layer(&self, inner: S) -> Breaker<S, W> {
        Breaker::new(inner, Arc::clone(&self.board), self.watch.clone())
    }
}

fn check_ratio(field: &'static str, share: f64) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(ConfigError::new(field, share, "it must be from 0 to 1"))
    }
}
