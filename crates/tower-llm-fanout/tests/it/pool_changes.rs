//! Targets that come and go, and calls that are dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_llm_fanout::{Budget, Delay, FanoutLayer, Pick, Pool};

use crate::{
    pool_support::{Behaves, FAILED, Site, answers, prompt, sites, typed},
    support::MS,
};

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_keeps_a_target_that_is_taken_out() {
    let sites = sites::<2>();
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    let once = typed(FanoutLayer::failover(0));
    let mut call = Box::pin(once.across(&pool).oneshot(prompt()));
    assert!(call.as_mut().now_or_never().is_none());
    assert!(pool.remove("a"));
    assert_eq!(answers(&once, &pool, 2).await, "bb");
    assert_eq!(call.await.unwrap(), "a");
    assert_eq!(pool.stats().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_later_branch_knows_of_changes() {
    let sites = sites::<3>();
    sites[0].behave(Behaves::Fails(FAILED, 20 * MS));
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .targets(sites[..2].iter().map(Site::target))
        .build()
        .unwrap();
    let mut call = Box::pin(
        typed(FanoutLayer::failover(1))
            .across(&pool)
            .oneshot(prompt()),
    );
    assert!(call.as_mut().now_or_never().is_none());
    pool.remove("b");
    pool.add(sites[2].target()).unwrap();
    assert_eq!(call.await.unwrap(), "c");
}

#[tokio::test(start_paused = true)]
async fn changes_under_load_lose_no_call() {
    for pick in [
        Pick::round_robin(),
        Pick::weighted(),
        Pick::latency(),
        Pick::least_in_flight(),
    ] {
        let sites = sites::<4>();
        let pool = Pool::builder().pick(pick);
        let pool = pool
            .targets(sites.iter().map(Site::target))
            .build()
            .unwrap();
        let service = typed(FanoutLayer::failover(1)).across(&pool);
        let answered = Arc::new(AtomicUsize::new(0));
        let callers = join_all((0..20).map(|_| async {
            for _ in 0..100 {
                service.clone().oneshot(prompt()).await.unwrap();
                answered.fetch_add(1, Relaxed);
            }
        }));
        let changes = async {
            let mut round = 0;
            while answered.load(Relaxed) < 1_900 {
                let site = &sites[round % 4];
                let name = ["a", "b", "c", "d"][round % 4];
                assert!(pool.remove(name));
                tokio::time::sleep(3 * MS).await;
                pool.add(site.target()).unwrap();
                pool.set_weight(name, 1 + round as u32 % 3).unwrap();
                tokio::time::sleep(4 * MS).await;
                round += 1;
            }
        };
        tokio::join!(callers, changes);
        assert_eq!(answered.load(Relaxed), 2_000);
        assert_eq!(sites.iter().map(Site::count).sum::<usize>(), 2_000);
        assert!(sites.iter().all(|site| site.count() > 200));
        assert!(pool.stats().iter().all(|target| target.in_flight == 0));
    }
}

/// Calls on two threads: some fail, some hang, some are dropped at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_in_flight_when_all_calls_have_ended() {
    for pick in [
        Pick::latency(),
        Pick::least_in_flight(),
        Pick::weighted(),
        Pick::round_robin(),
    ] {
        let sites = sites::<4>();
        sites[0].behave(Behaves::Fails(FAILED, Duration::from_micros(200)));
        sites[1].behave(Behaves::Answers(Duration::from_micros(500)));
        sites[2].behave(Behaves::Answers(Duration::ZERO));
        sites[3].behave(Behaves::Hangs);
        let pool = Pool::builder().pick(pick);
        let pool = pool
            .targets(sites.iter().map(Site::target))
            .build()
            .unwrap();
        let budget = Budget::new(1.0).unwrap();
        let hedge = FanoutLayer::hedge(Delay::fixed(MS)).budget(budget.clone());
        let layers = [
            typed(FanoutLayer::failover(3).budget(budget)),
            typed(hedge),
            typed(FanoutLayer::race(3)),
        ];
        let tasks = (0..8).map(|task| {
            let (layers, pool) = (layers.clone(), pool.clone());
            tokio::spawn(async move {
                for call in 0..200 {
                    let service = layers[(task + call) % 3].across(&pool);
                    let after = Duration::from_micros(fastrand::u64(..3_000));
                    let _ = timeout(after, service.oneshot(prompt())).await;
                }
            })
        });
        join_all(tasks).await.into_iter().for_each(Result::unwrap);
        let stats = pool.stats();
        assert!(
            stats.iter().all(|target| target.in_flight == 0),
            "{stats:?}"
        );
        assert_eq!(sites.each_ref().map(Site::in_flight), [0; 4]);
        for (site, target) in sites.iter().zip(&stats) {
            assert_eq!(site.count() as u64, target.calls);
        }
    }
}
