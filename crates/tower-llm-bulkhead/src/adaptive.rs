//! A limit that follows a signal: it grows by one at a time and shrinks by a factor.
//!
//! Additive increase and multiplicative decrease (AIMD), with an explicit signal. Limiters that compare durations with the
//! shortest one seen (Vegas, Gradient2) work if all calls cost about the same. A model's answers have ten tokens or ten
//! thousand: the shortest is a very short answer, and everything else looks like queueing. In simulations with such lengths
//! and the default settings of their libraries, they refused half to nine tenths of a load that the provider could serve.

mod observer;
mod silence;

use std::time::Duration;

use tokio::time::Instant;
use tower_llm_core::{Call, Completion, ConfigError, Outcome};

pub(crate) use self::observer::Observer;
use self::silence::Silence;
use crate::permits::MAX_LIMIT;

/// How the limit of a key adapts to its calls; see [`BulkheadBuilder::adaptive`].
///
/// A known limit is better than an adaptive one, which finds the limit only by exceeding it. An adaptive limit can reduce
/// refusals by the provider, or the time to the first token. It does not raise throughput: with a provider that refuses
/// excess calls, having *no* limit gives the most, at the price of the refusals.
///
/// - A bad sign multiplies the limit by [`cut_factor`](Self::cut_factor), at most once per
///   [`cut_interval`](Self::cut_interval). The interval does not depend on the provider's `Retry-After`, which could be an
///   hour.
/// - As many good signs as the limit raise it by one. They count only while at least half of the limit is in use, because a
///   limit that is not reached shows nothing.
///
/// | setting | [`on_throttling`](Self::on_throttling) | [`on_first_token`](Self::on_first_token) |
/// |---|---|---|
/// | [`floor`](Self::floor) | 1 | 1 |
/// | [`ceiling`](Self::ceiling) | 1,000 | 1,000 |
/// | [`cut_factor`](Self::cut_factor) | 0.9 | 0.8 |
/// | [`cut_interval`](Self::cut_interval) | 10 s | 30 s |
///
/// [`BulkheadBuilder::adaptive`]: crate::BulkheadBuilder::adaptive
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    signal: Signal,
    floor: usize,
    ceiling: usize,
    cut_factor: f64,
    cut_interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Signal {
    Throttling,
    FirstToken { target: Duration },
}

/// What a call shows about the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    Good,
    Bad,
}

/// One key's limit.
#[derive(Debug)]
pub(crate) struct Aimd {
    rules: Adaptive,
    limit: usize,
    good: usize,
    cut_at: Option<Instant>,
}

impl Adaptive {
    /// For providers that refuse excess calls: a call that ends as throttled or overloaded is a bad sign, one that succeeds
    /// a good one.
    ///
    /// It lowers the number of refusals, which helps if they count against a quota or extend a ban. It does nothing for a
    /// provider that queues instead of refusing.
    #[must_use]
    pub const fn on_throttling() -> Self {
        Self {
            signal: Signal::Throttling,
            floor: 1,
            ceiling: 1_000,
            cut_factor: 0.9,
            cut_interval: Duration::from_secs(10),
        }
    }

    /// For servers that queue: a stream is a bad sign if its first token arrives later than `target` after it was admitted,
    /// and a good one otherwise.
    ///
    /// A stream that ends without a token after more than `target` is a bad sign too. Calls that are not streamed give no
    /// sign, because their duration depends on the length of the answer.
    #[must_use]
    pub const fn on_first_token(target: Duration) -> Self {
        Self {
            signal: Signal::FirstToken { target },
            floor: 1,
            ceiling: 1_000,
            cut_factor: 0.8,
            cut_interval: Duration::from_secs(30),
        }
    }

    /// Sets the minimum of the limit.
    #[must_use]
    pub const fn floor(mut self, limit: usize) -> Self {
        self.floor = limit;
        self
    }

    /// Sets the maximum of the limit.
    #[must_use]
    pub const fn ceiling(mut self, limit: usize) -> Self {
        self.ceiling = limit;
        self
    }

    /// Sets the factor of a cut.
    #[must_use]
    pub const fn cut_factor(mut self, factor: f64) -> Self {
        self.cut_factor = factor;
        self
    }

    /// Sets the minimum time between two cuts; at most a day.
    #[must_use]
    pub const fn cut_interval(mut self, interval: Duration) -> Self {
        self.cut_interval = interval;
        self
    }

