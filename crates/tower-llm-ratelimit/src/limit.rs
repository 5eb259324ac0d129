use std::{borrow::Cow, fmt, time::Duration};

use tower_llm_core::{ConfigError, KeyBy};

use crate::meter::SLICES;

/// So many requests or tokens per time, for each key: one line of a provider's or a plan's limits, as data.
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
/// A limit is a sliding window unless it is made a [`bucket`](Self::bucket): never over in any stretch of its
/// period, which is what providers hold callers to. For that it may refuse up to a thirteenth of what would just fit.
///
/// An amount is at least one and at most 2^53; a period is at least a second and at most 31 days. What a limit's
/// values are is checked when the layer is built.
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
}

/// A [`Limit`] that has no period yet.
#[derive(Clone, Copy, Debug)]
#[must_use = "a limit needs a period"]
pub struct LimitOf {
    unit: Unit,
    amount: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Window,
    Bucket {
        burst: u64,
        /// Whether it was a calendar day before, which has no burst.
        of_day: bool,
    },
    Day {
        zone: Cow<'static, str>,
    },
}

/// A limit's numbers, checked: those of one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) amount: u64,
    /// The most that can be taken at once.
    pub(crate) capacity: u64,
    pub(crate) period_nanos: u64,
    slice_nanos: u64,
}

/// Most that a limit can be: sums of a few of them do not overflow, and Redis' numbers hold them exactly.
const MAX_AMOUNT: u64 = 1 << 53;
const NO_AMOUNT: &str = "it must be at least one and at most 2^53";
const MIN_PERIOD: Duration = Duration::from_secs(1);
const MAX_PERIOD: Duration = Duration::from_secs(31 * 86_400);
const DAY: Duration = Duration::from_secs(86_400);

// === impl Limit ===

impl Limit {
    /// A limit of `amount` calls.
    pub const fn requests(amount: u64) -> LimitOf {
        LimitOf::new(Unit::Requests, amount)
    }

    /// A limit of `amount` tokens, input and output together.
    pub const fn tokens(amount: u64) -> LimitOf {
        LimitOf::new(Unit::Tokens, amount)
    }

    /// A limit of `amount` input tokens.
    pub const fn input_tokens(amount: u64) -> LimitOf {
        LimitOf::new(Unit::InputTokens, amount)
    }

    /// A limit of `amount` output tokens.
    pub const fn output_tokens(amount: u64) -> LimitOf {
        LimitOf::new(Unit::OutputTokens, amount)
    }

    /// Sets what calls are counted together by; the layer's own [`key_by`](crate::RateLimitBuilder::key_by) unless set.
    ///
    /// Limits of one key are kept together, and cost one lookup.
    #[must_use]
    pub fn by(mut self, key_by: KeyBy) -> Self {
        self.key_by = Some(key_by);
        self
    }

    /// Makes it a token bucket: up to `burst` at once, and then at the steady rate.
    ///
    /// In one period it can let through the burst and the amount together. What a call gives back at its end can be taken at
    /// once, though some of it may have leaked meanwhile: where calls reserve much more than they use, up to twice the burst
    /// can really be used at one time. A window has no such edges.
    #[must_use]
    pub fn bucket(mut self, burst: u64) -> Self {
        let of_day = matches!(self.algorithm, Algorithm::Day { .. });
        self.algorithm = Algorithm::Bucket { burst, of_day };
        self
    }

    /// Sets the amount for callers of a tier, in place of the one for all others.
    ///
    /// Which tier a caller is in, [`tier_by`](crate::RateLimitBuilder::tier_by) says. What a caller has used counts on
    /// when its tier changes. A bucket's burst grows and shrinks with the amount, but stays at least one.
    #[must_use]
    pub fn tier(mut self, name: impl Into<Cow<'static, str>>, amount: u64) -> Self {
        self.tiers.push((name.into(), amount));
        self
    }

