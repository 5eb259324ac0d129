//! What a cut looks like: to the reader, to the upstream, to the layers around.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_llm_core::{Armed, Deadline, Dialect, Failure, Guarded, HttpBody, Outcome, Usage};
use tower_llm_timeout::TimeoutLayer;

use crate::support::{
    CONTENT, DONE, DropOf, ROLE, SECOND, USAGE, Upstream, Witness, assert_timed_out, call,
    described, events, first_token, idle, json, last_event, next, read, response, seconds, sse,
    streamed, total, undescribed,
};

// === before the head ===

#[tokio::test(start_paused = true)]
async fn the_inner_call_is_dropped_before_the_caller_gets_the_error() {
    for (layer, deadline) in [
        (first_token(), Deadline::FirstToken),
        (total(), Deadline::Total),
    ] {
        let witness = Witness::default();
        let held = DropOf("call dropped", witness.clone());
        let mut held = Some(held);
        let mut service = layer.layer(service_fn(move |_: Request<()>| {
            let held = held.take();
            async move {
                let _held = held;
                std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
            }
        }));
        // Kept, so that it is not the future's own drop which is seen.
        let inner = service.call(streamed(Dialect::OpenAi));
        let guard = Armed::new(witness.guard());
        let mut watched = Box::pin(Guarded::new(inner, HttpBody, None, guard));
        let error = (&mut watched).await.err().unwrap();
        witness.push("caller told");

        assert_timed_out(&error, deadline, seconds(10));
        assert_eq!(
            witness.seen(),
            ["call dropped", "guard told", "caller told"]
        );
        assert_eq!(
            witness.completion().outcome,
            Outcome::Failed(Failure::Timeout)
        );
    }
}

