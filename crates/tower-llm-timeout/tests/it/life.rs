//! Streams that show signs of life before their first token, and bodies that stay open after their end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tower_llm_core::{Dialect, Failure, Outcome};
use tower_llm_timeout::TimeoutLayer;

use crate::support::{
    CONTENT, DONE, KEEP_ALIVE, MILLISECOND, ROLE, Upstream, Witness, call, json, last_event, read,
    response, seconds, sse, streamed, undescribed,
};

/// First token 10 s, or a minute with signs of life.
fn layer() -> TimeoutLayer {
    TimeoutLayer::builder()
        .first_token(seconds(10))
        .first_token_max(seconds(60))
        .build()
        .unwrap()
}

/// What shows that a model is at work: in each dialect, and what proxies send in any.
const SIGNS: [(Dialect, &str); 8] = [
    (Dialect::OpenAi, ROLE),
    (Dialect::OpenAi, KEEP_ALIVE),
    (Dialect::OpenAi, ": OPENROUTER PROCESSING\n\n"),
    (Dialect::OpenAi, "event: queue\ndata: {\"position\":3}\n\n"),
    (
        Dialect::OpenAiResponses,
        "event: response.in_progress\ndata: {\"type\":\"response.in_progress\",\"response\":{}}\n\n",
    ),
    (
        Dialect::OpenAiResponses,
        "data: {\"type\":\"response.web_search_call.searching\",\"output_index\":0}\n\n",
    ),
    (
        Dialect::Anthropic,
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
    ),
    (Dialect::Gemini, KEEP_ALIVE),
];

