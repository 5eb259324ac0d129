//! What a tower service promises.

use std::{task::Poll, time::Duration};

use tokio::task::JoinSet;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok};
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_llm_testkit::mock::{nothing_arrived, poll_ready, start};
use tower_test::mock;

use crate::support::{
    Ask, Provider, answer, answer_all, answers, arrived, ask, assert_answered, builder, counts,
    model,
};

#[tokio::test(start_paused = true)]
async fn it_is_ready_whatever_the_upstream_and_the_queue_are() {
    let layer = builder().max_waiting(1).build().unwrap();
    let (mock, mut upstream) = mock::pair();
    let mut model = layer.layer(mock);
    // Not ready: nothing is allowed through.
    upstream.allow(0);
    let mut first = ask(&model, Ask::new(0));
    let _waiting = ask(&model, Ask::new(1));
    assert!(matches!(poll_ready(&mut model), Poll::Ready(Ok(()))));
    nothing_arrived(&mut upstream);
    // The batch waits for the upstream's readiness in its own future.
    upstream.allow(1);
    assert!(first.is_woken());
    assert_pending!(first.poll());
    let (ids, send) = arrived(&mut upstream);
    answer_all(&ids, send);
    assert_answered(&mut first, 0);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_gone_fails_the_batch() {
    let (model, upstream, handle) = model(builder());
    drop(upstream);
    let mut call = start(&model, Ask::new(0));
    assert!(assert_ready!(call.poll()).is_err());
    assert_eq!(counts(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn it_works_around_a_concurrency_limit_of_one() {
    let provider = Provider::default();
    let called = provider.clone();
    let layer = builder().max_in_flight(4).max_items(5).build().unwrap();
    let model = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(move |batch| called.clone().call(batch)));
    let mut tasks = JoinSet::new();
    for id in 0..40 {
        let model = model.clone();
        tasks.spawn(async move {
            let key = ["a", "b", "c"][id as usize % 3];
            assert_eq!(model.oneshot(Ask::of(key, id)).await.unwrap(), answer(id));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(
        provider
            .most_in_flight
            .load(std::sync::atomic::Ordering::SeqCst),
        1
    );
    assert_eq!(counts(&layer.handle()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn it_works_inside_of_a_concurrency_limit() {
    let provider = Provider::default();
    let called = provider.clone();
    let layer = builder().build().unwrap();
    let model = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(layer)
        .service(service_fn(move |batch| called.clone().call(batch)));
    let mut tasks = JoinSet::new();
    for id in 0..5 {
        let model = model.clone();
        tasks.spawn(async move { model.oneshot(Ask::new(id)).await.unwrap() });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(provider.sizes(), [1; 5]);
}

#[tokio::test(start_paused = true)]
async fn services_of_one_layer_and_its_clones_share_batches() {
    let layer = builder().window(Duration::from_millis(10)).build().unwrap();
    let provider = Provider::default();
    let called = provider.clone();
    let client = service_fn(move |batch| called.clone().call(batch));
    let services = [layer.layer(client.clone()), layer.clone().layer(client)];
    let [one, two] = services.map(|mut service| service.call(Ask::new(3)));
    let (one, two) = tokio::join!(one, two);
    assert_eq!((one.unwrap(), two.unwrap()), (answer(3), answer(3)));
    assert_eq!(provider.sizes(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_future_may_be_moved_and_polled_by_other_tasks() {
    let (model, mut upstream, _) = model(builder());
    let mut call = ask(&model, Ask::new(0));
    let (ids, send) = arrived(&mut upstream);
    let moved = call.enter(|cx, mut future| {
        assert_pending!(future.as_mut().poll(cx));
        std::mem::replace(&mut *future, model.clone().call(Ask::new(1)))
    });
    let mut moved = tokio_test::task::spawn(moved);
    assert_pending!(moved.poll());
    answer_all(&ids, send);
    assert!(moved.is_woken(), "the waker of the last poll counts");
    assert_ready_ok!(moved.poll());
}

#[tokio::test]
async fn futures_are_send_and_need_no_task() {
    fn assert_send<T: Send>(_: &T) {}
    let layer = builder().build().unwrap();
    let mut model = layer.layer(service_fn(|asks: Vec<Ask>| async move {
        Ok::<_, tower_llm_core::BoxError>(answers(&asks))
    }));
    let call = model.call(Ask::new(1));
    assert_send(&call);
    assert_eq!(call.await.unwrap(), answer(1));
}
