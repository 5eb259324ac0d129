//! Calls to a pool: where they go, and what happens if they can go nowhere.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_llm_breaker::BreakerLayer;
use tower_llm_core::{
    Availability, Call, Completion, Entry, Gate, GateLayer, Operation, Outcome, Provider, Refusal,
    RefusalKind, Unary,
};
use tower_llm_fanout::{Budget, Delay, FanoutLayer, NoTarget, Pick, Pool, Target};
use tower_llm_ratelimit::{Limit, RateLimitLayer};

use crate::{
    pool_support::{Behaves, FAILED, Site, answers, ask, prompt, sites, typed},
    support::MS,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_call_fails_over_to_each_target_once() {
    let sites = sites::<4>();
    sites[..3]
        .iter()
        .for_each(|site| site.behave(Behaves::Fails(FAILED, 5 * MS)));
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    let began_at = Instant::now();
    let failover = typed(FanoutLayer::failover(9));
    assert_eq!(ask(&failover, &pool).await.unwrap(), "d");
    // Another target needs no backoff.
    assert_eq!(began_at.elapsed(), 25 * MS);
    assert_eq!(sites.each_ref().map(Site::count), [1; 4]);

    sites[3].behave(Behaves::Fails(FAILED, 5 * MS));
    ask(&failover, &pool).await.unwrap_err();
    assert_eq!(sites.each_ref().map(Site::count), [2; 4]);
}

#[tokio::test(start_paused = true)]
async fn if_no_target_can_the_call_is_refused_at_once_with_the_earliest_time() {
    let sites = sites::<3>();
    let closed = [
        Availability::After(7 * SECOND),
        Availability::After(3 * SECOND),
        Availability::Unknown,
    ];
    let targets = sites.iter().zip(closed);
    let targets = targets.map(|(site, closed)| site.target().availability(move |_| closed));
    let pool = Pool::builder().targets(targets).build().unwrap();
    for builder in [
        FanoutLayer::failover(2),
        FanoutLayer::race(3),
        FanoutLayer::failover(0),
    ] {
        let (began_at, layer) = (Instant::now(), typed(builder));
        let error = ask(&layer, &pool).await.unwrap_err();
        assert_eq!(began_at.elapsed(), Duration::ZERO);
        assert_eq!((layer.stats().calls, layer.stats().extra), (1, 0));
        let none: &NoTarget = error.downcast_ref().unwrap();
        assert_eq!((none.retry_after(), none.targets()), (Some(3 * SECOND), 3));
        let refusal = Refusal::find(&*error).unwrap();
        assert_eq!(refusal.kind(), RefusalKind::Unavailable);
        assert!(refusal.is_retryable());
        assert_eq!(Completion::of_error(&*error).outcome, Outcome::Refused);
    }
    assert_eq!(sites.each_ref().map(Site::count), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn targets_with_open_circuits_are_passed_over_until_they_close() {
    let sites = sites::<3>();
    let breakers = sites.each_ref().map(|_| {
        let breaker = BreakerLayer::builder()
            .failure_threshold(2)
            .open_for(10 * SECOND);
        breaker.watch(Unary).build().unwrap()
    });
    let targets = sites.iter().zip(&breakers).zip(["a", "b", "c"]);
    let targets = targets.map(|((site, breaker), name)| {
        Target::new(name, breaker.layer(site.clone())).gate(breaker.gate())
    });
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .targets(targets)
        .build()
        .unwrap();
    let service = typed(FanoutLayer::failover(2)).across(&pool);
    let call = || service.clone().oneshot(prompt());

    // The first one is tried twice, and then left alone.
    sites[0].behave(Behaves::Fails(FAILED, MS));
    for _ in 0..20 {
        assert_eq!(call().await.unwrap(), "b");
    }
    assert_eq!(sites.each_ref().map(Site::count), [2, 20, 0]);

    sites
        .iter()
        .for_each(|site| site.behave(Behaves::Fails(FAILED, MS)));
    for _ in 0..2 {
        call().await.unwrap_err();
    }
    let began_at = Instant::now();
    let error = call().await.unwrap_err();
    assert_eq!(began_at.elapsed(), Duration::ZERO);
    assert_eq!(sites.each_ref().map(Site::count), [2, 22, 2]);
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.kind(), refusal.layer()),
        (RefusalKind::Unavailable, "fanout")
    );

    // It says when the first of them is probed; each is open for a random time around 10 s.
    let prompt = prompt();
    let entry = Entry::new(&prompt, false);
    let opens = breakers
        .iter()
        .map(|breaker| breaker.gate().would_admit(&entry));
    let retry_after = refusal.retry_after().unwrap();
    assert_eq!(opens.min(), Some(Availability::After(retry_after)));
    sites
        .iter()
        .for_each(|site| site.behave(Behaves::Answers(MS)));
    tokio::time::advance(retry_after).await;
    call().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_no_target_will_ever_take_is_not_to_be_retried() {
    let site = sites::<2>();
    let never = |site: &Site| site.target().availability(|_| Availability::Never);
    let pool = Pool::builder()
        .targets(site.iter().map(never))
        .build()
        .unwrap();
    let error = ask(&typed(FanoutLayer::failover(1)), &pool)
        .await
        .unwrap_err();
    assert!(!Refusal::find(&*error).unwrap().is_retryable());
}

#[tokio::test(start_paused = true)]
async fn an_account_at_its_limit_is_passed_over_and_nothing_queues() {
    let [one, two] = sites::<2>();
    // Both queue calls for up to half a minute.
    let limit = |requests| {
        let layer = RateLimitLayer::for_providers().limit(Limit::requests(requests).per_minute());
        layer.max_wait(30 * SECOND).watch(Unary).build().unwrap()
    };
    let (limit_one, limit_two) = (limit(5), limit(1_000));
    let stacks = [(&one, &limit_one, "1"), (&two, &limit_two, "2")];
    let targets = stacks.map(|(site, limit, account)| {
        Target::new(account, limit.layer(site.clone())).limit(limit.gate())
    });
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .targets(targets)
        .build()
        .unwrap();
    let service = typed(FanoutLayer::failover(0)).across(&pool);

    let began_at = Instant::now();
    let calls = join_all((0..100).map(|_| service.clone().oneshot(prompt()))).await;
    assert_eq!(began_at.elapsed(), 10 * MS);
    assert_eq!(calls.iter().filter(|call| call.is_ok()).count(), 100);
    assert_eq!((one.count(), two.count()), (5, 95));

    // When both are at their limits, the refusal is one of a rate limit.
    let calls = join_all((0..1_000).map(|_| service.clone().oneshot(prompt()))).await;
    assert_eq!(began_at.elapsed(), 20 * MS);
    assert_eq!(calls.iter().filter(|call| call.is_ok()).count(), 905);
    let error = calls.into_iter().find_map(Result::err).unwrap();
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(refusal.kind(), RefusalKind::RateLimited);
    assert!(error.is::<NoTarget>() && refusal.retry_after().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_after_the_look_is_failed_over_and_costs_no_budget() {
    let sites = sites::<3>();
    sites[0].behave(Behaves::Fails(FAILED, MS));
    sites[1].behave(Behaves::Refuses(SECOND));
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    // Each call pays for one extra branch. Ten are saved up: without a refund, they were gone after ten calls.
    let budget = Budget::with_reserve(1.0, 0.0).unwrap();
    let failover = typed(FanoutLayer::failover(2).budget(budget));
    assert_eq!(answers(&failover, &pool, 30).await, "c".repeat(30));
    assert_eq!(failover.stats().refused_by_budget, 0);
    assert_eq!(sites.each_ref().map(Site::count), [30, 0, 30]);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_holds_up_no_other_call() {
    let sites = sites::<4>();
    sites[0].behave(Behaves::Hangs);
    let pool = Pool::builder()
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    let service = typed(FanoutLayer::failover(3)).across(&pool);
    let answered = Arc::new(AtomicU64::new(0));
    for _ in 0..40 {
        let (call, answered) = (service.clone().oneshot(prompt()), Arc::clone(&answered));
        tokio::spawn(async move {
            call.await.unwrap();
            answered.fetch_add(1, Relaxed);
        });
    }
    tokio::time::sleep(11 * MS).await;
    assert_eq!(answered.load(Relaxed), 30);
    assert_eq!(pool.stats()[0].in_flight, 10);

    // Hedged, all are answered.
    let service =
        typed(FanoutLayer::hedge(Delay::fixed(100 * MS)).budget(Budget::new(1.0).unwrap()));
    let service = service.across(&pool);
    let began_at = Instant::now();
    let calls = join_all((0..40).map(|_| service.clone().oneshot(prompt()))).await;
    assert!(calls.iter().all(Result::is_ok));
    assert_eq!(began_at.elapsed(), 110 * MS);
    assert_eq!(pool.stats()[0].in_flight, 10);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_shared_by_no_more_branches_than_there_are_targets() {
    let sites = sites::<2>();
    sites[0].behave(Behaves::Hangs);
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    let failover = typed(FanoutLayer::failover(9).deadline(10 * SECOND));
    let began_at = Instant::now();
    assert_eq!(ask(&failover, &pool).await.unwrap(), "b");
    assert_eq!(began_at.elapsed(), 5 * SECOND + 10 * MS);
}

#[tokio::test(start_paused = true)]
async fn the_only_target_is_sent_to_again_and_may_queue() {
    let [site] = sites::<1>();
    site.behave(Behaves::Fails(FAILED, MS));
    let target = site.target().availability(|_| Availability::After(SECOND));
    let pool = Pool::builder().target(target).build().unwrap();
    let began_at = Instant::now();
    ask(&typed(FanoutLayer::failover(2)), &pool)
        .await
        .unwrap_err();
    assert_eq!(site.count(), 3);
    assert!(
        began_at.elapsed() > 3 * MS,
        "retries at the same target back off"
    );
    assert!(site.seen().iter().all(Call::may_queue));
}

#[tokio::test(start_paused = true)]
async fn each_target_sees_the_call_as_its_own_and_unqueued() {
    let sites = sites::<2>();
    sites[0].behave(Behaves::Fails(FAILED, MS));
    let looked = Arc::new(Mutex::new(Vec::new()));
    let targets = sites.iter().zip(["one", "two"]).map(|(site, account)| {
        let looked = Arc::clone(&looked);
        let describe = move |call: &Call| {
            let model = format!("{}-{account}", call.model().unwrap());
            call.to_builder().account(account).model(model).build()
        };
        site.target().describe(describe).availability(move |entry| {
            let model = entry.call().unwrap().model().unwrap().to_owned();
            looked.lock().unwrap().push(model);
            Availability::Now
        })
    });
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .targets(targets)
        .build()
        .unwrap();
    ask(&typed(FanoutLayer::failover(1)), &pool).await.unwrap();
    let seen: Vec<_> = sites.iter().flat_map(Site::seen).collect();
    let of = |call: &Call| {
        let (account, model) = (call.account().unwrap(), call.model().unwrap());
        (account.to_owned(), model.to_owned(), call.may_queue())
    };
    let expected = ["one", "two"].map(|name| (name.to_owned(), format!("gpt-{name}"), false));
    assert_eq!(seen.iter().map(of).collect::<Vec<_>>(), expected);
    assert_eq!(*looked.lock().unwrap(), ["gpt-one", "gpt-two"]);
}

#[tokio::test(start_paused = true)]
async fn no_branch_queues_while_the_pool_has_several_targets() {
    let sites = sites::<2>();
    sites[0].behave(Behaves::Fails(FAILED, MS));
    // It describes the call without a look at what it was.
    let other = |_: &Call| Call::builder(Provider::ANTHROPIC, Operation::CHAT).build();
    let targets = [sites[0].target(), sites[1].target().describe(other)];
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .targets(targets)
        .build()
        .unwrap();
    ask(&typed(FanoutLayer::failover(1)), &pool).await.unwrap();
    for site in &sites {
        assert!(!site.seen()[0].may_queue());
    }
    assert_eq!(*sites[1].seen()[0].provider(), Provider::ANTHROPIC);
}

#[tokio::test(start_paused = true)]
async fn only_the_favourite_is_asked_while_it_is_available() {
    let asked = Arc::new(Mutex::new(HashMap::new()));
    let sites = sites::<3>();
    let targets = sites.iter().map(|site| {
        let (asked, target) = (Arc::clone(&asked), site.target());
        let name = format!("{target:?}");
        target.availability(move |_| {
            *asked.lock().unwrap().entry(name.clone()).or_insert(0) += 1;
            Availability::Now
        })
    });
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .targets(targets)
        .build()
        .unwrap();
    assert_eq!(
        answers(&typed(FanoutLayer::failover(2)), &pool, 7).await,
        "aaaaaaa"
    );
    assert_eq!(
        asked.lock().unwrap().values().copied().collect::<Vec<_>>(),
        [7]
    );
}

#[test]
fn wrong_pools_are_refused_when_they_are_built() {
    let [a, b] = sites::<2>();
    let field = |builder: tower_llm_fanout::PoolBuilder<Site>| {
        builder.build().unwrap_err().field().to_owned()
    };
    assert_eq!(field(Pool::builder()), "targets");
    assert_eq!(
        field(Pool::builder().target(a.target()).target(a.target())),
        "target"
    );
    assert_eq!(
        field(Pool::builder().target(a.target().weight(0))),
        "weight"
    );
    for price in [-1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(
            field(Pool::builder().target(a.target().price(price))),
            "price"
        );
    }
    let pool = Pool::builder().target(a.target()).build().unwrap();
    assert!(pool.add(a.target()).is_err());
    assert!(pool.add(b.target().weight(0)).is_err());
    assert!(pool.set_weight("a", 0).is_err());
    assert!(!pool.set_weight("b", 2).unwrap());
    assert!(!pool.remove("b"));
}
