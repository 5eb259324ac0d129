//! A bad request fails alone.

use futures_util::future::join_all;
use proptest::{collection::vec, prelude::*};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_batch::{BatchHandle, BatchLayer};
use tower_llm_core::{BoxError, Completion, Outcome};

use crate::support::{Ask, Asks, Provider, answer, builder};

/// Sends one call, and then all of these in one batch; returns their results, and the calls that the provider got.
async fn merged(
    layer: &BatchLayer<Asks>,
    asks: Vec<Ask>,
) -> (Vec<Result<u64, BoxError>>, Vec<usize>, BatchHandle) {
    let provider = Provider::default();
    let called = provider.clone();
    let model = layer.layer(service_fn(move |batch| called.clone().call(batch)));
    let first = tokio::spawn(model.clone().oneshot(Ask::new(u64::from(u32::MAX))));
    tokio::task::yield_now().await;
    let results = join_all(asks.into_iter().map(|ask| model.clone().oneshot(ask))).await;
    first
        .await
        .expect("it does not fail")
        .expect("it does not fail");
    (results, provider.sizes(), layer.handle())
}

fn assert_rejected(error: &BoxError) {
    assert_eq!(error.to_string(), "bad input");
    assert_eq!(Completion::of_error(&**error).outcome, Outcome::ClientError);
}

#[tokio::test(start_paused = true)]
async fn one_bad_request_among_64_costs_twelve_calls_and_fails_alone() {
    for bad in [0, 17, 63] {
        let layer = builder().build().unwrap();
        let asks = (0..64).map(|id| match id == bad {
            true => Ask::poison(id),
            false => Ask::new(id),
        });
        let (results, sizes, handle) = merged(&layer, asks.collect()).await;
        for (id, result) in (0..).zip(&results) {
            match result {
                Err(error) => assert!(
                    id == bad && {
                        assert_rejected(error);
                        true
                    }
                ),
                Ok(response) => assert_eq!(*response, answer(id)),
            }
        }
        assert_eq!(sizes[..2], [1, 64]);
        // Two halves for each halving of 64.
        assert_eq!(sizes[2..].len(), 12);
        assert_eq!(handle.stats().split_calls, 12);
        assert_eq!(handle.stats().batches, 2);
        assert_eq!(handle.stats().keys, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_alone_is_sent_once() {
    let layer = builder().build().unwrap();
    let (results, sizes, _) = merged(&layer, vec![Ask::poison(1)]).await;
    assert_rejected(results[0].as_ref().unwrap_err());
    assert_eq!(sizes, [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn without_more_calls_the_rejection_is_the_answer_to_all() {
    let layer = builder().max_split_calls(0).build().unwrap();
    let asks = vec![Ask::new(1), Ask::poison(2), Ask::new(3)];
    let (results, sizes, _) = merged(&layer, asks).await;
    results
        .iter()
        .for_each(|result| assert_rejected(result.as_ref().unwrap_err()));
    assert_eq!(sizes, [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn if_all_are_bad_the_calls_are_bounded() {
    let layer = builder().max_split_calls(7).build().unwrap();
    let (results, sizes, handle) = merged(&layer, (0..100).map(Ask::poison).collect()).await;
    assert_eq!(results.len(), 100);
    results
        .iter()
        .for_each(|result| assert_rejected(result.as_ref().unwrap_err()));
    assert_eq!(sizes.len(), 2 + 7);
    assert_eq!(handle.stats().split_calls, 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn with_calls_enough_each_bad_request_fails_alone(bad in vec(prop::bool::weighted(0.1), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let layer = builder().max_split_calls(1_000).build().unwrap();
            let asks = bad.iter().zip(0..).map(|(&bad, id)| match bad {
                true => Ask::poison(id),
                false => Ask::new(id),
            });
            let (results, sizes, _) = merged(&layer, asks.collect()).await;
            for ((result, &bad), id) in results.iter().zip(&bad).zip(0..) {
                match result {
                    Ok(response) => assert!(!bad && *response == answer(id)),
                    Err(_) => assert!(bad),
                }
            }
            // Each costs at most two calls for each halving.
            let poisons = bad.iter().filter(|&&bad| bad).count();
            let halvings = bad.len().next_power_of_two().trailing_zeros() as usize;
            assert!(sizes.len() <= 2 + 2 * poisons * halvings, "{sizes:?}");
        });
    }
}