// === in a stream ===

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_one_error_event_in_its_dialect() {
    let message = "nothing more came within 10s";
    let openai = serde_json::json!({"error": {
        "message": message, "type": "timeout", "param": null, "code": "timeout",
    }});
    let responses = serde_json::json!({
        "type": "error", "code": "timeout", "message": message, "param": null, "sequence_number": 0,
    });
    let anthropic = serde_json::json!({
        "type": "error", "error": {"type": "timeout_error", "message": message},
    });
    let gemini = serde_json::json!({"error": {
        "code": 504, "message": message, "status": "DEADLINE_EXCEEDED",
    }});
    for (dialect, name, data) in [
        (Dialect::OpenAi, "", openai),
        (Dialect::OpenAiResponses, "error", responses),
        (Dialect::Anthropic, "error", anthropic),
        (Dialect::Gemini, "", gemini),
    ] {
        let body = Upstream::new().now(ROLE).silent();
        let mut body = call(idle(), streamed(dialect), sse(body)).await.into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), ROLE);
        assert!(!body.is_end_stream());
        let event = next(&mut body).await.unwrap().unwrap();
        assert_eq!(events(&event).len(), 1, "{event}");
        assert_eq!(last_event(&event), (name.to_owned(), data), "{dialect:?}");
        assert!(body.is_end_stream());
        for _ in 0..2 {
            assert!(next(&mut body).await.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_undescribed_stream_ends_with_an_event_of_openai() {
    let body = call(idle(), undescribed(), sse(Upstream::new().silent())).await;
    let (text, _) = read(&mut body.into_body()).await;
    assert_eq!(last_event(&text).1["error"]["code"], "timeout");
}

#[tokio::test(start_paused = true)]
async fn the_error_can_be_read_wherever_the_stream_was_cut() {
    let lf = format!(": hi\n\nid: 1\nevent: delta\n{CONTENT}{ROLE}");
    let crlf = lf.replace('\n', "\r\n");
    for stream in [lf, crlf] {
        for cut in 0..=stream.len() {
            let (before, _) = stream.split_at(cut);
            let body = Upstream::new().now(before.to_owned()).silent();
            let mut body = call(idle(), streamed(Dialect::Anthropic), sse(body))
                .await
                .into_body();
            let (text, error) = read(&mut body).await;
            assert!(error.is_none());
            let (name, data) = last_event(&text);
            assert_eq!(name, "error", "{before:?}");
            assert_eq!(data["error"]["type"], "timeout_error", "{before:?}");
            // What is whole already stays so.
            assert!(text.starts_with(before));
        }
    }
}

/// The event was appended to the half event that the reader had, because the unread late frame had ended that.
#[tokio::test(start_paused = true)]
async fn the_error_can_be_read_where_a_late_frame_was_held_back() {
    let (half, rest) = CONTENT.split_at(20);
    let body = Upstream::new().now(half).now(rest).now(CONTENT);
    let response = call(total(), streamed(Dialect::OpenAi), sse(body)).await;
    let mut body = response.into_body();
    let mut text = next(&mut body).await.unwrap().unwrap();
    tokio::time::sleep(seconds(11)).await;
    let (late, _) = read(&mut body).await;
    text.push_str(&late);
    assert_eq!(last_event(&text).1["error"]["code"], "timeout", "{text}");
    assert!(!text.contains("Hello"), "{text}");
}

// === in any other body ===

#[tokio::test(start_paused = true)]
async fn what_cannot_be_added_to_is_broken_off() {
    let with = |name: &'static str, value: &str, body| {
        let mut response = sse(body);
        response.headers_mut().insert(name, value.parse().unwrap());
        response
    };
    let part = || Upstream::new().now("{\"id\":").silent();
    let stream = || Upstream::new().now(CONTENT).silent();
    for (response, begun) in [
        (json(part()), "{\"id\":"),
        (response("application/octet-stream", part()), "{\"id\":"),
        (Response::new(part()), "{\"id\":"),
        (with("content-length", "1000", stream()), CONTENT),
        (with("content-encoding", "gzip", stream()), CONTENT),
        (with("content-encoding", "identity", stream()), CONTENT),
    ] {
        let head = format!("{:?}", response.headers());
        let response = call(idle(), described(Dialect::OpenAi, false), response).await;
        let mut body = response.into_body();
        let (text, error) = read(&mut body).await;
        assert_eq!(text, begun, "{head}");
        assert_timed_out(&error.unwrap(), Deadline::Idle, seconds(10));
        assert!(body.is_end_stream());
        assert!(next(&mut body).await.is_none(), "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_known_size_is_broken_off_too() {
    /// Says how long it is, and then says nothing.
    struct Sized(Upstream);
    impl Body for Sized {
        type Data = Bytes;
        type Error = tower_llm_core::BoxError;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            std::pin::Pin::new(&mut self.0).poll_frame(cx)
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(1_000)
        }
    }
    let response = sse(Sized(Upstream::new().silent()));
    let response = call(idle(), undescribed(), response).await;
    let error = next(&mut response.into_body()).await.unwrap().unwrap_err();
    assert_timed_out(&error, Deadline::Idle, seconds(10));
}

// === to the upstream and the layers around ===

#[tokio::test(start_paused = true)]
async fn the_upstream_is_dropped_and_guards_end_before_the_reader_gets_the_error() {
    let failed = Outcome::Failed;
    for (layer, outcome) in [
        (first_token(), failed(Failure::Timeout)),
        (idle(), failed(Failure::Stalled)),
        (total(), failed(Failure::Timeout)),
    ] {
        for response in [
            sse(Upstream::new()),
            json(Upstream::new()),
            Response::new(Upstream::new()),
        ] {
            let witness = Witness::default();
            let response = response.map(|body| body.silent().witnessed(&witness));
            let response = call(layer, streamed(Dialect::OpenAi), response).await;
            let mut body = witness.watch(response).into_body();
            let frame = next(&mut body).await;
            witness.push("reader told");
            assert!(frame.is_some());
            assert_eq!(
                witness.seen(),
                ["upstream dropped", "guard told", "reader told"]
            );
            assert_eq!(witness.completion().outcome, outcome);

            // Once, whatever becomes of the rest.
            assert!(next(&mut body).await.is_none());
            drop(body);
            assert_eq!(witness.completions().len(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_reports_the_usage_that_was_seen() {
    let witness = Witness::default();
    let body = Upstream::new()
        .now(ROLE)
        .at(SECOND, CONTENT)
        .at(2 * SECOND, USAGE)
        .silent();
    let response = call(idle(), streamed(Dialect::OpenAi), sse(body)).await;
    read(witness.watch(response).body_mut()).await;
    let told = witness.completion();
    assert_eq!(told.outcome, Outcome::Failed(Failure::Stalled));
    assert_eq!(told.usage, Some(Usage::new(9, 2)));
    assert_eq!(told.output_seen, 2);
    assert_eq!(told.status, Some(200));
    let ended_at = told.ended_at.unwrap();
    assert_eq!(ended_at - told.first_token_at.unwrap(), seconds(11));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_inside_the_timeout_sees_the_same() {
    let inside = Witness::default();
    let outside = Witness::default();
    let response = inside.watch(sse(Upstream::new().now(USAGE).silent()));
    let response = call(idle(), streamed(Dialect::OpenAi), response).await;
    read(outside.watch(response).body_mut()).await;
    for witness in [inside, outside] {
        let told = witness.completion();
        assert_eq!(told.outcome, Outcome::Failed(Failure::Stalled));
        assert_eq!(told.usage, Some(Usage::new(9, 2)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_in_time_is_passed_on_as_it_is() {
    let witness = Witness::default();
    let body = Upstream::new()
        .now(ROLE)
        .at(SECOND, CONTENT)
        .at(2 * SECOND, USAGE)
        .at(3 * SECOND, DONE);
    let response = call(TimeoutLayer::new(), streamed(Dialect::OpenAi), sse(body)).await;
    let (text, error) = read(witness.watch(response).body_mut()).await;
    assert_eq!(text, [ROLE, CONTENT, USAGE, DONE].concat());
    assert!(error.is_none());
    assert_eq!(witness.completion().outcome, Outcome::Success);
}

#[tokio::test(start_paused = true)]
async fn a_late_frame_that_ends_the_call_ends_it_alike_for_all() {
    let witness = Witness::default();
    let body = Upstream::new().now("{}").knows_end();
    let response = call(total(), undescribed(), json(body)).await;
    let mut body = witness.watch(response).into_body();
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "{}");
    assert_eq!(witness.completion().outcome, Outcome::Success);
}

#[tokio::test(start_paused = true)]
async fn a_complete_response_that_stays_open_just_ends() {
    for response in [
        sse(Upstream::new().now(CONTENT).now(DONE).silent()),
        json(Upstream::new().now("{\"choices\":[]}").silent()),
    ] {
        let witness = Witness::default();
        let response = call(idle(), streamed(Dialect::OpenAi), response).await;
        let mut body = witness.watch(response).into_body();
        let (text, error) = read(&mut body).await;
        assert!(!text.contains("error"), "{text}");
        assert!(error.is_none(), "{error:?}");
        assert_eq!(witness.completion().outcome, Outcome::Success);
    }
}
