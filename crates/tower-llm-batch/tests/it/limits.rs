//! Both limits hold, and each call gets its own answer, whatever comes.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tokio::task::JoinSet;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::Priority;

use crate::support::{Ask, Provider, answer, builder, counts};

#[derive(Clone, Debug)]
struct Caller {
    items: u64,
    tokens: u64,
    key: &'static str,
    priority: Priority,
    arrives: u64,
    /// After which time it leaves.
    leaves: Option<u64>,
}

fn caller() -> impl Strategy<Value = Caller> {
    let priority = prop_oneof![
        Just(Priority::Interactive),
        Just(Priority::Normal),
        Just(Priority::Batch)
    ];
    let leaves = prop_oneof![3 => Just(None), 1 => (0_u64..90).prop_map(Some)];
    (
        1_u64..9,
        0_u64..70,
        prop_oneof![Just("a"), Just("b")],
        priority,
        0_u64..200,
        leaves,
    )
        .prop_map(|(items, tokens, key, priority, arrives, leaves)| Caller {
            items,
            tokens,
            key,
            priority,
            arrives,
            leaves,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn limits_hold_and_nothing_is_lost_when_callers_leave(
        callers in vec(caller(), 1..60),
        max_items in 1_u64..20,
        max_tokens in 1_u64..150,
        window in 0_u64..60,
        max_in_flight in 1_usize..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let layer = builder()
                .max_items(max_items)
                .max_tokens(max_tokens)
                .window(Duration::from_millis(window))
                .max_in_flight(max_in_flight)
                .build()
                .unwrap();
            let provider = Provider::default();
            let called = provider.clone();
            let model = layer.layer(service_fn(move |batch| called.clone().call(batch)));
            let mut tasks = JoinSet::new();
            for (id, caller) in (0..).zip(callers.clone()) {
                let model = model.clone();
                tasks.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(caller.arrives)).await;
                    let ask = Ask {
                        key: caller.key,
                        priority: caller.priority,
                        ..Ask::weighing(id, caller.items, caller.tokens)
                    };
                    let leaves = Duration::from_millis(caller.leaves.unwrap_or(1_000_000));
                    match tokio::time::timeout(leaves, model.oneshot(ask)).await {
                        Ok(response) => assert_eq!(response.unwrap(), answer(id)),
                        Err(_) => assert!(caller.leaves.is_some(), "{id} was lost"),
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            let mut seen = vec![0; callers.len()];
            for batch in provider.batches() {
                let items: u64 = batch.iter().map(|ask| ask.items).sum();
                let tokens: u64 = batch.iter().map(|ask| ask.tokens).sum();
                assert!(batch.len() == 1 || items <= max_items && tokens <= max_tokens);
                assert!(batch.iter().all(|ask| ask.key == batch[0].key));
                batch.iter().for_each(|ask| seen[ask.id as usize] += 1);
            }
            for (times, caller) in seen.iter().zip(&callers) {
                assert!(*times == 1 || *times == 0 && caller.leaves.is_some());
            }
            // Of each of two keys.
            let most = provider.most_in_flight.load(std::sync::atomic::Ordering::SeqCst);
            assert!(most <= 2 * max_in_flight);
            assert_eq!(counts(&layer.handle()), (0, 0, 0));
            assert_eq!(provider.in_flight.load(std::sync::atomic::Ordering::SeqCst), 0);
        });
    }
}
