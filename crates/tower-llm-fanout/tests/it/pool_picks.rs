//! How the policies pick.

use std::{
    collections::HashMap,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use tower::ServiceExt;
use tower_llm_core::{Availability, KeyBy};
use tower_llm_fanout::{FanoutLayer, Pick, Pool};

use crate::{
    pool_support::{Behaves, FAILED, Site, answers, ask, prompt, prompt_of, sites, typed},
    support::MS,
};

fn counts(names: &str) -> HashMap<char, usize> {
    let mut counts = HashMap::new();
    for name in names.chars() {
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn weights_are_exact_in_every_cycle_and_turns_are_spread() {
    let sites = sites::<3>();
    let targets = sites
        .iter()
        .zip([5, 1, 1])
        .map(|(site, weight)| site.target().weight(weight));
    let pool = Pool::builder()
        .pick(Pick::weighted())
        .targets(targets)
        .build()
        .unwrap();
    let once = typed(FanoutLayer::failover(0));
    assert_eq!(answers(&once, &pool, 14).await, "aabacaaaabacaa");

    // A new weight counts from now on, and nothing of the old one is made up for.
    pool.set_weight("b", 5).unwrap();
    let names = answers(&once, &pool, 110).await;
    assert_eq!(
        counts(&names),
        HashMap::from([('a', 50), ('b', 50), ('c', 10)])
    );
}

#[tokio::test(start_paused = true)]
async fn the_turns_of_a_target_that_is_unavailable_are_shared_by_weight() {
    for (pick, weights) in [
        (Pick::round_robin(), [1, 1, 1, 1]),
        (Pick::weighted(), [3, 6, 1, 2]),
    ] {
        let (sites, is_open) = (sites::<4>(), Arc::new(AtomicBool::new(false)));
        let targets = sites.iter().zip(weights).enumerate();
        let targets = targets.map(|(index, (site, weight))| {
            let is_open = Arc::clone(&is_open);
            let target = site.target().weight(weight);
            target.availability(move |_| match index == 1 && !is_open.load(Relaxed) {
                true => Availability::Unknown,
                false => Availability::Now,
            })
        });
        let pool = Pool::builder().pick(pick).targets(targets).build().unwrap();
        let once = typed(FanoutLayer::failover(0));
        let per_cycle = |weights: [u32; 4]| {
            let names = ['a', 'b', 'c', 'd'].into_iter().zip(weights);
            let names = names.filter(|(_, weight)| *weight > 0);
            HashMap::from_iter(names.map(|(name, weight)| (name, 10 * weight as usize)))
        };
        let open: u32 = weights.iter().sum();
        let names = answers(&once, &pool, 10 * (open - weights[1]) as usize).await;
        let [a, _, c, d] = weights;
        assert_eq!(counts(&names), per_cycle([a, 0, c, d]));
        is_open.store(true, Relaxed);
        let names = answers(&once, &pool, 10 * open as usize).await;
        assert_eq!(counts(&names), per_cycle(weights));
    }
}

#[test]
fn turns_are_even_when_two_threads_take_them() {
    for pick in [Pick::round_robin(), Pick::weighted()] {
        let sites = sites::<5>();
        sites
            .iter()
            .for_each(|site| site.behave(Behaves::Answers(Duration::ZERO)));
        let pool = Pool::builder()
            .pick(pick)
            .targets(sites.iter().map(Site::target))
            .build()
            .unwrap();
        let (once, start) = (typed(FanoutLayer::failover(0)), Barrier::new(2));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = runtime.enable_time().build().unwrap();
                    start.wait();
                    runtime.block_on(answers(&once, &pool, 250));
                });
            }
        });
        assert_eq!(sites.each_ref().map(Site::count), [100; 5]);
    }
}

