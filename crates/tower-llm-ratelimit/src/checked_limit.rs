//! A limit as it is enforced: checked, with its rates, and counted.

use std::{
    iter,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tower_llm_core::{ConfigError, Key, KeyBy};

use crate::{
    calendar::{Calendar, WallClock},
    limit::{Algorithm, Limit},
    meter::{Kind, Now, Rate, Today},
    tier::Tier,
};

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

/// By how many processes a limit is shared, and by leases of which duration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    pub(crate) processes: u64,
    pub(crate) lease: Duration,
}

impl Sharing {
    pub(crate) const NONE: Self = Self {
        processes: 1,
        lease: Duration::ZERO,
    };
}

impl CheckedLimit {
    /// Checks `limit`.
    pub(crate) fn new(
        limit: Limit,
        key_by: &KeyBy,
        tiers: &[String],
        sharing: Sharing,
        wall_clock: WallClock,
    ) -> Result<Self, ConfigError> {
        limit.check_tiers()?;
        let mut rates = iter::once(None)
            .chain(tiers.iter().map(|tier| Some(tier.as_str())))
            .map(|tier| limit.rate(tier))
            .collect::<Result<Vec<_>, _>>()?;
        let calendar = match &limit.algorithm {
            Algorithm::Day { zone } => Some(Calendar::new(zone, wall_clock)?),
            _ => None,
        };
        let kind = kind(&limit, &rates);
        let lease = sharing.lease.min(longest_lease(kind, &rates));
        if kind == Kind::Bucket {
            // A bucket leaks while a lease of it is spent, so its burst is lowered by that much.
            rates.iter_mut().for_each(|rate| rate.leave_out(lease));
        }
        let own_rate = |rate: &Rate| rate.divided(sharing.processes);
        Ok(Self {
            own_rates: rates.iter().map(own_rate).collect(),
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
    pub(crate) fn lease_size(&self, tier: Tier, processes: u64) -> u64 {
        if self.lease.is_zero() {
            return 0;
        }
        self.rate(tier).capacity / processes.saturating_mul(8)
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
