use std::{borrow::Cow, fmt, time::Duration};

use tower_llm_core::{ConfigError, KeyBy};

use crate::meter::Rate;

/// An amount of requests, tokens or cost per period, for each key.
///
/// ```
/// use tower_llm_core::KeyBy;
/// use tower_llm_ratelimit::Limit;
///
/// let requests = Limit::requests(60).per_minute();
/// let tokens = Limit::tokens(90_000).per_minute().by(KeyBy::model());
/// let bursts = Limit::requests(1_000).per_hour().bucket(50);
/// let plans = Limit::requests(100)
///     .per_hour()
///     .tier("pro", 1_000)
///     .tier("enterprise", 10_000);
/// ```
///
/// A limit is a sliding window unless [`bucket`](Self::bucket) makes it a token bucket. A window never admits more than
/// its amount in any stretch of time as long as its period, which is what providers enforce. In return it may refuse up to
/// a thirteenth of what would just fit.
///
/// A call can use more than it reserved; the excess is charged as debt. A bucket pays off a debt in full before it admits
/// the next call. A window forgets everything that is older than its period, including debt: a call that uses five times
/// the limit blocks its key for one period (and up to a twelfth more), not for five. A calendar day forgets at midnight.
///
/// An amount is at least 1 and at most 2^53. A period is at least one second and at most 31 days. The values are checked
/// when the layer is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub(crate) unit: Unit,
    pub(crate) amount: u64,
    pub(crate) tiers: Vec<(Cow<'static, str>, u64)>,
    pub(crate) period: Duration,
    pub(crate) algorithm: Algorithm,
    pub(crate) key_by: Option<KeyBy>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Calls.
    Requests,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
    /// Input and output tokens together.
    Tokens,
    /// The [cost](tower_llm_core::Call::cost) of calls, in the service's own units.
    Cost,
}

/// A [`Limit`] without a period yet.
#[derive(Clone, Copy, Debug)]
#[must_use = "a limit needs a period"]
pub struct LimitBuilder {
    unit: Unit,
    amount: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Window,
    Bucket {
        burst: u64,
        /// Whether the period was a calendar day, which has no burst.
        of_day: bool,
    },
    Day {
        zone: Cow<'static, str>,
    },
}

/// Maximum amount of a limit: sums of a few do not overflow, and Redis represents it exactly.
const MAX_AMOUNT: u64 = 1 << 53;
const NO_AMOUNT: &str = "must be at least 1 and at most 2^53";
const MIN_PERIOD: Duration = Duration::from_secs(1);
const MAX_PERIOD: Duration = Duration::from_secs(31 * 86_400);
const DAY: Duration = Duration::from_secs(86_400);

// === impl Limit ===

impl Limit {
    /// A limit of `amount` calls.
    pub const fn requests(amount: u64) -> LimitBuilder {
        LimitBuilder::new(Unit::Requests, amount)
    }

    /// A limit of `amount` tokens, input and output together.
    pub const fn tokens(amount: u64) -> LimitBuilder {
        LimitBuilder::new(Unit::Tokens, amount)
    }

    /// A limit of `amount` input tokens.
    pub const fn input_tokens(amount: u64) -> LimitBuilder {
        LimitBuilder::new(Unit::InputTokens, amount)
    }

    /// A limit of `amount` output tokens.
    pub const fn output_tokens(amount: u64) -> LimitBuilder {
        LimitBuilder::new(Unit::OutputTokens, amount)
    }

    /// A limit of `amount` units of the service's own: of the [cost](tower_llm_core::Call::cost) that its calls state.
    ///
    /// A call is charged its cost in full if it reached the model, and nothing if it was refused.
    pub const fn cost(amount: u64) -> LimitBuilder {
        LimitBuilder::new(Unit::Cost, amount)
    }

