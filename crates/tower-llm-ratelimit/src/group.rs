//! Limits that share their keys, and what all limits of a layer share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::{Call, ConfigError, Described, Key, KeyBy, Keyed, Registry};

use crate::{
    Headers,
    attempt::Shared,
    calendar::{Calendar, Today},
    cost::{Estimate, Pricing},
    key_state::State,
    limit::{Algorithm, Limit, Rate},
    meter::{Kind, Now},
    observed::{ObservedOutput, UNTIL_OBSERVED},
    tier::Tier,
};

/// The limits of one kind of key.
#[derive(Debug)]
pub(crate) struct LimitGroup {
    pub(crate) limits: Box<[CheckedLimit]>,
    pub(crate) clock: Clock,
    pub(crate) policy: Arc<Policy>,
    /// Whether the limits that the provider reports are enforced for these keys.
    pub(crate) observes: bool,
    /// Whether every limit is of an [exact](crate::Unit::is_exact) unit.
    pub(crate) is_exact: bool,
    /// The counts of evicted keys.
    pub(crate) evicted: Evicted,
}

/// A limit, checked and counted.
#[derive(Debug)]
pub(crate) struct CheckedLimit {
    pub(crate) limit: Limit,
    pub(crate) kind: Kind,
    /// The rate without a tier, then that of each tier.
    rates: Box<[Rate]>,
    /// The rates that this process enforces by itself: its share of those that several processes share.
    own_rates: Box<[Rate]>,
    calendar: Option<Calendar>,
    store_name: String,
    /// Duration of a lease from the store.
    lease: Duration,
    pub(crate) counts: Counts,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) refused: AtomicU64,
    pub(crate) overrun: AtomicU64,
    pub(crate) refunded: AtomicU64,
    pub(crate) violations: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Evicted {
    admitted: AtomicU64,
    consumed: Box<[AtomicU64]>,
}

/// How calls are charged, and which headers their responses get.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) pricing: Pricing,
    pub(crate) observed: Registry<ObservedOutput>,
    pub(crate) output_percentile: f64,
    pub(crate) headers: Headers,
    pub(crate) shared: Option<Shared>,
}

/// Time since the limiter was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

// === impl LimitGroup ===

impl LimitGroup {
    pub(crate) fn new(
        limits: Box<[CheckedLimit]>,
        clock: Clock,
        policy: Arc<Policy>,
        observes: bool,
    ) -> Self {
        Self {
            evicted: Evicted {
                admitted: AtomicU64::new(0),
                consumed: limits.iter().map(|_| AtomicU64::new(0)).collect(),
            },
            is_exact: limits.iter().all(CheckedLimit::is_exact),
            limits,
            clock,
            policy,
            observes,
        }
    }
}

// === impl CheckedLimit ===

impl CheckedLimit {
    /// Checks `limit`.
    pub(crate) fn new(
        limit: Limit,
        key_by: &KeyBy,
        tiers: &[String],
        shared: Option<&Shared>,
    ) -> Result<Self, ConfigError> {
        limit.check_tiers()?;
        let mut rates = std::iter::once(None)
            .chain(tiers.iter().map(|tier| Some(tier.as_str())))
            .map(|tier| limit.rate(tier))
            .collect::<Result<Vec<_>, _>>()?;
        let calendar = match &limit.algorithm {
            Algorithm::Day { zone } => Some(Calendar::new(zone)?),
            _ => None,
        };
        let kind = kind(&limit, &rates);
        let lease = shared.and_then(|shared| shared.lease).unwrap_or_default();
        let lease = lease.min(longest_lease(kind, &rates));
        if kind == Kind::Bucket {
            // A bucket leaks while a lease of it is spent, so its burst is lowered by that much.
            rates.iter_mut().for_each(|rate| rate.leave_out(lease));
        }
        let parts = shared.map_or(1, |shared| shared.parts);
        Ok(Self {
            own_rates: rates.iter().map(|rate| rate.divided(parts)).collect(),
            rates: rates.into(),
            store_name: store_name(&limit, key_by),
            kind,
            calendar,
            lease,
            counts: Counts::default(),
            limit,
        })
    }

    /// Makes its name in a store unique among the `names` of its layer: all closures have the same name.
    pub(crate) fn tell_apart(&mut self, names: &mut Vec<String>) {
        let same = names.iter().filter(|name| **name == self.store_name);
        let before = same.count();
        names.push(self.store_name.clone());
        if before > 0 {
            self.store_name += &format!("#{before}");
        }
    }

    /// Whether its unit is [exact](crate::Unit::is_exact).
    pub(crate) fn is_exact(&self) -> bool {
        self.limit.unit().is_exact()
    }

    /// The limit as it is.
    pub(crate) fn rate(&self, tier: Tier) -> &Rate {
        &self.rates[tier.index()]
    }

    /// The limit as this process enforces it by itself.
    pub(crate) fn own_rate(&self, tier: Tier) -> &Rate {
        &self.own_rates[tier.index()]
    }

