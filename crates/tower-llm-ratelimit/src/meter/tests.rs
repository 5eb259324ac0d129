//! Tests meters against slow ones that are obviously right: lists of what was taken, and when.

use std::{num::NonZeroU32, time::Duration};

use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
use proptest::{prelude::*, sample::Index};

use super::*;

mod examples;

/// What happens next, and after what time.
#[derive(Clone, Debug)]
struct Step {
    gap: Gap,
    what: What,
}

/// A part of a period, plus or minus some nanoseconds, because mistakes are at boundaries.
#[derive(Clone, Copy, Debug)]
struct Gap {
    twelfths: u64,
    more: i64,
}

#[derive(Clone, Debug)]
enum What {
    /// A call of a tier demands a part of its limit.
    Ask { tier: usize, amount: Index },
    /// An admitted call has used a part of what it took; use beyond that is charged.
    Settle {
        call: Index,
        used: Index,
        doubled: bool,
    },
}

/// What was taken at a time, by what is known now.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    amount: u64,
    /// While it can be settled: what was reserved, when, and its tier.
    open: Option<(u64, u64, usize)>,
}

#[derive(Default)]
struct Log(Vec<Entry>);

impl Log {
    /// All that was taken at `from` or later.
    fn since(&self, from: u64) -> u64 {
        let recent = self.0.iter().filter(|entry| entry.at >= from);
        recent.map(|entry| entry.amount).sum()
    }

    /// One of the calls that can still be settled.
    fn open(&mut self, index: &Index) -> Option<&mut Entry> {
        let mut open: Vec<_> = self.0.iter_mut().filter(|one| one.open.is_some()).collect();
        (!open.is_empty()).then(|| open.remove(index.index(open.len())))
    }
}

impl Gap {
    fn nanos(self, period: u64) -> u64 {
        (period.div_ceil(12) * self.twelfths).saturating_add_signed(self.more)
    }
}

fn gap() -> impl Strategy<Value = Gap> {
    let twelfths =
        prop_oneof![4 => Just(0), 4 => Just(1), 2 => 2..12_u64, 1 => 12..15_u64, 1 => 15..40_u64];
    let more = prop_oneof![2 => Just(0), 2 => -1..=1_i64, 3 => 0..100_000_000_i64];
    (twelfths, more).prop_map(|(twelfths, more)| Gap { twelfths, more })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ask = (0..2_usize, any::<Index>()).prop_map(|(tier, amount)| What::Ask { tier, amount });
    let settle = (any::<Index>(), any::<Index>(), any::<bool>());
    let settle = settle.prop_map(|(call, used, doubled)| What::Settle {
        call,
        used,
        doubled,
    });
    let what = prop_oneof![3 => ask, 1 => settle];
    let step = (gap(), what).prop_map(|(gap, what)| Step { gap, what });
    prop::collection::vec(step, 1..120)
}

/// Two tiers' rates of one period, which need not be a multiple of twelve.
fn rates(most: u64) -> impl Strategy<Value = [Rate; 2]> {
    let amount = move || prop_oneof![1..20_u64, 1..=most];
    let period = prop_oneof![
        Just(Duration::from_secs(1)),
        Just(Duration::from_secs(60)),
        (1_000_000_000..100_000_000_000_u64).prop_map(Duration::from_nanos),
    ];
    (amount(), amount(), period).prop_map(|(one, other, period)| {
        [one, other].map(|amount| Rate::new(amount, amount, period))
    })
}

fn at(nanos: u64) -> Now {
    let today = Today::default();
    Now { nanos, today }
}

/// Small amounts more often than large ones, so that many calls share a period.
fn small_amount(index: &Index, limit: u64) -> u64 {
    let amount = index.index(1 << 20) as u64;
    let range = if amount.is_multiple_of(4) {
        limit
    } else {
        limit.div_ceil(8)
    };
    1 + amount % range
}

/// Changes a charge to what was `used`, in the log and, as the key state does, in the meter.
fn settle(meter: &mut Meter, log: &mut Log, rates: &[Rate; 2], now: u64, what: &What) {
    let What::Settle {
        call,
        used,
        doubled,
    } = what
    else {
        return;
    };
    let Some(entry) = log.open(call) else { return };
    let (reserved, taken_at, tier) = entry.open.take().expect("it is open");
    let used = used.index(reserved as usize + 1) as u64;
    if *doubled {
        meter.take(&rates[tier], used, at(now));
        let (amount, open) = (used, None);
        log.0.push(Entry {
            at: now,
            amount,
            open,
        });
    } else {
        entry.amount = used;
        meter.give_back(&rates[tier], taken_at, reserved - used);
    }
}

