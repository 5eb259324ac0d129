//! Every interleaving of what a pool and a budget share, up to a bound of preemptions.
//!
//! Loom's own cfg would change tokio too, hence another:
//! `RUSTFLAGS="--cfg fanout_loom" cargo test -p tower-llm-fanout --lib --target-dir target/loom loom`

use std::sync::Arc;

use ::loom::{model::Builder, thread};
use tokio::time::Instant;
use tower_llm_core::{Completion, Failure, Guard, Outcome};

use crate::{
    Budget, Pick, Pool, Target,
    pool::model::{Load, Set, Standing, Turns, pick},
};

const FAILED: Completion = Completion::new(Outcome::Failed(Failure::Status));
const SUCCESS: Completion = Completion::new(Outcome::Success);

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Runs both at once, and returns what they return.
fn both<T: 'static>(
    one: impl FnOnce() -> T + 'static,
    other: impl FnOnce() -> T + 'static,
) -> [T; 2] {
    let one = thread::spawn(one);
    let other = other();
    [one.join().unwrap(), other]
}

#[test]
fn of_two_that_want_the_last_extra_call_one_gets_it() {
    model(|| {
        let (budget, now) = (Budget::with_reserve(0.5, 0.0).unwrap(), Instant::now());
        (0..9).for_each(|_| assert!(budget.withdraw(now)));
        let (one, other) = (budget.clone(), budget.clone());
        let [one, other] = both(move || one.withdraw(now), move || other.withdraw(now));
        assert!(one != other);
        assert!(!budget.withdraw(now));
    });
}

#[test]
fn a_reserve_is_given_out_once() {
    model(|| {
        let (budget, now) = (Budget::with_reserve(0.0, 1.0).unwrap(), Instant::now());
        (0..10).for_each(|_| assert!(budget.withdraw(now)));
        let (one, other) = (budget.clone(), budget);
        let [one, other] = both(move || one.withdraw(now), move || other.withdraw(now));
        assert!(one != other);
    });
}

#[test]
fn deposits_and_refunds_fill_a_budget_and_no_more() {
    for refunds in [false, true] {
        model(move || {
            let (budget, now) = (Budget::with_reserve(0.6, 0.0).unwrap(), Instant::now());
            assert!(budget.withdraw(now));
            budget.deposit();
            let (one, other) = (budget.clone(), budget.clone());
            both(
                move || one.deposit(),
                move || match refunds {
                    true => other.refund(),
                    false => other.deposit(),
                },
            );
            // It is full: neither a deposit too many nor one too few.
            (0..10).for_each(|_| assert!(budget.withdraw(now)));
            assert!(!budget.withdraw(now));
        });
    }
}

#[test]
fn calls_that_end_leave_nothing_in_flight_and_a_record_that_all_see() {
    model(|| {
        let (load, now) = (Arc::new(Load::default()), Instant::now());
        let (one, other) = (Arc::clone(&load), Arc::clone(&load));
        both(
            move || {
                let mut call = one.dispatch(None, now);
                call.end(&FAILED);
            },
            move || {
                let mut call = other.dispatch(None, now);
                call.first_token(now);
                call.end(&SUCCESS);
            },
        );
        assert_eq!((load.in_flight(), load.waiting()), (0, 0));
        assert_eq!((load.ended(), load.failed()), (2, 1));
        // A success does not hide a failure after it, nor does the flag hide the record.
        assert_eq!(load.standing(now), load.recorded_standing(now));
    });
}

#[test]
fn two_calls_get_two_turns() {
    model(|| {
        for weighted in [false, true] {
            let turns = Arc::new(Turns::default());
            let (one, other) = (Arc::clone(&turns), Arc::clone(&turns));
            let next = move |turns: Arc<Turns>| match weighted {
                true => turns.next_by_weight([1, 1], &Set::default()),
                false => turns.next(2, &Set::default()),
            };
            let [one, other] = both(move || next(one), move || next(other));
            assert_ne!(one.unwrap(), other.unwrap());
        }
    });
}

#[test]
fn a_pool_that_changes_has_all_its_targets_and_no_other() {
    model(|| {
        let pool = Pool::builder().pick(Pick::round_robin());
        let a = Arc::new(());
        let target = |name: &'static str| Target::new(name, Arc::new(()));
        let pool = pool
            .target(Target::new("a", Arc::clone(&a)))
            .target(target("b"));
        let pool = pool.build().unwrap();
        let (adds, removes) = (pool.clone(), pool.clone());
        let added = thread::spawn(move || adds.add(Target::new("c", Arc::new(()))).unwrap());
        let removed = thread::spawn(move || assert!(removes.remove("a")));
        let now = Instant::now();
        // Whatever has changed by now, there is a target, which is held to the end of its call.
        let picked = pick(&pool, now).unwrap();
        let call = picked.load.dispatch(None, now);
        added.join().unwrap();
        removed.join().unwrap();
        assert_eq!(picked.load.in_flight(), 1);
        drop(call);
        assert_eq!(picked.load.in_flight(), 0);
        drop(picked);
        let mut names: Vec<_> = pool.stats().into_iter().map(|target| target.name).collect();
        names.sort_unstable();
        assert_eq!(names, ["b".into(), "c".into()] as [Arc<str>; 2]);
        assert_eq!(
            Arc::strong_count(&a),
            1,
            "the target that was taken out is dropped"
        );
    });
}

#[test]
fn a_target_is_passed_over_as_soon_as_its_failure_is_known() {
    model(|| {
        let (load, now) = (Arc::new(Load::default()), Instant::now());
        let other = Arc::clone(&load);
        let failed = thread::spawn(move || other.dispatch(None, now).end(&FAILED));
        let seen = load.standing(now);
        assert!(matches!(seen, Standing::Good | Standing::Penalised(_)));
        failed.join().unwrap();
        assert!(matches!(load.standing(now), Standing::Penalised(_)));
    });
}
