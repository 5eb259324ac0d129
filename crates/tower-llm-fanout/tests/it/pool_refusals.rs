//! Branches that were never sent: they cost nothing, and do not stand in the way of others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::sleep;
use tower::{Layer, ServiceExt};
use tower_llm_core::{Availability, Unary, Unsent};
use tower_llm_fanout::{Arrived, Budget, Delay, FanoutLayer, Pick, Pool, Target, Verdict};
use tower_llm_ratelimit::{Limit, RateLimitLayer};

use crate::{
    pool_support::{Behaves, FAILED, Site, answers, ask, prompt, sites, typed},
    support::MS,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_branch_that_was_refused_leaves_its_place_to_the_next_one() {
    let sites = sites::<3>();
    sites[..2]
        .iter()
        .for_each(|site| site.behave(Behaves::Refuses(SECOND)));
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    // Nothing extra is sent, so none of the ten that are saved up at first is used.
    let budget = Budget::with_reserve(0.0, 0.0).unwrap();
    let failover = typed(FanoutLayer::failover(2).budget(budget));
    assert_eq!(answers(&failover, &pool, 30).await, "c".repeat(30));
    assert_eq!(failover.stats().refused_by_budget, 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_found_no_target_does_not_rule_out_a_failover() {
    let (sites, is_open) = (sites::<2>(), Arc::new(AtomicBool::new(false)));
    sites[0].behave(Behaves::Fails(FAILED, 300 * MS));
    let opens = Arc::clone(&is_open);
    let second = sites[1]
        .target()
        .availability(move |_| match opens.load(Relaxed) {
            true => Availability::Now,
            false => Availability::Unknown,
        });
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .target(sites[0].target())
        .target(second)
        .build()
        .unwrap();
    let hedge = typed(FanoutLayer::hedge(Delay::fixed(100 * MS)));
    let opening = async {
        sleep(200 * MS).await;
        is_open.store(true, Relaxed);
    };
    let (answer, ()) = tokio::join!(ask(&hedge, &pool), opening);
    assert_eq!(answer.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn what_one_account_can_never_take_another_one_may() {
    let [small, large] = sites::<2>();
    let limit = |tokens| {
        let limit = Limit::tokens(tokens).per_minute();
        let layer = RateLimitLayer::for_providers().limit(limit);
        layer.watch(Unary).build().unwrap()
    };
    // The pool looks at neither limit.
    let targets = [
        Target::new("small", limit(1_000).layer(small)),
        Target::new("large", limit(1_000_000).layer(large)),
    ];
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .targets(targets)
        .build()
        .unwrap();
    let mut prompt = prompt();
    prompt.0 = prompt.0.to_builder().input_tokens(50_000).build();
    let answer = typed(FanoutLayer::failover(1))
        .across(&pool)
        .oneshot(prompt)
        .await;
    assert_eq!(answer.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_call_of_which_nothing_was_sent_ends_as_unsent() {
    let [site] = sites::<1>();
    site.behave(Behaves::Refuses(SECOND));
    let pool = Pool::builder().target(site.target()).build().unwrap();
    let waits = |_: &Arrived<_>| Verdict::SoftAfter(SECOND);
    let layer = FanoutLayer::failover(1)
        .watch(Unary)
        .classify(waits)
        .build()
        .unwrap();
    let mut call = Box::pin(layer.across(&pool).oneshot(prompt()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        matches!(call.as_mut().poll(&mut cx), Poll::Pending),
        "it waits for a second"
    );
    assert!(Unsent::while_dropping(|| drop(call)));
}