/// For all rates: a call is admitted after the wait, and the getters agree.
fn check_promises(meter: &Meter, rate: &Rate, amount: u64, now: u64) -> Result<(), TestCaseError> {
    let wait = |amount, now| meter.clone().wait(rate, amount, at(now));
    let for_it = wait(amount, now);
    prop_assert_eq!(wait(amount, now + for_it), 0);
    if for_it > 0 {
        prop_assert!(wait(amount, now + for_it - 1) > 0);
    }
    let remaining = meter.clone().remaining(rate, at(now));
    prop_assert_eq!(remaining >= amount, for_it == 0);
    prop_assert_eq!(meter.clone().is_over(rate, at(now)), wait(0, now) > 0);
    let full_in = meter.clone().full_in(rate, at(now));
    let remaining_at = |now| meter.clone().remaining(rate, at(now));
    prop_assert_eq!(remaining_at(now + full_in), rate.capacity);
    Ok(())
}

fn check_window(kind: Kind, rates: &[Rate; 2], steps: &[Step]) -> Result<(), TestCaseError> {
    let period = rates[0].period_nanos;
    let (mut meter, mut log, mut now) = (Meter::new(kind), Log::default(), 0_u64);
    for Step { gap, what } in steps {
        now += gap.nanos(period);
        let &What::Ask { tier, ref amount } = what else {
            settle(&mut meter, &mut log, rates, now, what);
            continue;
        };
        let rate = &rates[tier];
        let amount = small_amount(amount, rate.amount);
        check_promises(&meter, rate, amount, now)?;
        if meter.wait(rate, amount, at(now)) == 0 {
            // Both ends belong to the period: a call exactly one period ago still counts.
            let in_period = log.since(now.saturating_sub(period));
            prop_assert!(in_period + amount <= rate.amount, "over in a period");
            let taken_at = meter.take(rate, amount, at(now));
            let open = Some((amount, taken_at, tier));
            log.0.push(Entry {
                at: now,
                amount,
                open,
            });
        } else {
            // Strictness may cost a twelfth more than the period, and no more.
            let strict = log.since((now + 1).saturating_sub(13 * period.div_ceil(12)));
            prop_assert!(strict + amount > rate.amount, "needlessly strict");
        }
    }
    Ok(())
}

/// The level of a bucket by what is known of each call: the maximum over all stretches of time until now of what was taken
/// less what leaked.
fn level(log: &Log, rate: &Rate, now: u64) -> u128 {
    let since = |from: &Entry| {
        let leaked = u128::from(now - from.at) * u128::from(rate.amount);
        rate.scaled(log.since(from.at)).saturating_sub(leaked)
    };
    log.0.iter().map(since).max().unwrap_or(0)
}

fn bucket_rates() -> impl Strategy<Value = Rate> {
    (rates(100_000), 1..200_000_u64).prop_map(|([rate, _], burst)| {
        Rate::new(rate.amount, burst, Duration::from_nanos(rate.period_nanos))
    })
}

