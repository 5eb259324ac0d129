//! Load and latency as reasons to pick: targets that fail, hang or are slow.

use std::time::Duration;

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, advance, sleep};
use tower::ServiceExt;
use tower_llm_core::Outcome;
use tower_llm_fanout::{FanoutLayer, Pick, Pool};

use crate::{
    pool_support::{Behaves, FAILED, Site, answers, ask, prompt, sites, typed},
    support::MS,
};

const SECOND: Duration = Duration::from_secs(1);

fn pool(pick: Pick, sites: &[Site]) -> Pool<Site> {
    let builder = Pool::builder().pick(pick);
    builder
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap()
}

/// 20 callers make 200 calls each, one after another. Returns the ratio of calls to the first target.
async fn ratio_of_first(pick: Pick, first: Behaves, others: Duration) -> f64 {
    let sites = sites::<4>();
    sites
        .iter()
        .for_each(|site| site.behave(Behaves::Answers(others)));
    sites[0].behave(first);
    let pool = pool(pick, &sites);
    let service = typed(FanoutLayer::failover(0)).across(&pool);
    join_all((0..20).map(|_| async {
        for _ in 0..200 {
            let _ = service.clone().oneshot(prompt()).await;
        }
    }))
    .await;
    let stats = pool.stats();
    assert!(stats.iter().all(|target| target.in_flight == 0));
    // Calls that the first one refuses are none that were sent.
    let others: u64 = stats[1..].iter().map(|target| target.calls).sum();
    1.0 - others as f64 / 4_000.0
}

#[tokio::test(start_paused = true)]
async fn a_target_that_fails_fast_gets_less_than_its_fair_ratio() {
    // tower's PeakEwma gives it 48-51 % in each of the first three.
    let times = [(1, 50), (5, 800), (20, 2_000), (50, 20_000)];
    for pick in [Pick::latency(), Pick::least_in_flight()] {
        for (fails, answers) in times {
            let fails = Behaves::Fails(FAILED, fails * MS);
            let ratio = ratio_of_first(pick.clone(), fails, answers * MS).await;
            assert!(ratio < 0.1, "{pick:?} {answers} ms: {ratio}");
        }
        // A layer of its own that refuses fast is no better.
        let refuses = Behaves::Refuses(SECOND);
        let ratio = ratio_of_first(pick, refuses, 800 * MS).await;
        assert!(ratio < 0.1, "{ratio}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_throttles_is_left_alone_for_as_long_as_it_asks() {
    let retry_after = Some(60 * SECOND);
    for pick in [Pick::latency(), Pick::least_in_flight()] {
        let sites = sites::<2>();
        sites[0].behave(Behaves::Fails(Outcome::Throttled { retry_after }, MS));
        let pool = pool(pick, &sites);
        let failover = typed(FanoutLayer::failover(1));
        answers(&failover, &pool, 20).await;
        assert_eq!(sites[0].count(), 1);
        assert!(pool.stats()[0].passed_over_for > 59 * SECOND);
        sites[0].behave(Behaves::Answers(MS));
        advance(60 * SECOND).await;
        assert!(answers(&failover, &pool, 20).await.contains('a'));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_target_that_is_the_last_one_left_still_gets_calls() {
    for pick in [Pick::latency(), Pick::least_in_flight()] {
        let sites = sites::<2>();
        sites
            .iter()
            .for_each(|site| site.behave(Behaves::Fails(FAILED, MS)));
        let pool = pool(pick, &sites);
        let failover = typed(FanoutLayer::failover(1));
        for _ in 0..5 {
            ask(&failover, &pool).await.unwrap_err();
        }
        assert_eq!(sites.each_ref().map(Site::count), [5, 5]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_without_a_latency_gets_one_call_at_a_time() {
    let sites = sites::<2>();
    sites
        .iter()
        .for_each(|site| site.behave(Behaves::Answers(SECOND)));
    let pool = pool(Pick::latency(), &sites);
    let service = typed(FanoutLayer::failover(0)).across(&pool);
    // One probe each, and the others where a latency is known first.
    service.clone().oneshot(prompt()).await.unwrap();
    let first = sites.iter().position(|site| site.count() == 1).unwrap();
    let calls = join_all((0..9).map(|_| service.clone().oneshot(prompt())));
    assert!(calls.await.iter().all(Result::is_ok));
    assert_eq!(sites[1 - first].count(), 1);
    assert_eq!(sites[first].count(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_gets_less_and_is_tried_again_when_its_latency_is_forgotten() {
    let sites = sites::<2>();
    sites[0].behave(Behaves::Answers(2 * SECOND));
    sites[1].behave(Behaves::Answers(100 * MS));
    let pool = pool(Pick::latency(), &sites);
    let once = typed(FanoutLayer::failover(0));
    // One after another, for about 20 s: 2 s are better than 0.1 s again after 10 s * ln 20 = 30 s.
    answers(&once, &pool, 200).await;
    assert_eq!(sites[0].count(), 1);
    answers(&once, &pool, 200).await;
    assert_eq!(sites[0].count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_does_not_look_better_with_time() {
    let sites = sites::<2>();
    let pool = pool(Pick::latency(), &sites);
    let service = typed(FanoutLayer::failover(0)).across(&pool);
    answers(&typed(FanoutLayer::failover(0)), &pool, 20).await;
    sites[0].behave(Behaves::Hangs);
    // Its callers give up after a second, and one is left waiting.
    let calls = (0..40).map(|_| tokio::time::timeout(SECOND, service.clone().oneshot(prompt())));
    join_all(calls).await;
    let hung = sites[0].count();
    let mut waiting = Box::pin(async {
        loop {
            let call = service.clone().oneshot(prompt());
            if tokio::time::timeout(SECOND, call).await.is_err() {
                break;
            }
        }
    });
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    let began_at = Instant::now();
    while began_at.elapsed() < 5 * SECOND {
        ask(&typed(FanoutLayer::failover(0)), &pool).await.unwrap();
    }
    assert_eq!(
        sites[0].count(),
        hung,
        "its abandoned calls count as a second each"
    );
    assert!(pool.stats()[0].latency.unwrap() >= SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_branch_counts_with_the_time_that_it_ran() {
    let sites = sites::<2>();
    let pool = pool(Pick::in_order(), &sites);
    ask(&typed(FanoutLayer::failover(0)), &pool).await.unwrap();
    assert_eq!(pool.stats()[0].latency, Some(10 * MS));
    sites[0].behave(Behaves::Hangs);
    let hedge = FanoutLayer::hedge(tower_llm_fanout::Delay::fixed(200 * MS));
    assert_eq!(ask(&typed(hedge), &pool).await.unwrap(), "b");
    let stats = pool.stats();
    assert_eq!(stats[0].latency, Some(210 * MS));
    assert_eq!(
        (stats[0].calls, stats[0].failures, stats[0].in_flight),
        (2, 0, 0)
    );
    assert_eq!(stats[0].passed_over_for, Duration::ZERO);
    sleep(MS).await;
    assert_eq!(sites[0].in_flight(), 0);
}
