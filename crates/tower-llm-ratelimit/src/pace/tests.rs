//! What was told, and what it lets through.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn requests(limit: u64, remaining: u64, full_in: Option<Duration>) -> Told {
    let period = None;
    let requests = Standing {
        limit,
        remaining,
        full_in,
        period,
    };
    Told {
        requests: Some(requests),
        ..Told::default()
    }
}

fn one() -> Cost {
    crate::cost::tests::request()
}

/// How many calls are let through at `now`, none of which is answered.
fn let_through(pace: &Pace, now: u64) -> u64 {
    let mut pace = pace.clone();
    let calls = std::iter::from_fn(|| {
        let may = pace.wait(&one(), now).0 == 0;
        may.then(|| pace.take(&one(), now))
    });
    calls.take(10_000).count() as u64
}

#[test]
fn nothing_is_held_up_before_anything_was_told() {
    let mut pace = Pace::default();
    assert_eq!(pace.wait(&one(), 0), (0, None));
    assert!(pace.is_over(0));
    pace.close_until(0);
    assert!(pace.is_over(0));
}

#[test]
fn nothing_passes_before_the_later_of_two_times() {
    let mut pace = Pace::default();
    for until in [3, 7, 5] {
        pace.close_until(until * SECOND);
    }
    assert_eq!(pace.wait(&one(), SECOND), (6 * SECOND, None));
    assert_eq!(pace.wait(&one(), 7 * SECOND - 1), (1, None));
    assert!(!pace.is_over(7 * SECOND - 1));
    assert_eq!(pace.wait(&one(), 7 * SECOND), (0, None));
    assert!(pace.is_over(7 * SECOND));
    pace.close_until(u64::MAX);
    assert_eq!(pace.wait(&one(), SECOND), (u64::MAX - SECOND, None));
}

#[test]
fn it_fills_up_as_it_was_told_and_is_over_when_it_is_full() {
    let mut pace = Pace::default();
    let mark = pace.take(&one(), 0);
    let told = requests(100, 60, Some(Duration::from_secs(20)));
    pace.answered(&one(), mark, &told, 0);
    assert_eq!(let_through(&pace, 0), 60);
    // Forty are missing, which come within twenty seconds.
    assert_eq!(let_through(&pace, 10 * SECOND), 80);
    assert!(!pace.is_over(20 * SECOND - 1));
    assert!(pace.is_over(20 * SECOND));
    assert_eq!(let_through(&pace, 20 * SECOND), 100);
}

proptest! {
    /// The provider counts exactly, answers in any order, and nobody else uses the account: it never has to refuse.
    ///
    /// It only looks when a whole call has come back. A part of one is missing from what remains and not from the time
    /// until it is full, and makes the limit seem to fill up faster than it does until the next answer.
    #[test]
    fn a_provider_that_tells_its_limit_is_never_sent_more_than_that(
        limit in prop::sample::select(vec![1_u64, 2, 5, 12, 60]),
        steps in prop::collection::vec((any::<bool>(), 0..5_usize, 0..4_u64), 1..200),
    ) {
        let rate = Rate::new(limit, limit, MINUTE);
        let (mut pace, mut provider, mut now) = (Pace::default(), Bucket::default(), 0);
        let mut under_way = Vec::new();
        // It tells the first call alone, as if all others had waited for it.
        let mark = pace.take(&one(), now);
        provider.take(&rate, 1, now);
        let tell = |provider: &mut Bucket, now| {
            let full_in = Duration::from_nanos(provider.full_in(&rate, now));
            requests(limit, provider.remaining(&rate, now), Some(full_in))
        };
        pace.answered(&one(), mark, &tell(&mut provider, now), now);
        for (sends, which, gap) in steps {
            now += gap * (60 * SECOND / limit);
            if sends && pace.wait(&one(), now).0 == 0 {
                prop_assert_eq!(provider.wait(&rate, 1, now), 0, "it would be refused");
                provider.take(&rate, 1, now);
                let told = tell(&mut provider, now);
                under_way.push((pace.take(&one(), now), told));
            } else if which < under_way.len() {
                let (mark, told) = under_way.swap_remove(which);
                pace.answered(&one(), mark, &told, now);
            }
        }
    }
}