proptest! {
    #[test]
    fn a_window_is_never_over_and_never_needlessly_strict(rates in rates(100_000), steps in steps()) {
        check_window(Kind::Window, &rates, &steps)?;
    }

    #[test]
    fn a_wide_window_is_as_the_narrow_one(rates in rates(1 << 40), steps in steps()) {
        check_window(Kind::Wide, &rates, &steps)?;
    }

    #[test]
    fn a_bucket_lets_through_exactly_what_its_formula_does(rate in bucket_rates(), steps in steps()) {
        let (mut meter, mut log, mut now) = (Meter::new(Kind::Bucket), Log::default(), 0);
        for Step { gap, what } in &steps {
            now += gap.nanos(rate.period_nanos);
            let What::Ask { amount, .. } = what else { continue };
            let amount = small_amount(amount, rate.capacity);
            check_promises(&meter, &rate, amount, now)?;
            let fits = level(&log, &rate, now) + rate.scaled(amount) <= rate.scaled(rate.capacity);
            prop_assert_eq!(meter.wait(&rate, amount, at(now)) == 0, fits);
            if fits {
                meter.take(&rate, amount, at(now));
                log.0.push(Entry { at: now, amount, open: None });
            }
        }
    }

    /// What a call did not use comes back, and no more. If refunds count when they arrive, no stretch exceeds burst and
    /// rate; and the bucket is never stricter than if each call's use had been known beforehand.
    #[test]
    fn a_bucket_takes_back_what_a_call_did_not_use(rate in bucket_rates(), steps in steps()) {
        let rates = [rate; 2];
        let (mut meter, mut log, mut now) = (Meter::new(Kind::Bucket), Log::default(), 0);
        // What was taken and given back, when it was.
        let mut moved: Vec<(u64, i128)> = Vec::new();
        let mut total = 0;
        for Step { gap, what } in &steps {
            now += gap.nanos(rate.period_nanos);
            if let What::Ask { tier, amount } = what {
                let amount = small_amount(amount, rate.capacity);
                check_promises(&meter, &rate, amount, now)?;
                if meter.wait(&rate, amount, at(now)) == 0 {
                    let taken_at = meter.take(&rate, amount, at(now));
                    let open = Some((amount, taken_at, *tier));
                    log.0.push(Entry { at: now, amount, open });
                    moved.push((now, i128::from(amount)));
                    for (first, &(from, _)) in moved.iter().enumerate() {
                        let net: i128 = moved[first..].iter().map(|&(_, amount)| amount).sum();
                        let leaks = i128::from(now - from) * i128::from(rate.amount);
                        let most = i128::from(rate.capacity) * i128::from(rate.period_nanos) + leaks;
                        prop_assert!(net * i128::from(rate.period_nanos) <= most);
                    }
                } else {
                    let known = level(&log, &rate, now) + rate.scaled(amount);
                    prop_assert!(known > rate.scaled(rate.capacity), "needlessly strict");
                }
            } else {
                settle(&mut meter, &mut log, &rates, now, what);
            }
            let known: u64 = log.0.iter().map(|entry| entry.amount).sum();
            let change = i128::from(known) - moved.iter().map(|&(_, amount)| amount).sum::<i128>();
            if change != 0 {
                moved.push((now, change));
            }
            total += 1;
        }
        prop_assert_eq!(total, steps.len());
    }

    /// For rates whose interval is a whole number of nanoseconds: governor rounds others.
    #[test]
    fn a_bucket_is_as_governors(
        interval in 1..2_000_000_000_u64,
        per_period in 1..1_000_u64,
        burst in 1..5_000_u32,
        steps in prop::collection::vec((gap(), any::<Index>()), 1..120),
    ) {
        let rate = Rate::new(per_period, burst.into(), Duration::from_nanos(interval * per_period));
        let quota = Quota::with_period(Duration::from_nanos(interval)).unwrap();
        let burst = NonZeroU32::new(burst).unwrap();
        decides_as_governor(&rate, quota.allow_burst(burst), steps)?;
    }
}

/// For every quota, also if governor has rounded its interval.
#[cfg(feature = "governor")]
mod quotas {
    use super::*;
    use crate::{Limit, Unit};

    fn quotas() -> impl Strategy<Value = Quota> {
        let number = || (1..5_000_u32).prop_map(|number| NonZeroU32::new(number).unwrap());
        let per = prop_oneof![
            number().prop_map(Quota::per_second),
            number().prop_map(Quota::per_minute),
            number().prop_map(Quota::per_hour),
            (1..200_000_000_000_u64)
                .prop_map(|nanos| Quota::with_period(Duration::from_nanos(nanos)).unwrap()),
        ];
        let burst = prop_oneof![Just(None), number().prop_map(Some)];
        (per, burst)
            .prop_map(|(quota, burst)| burst.map_or(quota, |burst| quota.allow_burst(burst)))
    }

    proptest! {
        #[test]
        fn a_limit_by_quota_decides_as_governor_does(
            quota in quotas(),
            steps in prop::collection::vec((gap(), any::<Index>()), 1..120),
        ) {
            let rate = Limit::quota(Unit::Tokens, quota).rate(None).unwrap();
            decides_as_governor(&rate, quota, steps)?;
        }
    }

    #[test]
    fn a_period_is_one_that_a_limit_may_have() {
        let number = |number| NonZeroU32::new(number).unwrap();
        let limit = |quota| Limit::quota(Unit::Requests, quota);
        let hourly = Quota::per_hour(number(10));
        // The burst alone would take 41 days to come back.
        let large = limit(hourly.allow_burst(number(10_000)));
        assert_eq!(
            (large.amount(), large.period().as_secs()),
            (7_440, 31 * 86_400)
        );
        let small = limit(Quota::per_second(number(50)).allow_burst(number(10)));
        assert_eq!(small, Limit::requests(50).per_second().bucket(10));
        let minute = limit(Quota::per_minute(number(60)));
        assert_eq!(minute, Limit::requests(60).per_minute().bucket(60));
        // An invalid period is refused when the layer is built.
        let rare = Quota::with_period(Duration::from_secs(32 * 86_400)).unwrap();
        assert_eq!(limit(rare).rate(None).unwrap_err().field(), "period");
        let often = Quota::with_period(Duration::from_nanos(1)).unwrap();
        assert_eq!(limit(often).amount(), 1_000_000_000);
    }
}

