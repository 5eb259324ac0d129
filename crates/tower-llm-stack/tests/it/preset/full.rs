//! `Stack::full`: each of its layers acts.

use http::StatusCode;
use tower_llm_stack::BoxedStack;

use super::*;

fn full(upstream: &Upstream) -> BoxedStack {
    Stack::full().build().boxed(upstream.service())
}

async fn status(client: &BoxedStack, request: Request<Full<Bytes>>) -> StatusCode {
    let response = call(client, request).await.unwrap();
    let status = response.status();
    read(Ok(response)).await.unwrap();
    status
}

/// A request that no other is like.
fn nth(number: usize) -> Request<Full<Bytes>> {
    let body = format!(r#"{{"model":"m","messages":[{{"content":"{number}"}}]}}"#);
    plain().map(|_| body.into())
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_ten_thousand_requests_an_hour() {
    let client = full(&Upstream::always(Behavior::new()));
    for _ in 0..10_000 {
        assert_eq!(status(&client, plain()).await, StatusCode::OK);
    }
    let refused = call(&client, plain()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    let mut other = plain();
    let value = "Bearer b".parse().unwrap();
    other.headers_mut().insert("authorization", value);
    assert_eq!(status(&client, other).await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_cached_for_half_an_hour() {
    let upstream = Upstream::always(Behavior::new());
    let client = full(&upstream);
    for (wait, calls) in [(0, 1), (1_799, 1), (2, 2)] {
        tokio::time::sleep(wait * SECOND).await;
        assert_eq!(status(&client, plain()).await, StatusCode::OK);
        assert_eq!(upstream.calls(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_sent_twice_more_and_five_failures_open_the_circuit() {
    let upstream = Upstream::always(Fault::Status(500));
    let client = full(&upstream);
    assert_eq!(status(&client, nth(0)).await, 500);
    assert_eq!(upstream.calls(), 3);
    status(&client, nth(1)).await;
    assert_eq!(upstream.calls(), 5);
    assert_eq!(
        status(&client, nth(2)).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(upstream.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn ten_calls_run_at_once() {
    let upstream = Upstream::always(Behavior::new().head_delay(SECOND));
    let client = full(&upstream);
    let calls = futures_util::future::join_all((0..20).map(|number| status(&client, nth(number))));
    let (elapsed, statuses) = timed(calls).await;
    assert!(statuses.iter().all(StatusCode::is_success));
    assert_eq!(elapsed, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_silent_is_tried_three_times_and_becomes_a_timeout() {
    let upstream = Upstream::always(Fault::NoAnswer);
    let (elapsed, status) = timed(status(&full(&upstream), streamed())).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(upstream.calls(), 3);
    // Each has 120 s for its first token, and the backoffs are 0.5 s and 1 s at most.
    assert!((360..362).contains(&elapsed.as_secs()), "{elapsed:?}");
}
