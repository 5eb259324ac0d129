//! Times and counters: exact, also when the caller leaves.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

mod common;

use std::time::Duration;

use common::{PATIENCE, ask, client, give_up_once_arrived, post};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"m","stream":true}"#;
const HOUR: Duration = Duration::from_secs(3600);

async fn leave_in_mid_gap(path: &str, http2: bool) {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().gap(HOUR));
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(http2)
        .build_http::<http_body_util::Full<bytes::Bytes>>();
    let mut body = client
        .request(post(&provider, path, STREAM))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    provider
        .wait_for(PATIENCE, |counts| counts.output_tokens == 1)
        .await
        .unwrap();
    assert_eq!(provider.counts().open_streams, 1);
    drop(body);
    let counts = provider
        .wait_for(PATIENCE, |counts| counts.closed_by_caller == 1)
        .await
        .unwrap();
    assert_eq!(
        (counts.open_streams, counts.in_flight, counts.finished),
        (0, 0, 0)
    );
    assert_eq!(counts.output_tokens, 1);
}

#[tokio::test]
async fn a_caller_that_leaves_between_two_tokens_is_noticed() {
    leave_in_mid_gap(CHAT, false).await;
    leave_in_mid_gap("/v1/messages", false).await;
}

#[tokio::test]
async fn over_http2_too() {
    leave_in_mid_gap(CHAT, true).await;
}

#[tokio::test]
async fn a_caller_that_disconnects_before_the_headers_is_noticed() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().head_delay(HOUR));
    let request = client().request(post(&provider, CHAT, STREAM));
    give_up_once_arrived(&provider, request).await;
    let counts = provider
        .wait_for(PATIENCE, |counts| counts.closed_before_head == 1)
        .await
        .unwrap();
    assert_eq!(
        (
            counts.in_flight,
            counts.open_streams,
            counts.closed_by_caller
        ),
        (0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peaks_count_what_was_open_at_once() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(1));
    let client = client();
    let mut bodies = Vec::new();
    for _ in 0..7 {
        bodies.push(
            client
                .request(post(&provider, CHAT, STREAM))
                .await
                .unwrap()
                .into_body(),
        );
    }
    let counts = provider.counts();
    assert_eq!(
        (
            counts.open_streams,
            counts.max_open_streams,
            counts.max_in_flight
        ),
        (7, 7, 7)
    );
    bodies.truncate(2);
    provider
        .wait_for(PATIENCE, |counts| counts.open_streams == 2)
        .await
        .unwrap();
    provider.reset_counts();
    assert_eq!(provider.counts().max_open_streams, 2);
    drop(bodies);
    provider
        .wait_for(PATIENCE, |counts| counts.closed_by_caller == 2)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_script_is_one_entry_per_request_then_the_default() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(1));
    provider.script([Fault::Status(500), Fault::Status(401)]);
    provider.push(Fault::Overloaded);
    for status in [500, 401, 503, 200, 200] {
        assert_eq!(ask(&provider, CHAT, STREAM).await.status, status);
    }
    let counts = provider.counts();
    assert_eq!(
        (counts.requests, counts.faults, counts.output_tokens),
        (5, 3, 2)
    );
}

#[tokio::test]
async fn tokens_keep_to_their_timetable() {
    let provider = SimulatedProvider::start().await.unwrap();
    let (first, gap) = (Duration::from_millis(60), Duration::from_millis(20));
    provider.set(
        Behavior::new()
            .first_token(first)
            .gap(gap)
            .output_tokens(3)
            .keep_alive(Duration::from_millis(25)),
    );
    let begun = Instant::now();
    let mut body = client()
        .request(post(&provider, CHAT, STREAM))
        .await
        .unwrap()
        .into_body();
    let mut arrivals = Vec::new();
    while let Some(frame) = body.frame().await {
        let bytes = frame.unwrap().into_data().unwrap();
        arrivals.push((begun.elapsed(), String::from_utf8(bytes.to_vec()).unwrap()));
    }
    let texts: Vec<bool> = arrivals
        .iter()
        .map(|(_, text)| text == ": ping\n\n")
        .collect();
    assert_eq!(
        texts,
        [false, true, true, false, false, false, false, false]
    );
    for (i, due) in [(3, first), (4, first + gap), (5, first + 2 * gap)] {
        assert!(arrivals[i].0 >= due, "{i}: {:?}", arrivals[i].0);
    }

    // The same work without a stream: all the waiting is before the head.
    let begun = Instant::now();
    client().request(post(&provider, CHAT, "{}")).await.unwrap();
    assert!(begun.elapsed() >= first + 2 * gap);
}

#[tokio::test]
async fn a_stopped_provider_breaks_off_what_is_open() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(1));
    let addr = provider.addr();
    let client = client();
    let mut body = client
        .request(post(&provider, CHAT, STREAM))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    timeout(PATIENCE, provider.shutdown()).await.unwrap();
    timeout(PATIENCE, body.frame())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    // Its port is free again.
    let again = SimulatedProvider::start_on(addr).await.unwrap();
    assert_eq!(ask(&again, CHAT, STREAM).await.status, 200);
    drop(again);
}

#[tokio::test]
async fn a_dropped_provider_stops() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(1));
    let mut body = client()
        .request(post(&provider, CHAT, STREAM))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    drop(provider);
    timeout(PATIENCE, body.frame())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
}
