//! What the timer costs: nothing without a wait, and almost nothing if frames arrive quickly.

use std::{
    convert::Infallible,
    future::{Future, poll_fn, ready},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_llm_core::Dialect;
use tower_llm_timeout::TimeoutLayer;

use crate::support::{
    CONTENT, DONE, MILLISECOND, ROLE, Upstream, Wakes, call, poll_once, seconds, sse, streamed,
};

#[tokio::test(start_paused = true)]
async fn ten_thousand_quick_frames_wake_the_reader_for_nothing_only_once_per_deadline() {
    let frames = 10_000;
    let body = (1..=frames).fold(Upstream::new(), |upstream, n| {
        upstream.at(10 * n * MILLISECOND, CONTENT)
    });
    let layer = TimeoutLayer::builder()
        .first_token(seconds(5))
        .idle(seconds(10))
        .total(seconds(1_000))
        .build()
        .unwrap();
    let started = Instant::now();
    let mut response = call(layer, streamed(Dialect::OpenAi), sse(body)).await;
    let wakes = Arc::new(Wakes::default());
    let mut polls = 0;
    let mut seen = 0;
    while let Some(frame) = poll_fn(|cx| {
        polls += 1;
        let waker = wakes.count_on(cx.waker().clone());
        Pin::new(response.body_mut()).poll_frame(&mut Context::from_waker(&waker))
    })
    .await
    {
        frame.unwrap();
        seen += 1;
    }
    assert_eq!(seen, frames);
    assert_eq!(started.elapsed(), seconds(100));
    // Each frame wakes once. The timer fires at 5 s, and then every 10 s, to see that it is not yet time.
    let for_nothing = wakes.count() - usize::try_from(frames).unwrap();
    assert!(for_nothing <= 11, "{for_nothing} wakes for nothing");
    // Two for each frame: one that waits, one that has it.
    let more = polls - 2 * frames;
    assert!(more <= 12, "{more} polls more than needed");
}

#[test]
fn no_timer_is_created_without_a_wait() {
    // Not in a runtime: a timer would panic here.
    let mut service = TimeoutLayer::new().layer(service_fn(|_: Request<()>| {
        let body = Upstream::new().now(ROLE).now(CONTENT).now(DONE);
        ready(Ok::<_, Infallible>(sse(body)))
    }));
    let Poll::Ready(Ok(response)) = poll_once(service.call(streamed(Dialect::OpenAi))) else {
        panic!("it answers at once");
    };
    let mut body = pin!(response.into_body());
    let mut cx = Context::from_waker(Waker::noop());
    for frame in [ROLE, CONTENT, DONE] {
        let Poll::Ready(Some(Ok(had))) = body.as_mut().poll_frame(&mut cx) else {
            panic!("a frame is there");
        };
        assert_eq!(had.into_data().unwrap(), frame);
    }
    assert!(matches!(body.poll_frame(&mut cx), Poll::Ready(None)));
}

#[test]
#[should_panic(expected = "no reactor running")]
fn a_timer_would_have_been_seen() {
    let mut service = TimeoutLayer::new().layer(service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Upstream>, Infallible>>()
    }));
    let _ =
        pin!(service.call(streamed(Dialect::OpenAi))).poll(&mut Context::from_waker(Waker::noop()));
}

#[tokio::test(start_paused = true)]
async fn a_reader_on_another_task_is_the_one_that_is_woken() {
    let response = call(
        TimeoutLayer::new(),
        streamed(Dialect::OpenAi),
        sse(Upstream::new().silent()),
    )
    .await;
    let mut body = response.into_body();
    // Asked for here first, and waited for there.
    assert!(poll_once(Box::pin(crate::support::next(&mut body))).is_pending());
    let started = Instant::now();
    let there =
        tokio::spawn(async move { crate::support::next(&mut body).await.unwrap().unwrap() });
    assert!(there.await.unwrap().contains("timeout"));
    assert_eq!(started.elapsed(), seconds(120));
}