/// Whether a bucket admits what governor's limiter does, and reports the same times.
fn decides_as_governor(
    rate: &Rate,
    quota: Quota,
    steps: Vec<(Gap, Index)>,
) -> Result<(), TestCaseError> {
    let clock = FakeRelativeClock::default();
    let governor = RateLimiter::direct_with_clock(quota, clock.clone());
    let interval = u64::try_from(quota.replenish_interval().as_nanos()).unwrap();
    let burst = u64::from(quota.burst_size().get());
    let (mut meter, mut now) = (Meter::new(Kind::Bucket), 0);
    for (gap, amount) in steps {
        // In parts of the time in which the burst refills.
        let passed = gap.nanos(interval * burst / 2);
        now += passed;
        clock.advance(Duration::from_nanos(passed));
        let amount = small_amount(&amount, rate.capacity);
        let theirs = NonZeroU32::new(amount as u32).unwrap();
        let wait = meter.wait(rate, amount, at(now));
        match governor.check_n(theirs).unwrap() {
            Ok(()) => prop_assert_eq!(wait, 0),
            Err(until) => {
                let earliest = until.earliest_possible();
                let earliest = governor::clock::Reference::saturating_sub(&earliest, now.into());
                prop_assert_eq!(u128::from(wait), Duration::from(earliest).as_nanos());
            }
        }
        if wait == 0 {
            meter.take(rate, amount, at(now));
        }
    }
    Ok(())
}

/// What happens to a meter that is reserved from.
#[derive(Clone, Debug)]
enum Held {
    Advance(Gap),
    Reserve(Index),
    Charge(Index),
    Settle(Index, Index),
}

fn held() -> impl Strategy<Value = Vec<Held>> {
    let one = prop_oneof![
        2 => gap().prop_map(Held::Advance),
        3 => any::<Index>().prop_map(Held::Reserve),
        1 => any::<Index>().prop_map(Held::Charge),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(call, used)| Held::Settle(call, used)),
    ];
    prop::collection::vec(one, 1..100)
}

proptest! {
    /// The settled wait is as if every call in flight had used nothing.
    #[test]
    fn what_is_not_settled_does_not_count_as_used(
        rates in rates(100), steps in held(), day_nanos in 1..200_000_000_000_u64
    ) {
        let rate = rates[0];
        for kind in [Kind::Bucket, Kind::Window, Kind::Wide, Kind::Day] {
            let (mut meter, mut nanos, mut open) = (Meter::new(kind), 0, Vec::new());
            for step in &steps {
                let number = u32::try_from(nanos / day_nanos).unwrap_or(u32::MAX);
                let ends_nanos = (u64::from(number) + 1) * day_nanos;
                let now = Now { nanos, today: Today { number, ends_nanos } };
                match step {
                    Held::Advance(gap) => {
                        nanos += gap.nanos(rate.period_nanos);
                        continue;
                    }
                    Held::Reserve(amount) => {
                        let amount = small_amount(amount, rate.amount);
                        open.push((meter.reserve(&rate, amount, now), amount));
                    }
                    Held::Charge(amount) => {
                        meter.take(&rate, small_amount(amount, rate.amount), now);
                    }
                    Held::Settle(call, used) if !open.is_empty() => {
                        let (taken_at, reserved) = open.remove(call.index(open.len()));
                        let refund = used.index(reserved as usize + 1) as u64;
                        meter.settle(&rate, taken_at, reserved, refund);
                    }
                    Held::Settle(..) => {}
                }
                let mut settled = meter.clone();
                for &(taken_at, reserved) in &open {
                    settled.settle(&rate, taken_at, reserved, reserved);
                }
                for amount in [1, rate.amount.div_ceil(2), rate.amount] {
                    let wait = meter.settled_wait(&rate, amount, now);
                    prop_assert_eq!(wait, settled.wait(&rate, amount, now), "{:?}", kind);
                    prop_assert!(wait <= meter.wait(&rate, amount, now));
                }
                prop_assert!(!settled.has_unsettled());
            }
        }
    }
}
