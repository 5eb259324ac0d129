//! What was reported, and which calls that admits.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn requests(limit: u64, remaining: u64, full_in: Option<Duration>) -> ProviderHeaders {
    let period = None;
    let requests = LimitStatus {
        limit,
        remaining,
        full_in,
        period,
    };
    ProviderHeaders {
        requests: Some(requests),
        ..ProviderHeaders::default()
    }
}

fn one() -> Amounts {
    crate::pricing::tests::request()
}

fn wait(budget: &mut ProviderBudget, now: u64) -> (u64, Option<Unit>) {
    let wait = budget.wait(&crate::pricing::tests::of_a_request(), now);
    wait.map_or((0, None), |wait| (wait.nanos, wait.unit))
}

/// Admits a call whose response arrives at once and reports what remains of ten, which refill in 100 s.
fn asks(budget: &mut ProviderBudget, remaining: u64, now: u64) {
    let call = budget.take(&one(), now);
    tells(budget, call, remaining, now);
}

fn tells(budget: &mut ProviderBudget, call: InFlight, remaining: u64, now: u64) {
    let full_in = Duration::from_secs(10 * (10 - remaining));
    budget.answered(&one(), call, &requests(10, remaining, Some(full_in)), now);
}

/// Admits `calls` calls, which stay in flight.
fn inside(budget: &mut ProviderBudget, calls: u64, now: u64) -> Vec<InFlight> {
    (0..calls).map(|_| budget.take(&one(), now)).collect()
}

fn never_sent(budget: &mut ProviderBudget, calls: Vec<InFlight>, now: u64) {
    for call in calls {
        budget.never_sent(&one(), call, || now);
    }
}

/// How many calls are admitted at `now` without any response.
fn admitted(budget: &ProviderBudget, now: u64) -> u64 {
    let mut budget = budget.clone();
    let calls = std::iter::from_fn(|| {
        let may = wait(&mut budget, now).0 == 0;
        may.then(|| budget.take(&one(), now))
    });
    calls.take(10_000).count() as u64
}

#[test]
fn no_call_is_blocked_before_a_report() {
    let mut budget = ProviderBudget::default();
    assert_eq!(wait(&mut budget, 0), (0, None));
    assert!(budget.is_over(0));
    budget.close_until(0);
    assert!(budget.is_over(0));
}

#[test]
fn no_call_is_admitted_before_the_later_of_two_times() {
    let mut budget = ProviderBudget::default();
    for until in [3, 7, 5] {
        budget.close_until(until * SECOND);
    }
    assert_eq!(wait(&mut budget, SECOND), (6 * SECOND, None));
    assert_eq!(wait(&mut budget, 7 * SECOND - 1), (1, None));
    assert!(!budget.is_over(7 * SECOND - 1));
    assert_eq!(wait(&mut budget, 7 * SECOND), (0, None));
    assert!(budget.is_over(7 * SECOND));
    budget.close_until(u64::MAX);
    assert_eq!(wait(&mut budget, SECOND), (u64::MAX - SECOND, None));
}

#[test]
fn a_budget_refills_as_reported_and_expires_when_full() {
    let mut budget = ProviderBudget::default();
    let call = budget.take(&one(), 0);
    let reported = requests(100, 60, Some(Duration::from_secs(20)));
    budget.answered(&one(), call, &reported, 0);
    assert_eq!(admitted(&budget, 0), 60);
    // Forty are used, which refill within twenty seconds.
    assert_eq!(admitted(&budget, 10 * SECOND), 80);
    assert!(!budget.is_over(20 * SECOND - 1));
    assert!(budget.is_over(20 * SECOND));
    assert_eq!(admitted(&budget, 20 * SECOND), 100);
}

#[test]
fn an_earlier_unsent_call_gives_back_nothing_of_the_report() {
    let mut budget = ProviderBudget::default();
    asks(&mut budget, 10, 0);
    let shed = inside(&mut budget, 5, 0);
    // Other users of the account have used up the rest.
    asks(&mut budget, 0, 0);
    never_sent(&mut budget, shed, 5 * SECOND);
    assert_eq!(admitted(&budget, 10 * SECOND - 1), 0);
    assert_eq!(admitted(&budget, 10 * SECOND), 1);
}

#[test]
fn an_earlier_unsent_call_gives_back_what_it_was_charged() {
    // Before any report, none of the three counts as included; after one, as many as were counted here beyond the report.
    for (is_known, held) in [(false, 3), (true, 1)] {
        let mut budget = ProviderBudget::default();
        if is_known {
            asks(&mut budget, 10, 0);
        }
        let shed = inside(&mut budget, 3, 0);
        asks(&mut budget, 7, 0);
        assert_eq!(admitted(&budget, 0), 7 - held);
        never_sent(&mut budget, shed, 0);
        assert_eq!(admitted(&budget, 0), 7);
    }
}

#[test]
fn a_later_unsent_call_gives_back_everything() {
    let mut budget = ProviderBudget::default();
    asks(&mut budget, 10, 0);
    let earlier = inside(&mut budget, 2, 0);
    asks(&mut budget, 5, 0);
    // The local count is lower than the report: the two calls are not charged again.
    let later = inside(&mut budget, 5, 0);
    assert_eq!(admitted(&budget, 0), 0);
    never_sent(&mut budget, earlier, 0);
    assert_eq!(admitted(&budget, 0), 0);
    never_sent(&mut budget, later, 0);
    assert_eq!(admitted(&budget, 0), 5);
}

