use tower_llm_core::{Failure, Operation, Provider};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn limit_of(rules: Adaptive, limit: usize) -> Aimd {
    Aimd::new(rules.check().expect("good rules"), limit)
}

/// So many good signs, with all permits in use.
fn succeed(aimd: &mut Aimd, times: usize) -> usize {
    let now = Instant::now();
    for _ in 0..times {
        aimd.observe(Sign::Good, aimd.limit, now);
    }
    aimd.limit
}

#[test]
fn as_many_good_signs_as_the_limit_raise_it_by_one() {
    let mut aimd = limit_of(Adaptive::on_throttling(), 10);
    assert_eq!(succeed(&mut aimd, 9), 10);
    assert_eq!(succeed(&mut aimd, 1), 11);
    assert_eq!(succeed(&mut aimd, 10), 11);
    assert_eq!(succeed(&mut aimd, 1), 12);
}

#[test]
fn a_limit_that_is_not_half_in_use_is_not_raised() {
    for (limit, idle, busy) in [(10, 4, 5), (11, 5, 6), (1, 0, 1)] {
        let mut aimd = limit_of(Adaptive::on_throttling(), limit);
        let now = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(aimd.observe(Sign::Good, idle, now), limit);
        }
        for _ in 1..limit {
            assert_eq!(aimd.observe(Sign::Good, busy, now), limit);
        }
        assert_eq!(aimd.observe(Sign::Good, busy, now), limit + 1);
    }
}

#[test]
fn a_bad_sign_cuts_at_most_once_in_the_interval() {
    let begin = Instant::now();
    for (rules, interval, limits) in [
        (Adaptive::on_throttling(), 10, [90, 81, 72]),
        (Adaptive::on_first_token(SECOND), 30, [80, 64, 51]),
    ] {
        let mut aimd = limit_of(rules, 100);
        for (i, limit) in (0..).zip(limits) {
            let at = begin + i * interval * SECOND;
            assert_eq!(aimd.observe(Sign::Bad, 100, at), limit);
            let just_before = at + interval * SECOND - Duration::from_nanos(1);
            assert_eq!(aimd.observe(Sign::Bad, 100, just_before), limit);
        }
    }
}

#[test]
fn a_cut_restarts_the_count_and_other_bad_signs_do_not() {
    let mut aimd = limit_of(Adaptive::on_throttling(), 10);
    let now = Instant::now();
    succeed(&mut aimd, 9);
    assert_eq!(aimd.observe(Sign::Bad, 10, now), 9);
    assert_eq!(succeed(&mut aimd, 8), 9);
    assert_eq!(aimd.observe(Sign::Bad, 9, now), 9);
    assert_eq!(succeed(&mut aimd, 1), 10);
}

#[test]
fn the_limit_stays_between_floor_and_ceiling() {
    let rules = Adaptive::on_throttling().floor(3).ceiling(12);
    let mut aimd = limit_of(rules, 10);
    assert_eq!(succeed(&mut aimd, 10_000), 12);
    let begin = Instant::now();
    for i in 0..100 {
        let limit = aimd.observe(Sign::Bad, 12, begin + i * 10 * SECOND);
        assert!((3..12).contains(&limit));
    }
    assert_eq!(aimd.limit, 3);

    // Down to one, and up again.
    let mut aimd = limit_of(Adaptive::on_throttling(), 1);
    assert_eq!(aimd.observe(Sign::Bad, 1, begin), 1);
    assert_eq!(succeed(&mut aimd, 1), 2);
}

#[test]
fn every_cut_of_a_limit_over_the_floor_lowers_it() {
    let now = Instant::now();
    for limit in [2, 3, 10, 1_000, 4_294_967_295] {
        let rules = Adaptive::on_throttling().ceiling(MAX_LIMIT);
        let mut aimd = limit_of(rules.cut_factor(1.0 - f64::EPSILON), limit);
        assert!(aimd.observe(Sign::Bad, limit, now) < limit, "{limit}");
    }
}

#[test]
fn a_clock_that_went_back_does_not_cut_twice() {
    let mut aimd = limit_of(Adaptive::on_throttling(), 100);
    let later = Instant::now() + 100 * SECOND;
    assert_eq!(aimd.observe(Sign::Bad, 100, later), 90);
    assert_eq!(aimd.observe(Sign::Bad, 100, later - 50 * SECOND), 90);
}

#[test]
fn a_limit_that_is_set_restarts() {
    let mut aimd = limit_of(Adaptive::on_throttling(), 100);
    let now = Instant::now();
    aimd.observe(Sign::Bad, 100, now);
    succeed(&mut aimd, 5);
    aimd.reset(7);
    assert_eq!(succeed(&mut aimd, 6), 7);
    assert_eq!(aimd.observe(Sign::Bad, 7, now), 6);
}

#[test]
fn refusals_by_the_provider_are_bad_and_its_answers_good() {
    let rules = Adaptive::on_throttling();
    let says = |outcome| rules.end(&Completion::new(outcome), Some(1_000 * SECOND));
    let long = Some(3_600 * SECOND);
    for bad in [
        Outcome::Throttled { retry_after: None },
        Outcome::Throttled { retry_after: long },
        Outcome::Overloaded { retry_after: None },
    ] {
        assert_eq!(says(bad), Some(Sign::Bad));
    }
    assert_eq!(says(Outcome::Success), Some(Sign::Good));
    for neither in [
        Outcome::Exhausted,
        Outcome::ClientError,
        Outcome::Refused,
        Outcome::Abandoned,
        Outcome::Superseded,
        Outcome::Failed(Failure::Timeout),
    ] {
        assert_eq!(says(neither), None, "{neither:?}");
    }
    assert_eq!(rules.first_token(1_000 * SECOND), None);
}

#[test]
fn a_first_token_is_good_by_the_target_and_bad_after_it() {
    let rules = Adaptive::on_first_token(5 * SECOND);
    let nanosecond = Duration::from_nanos(1);
    assert_eq!(rules.first_token(5 * SECOND), Some(Sign::Good));
    assert_eq!(rules.first_token(5 * SECOND + nanosecond), Some(Sign::Bad));

    for outcome in [Outcome::Success, Outcome::Abandoned] {
        let says = |silent| rules.end(&Completion::new(outcome), silent);
        assert_eq!(says(None), None);
        assert_eq!(says(Some(5 * SECOND)), None);
        assert_eq!(says(Some(5 * SECOND + nanosecond)), Some(Sign::Bad));
    }
}

#[test]
fn only_streams_are_asked_when_they_began() {
    let call = |streamed| {
        let call = Call::builder(Provider::OPENAI, Operation::CHAT);
        call.streamed(streamed).build()
    };
    let asks = |rules: Adaptive, call: Option<&Call>| rules.silence_of(call).is_some();
    assert!(asks(Adaptive::on_first_token(SECOND), Some(&call(true))));
    assert!(!asks(Adaptive::on_first_token(SECOND), Some(&call(false))));
    assert!(!asks(Adaptive::on_first_token(SECOND), None));
    assert!(!asks(Adaptive::on_throttling(), Some(&call(true))));
}