    /// What it counts.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// How much of it per period, for callers of no tier.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// The period; 24 hours for a calendar day.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Its numbers for one tier; for callers of none, or of one that it does not name, with `None`.
    pub(crate) fn rate(&self, tier: Option<&str>) -> Result<Rate, ConfigError> {
        let amount = tier
            .and_then(|tier| self.tiers.iter().find(|(name, _)| name == tier))
            .map_or(self.amount, |&(_, amount)| amount);
        check_amount("limit", amount)?;
        if self.period < MIN_PERIOD || self.period > MAX_PERIOD {
            let reason = "it must be at least a second and at most 31 days";
            return Err(ConfigError::new("period", self.period, reason));
        }
        let capacity = match self.algorithm {
            Algorithm::Bucket { burst, of_day } => {
                if of_day {
                    let reason = "a calendar day's quota is no bucket";
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
                return Err(ConfigError::new("tier", name, "it must have a name"));
            }
            if self.tiers[..index].iter().any(|(other, _)| other == name) {
                let value = format!("{name}: {amount}");
                return Err(ConfigError::new("tier", value, "the limit has it already"));
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

// === impl LimitOf ===

impl LimitOf {
    const fn new(unit: Unit, amount: u64) -> Self {
        Self { unit, amount }
    }

    /// The amount per second.
    #[must_use]
    pub fn per_second(self) -> Limit {
        self.per(Duration::from_secs(1))
    }

    /// The amount per minute.
    #[must_use]
    pub fn per_minute(self) -> Limit {
        self.per(Duration::from_secs(60))
    }

    /// The amount per hour.
    #[must_use]
    pub fn per_hour(self) -> Limit {
        self.per(Duration::from_secs(3_600))
    }

    /// The amount in any 24 hours.
    #[must_use]
    pub fn per_day(self) -> Limit {
        self.per(DAY)
    }

    /// The amount per calendar day in a time zone, such as `America/Los_Angeles`: all of it again at midnight.
    ///
    /// The wall clock is read when a day has ended, to learn when the next one does. Zones other than `UTC` are looked
    /// up in the system's time-zone database; where there is none, enable `tzdb-bundle-always` of the `jiff` crate.
    #[must_use]
    pub fn per_day_in(self, zone: impl Into<Cow<'static, str>>) -> Limit {
        let zone = zone.into();
        Limit {
            algorithm: Algorithm::Day { zone },
            ..self.per(DAY)
        }
    }

    /// The amount per `period`, at least a second and at most 31 days.
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
    /// In the order in which costs are kept.
    pub(crate) const ALL: [Self; 4] = [
        Self::Requests,
        Self::InputTokens,
        Self::OutputTokens,
        Self::Tokens,
    ];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::InputTokens => "input tokens",
            Self::OutputTokens => "output tokens",
            Self::Tokens => "tokens",
        })
    }
}

// === impl Rate ===

impl Rate {
    pub(crate) fn new(amount: u64, capacity: u64, period: Duration) -> Self {
        let period_nanos = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        Self {
            amount,
            capacity,
            period_nanos,
            // Rounded up, so that the slices of a period cover it.
            slice_nanos: period_nanos.div_ceil(u64::from(SLICES)),
        }
    }

    /// One part in `parts` of it, rounded down. Too small a limit lets nothing through then.
    pub(crate) fn share(&self, parts: u64) -> Self {
        let amount = self.amount / parts;
        Self {
            // What was taken must leak all the same.
            amount: amount.max(1),
            capacity: if amount == 0 {
                0
            } else {
                self.capacity / parts
            },
            ..*self
        }
    }

    /// How long it takes for a tenth of what can be taken at once to leak; zero if a tenth is less than one.
    pub(crate) fn tenth_leaks_in(&self) -> Duration {
        let nanos = self.scaled(self.capacity / 10) / u128::from(self.amount);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Lowers what can be taken at once by what leaks in `time`.
    pub(crate) fn leave_out(&mut self, time: Duration) {
        let leaks = u128::from(self.amount) * time.as_nanos();
        let leaks = leaks.div_ceil(u128::from(self.period_nanos));
        self.capacity = self
            .capacity
            .saturating_sub(u64::try_from(leaks).unwrap_or(u64::MAX));
    }

    pub(crate) fn scaled(&self, amount: u64) -> u128 {
        u128::from(amount) * u128::from(self.period_nanos)
    }

    pub(crate) fn slice_nanos(&self) -> u64 {
        self.slice_nanos
    }
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