    /// Checks these rules.
    pub(crate) fn check(self) -> Result<Self, ConfigError> {
        ConfigError::check_nonzero("floor", self.floor)?;
        if self.floor > self.ceiling {
            let reason = "it must be at most the ceiling";
            return Err(ConfigError::new("floor", self.floor, reason));
        }
        if self.ceiling > MAX_LIMIT {
            let reason = "it must be at most 4294967295";
            return Err(ConfigError::new("ceiling", self.ceiling, reason));
        }
        if !(self.cut_factor > 0.0 && self.cut_factor < 1.0) {
            let reason = "it must be over zero and below one";
            return Err(ConfigError::new("cut_factor", self.cut_factor, reason));
        }
        ConfigError::check_duration("cut_interval", self.cut_interval)?;
        if let Signal::FirstToken { target } = self.signal {
            ConfigError::check_duration("target", target)?;
        }
        Ok(self)
    }

    /// Checks that these rules can start with `limit`.
    pub(crate) fn check_limit(&self, field: &'static str, limit: usize) -> Result<(), ConfigError> {
        if (self.floor..=self.ceiling).contains(&limit) {
            return Ok(());
        }
        let reason = "it must lie between the floor and the ceiling of the adaptive limit";
        Err(ConfigError::new(field, limit, reason))
    }

    /// Returns what watches `call`, if the time to its first token is a sign.
    pub(crate) fn silence_of(&self, call: Option<&Call>) -> Option<Silence> {
        match self.signal {
            Signal::FirstToken { target } if call.is_some_and(Call::streamed) => {
                Some(Silence::new(target, Instant::now()))
            }
            _ => None,
        }
    }

    /// The sign of a first token that arrives `after` the call was admitted.
    pub(crate) fn first_token(&self, after: Duration) -> Option<Sign> {
        match self.signal {
            Signal::Throttling => None,
            Signal::FirstToken { target } if after > target => Some(Sign::Bad),
            Signal::FirstToken { .. } => Some(Sign::Good),
        }
    }

    /// The sign of the end of a call. `silent_for` is how long a stream had no token, if it never had one.
    pub(crate) fn end(
        &self,
        completion: &Completion,
        silent_for: Option<Duration>,
    ) -> Option<Sign> {
        // What a cache answers shows nothing about the provider.
        if completion.served.is_some() {
            return None;
        }
        match (self.signal, completion.outcome) {
            (Signal::Throttling, Outcome::Throttled { .. } | Outcome::Overloaded { .. }) => {
                Some(Sign::Bad)
            }
            (Signal::Throttling, Outcome::Success) => Some(Sign::Good),
            (Signal::Throttling, _) => None,
            // A call that was not sent, or lost a race, shows nothing about the provider.
            (_, Outcome::Refused | Outcome::Superseded) => None,
            (Signal::FirstToken { target }, _) => silent_for
                .filter(|silent| *silent > target)
                .map(|_| Sign::Bad),
        }
    }
}

impl Aimd {
    pub(crate) fn new(rules: Adaptive, limit: usize) -> Self {
        Self {
            rules,
            limit,
            good: 0,
            cut_at: None,
        }
    }

    /// Restarts from `limit`.
    pub(crate) fn reset(&mut self, limit: usize) {
        *self = Self::new(self.rules, limit);
    }

    /// The limit after `sign`, with `in_flight` calls including this one.
    pub(crate) fn observe(&mut self, sign: Sign, in_flight: usize, now: Instant) -> usize {
        match sign {
            Sign::Bad => self.cut(now),
            // Half of an odd limit is rounded up.
            Sign::Good if in_flight >= self.limit.div_ceil(2) => self.count_good(),
            Sign::Good => {}
        }
        self.limit
    }

    fn cut(&mut self, now: Instant) {
        let may_cut = self.cut_at.is_none_or(|at| {
            let since = now.saturating_duration_since(at);
            since >= self.rules.cut_interval
        });
        if may_cut {
            self.cut_at = Some(now);
            self.good = 0;
            self.limit = scaled(self.limit, self.rules.cut_factor).max(self.rules.floor);
        }
    }

    fn count_good(&mut self) {
        self.good += 1;
        if self.good >= self.limit {
            self.good = 0;
            self.limit = (self.limit + 1).min(self.rules.ceiling);
        }
    }
}

/// `limit` times a factor below one, rounded down, so that it is less.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "limits have 32 bits, and the product is smaller"
)]
fn scaled(limit: usize, factor: f64) -> usize {
    (limit as f64 * factor) as usize
}

#[cfg(test)]
mod tests;
