//! Which targets a call tries, for any pool.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tower::ServiceExt;
use tower_llm_core::{Availability, KeyBy};
use tower_llm_fanout::{Budget, FanoutLayer, Pick, Pool, Target};

use crate::pool_support::{Prompt, prompt, typed};

/// A target of the property test.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    priority: u32,
    weight: u32,
    is_available: bool,
    fails: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    (0..3_u32, 1..4_u32, any::<bool>(), any::<bool>()).prop_map(
        |(priority, weight, is_available, fails)| Drawn {
            priority,
            weight,
            is_available,
            fails,
        },
    )
}

fn picks() -> impl Strategy<Value = Pick> {
    prop::sample::select(vec![
        Pick::round_robin(),
        Pick::weighted(),
        Pick::weighted_random(),
        Pick::least_in_flight(),
        Pick::latency(),
        Pick::sticky(KeyBy::model()),
        Pick::cheapest(),
        Pick::in_order(),
    ])
}

proptest! {
    #[test]
    fn no_target_is_tried_twice_and_the_best_priority_is_tried_first(
        targets in prop::collection::vec(drawn(), 2..9),
        pick in picks(),
        extra in 0..9_usize,
        calls in 1..4_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let order = Arc::new(Mutex::new(Vec::new()));
            let built = targets.iter().enumerate().map(|(index, &drawn)| {
                let order = Arc::clone(&order);
                let service = tower::service_fn(move |_: Prompt| {
                    order.lock().unwrap().push(index);
                    async move {
                        match drawn.fails {
                            true => Err("scripted"),
                            false => Ok(index),
                        }
                    }
                });
                let availability = match drawn.is_available {
                    true => Availability::Now,
                    false => Availability::Unknown,
                };
                Target::new(index.to_string(), service)
                    .priority(drawn.priority)
                    .weight(drawn.weight)
                    .availability(move |_| availability)
            });
            let pool = Pool::builder().pick(pick.clone()).targets(built).build().unwrap();
            for _ in 0..calls {
                // What is saved up at first pays for all branches of one call.
                let budget = Budget::new(1.0).unwrap();
                let service = typed(FanoutLayer::failover(extra).budget(budget)).across(&pool);
                order.lock().unwrap().clear();
                let answer = service.oneshot(prompt()).await;
                let order = order.lock().unwrap().clone();

                let available = |index: &usize| targets[*index].is_available;
                let mut left: Vec<usize> = (0..targets.len()).filter(available).collect();
                for tried in &order {
                    let best = left.iter().map(|&index| targets[index].priority).min();
                    assert_eq!(Some(targets[*tried].priority), best, "{order:?}");
                    assert!(left.contains(tried), "{tried} was tried before: {order:?}");
                    left.retain(|index| index != tried);
                }
                match answer {
                    Ok(index) => assert_eq!(order.last(), Some(&index)),
                    Err(_) => assert!(order.len() == extra + 1 || left.is_empty(), "{order:?}"),
                }
            }
            assert!(pool.stats().iter().all(|target| target.in_flight == 0));
        });
    }
}