    /// The size of a lease: so small that one process does not starve the others.
    pub(crate) fn lease_size(&self, tier: Tier, parts: u64) -> u64 {
        if self.lease.is_zero() {
            return 0;
        }
        self.rate(tier).capacity / parts.saturating_mul(8)
    }

    /// The duration of a lease that is requested at `now`: not beyond the end of the day.
    pub(crate) fn lease_time(&self, now: u64) -> Duration {
        match &self.calendar {
            Some(calendar) => {
                let left = calendar.today(now).ends_nanos.saturating_sub(now);
                self.lease.min(Duration::from_nanos(left))
            }
            None => self.lease,
        }
    }

    pub(crate) fn slowest(&self) -> &Rate {
        let slowest = self.own_rates.iter().min_by_key(|rate| rate.amount);
        slowest.expect("there is one without a tier")
    }

    pub(crate) fn now(&self, nanos: u64) -> Now {
        let today = match &self.calendar {
            Some(calendar) => calendar.today(nanos),
            None => Today::default(),
        };
        Now { nanos, today }
    }

    /// The name of the limit and a key in a store.
    ///
    /// It does not contain the amount, so counts survive a change of the amount. The lengths of a key's parts make it
    /// unambiguous.
    pub(crate) fn store_key(&self, key: Option<&Key>) -> String {
        match key {
            Some(key) => {
                let [first, second, third] = key.parts();
                let ends = (first.len(), second.len());
                format!(
                    "{}:{}:{}:{first}:{second}:{third}",
                    self.store_name, ends.0, ends.1
                )
            }
            None => format!("{}:overflow", self.store_name),
        }
    }

    pub(crate) fn refused(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// The maximum duration of a lease: a window charges it in the next slice, and a bucket must not leak much meanwhile.
fn longest_lease(kind: Kind, rates: &[Rate]) -> Duration {
    let of_rate = |rate: &Rate| match kind {
        Kind::Bucket => rate.tenth_leaks_in(),
        Kind::Window | Kind::Wide | Kind::Day => Duration::from_nanos(rate.slice_nanos()),
    };
    rates.iter().map(of_rate).min().unwrap_or_default()
}

fn kind(limit: &Limit, rates: &[Rate]) -> Kind {
    let largest = rates.iter().map(|rate| rate.amount).max();
    match &limit.algorithm {
        Algorithm::Bucket { .. } => Kind::Bucket,
        Algorithm::Day { .. } => Kind::Day,
        Algorithm::Window if largest <= Some(1 << 31) => Kind::Window,
        Algorithm::Window => Kind::Wide,
    }
}

/// The unit, kind of key, period and algorithm of a limit.
fn store_name(limit: &Limit, key_by: &KeyBy) -> String {
    let algorithm = match &limit.algorithm {
        Algorithm::Window => "window",
        Algorithm::Bucket { .. } => "bucket",
        Algorithm::Day { zone } => zone,
    };
    let period = limit.period().as_nanos();
    format!("{key_by:?}:{}:{algorithm}:{period}", limit.unit())
}

// === impl Evicted ===

impl Evicted {
    pub(crate) fn add(&self, state: &State) {
        self.admitted.fetch_add(state.admitted, Ordering::Relaxed);
        for (sum, gauge) in self.consumed.iter().zip(state.gauges.iter()) {
            sum.fetch_add(gauge.consumed, Ordering::Relaxed);
        }
    }

    pub(crate) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    pub(crate) fn consumed(&self, limit: usize) -> u64 {
        self.consumed[limit].load(Ordering::Relaxed)
    }
}

// === impl Policy ===

impl Policy {
    /// What `request` reserves, and where its output is observed.
    pub(crate) fn estimate(
        &self,
        request: &dyn Described,
        reports_usage: bool,
    ) -> (Estimate, Option<Arc<Keyed<ObservedOutput>>>) {
        let call = request.call();
        let call = call.as_deref();
        let mut observed = None;
        let expected = || {
            let of_key = self.observed.get(request);
            let percentile = of_key.percentile(self.output_percentile);
            let expected = percentile.unwrap_or(UNTIL_OBSERVED);
            let maximum = call.and_then(Call::max_output_tokens);
            // An output whose maximum is below the expected length shows nothing about the length of others.
            if maximum.is_none_or(|maximum| expected <= maximum) {
                observed = Some(of_key);
            }
            expected
        };
        let expected = reports_usage.then_some(expected);
        let estimate = self.pricing.estimate(call, expected);
        (estimate, observed)
    }
}

// === impl Clock ===

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_nanos(self) -> u64 {
        self.nanos(Instant::now())
    }

    pub(crate) fn at(self, nanos: u64) -> Instant {
        self.0 + Duration::from_nanos(nanos)
    }

    pub(crate) fn nanos(self, at: Instant) -> u64 {
        // 64 bits are 584 years.
        let since = at.saturating_duration_since(self.0);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}
