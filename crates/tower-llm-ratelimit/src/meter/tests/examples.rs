//! An example for each rule, on both sides of its boundary.

use super::*;

fn minute(amount: u64) -> Rate {
    Rate::new(amount, amount, Duration::from_secs(60))
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn whichever_of_two_calls_ends_first_both_get_back_what_they_did_not_use() {
    let rate = minute(60);
    for first in [0, 1] {
        let mut bucket = Meter::new(Kind::Bucket);
        let taken_at = [20, 40].map(|amount| bucket.take(&rate, amount, at(0)));
        let amounts = [20, 40];
        for call in [first, 1 - first] {
            bucket.give_back(&rate, taken_at[call], amounts[call]);
        }
        assert_eq!(bucket.remaining(&rate, at(0)), 60, "{first}");
    }
}

#[test]
fn a_long_call_gets_back_what_it_did_not_use_from_a_bucket_that_others_keep_full() {
    let (mut bucket, rate) = (Meter::new(Kind::Bucket), minute(60));
    let long = bucket.take(&rate, 30, at(0));
    bucket.take(&rate, 30, at(0));
    bucket.take(&rate, 30, at(30 * SECOND));
    bucket.take(&rate, 30, at(60 * SECOND));
    assert_eq!(bucket.remaining(&rate, at(60 * SECOND)), 0);
    // Without it, thirty would have been available all the time.
    bucket.give_back(&rate, long, 30);
    assert_eq!(bucket.remaining(&rate, at(60 * SECOND)), 30);
}

#[test]
fn a_call_of_the_instant_in_which_a_refund_empties_the_bucket_gets_nothing_back_from_the_next() {
    let (mut bucket, rate) = (Meter::new(Kind::Bucket), minute(60));
    let early = bucket.take(&rate, 30, at(0));
    let wiped = bucket.take(&rate, 10, at(20 * SECOND));
    // Of the 40 that were taken, 20 have leaked: the refund of 30 takes what the other call took with it.
    bucket.give_back(&rate, early, 30);
    assert_eq!(bucket.remaining(&rate, at(20 * SECOND)), 60);
    let next = bucket.take(&rate, 60, at(20 * SECOND));
    bucket.give_back(&rate, wiped, 10);
    assert_eq!(bucket.remaining(&rate, at(20 * SECOND)), 0);
    bucket.give_back(&rate, next, 60);
    assert_eq!(bucket.remaining(&rate, at(20 * SECOND)), 60);
}

#[test]
fn a_leaked_amount_is_not_given_back_from_later_calls() {
    let (mut bucket, rate) = (Meter::new(Kind::Bucket), minute(60));
    let first = bucket.take(&rate, 60, at(0));
    let second = bucket.take(&rate, 60, at(60 * SECOND));
    bucket.give_back(&rate, first, 60);
    assert_eq!(bucket.remaining(&rate, at(60 * SECOND)), 0);
    assert_eq!(bucket.wait(&rate, 1, at(60 * SECOND)), SECOND);
    bucket.give_back(&rate, second, 60);
    assert_eq!(bucket.remaining(&rate, at(60 * SECOND)), 60);
}

#[test]
fn a_slice_expires_when_the_thirteenth_after_it_begins() {
    let (mut window, rate) = (Meter::new(Kind::Window), minute(10));
    // Slices are five seconds long: taken at the very end of the first, and at its beginning.
    for taken_at in [5 * SECOND - 1, 0] {
        let mut window = window.clone();
        window.take(&rate, 10, at(taken_at));
        assert_eq!(window.wait(&rate, 1, at(taken_at)), 65 * SECOND - taken_at);
        assert_eq!(window.wait(&rate, 1, at(65 * SECOND - 1)), 1);
        assert_eq!(window.wait(&rate, 10, at(65 * SECOND)), 0);
    }
    window.take(&rate, 10, at(5 * SECOND));
    assert_eq!(window.wait(&rate, 1, at(5 * SECOND)), 65 * SECOND);
}

#[test]
fn an_expired_amount_is_not_given_back_to_a_window() {
    let (mut window, rate) = (Meter::new(Kind::Window), minute(10));
    let old = window.take(&rate, 4, at(0));
    // It uses the same slot now.
    window.take(&rate, 10, at(65 * SECOND));
    window.give_back(&rate, old, 4);
    assert_eq!(window.remaining(&rate, at(65 * SECOND)), 0);
}

#[test]
fn debts_of_any_size_are_waited_for_and_expire() {
    for kind in [Kind::Window, Kind::Wide] {
        let (mut window, rate) = (Meter::new(kind), minute(10));
        let before = window.take(&rate, 5, at(0));
        window.take(&rate, u64::MAX / 4, at(SECOND));
        window.take(&rate, u64::MAX / 4, at(6 * SECOND));
        assert!(window.is_over(&rate, at(6 * SECOND)));
        window.give_back(&rate, before, 5);
        assert_eq!(window.wait(&rate, 1, at(6 * SECOND)), 64 * SECOND);
        assert_eq!(window.wait(&rate, 10, at(70 * SECOND)), 0);
    }
    let (mut bucket, rate) = (Meter::new(Kind::Bucket), minute(1 << 53));
    bucket.take(&rate, u64::MAX, at(0));
    bucket.take(&rate, u64::MAX, at(0));
    assert!(bucket.is_over(&rate, at(0)));
    // 2^65 less two, and one, at 2^53 a minute; a minute of it is the burst.
    let minutes = (1 << 12) - 1;
    assert_eq!(bucket.wait(&rate, 1, at(0)), minutes * 60 * SECOND);
}

#[test]
fn a_clock_that_was_read_earlier_moves_nothing_back() {
    for kind in [Kind::Window, Kind::Wide, Kind::Bucket] {
        let (mut meter, rate) = (Meter::new(kind), minute(60));
        meter.take(&rate, 30, at(100 * SECOND));
        meter.take(&rate, 30, at(20 * SECOND));
        assert_eq!(meter.remaining(&rate, at(100 * SECOND)), 0, "{kind:?}");
        let wait = meter.wait(&rate, 1, at(20 * SECOND));
        assert!(wait > 0, "{kind:?}");
        assert_eq!(meter.remaining(&rate, at(200 * SECOND)), 60, "{kind:?}");
    }
}

#[test]
fn a_call_behind_others_waits_at_least_until_they_fit() {
    let rate = minute(60);
    let mut bucket = Meter::new(Kind::Bucket);
    bucket.take(&rate, 60, at(0));
    assert_eq!(bucket.wait_behind(&rate, 0, 10, at(0)), 10 * SECOND);
    assert_eq!(bucket.wait_behind(&rate, 50, 10, at(0)), 60 * SECOND);
    // More than the burst in total.
    assert_eq!(bucket.wait_behind(&rate, 170, 10, at(0)), 180 * SECOND);

    let mut window = Meter::new(Kind::Window);
    window.take(&rate, 30, at(0));
    window.take(&rate, 30, at(30 * SECOND));
    let mut wait = |ahead, amount| window.wait_behind(&rate, ahead, amount, at(30 * SECOND));
    assert_eq!(wait(0, 30), 35 * SECOND);
    assert_eq!(wait(0, 31), 65 * SECOND);
    assert_eq!(wait(29, 1), 35 * SECOND);
    assert_eq!(wait(30, 1), 65 * SECOND);
    // The calls ahead fill the limit once or twice: at least as many periods.
    assert_eq!(wait(60, 1), 60 * SECOND);
    assert_eq!(wait(120, 1), 120 * SECOND);
    assert_eq!(wait(119, 1), 60 * SECOND);
}

mod day {
    use super::*;

    const HOUR: u64 = 3_600 * SECOND;
    const MONDAY: Today = Today {
        number: 1,
        ends_nanos: 2 * HOUR,
    };
    const TUESDAY: Today = Today {
        number: 2,
        ends_nanos: 26 * HOUR,
    };

    fn on(today: Today, nanos: u64) -> Now {
        Now { nanos, today }
    }

    fn daily(amount: u64) -> Rate {
        Rate::new(amount, amount, Duration::from_secs(86_400))
    }

    #[test]
    fn the_whole_amount_is_available_at_midnight_and_nothing_before() {
        let (mut day, rate) = (Meter::new(Kind::Day), daily(100));
        day.take(&rate, 70, on(MONDAY, HOUR));
        assert_eq!(day.remaining(&rate, on(MONDAY, HOUR)), 30);
        assert_eq!(day.wait(&rate, 30, on(MONDAY, HOUR)), 0);
        assert_eq!(day.wait(&rate, 31, on(MONDAY, HOUR)), HOUR);
        assert_eq!(day.wait(&rate, 31, on(MONDAY, 2 * HOUR - 1)), 1);
        assert_eq!(day.full_in(&rate, on(MONDAY, HOUR)), HOUR);
        assert_eq!(day.wait(&rate, 100, on(TUESDAY, 2 * HOUR)), 0);
        assert_eq!(day.full_in(&rate, on(TUESDAY, 2 * HOUR)), 0);
    }

    #[test]
    fn an_amount_of_yesterday_is_not_given_back_today() {
        let (mut day, rate) = (Meter::new(Kind::Day), daily(100));
        let yesterday = day.take(&rate, 60, on(MONDAY, 0));
        day.give_back(&rate, yesterday, 10);
        assert_eq!(day.remaining(&rate, on(MONDAY, 0)), 50);
        let today = day.take(&rate, 80, on(TUESDAY, 2 * HOUR));
        day.give_back(&rate, yesterday, 50);
        assert_eq!(day.remaining(&rate, on(TUESDAY, 2 * HOUR)), 20);
        day.give_back(&rate, today, 80);
        assert_eq!(day.remaining(&rate, on(TUESDAY, 2 * HOUR)), 100);
    }

    #[test]
    fn a_date_read_before_midnight_turns_no_day_back() {
        let (mut day, rate) = (Meter::new(Kind::Day), daily(100));
        day.take(&rate, 60, on(TUESDAY, 2 * HOUR));
        day.take(&rate, 30, on(MONDAY, 2 * HOUR - 1));
        assert_eq!(day.remaining(&rate, on(TUESDAY, 2 * HOUR)), 10);
    }

    #[test]
    fn debt_is_not_carried_into_the_next_day() {
        let (mut day, rate) = (Meter::new(Kind::Day), daily(100));
        day.take(&rate, u64::MAX, on(MONDAY, 0));
        day.take(&rate, u64::MAX, on(MONDAY, 0));
        assert!(day.is_over(&rate, on(MONDAY, 0)));
        assert_eq!(day.wait_behind(&rate, 500, 1, on(MONDAY, 0)), 2 * HOUR);
        assert_eq!(day.remaining(&rate, on(TUESDAY, 2 * HOUR)), 100);
    }
}