    /// A token bucket with the numbers of governor's `quota`: its burst, and one `unit` per replenish interval.
    ///
    /// | governor | here |
    /// |---|---|
    /// | `burst_size` | the [`bucket`](Self::bucket)'s burst |
    /// | `replenish_interval` | the rate: as many intervals as the burst are a period, unless that is shorter than a second or longer than 31 days |
    ///
    /// It admits what governor's limiter with this quota would, if calls use what they reserve. A quota is exact to the
    /// nanosecond: seven per minute are seven per 59.999999997 s, because their interval is rounded down.
    ///
    /// ```
    /// use std::num::NonZeroU32;
    ///
    /// use governor::Quota;
    /// use tower_llm_ratelimit::{Limit, Unit};
    ///
    /// let ten = NonZeroU32::new(10).expect("it is not zero");
    /// let quota = Quota::per_second(ten).allow_burst(ten.saturating_add(20));
    /// let limit = Limit::quota(Unit::Requests, quota);
    /// assert_eq!(limit, Limit::requests(30).per(std::time::Duration::from_secs(3)).bucket(30));
    /// ```
    #[cfg(feature = "governor")]
    #[cfg_attr(docsrs, doc(cfg(feature = "governor")))]
    #[must_use]
    pub fn quota(unit: Unit, quota: governor::Quota) -> Self {
        let (interval, burst) = (quota.replenish_interval(), quota.burst_size());
        let amount = replenished(interval, burst);
        let period = interval.saturating_mul(amount);
        let limit = LimitBuilder::new(unit, amount.into());
        limit.per(period).bucket(burst.get().into())
    }

    /// Sets the kind of key to limit by; the layer's [`key_by`](crate::RateLimitBuilder::key_by) unless set.
    ///
    /// Limits with the same kind of key share their state and cost one lookup.
    #[must_use]
    pub fn by(mut self, key_by: KeyBy) -> Self {
        self.key_by = Some(key_by);
        self
    }

    /// Makes the limit a token bucket: up to `burst` at once, then the steady rate.
    ///
    /// In one period a bucket can admit the burst and the amount together. A refund is available at once, although part of
    /// the reservation may have drained already: if calls reserve much more than they use, up to twice the burst can be used
    /// at one time. A window has no such edges.
    #[must_use]
    pub fn bucket(mut self, burst: u64) -> Self {
        let of_day = matches!(self.algorithm, Algorithm::Day { .. });
        self.algorithm = Algorithm::Bucket { burst, of_day };
        self
    }

    /// Sets the amount for callers in a tier, instead of the default amount.
    ///
    /// [`tier_by`](crate::RateLimitBuilder::tier_by) decides which tier a call is in. When a caller's tier changes, what the
    /// caller has used still counts. A bucket's burst scales with the amount, but is at least 1.
    #[must_use]
    pub fn tier(mut self, name: impl Into<Cow<'static, str>>, amount: u64) -> Self {
        self.tiers.push((name.into(), amount));
        self
    }

    /// Returns what the limit counts.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Returns the amount per period for callers without a tier.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Returns the period; 24 hours for a calendar day.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    /// The numbers for one tier; with `None`, or for a tier that the limit does not name, the default ones.
    pub(crate) fn rate(&self, tier: Option<&str>) -> Result<Rate, ConfigError> {
        let amount = tier
            .and_then(|tier| self.tiers.iter().find(|(name, _)| name == tier))
            .map_or(self.amount, |&(_, amount)| amount);
        check_amount("limit", amount)?;
        if self.period < MIN_PERIOD || self.period > MAX_PERIOD {
            let reason = "must be at least one second and at most 31 days";
            return Err(ConfigError::new("period", self.period, reason));
        }
        let capacity = match self.algorithm {
            Algorithm::Bucket { burst, of_day } => {
                if of_day {
                    let reason = "a limit per calendar day cannot be a bucket";
                    return Err(ConfigError::new("burst", burst, reason));
                }
                check_amount("burst", burst)?;
                check_amount("limit", self.amount)?;
                let scaled = u128::from(burst) * u128::from(amount) / u128::from(self.amount);
                u64::try_from(scaled)
                    .unwrap_or(u64::MAX)
                    .clamp(1, MAX_AMOUNT)
            }
            Algorithm::Window | Algorithm::Day { .. } => amount,
        };
        Ok(Rate::new(amount, capacity, self.period))
    }