/// When a stream ended, how, and with which text.
async fn end(layer: TimeoutLayer, dialect: Dialect, body: Upstream) -> (Duration, Outcome, String) {
    let started = Instant::now();
    let witness = Witness::default();
    let response = call(layer, streamed(dialect), sse(body)).await;
    let mut body = Box::pin(witness.watch(response).into_body());
    let mut text = String::new();
    while let Some(frame) = crate::support::next(&mut body).await {
        text.push_str(&frame.unwrap());
    }
    (started.elapsed(), witness.completion().outcome, text)
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_extend_the_first_token() {
    for (dialect, sign) in SIGNS {
        let alive = (1..=8).fold(Upstream::new(), |upstream, n| {
            upstream.at(n * seconds(7), sign)
        });
        let (after, _, text) = end(layer(), dialect, alive.at(seconds(59), CONTENT)).await;
        assert_eq!(after, seconds(59), "{sign:?}");
        assert!(text.ends_with(CONTENT), "{sign:?}");
    }
}

/// The bound was the total of calls that are not streamed, so nothing was extended.
#[tokio::test(start_paused = true)]
async fn the_total_of_other_calls_does_not_bound_a_streams_first_token() {
    let layer = TimeoutLayer::builder()
        .first_token(seconds(10))
        .total(seconds(10))
        .total_streamed(seconds(45));
    for (streamed, bound) in [(layer, 45), (layer.total_streamed(seconds(300)), 50)] {
        let alive = (1..=60).fold(Upstream::new(), |upstream, n| {
            upstream.at(n * seconds(1), KEEP_ALIVE)
        });
        let (after, ..) = end(streamed.build().unwrap(), Dialect::OpenAi, alive).await;
        assert_eq!(after, seconds(bound));
    }
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_extend_it_up_to_a_bound() {
    for (dialect, sign) in SIGNS {
        let alive = (1..=20).fold(Upstream::new(), |upstream, n| {
            upstream.at(n * seconds(7), sign)
        });
        let (after, outcome, text) = end(layer(), dialect, alive.silent()).await;
        assert_eq!(after, seconds(60), "{sign:?}");
        assert_eq!(outcome, Outcome::Failed(Failure::Slow), "{sign:?}");
        assert!(text.contains("no first token within 60s"), "{text}");
        last_event(&text);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_sign_of_life_restarts_the_first_token_deadline() {
    let alive = Upstream::new().at(seconds(7), KEEP_ALIVE).silent();
    let (after, outcome, text) = end(layer(), Dialect::OpenAi, alive).await;
    assert_eq!(
        (after, outcome),
        (seconds(17), Outcome::Failed(Failure::Slow))
    );
    assert!(text.contains("no first token within 10s"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_sign_of_life_is_dead() {
    let (after, outcome, _) = end(layer(), Dialect::OpenAi, Upstream::new().silent()).await;
    assert_eq!(
        (after, outcome),
        (seconds(10), Outcome::Failed(Failure::Timeout))
    );
}

#[tokio::test(start_paused = true)]
async fn the_bound_is_five_times_the_first_token_unless_set_and_never_more_than_the_total() {
    let alive = || {
        (1..=40).fold(Upstream::new(), |upstream, n| {
            upstream.at(n * seconds(2), KEEP_ALIVE)
        })
    };
    for (total, bound) in [(None, 50), (Some(100), 50), (Some(40), 40)] {
        let mut builder = TimeoutLayer::builder().first_token(seconds(10));
        if let Some(total) = total {
            builder = builder.total(seconds(total));
        }
        let layer = builder.build().unwrap();
        let (after, outcome, _) = end(layer, Dialect::OpenAi, alive().silent()).await;
        assert_eq!(after, seconds(bound), "{total:?}");
        assert_eq!(outcome, Outcome::Failed(Failure::Slow), "{total:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_known_by_its_bytes_whatever_it_is_called() {
    for content_type in ["text/plain", "application/json", "application/octet-stream"] {
        let alive = (1..=3).fold(Upstream::new(), |upstream, n| {
            upstream.at(n * seconds(7), KEEP_ALIVE)
        });
        let body = alive.at(seconds(25), CONTENT).at(seconds(25), DONE);
        let answer = response(content_type, body);
        let mut response = call(layer(), streamed(Dialect::OpenAi), answer).await;
        let (text, error) = read(response.body_mut()).await;
        assert!(error.is_none(), "{content_type}");
        assert!(text.ends_with(DONE), "{content_type}");
    }
}

// === after the end ===

const LINGER: Duration = Duration::from_millis(250);

#[tokio::test(start_paused = true)]
async fn an_upstream_that_stays_open_after_the_marker_does_not_keep_the_caller() {
    let stop = "data: {\"type\":\"message_stop\"}\n\n";
    let completed = "data: {\"type\":\"response.completed\",\"response\":{}}\n\n";
    let finish = "data: {\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n";
    for (dialect, marker) in [
        (Dialect::OpenAi, DONE),
        (Dialect::OpenAiResponses, completed),
        (Dialect::Anthropic, stop),
        (Dialect::Gemini, finish),
    ] {
        let body = Upstream::new().now(marker).silent();
        let (after, outcome, text) = end(TimeoutLayer::new(), dialect, body).await;
        // Nothing is added to it, and no layer takes it for a failure.
        assert_eq!((after, outcome), (LINGER, Outcome::Success), "{dialect:?}");
        assert_eq!(text, marker);

        let body = Upstream::new().now(marker).at(LINGER / 2, ": bye\n\n");
        let (after, outcome, _) = end(TimeoutLayer::new(), dialect, body).await;
        assert_eq!((after, outcome), (LINGER / 2, Outcome::Success));
    }
}

/// What ends the last event of a stream, in each dialect: the marker, or a finish reason, is not its last byte.
const LAST_EVENTS: [(Dialect, &str); 4] = [
    (Dialect::OpenAi, DONE),
    (
        Dialect::OpenAiResponses,
        "event: response.completed\r\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"output_tokens\":5}}}\r\n\r\n",
    ),
    (
        Dialect::Anthropic,
        "event: message_stop\ndata: {\"type\":\"message_stop\", \"amazon-bedrock-invocationMetrics\":{}}\n\n",
    ),
    (
        Dialect::Gemini,
        "data: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"totalTokenCount\":5}}\n\n",
    ),
];

#[tokio::test(start_paused = true)]
async fn an_event_that_ends_a_stream_comes_whole_however_slowly_it_is_sent() {
    for (dialect, event) in LAST_EVENTS {
        let data_ends = event.trim_ascii_end().len();
        let bytes = event.as_bytes().chunks(1).enumerate();
        let body = bytes.fold(Upstream::new(), |upstream, (at, byte)| {
            // The line ends follow their data at once.
            let sent = at.min(data_ends - 1);
            upstream.at(seconds(sent as u64), byte.to_vec())
        });
        let (_, outcome, text) = end(TimeoutLayer::new(), dialect, body).await;
        assert_eq!((outcome, &*text), (Outcome::Success, event), "{dialect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_ends_a_stream_comes_whole_however_slowly_it_is_read() {
    for (dialect, event) in LAST_EVENTS {
        let bytes = event.as_bytes().chunks(1);
        let body = bytes.fold(Upstream::new(), |upstream, byte| {
            upstream.now(byte.to_vec())
        });
        let mut response = call(TimeoutLayer::new(), streamed(dialect), sse(body)).await;
        let mut text = String::new();
        while let Some(frame) = crate::support::next(response.body_mut()).await {
            text.push_str(&frame.unwrap());
            tokio::time::sleep(2 * LINGER).await;
        }
        assert_eq!(text, event, "{dialect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn frames_after_the_marker_do_not_hold_the_caller() {
    let talks_on = (1..100).fold(Upstream::new().now(CONTENT).now(DONE), |upstream, n| {
        upstream.at(n * 100 * MILLISECOND, KEEP_ALIVE)
    });
    let (after, outcome, _) = end(TimeoutLayer::new(), Dialect::OpenAi, talks_on).await;
    assert_eq!((after, outcome), (LINGER, Outcome::Success));
}

#[tokio::test(start_paused = true)]
async fn a_whole_document_is_an_end_too() {
    let document = r#"{"choices":[]}"#;
    for answer in [
        json(Upstream::new().now(document).silent()),
        Response::new(Upstream::new().now(document).silent()),
    ] {
        let started = Instant::now();
        let mut response = call(TimeoutLayer::new(), undescribed(), answer).await;
        let (text, error) = read(response.body_mut()).await;
        assert_eq!((started.elapsed(), &*text), (LINGER, document));
        assert!(error.is_none());
    }
}

/// More choices, or the usage, may be on their way.
#[tokio::test(start_paused = true)]
async fn a_finish_reason_alone_is_no_marker() {
    let finished =
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let usage = crate::support::USAGE;
    let body = Upstream::new()
        .now(CONTENT)
        .now(finished)
        .at(seconds(1), usage);
    let (after, outcome, text) = end(TimeoutLayer::new(), Dialect::OpenAi, body).await;
    assert_eq!((after, outcome), (seconds(1), Outcome::Success));
    assert!(text.ends_with(usage));
}