#[tokio::test(start_paused = true)]
async fn random_targets_are_picked_by_weight() {
    let sites = sites::<2>();
    let targets = sites
        .iter()
        .zip([1, 3])
        .map(|(site, weight)| site.target().weight(weight));
    let pool = Pool::builder()
        .pick(Pick::weighted_random())
        .targets(targets)
        .build()
        .unwrap();
    let names = answers(&typed(FanoutLayer::failover(0)), &pool, 4_000).await;
    // Five standard deviations of a binomial distribution.
    assert!(
        counts(&names)[&'b'].abs_diff(3_000) < 137,
        "{}",
        counts(&names)[&'b']
    );
}

#[tokio::test(start_paused = true)]
async fn the_target_with_the_fewest_calls_in_flight_for_its_weight_is_picked() {
    let sites = sites::<3>();
    let targets = sites
        .iter()
        .zip([1, 2, 1])
        .map(|(site, weight)| site.target().weight(weight));
    let pool = Pool::builder()
        .pick(Pick::least_in_flight())
        .targets(targets)
        .build()
        .unwrap();
    let service = typed(FanoutLayer::failover(0)).across(&pool);
    join_all((0..40).map(|_| service.clone().oneshot(prompt()))).await;
    assert_eq!(sites.each_ref().map(Site::count), [10, 20, 10]);

    // Ties are random, or the first target would get all of a slow traffic.
    let names = answers(&typed(FanoutLayer::failover(0)), &pool, 400).await;
    let one_at_a_time = counts(&names);
    assert!(
        one_at_a_time[&'b'] == 400,
        "the weight breaks ties: {one_at_a_time:?}"
    );
    pool.set_weight("b", 1).unwrap();
    let names = counts(&answers(&typed(FanoutLayer::failover(0)), &pool, 600).await);
    assert!(
        names.values().all(|count| count.abs_diff(200) < 60),
        "{names:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_cheapest_target_that_is_available_is_picked() {
    let (sites, is_open) = (sites::<4>(), Arc::new(AtomicBool::new(true)));
    let prices = [Some(3.0), Some(0.5), None, Some(0.5)];
    let targets = sites.iter().zip(prices).map(|(site, price)| {
        let is_open = Arc::clone(&is_open);
        let target = match price {
            Some(price) => site.target().price(price),
            None => site.target(),
        };
        target.availability(
            move |_| match price == Some(0.5) && !is_open.load(Relaxed) {
                true => Availability::Unknown,
                false => Availability::Now,
            },
        )
    });
    let pool = Pool::builder()
        .pick(Pick::cheapest())
        .targets(targets)
        .build()
        .unwrap();
    let service = typed(FanoutLayer::failover(0)).across(&pool);
    join_all((0..20).map(|_| service.clone().oneshot(prompt()))).await;
    assert_eq!(sites.each_ref().map(Site::count), [0, 10, 0, 10]);
    is_open.store(false, Relaxed);
    assert_eq!(
        answers(&typed(FanoutLayer::failover(0)), &pool, 5).await,
        "aaaaa"
    );
    pool.remove("a");
    assert_eq!(
        answers(&typed(FanoutLayer::failover(0)), &pool, 5).await,
        "ccccc"
    );
}

#[tokio::test(start_paused = true)]
async fn equal_prices_share_the_calls() {
    let sites = sites::<4>();
    let targets = sites.iter().zip([3.0, 3.0, 0.5, 0.5]);
    let targets = targets.map(|(site, price)| site.target().price(price));
    let pool = Pool::builder()
        .pick(Pick::cheapest())
        .targets(targets)
        .build()
        .unwrap();
    let names = counts(&answers(&typed(FanoutLayer::failover(0)), &pool, 800).await);
    assert_eq!(names.len(), 2);
    // Five standard deviations.
    assert!(names[&'c'].abs_diff(400) < 71, "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn turns_go_on_when_the_pool_changes() {
    for (pick, expected) in [
        (Pick::round_robin(), [40, 40, 40]),
        (Pick::weighted(), [60, 40, 20]),
    ] {
        let sites = sites::<3>();
        let targets = sites.iter().zip([3, 2, 1]);
        let targets = targets.map(|(site, weight)| site.target().weight(weight));
        let pool = Pool::builder().pick(pick).targets(targets).build().unwrap();
        for _ in 0..120 {
            ask(&typed(FanoutLayer::failover(0)), &pool).await.unwrap();
            pool.set_weight("a", 3).unwrap();
        }
        assert_eq!(sites.each_ref().map(Site::count), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_keeps_its_target_falls_over_and_returns() {
    let sites = sites::<4>();
    let closed = Arc::new(Mutex::new(String::new()));
    let targets = sites.iter().zip("abcd".chars()).map(|(site, name)| {
        let closed = Arc::clone(&closed);
        site.target()
            .availability(move |_| match closed.lock().unwrap().contains(name) {
                true => Availability::Unknown,
                false => Availability::Now,
            })
    });
    let pick = Pick::sticky(KeyBy::caller());
    let pool = Pool::builder().pick(pick).targets(targets).build().unwrap();
    let service = typed(FanoutLayer::failover(3)).across(&pool);
    let target_of = |caller: usize| {
        let prompt = prompt_of(&format!("caller-{caller}"));
        let call = service.clone().oneshot(prompt);
        async { call.await.unwrap() }
    };
    let all = || join_all((0..100).map(target_of));
    let homes = all().await;
    assert_eq!(all().await, homes);
    // By weight: with 100 callers, each of four has about a quarter.
    for count in counts(&homes.concat()).values() {
        assert!(count.abs_diff(25) < 20, "{homes:?}");
    }

    // Its circuit opens.
    let home = homes[0].clone();
    closed.lock().unwrap().push_str(&home);
    let away = all().await;
    assert_ne!(away[0], home);
    assert_eq!(all().await, away, "the second target is kept as well");
    closed.lock().unwrap().clear();
    assert_eq!(all().await, homes);

    // It fails: the call goes to the same second target.
    let position = sites
        .iter()
        .position(|site| format!("{:?}", site.target()).contains(&format!("{home:?}")));
    sites[position.unwrap()].behave(Behaves::Fails(FAILED, MS));
    assert_eq!(target_of(0).await, away[0]);

    // Another target leaves: the others' callers stay where they are.
    sites[position.unwrap()].behave(Behaves::Answers(MS));
    pool.remove(&away[0]);
    let after = all().await;
    for (before, after) in homes.iter().zip(&after) {
        assert!(before == after || *before == away[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_without_a_key_do_not_share_one_target() {
    let sites = sites::<2>();
    let pick = Pick::sticky(KeyBy::caller());
    let pool = Pool::builder()
        .pick(pick)
        .targets(sites.iter().map(Site::target))
        .build()
        .unwrap();
    let names = counts(&answers(&typed(FanoutLayer::failover(0)), &pool, 400).await);
    assert!(
        names.values().all(|count| count.abs_diff(200) < 60),
        "{names:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn higher_priorities_take_calls_only_if_lower_ones_cannot() {
    let (sites, is_open) = (sites::<3>(), Arc::new(AtomicBool::new(false)));
    let targets = sites.iter().zip([1, 0, 0]).map(|(site, priority)| {
        let is_open = Arc::clone(&is_open);
        let target = site.target().priority(priority);
        target.availability(move |_| match priority == 0 && !is_open.load(Relaxed) {
            true => Availability::Unknown,
            false => Availability::Now,
        })
    });
    let pool = Pool::builder().targets(targets).build().unwrap();
    let failover = typed(FanoutLayer::failover(2));
    assert_eq!(answers(&failover, &pool, 4).await, "aaaa");
    is_open.store(true, Relaxed);
    assert_eq!(
        counts(&answers(&failover, &pool, 6).await),
        HashMap::from([('b', 3), ('c', 3)])
    );

    // A call that has failed there goes on to the next priority.
    sites[1..]
        .iter()
        .for_each(|site| site.behave(Behaves::Fails(FAILED, MS)));
    assert_eq!(ask(&failover, &pool).await.unwrap(), "a");
    assert!(pool.set_priority("a", 0));
    sites
        .iter()
        .for_each(|site| site.behave(Behaves::Answers(MS)));
    assert_eq!(counts(&answers(&failover, &pool, 6).await).len(), 3);
}
