//! Failures that are no caller's fault reach all callers of a batch.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio_test::assert_pending;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_batch::{BatchFailed, BatchLayer, Batcher, Scattered, Terms};
use tower_llm_core::{
    BoxError, ClassifiedError, Completion, Failure, Outcome, Refusal, RefusalKind,
};

use crate::support::{
    Ask, Model, Upstream, answer_all, arrived, ask, ask_all, builder, counts, error_of, model,
};

/// A batch of three in flight.
fn three(
    model: &Model,
    upstream: &mut Upstream,
) -> (
    Vec<crate::support::Call>,
    tower_test::mock::SendResponse<Vec<u64>>,
) {
    let first = ask(model, Ask::new(0));
    let (_, send) = arrived(upstream);
    let mut calls = ask_all(model, 1..=3);
    answer_all(&[0], send);
    drop(first);
    assert_pending!(calls[0].poll());
    let (ids, send) = arrived(upstream);
    assert_eq!(ids, [1, 2, 3]);
    (calls, send)
}

#[tokio::test(start_paused = true)]
async fn a_refusal_below_is_a_refusal_to_each_caller() {
    let (model, mut upstream, handle) = model(builder());
    let (mut calls, send) = three(&model, &mut upstream);
    let refusal = Refusal::new(RefusalKind::RateLimited, "ratelimit").after(Duration::from_secs(7));
    send.send_error(refusal);
    for call in &mut calls {
        let error = error_of(call);
        let refusal = Refusal::find(&*error).expect("it is readable");
        assert_eq!(refusal.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(Completion::of_error(&*error).outcome, Outcome::Refused);
        assert_eq!(error.to_string(), "refused by ratelimit before it was sent");
    }
    assert_eq!(counts(&handle), (0, 0, 0));
    assert_eq!(handle.stats().split_calls, 0);
}

#[tokio::test(start_paused = true)]
async fn an_overload_is_not_tried_again_in_smaller_batches() {
    let (model, mut upstream, handle) = model(builder());
    let (mut calls, send) = three(&model, &mut upstream);
    let overloaded = Outcome::Overloaded {
        retry_after: Some(Duration::from_secs(3)),
    };
    send.send_error(ClassifiedError::new(overloaded, "overloaded"));
    for call in &mut calls {
        assert_eq!(Completion::of_error(&*error_of(call)).outcome, overloaded);
    }
    assert_eq!(handle.stats().split_calls, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_error_is_that_of_the_connection() {
    let (model, mut upstream, _) = model(builder());
    let (mut calls, send) = three(&model, &mut upstream);
    send.send_error("reset");
    for call in &mut calls {
        let error = error_of(call);
        assert_eq!(error.to_string(), "reset");
        let outcome = Completion::of_error(&*error).outcome;
        assert_eq!(outcome, Outcome::Failed(Failure::Transport));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_after_a_failed_batch_starts_anew() {
    let (model, mut upstream, _) = model(builder());
    let (mut calls, send) = three(&model, &mut upstream);
    send.send_error("reset");
    calls.iter_mut().for_each(|call| drop(error_of(call)));
    let _next = ask(&model, Ask::new(4));
    assert_eq!(arrived(&mut upstream).0, [4]);
}

#[tokio::test(start_paused = true)]
async fn a_reply_with_too_few_results_is_tried_again_in_halves_and_fails_each_at_last() {
    let model = builder().build().unwrap();
    let handle = model.handle();
    let service = model.layer(service_fn(|mut asks: Vec<Ask>| async move {
        asks.pop();
        Ok::<_, BoxError>(crate::support::answers(&asks))
    }));
    let error = service.clone().oneshot(Ask::new(1)).await.unwrap_err();
    assert!(error.is::<BatchFailed>());
    assert_eq!(
        error.to_string(),
        "the merged response has 0 results for 1 requests"
    );
    let outcome = Completion::of_error(&*error).outcome;
    assert_eq!(outcome, Outcome::Failed(Failure::InBand));

    let mut service = service;
    let calls: Vec<_> = (0..4).map(|id| service.call(Ask::new(id))).collect();
    for call in calls {
        assert!(call.await.unwrap_err().is::<BatchFailed>());
    }
    assert_eq!(handle.stats().split_calls, 6);
    assert_eq!(counts(&handle), (0, 0, 0));
}

/// A batcher that panics where it is told to.
struct Panics {
    assembling: Arc<AtomicBool>,
    scattering: Arc<AtomicBool>,
    reading: Arc<AtomicBool>,
}

impl Batcher for Panics {
    type Request = u64;
    type Key = ();
    type Batch = Vec<u64>;
    type Plan = ();
    type Reply = Vec<u64>;
    type Response = u64;

    fn terms(&self, _: &u64) -> Option<Terms<()>> {
        assert!(!self.reading.load(Relaxed), "while reading");
        Some(Terms::new(()))
    }

    fn assemble(&self, requests: &mut [u64]) -> (Vec<u64>, ()) {
        assert!(!self.assembling.load(Relaxed), "while assembling");
        (requests.to_vec(), ())
    }

    async fn scatter(&self, (): (), reply: Vec<u64>) -> Scattered<u64> {
        assert!(!self.scattering.load(Relaxed), "while scattering");
        Scattered::Each(reply.into_iter().map(Ok).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_batch_and_nothing_else() {
    let [assembling, scattering, reading, calling] =
        [(); 4].map(|()| Arc::new(AtomicBool::new(false)));
    let batcher = Panics {
        assembling: Arc::clone(&assembling),
        scattering: Arc::clone(&scattering),
        reading: Arc::clone(&reading),
    };
    let layer = BatchLayer::new(batcher).unwrap();
    let panics = Arc::clone(&calling);
    let mut model = layer.layer(service_fn(move |batch: Vec<u64>| {
        let panics = Arc::clone(&panics);
        async move {
            assert!(!panics.load(Relaxed), "while calling");
            Ok::<_, BoxError>(batch)
        }
    }));
    for panics in [&assembling, &scattering, &calling] {
        panics.store(true, Relaxed);
        let calls = [model.call(1), model.call(2)];
        for call in calls {
            let error = call.await.unwrap_err();
            assert!(error.is::<BatchFailed>());
            assert_eq!(
                error.to_string(),
                "the upstream service or the batcher panicked"
            );
            let outcome = Completion::of_error(&*error).outcome;
            assert_eq!(outcome, Outcome::Failed(Failure::Panic));
        }
        panics.store(false, Relaxed);
        assert_eq!(model.call(3).await.unwrap(), 3);
    }
    reading.store(true, Relaxed);
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.call(4)));
    assert!(read.is_err());
    reading.store(false, Relaxed);
    assert_eq!(model.call(5).await.unwrap(), 5);
    assert_eq!(counts(&layer.handle()), (0, 0, 0));
}