#[test]
fn a_call_whose_amount_has_leaked_gives_back_nothing_of_later_calls() {
    let mut budget = ProviderBudget::default();
    asks(&mut budget, 9, 0);
    let shed = inside(&mut budget, 4, 0);
    // It is full again after fifty seconds.
    drop(inside(&mut budget, 10, 50 * SECOND));
    never_sent(&mut budget, shed, 50 * SECOND);
    assert_eq!(admitted(&budget, 50 * SECOND), 0);
}

#[test]
fn the_last_of_two_reports_stays_taken_if_earlier_calls_were_unsent() {
    let mut budget = ProviderBudget::default();
    asks(&mut budget, 10, 0);
    let first = inside(&mut budget, 4, 0);
    asks(&mut budget, 2, 0);
    let second = inside(&mut budget, 2, 0);
    // Two that were taken before have refilled.
    asks(&mut budget, 3, 20 * SECOND);
    let third = inside(&mut budget, 1, 20 * SECOND);
    assert_eq!(admitted(&budget, 20 * SECOND), 0);
    never_sent(&mut budget, first, 20 * SECOND);
    never_sent(&mut budget, second, 20 * SECOND);
    assert_eq!(admitted(&budget, 20 * SECOND), 2);
    never_sent(&mut budget, third, 20 * SECOND);
    assert_eq!(admitted(&budget, 20 * SECOND), 3);
}

#[test]
fn the_report_of_an_earlier_call_does_not_lower_that_of_a_later_one() {
    for remaining in [3, 9] {
        let mut budget = ProviderBudget::default();
        asks(&mut budget, 10, 0);
        let shed = inside(&mut budget, 4, 0);
        let early = budget.take(&one(), 0);
        asks(&mut budget, 3, 0);
        tells(&mut budget, early, remaining, 0);
        never_sent(&mut budget, shed, 0);
        assert_eq!(admitted(&budget, 0), 3);
    }
    // The provider can only have counted it after the later one.
    let mut budget = ProviderBudget::default();
    asks(&mut budget, 10, 0);
    let shed = inside(&mut budget, 4, 0);
    let early = budget.take(&one(), 0);
    asks(&mut budget, 3, 0);
    tells(&mut budget, early, 0, 0);
    never_sent(&mut budget, shed, 0);
    assert_eq!(admitted(&budget, 0), 0);
}

#[test]
fn a_report_stays_taken_at_another_rate_and_limit() {
    let mut budget = ProviderBudget::default();
    asks(&mut budget, 10, 0);
    let call = budget.take(&one(), 0);
    let shed = inside(&mut budget, 5, 0);
    let reported = requests(20, 4, Some(Duration::from_secs(16)));
    budget.answered(&one(), call, &reported, 0);
    never_sent(&mut budget, shed, 0);
    assert_eq!(admitted(&budget, 0), 4);
    assert_eq!(admitted(&budget, 3 * SECOND), 7);
}

#[test]
fn the_numbers_of_calls_wrap_around() {
    for before in 0..8 {
        let number = u32::MAX - before;
        let mut budget = ProviderBudget {
            admitted: Counter([number; 4]),
            answered: Counter([number; 4]),
            last_reported: number,
            ..ProviderBudget::default()
        };
        asks(&mut budget, 10, 0);
        let earlier = inside(&mut budget, 2, 0);
        asks(&mut budget, 3, 0);
        let later = inside(&mut budget, 2, 0);
        never_sent(&mut budget, earlier, 0);
        assert_eq!(admitted(&budget, 0), 1, "{number}");
        never_sent(&mut budget, later, 0);
        assert_eq!(admitted(&budget, 0), 3, "{number}");
    }
}

proptest! {
    /// If the provider counts exactly, answers in any order, and the account has no other users, it never has to refuse.
    ///
    /// Reports are taken only when whole calls have refilled. A part of a call lowers what remains but not the time until
    /// it is full, so the limit would seem to refill faster than it does, until the next report.
    #[test]
    fn a_provider_that_tells_its_limit_is_never_sent_more_than_that(
        limit in prop::sample::select(vec![1_u64, 2, 5, 12, 60]),
        steps in prop::collection::vec((any::<bool>(), 0..5_usize, 0..4_u64), 1..200),
    ) {
        let rate = Rate::new(limit, limit, MINUTE);
        let (mut budget, mut provider, mut now) = (ProviderBudget::default(), Bucket::default(), 0);
        let mut under_way = Vec::new();
        // It reports to the first call alone, as if all others had waited for it.
        let call = budget.take(&one(), now);
        provider.take(&rate, 1, now);
        let tell = |provider: &mut Bucket, now| {
            let full_in = Duration::from_nanos(provider.full_in(&rate, now));
            requests(limit, provider.remaining(&rate, now), Some(full_in))
        };
        budget.answered(&one(), call, &tell(&mut provider, now), now);
        for (sends, which, gap) in steps {
            now += gap * (60 * SECOND / limit);
            if sends && wait(&mut budget, now).0 == 0 {
                prop_assert_eq!(provider.wait(&rate, 1, now), 0, "it would be refused");
                provider.take(&rate, 1, now);
                let reported = tell(&mut provider, now);
                under_way.push((budget.take(&one(), now), reported));
            } else if which < under_way.len() {
                let (call, reported) = under_way.swap_remove(which);
                budget.answered(&one(), call, &reported, now);
            }
        }
    }
}