    /// Checks that no tier is named twice, and the amount of each.
    pub(crate) fn check_tiers(&self) -> Result<(), ConfigError> {
        for (index, (name, amount)) in self.tiers.iter().enumerate() {
            if name.is_empty() {
                return Err(ConfigError::new("tier", name, "must not be empty"));
            }
            if self.tiers[..index].iter().any(|(other, _)| other == name) {
                let value = format!("{name}: {amount}");
                return Err(ConfigError::new(
                    "tier",
                    value,
                    "the limit names this tier twice",
                ));
            }
            if !is_amount(*amount) {
                let value = format!("{name}: {amount}");
                return Err(ConfigError::new("tier", value, NO_AMOUNT));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} per ", self.amount, self.unit)?;
        match (self.period.as_secs(), self.period.subsec_nanos()) {
            (1, 0) => f.write_str("second"),
            (60, 0) => f.write_str("minute"),
            (3_600, 0) => f.write_str("hour"),
            (86_400, 0) => f.write_str("day"),
            _ => write!(f, "{:?}", self.period),
        }
    }
}

// === impl LimitBuilder ===

impl LimitBuilder {
    const fn new(unit: Unit, amount: u64) -> Self {
        Self { unit, amount }
    }

    /// Per second.
    #[must_use]
    pub fn per_second(self) -> Limit {
        self.per(Duration::from_secs(1))
    }

    /// Per minute.
    #[must_use]
    pub fn per_minute(self) -> Limit {
        self.per(Duration::from_secs(60))
    }

    /// Per hour.
    #[must_use]
    pub fn per_hour(self) -> Limit {
        self.per(Duration::from_secs(3_600))
    }

    /// Per 24 hours.
    #[must_use]
    pub fn per_day(self) -> Limit {
        self.per(DAY)
    }

    /// Per calendar day in a time zone, such as `America/Los_Angeles`: the whole amount is available again at midnight.
    ///
    /// The wall clock is read at the end of each day, to find the end of the next one. Zones other than `UTC` are looked up
    /// in the system's time zone database; if the system has none, enable the feature `tzdb-bundle-always` of `jiff`.
    #[must_use]
    pub fn per_day_in(self, zone: impl Into<Cow<'static, str>>) -> Limit {
        let zone = zone.into();
        Limit {
            algorithm: Algorithm::Day { zone },
            ..self.per(DAY)
        }
    }

    /// Per `period`, which is at least one second and at most 31 days.
    #[must_use]
    pub fn per(self, period: Duration) -> Limit {
        Limit {
            unit: self.unit,
            amount: self.amount,
            tiers: Vec::new(),
            period,
            algorithm: Algorithm::Window,
            key_by: None,
        }
    }
}

// === impl Unit ===

impl Unit {
    /// In the order in which costs are stored.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 5] = [
        Self::Requests,
        Self::InputTokens,
        Self::OutputTokens,
        Self::Tokens,
        Self::Cost,
    ];

    /// Those that providers report.
    pub(crate) const REPORTED: [Self; 4] = [
        Self::Requests,
        Self::InputTokens,
        Self::OutputTokens,
        Self::Tokens,
    ];

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Whether a call uses exactly what it reserves of the unit, unless it is refused. Most reserved tokens may be
    /// refunded.
    pub(crate) fn is_exact(self) -> bool {
        matches!(self, Self::Requests | Self::Cost)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::InputTokens => "input tokens",
            Self::OutputTokens => "output tokens",
            Self::Tokens => "tokens",
            Self::Cost => "cost units",
        })
    }
}

/// How many intervals are a period: as many as the burst, or else the nearest number that a period may have.
#[cfg(feature = "governor")]
fn replenished(interval: Duration, burst: std::num::NonZeroU32) -> u32 {
    let interval = interval.as_nanos().max(1);
    let least = MIN_PERIOD.as_nanos().div_ceil(interval);
    let most = (MAX_PERIOD.as_nanos() / interval).max(1);
    let amount = u128::from(burst.get()).clamp(least.min(most), most);
    u32::try_from(amount).unwrap_or(u32::MAX)
}

fn check_amount(field: &'static str, amount: u64) -> Result<(), ConfigError> {
    if is_amount(amount) {
        Ok(())
    } else {
        Err(ConfigError::new(field, amount, NO_AMOUNT))
    }
}

fn is_amount(amount: u64) -> bool {
    (1..=MAX_AMOUNT).contains(&amount)
}
