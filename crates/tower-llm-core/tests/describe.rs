//! A request is read once, described by what it says, and passed on as it came.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use proptest::prelude::*;
use tokio::time::{Instant, Sleep};
use tower::{Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Caller, DescribeLayer, Described, Dialect, MAX_BODY_BYTES, Operation, Provider,
    Refusal, RefusalKind, TooLarge,
};
use tower_test::mock;

use support::{Script, Step};

type Sent = Request<Full<Bytes>>;

/// Answers with the request, as it was passed on.
async fn echo(request: Sent) -> Result<Sent, BoxError> {
    Ok(request)
}

/// The request as `layer` passes it on.
async fn pass<B>(layer: &DescribeLayer, request: Request<B>) -> Result<Sent, BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    layer.layer(service_fn(echo)).oneshot(request).await
}

/// The call that a POST of `body` to `path` is.
async fn call(path: &str, body: &str) -> Call {
    let request = Request::post(path)
        .body(Full::<Bytes>::from(body.to_owned()))
        .unwrap();
    pass(&DescribeLayer::new(), request)
        .await
        .unwrap()
        .call()
        .cloned()
        .unwrap()
}

async fn bytes(request: Sent) -> Bytes {
    request.into_body().collect().await.unwrap().to_bytes()
}

// === what a call is ===

/// A call in one line: dialect, provider, operation, model, streamed, input tokens, maximum, items.
fn line(call: &Call) -> String {
    let dialect = call
        .dialect()
        .map_or_else(|| "-".to_owned(), |dialect| format!("{dialect:?}"));
    let max = call
        .max_output_tokens()
        .map_or_else(|| "-".to_owned(), |max| max.to_string());
    format!(
        "{dialect} {} {} {} {} in={} max={max} items={}",
        call.provider(),
        call.operation(),
        call.model().unwrap_or("-"),
        if call.streamed() { "streamed" } else { "whole" },
        call.input_tokens(),
        call.items(),
    )
}

#[tokio::test]
async fn every_dialect_is_described() {
    // Texts of four bytes are a token each.
    for (path, body, expected) in [
        (
            "/v1/chat/completions",
            r#"{"model":"gpt-5","messages":[{"role":"user","content":"four"}],"max_completion_tokens":9,"stream":true}"#,
            "OpenAi openai chat gpt-5 streamed in=1 max=9 items=1",
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"gpt-5","stream":false,"messages":[{"role":"system","content":"four"},{"role":"user","content":[{"type":"text","text":"four"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"max_tokens":7}"#,
            "OpenAi openai chat gpt-5 whole in=2 max=7 items=1",
        ),
        (
            "/v1/responses",
            r#"{"model":"gpt-5","instructions":"four","input":[{"role":"user","content":[{"type":"input_text","text":"four"}]},{"role":"user","content":"four"}],"max_output_tokens":5,"stream":true}"#,
            "OpenAiResponses openai chat gpt-5 streamed in=3 max=5 items=1",
        ),
        (
            "/v1/responses",
            r#"{"model":"gpt-5","input":"four"}"#,
            "OpenAiResponses openai chat gpt-5 whole in=1 max=- items=1",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"text-embedding-3-small","input":["four","four","four"]}"#,
            "OpenAi openai embeddings text-embedding-3-small whole in=3 max=- items=3",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":"four"}"#,
            "OpenAi openai embeddings e whole in=1 max=- items=1",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":[1,2,3,4,5]}"#,
            "OpenAi openai embeddings e whole in=5 max=- items=1",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":[[1,2,3],[4,5]]}"#,
            "OpenAi openai embeddings e whole in=5 max=- items=2",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":[]}"#,
            "OpenAi openai embeddings e whole in=0 max=- items=1",
        ),
        (
            "/v1/completions",
            r#"{"model":"gpt-3.5-turbo-instruct","prompt":["four","four"],"max_tokens":16}"#,
            "OpenAi openai text_completion gpt-3.5-turbo-instruct whole in=2 max=32 items=2",
        ),
        (
            "/openai/deployments/east-4o/chat/completions?api-version=2025-04-01",
            r#"{"model":"ignored","messages":[{"content":"four"}],"stream":true}"#,
            "OpenAi azure.ai.openai chat east-4o streamed in=1 max=- items=1",
        ),
        (
            "/openai/deployments/embed/embeddings?api-version=2025-04-01",
            r#"{"input":["four","four"]}"#,
            "OpenAi azure.ai.openai embeddings embed whole in=2 max=- items=2",
        ),
        (
            "/v1/messages",
            r#"{"model":"claude-sonnet-5","system":[{"type":"text","text":"four"}],"messages":[{"role":"user","content":"four"}],"max_tokens":1024,"stream":true}"#,
            "Anthropic anthropic chat claude-sonnet-5 streamed in=2 max=1024 items=1",
        ),
        (
            "/v1/messages/count_tokens",
            r#"{"model":"claude-sonnet-5","messages":[{"role":"user","content":"four"}]}"#,
            "Anthropic anthropic count_tokens claude-sonnet-5 whole in=1 max=- items=1",
        ),
        (
            "/v1beta/models/gemini-3-flash:generateContent",
            r#"{"contents":[{"role":"user","parts":[{"text":"four"}]}],"systemInstruction":{"parts":[{"text":"four"}]},"generationConfig":{"maxOutputTokens":64}}"#,
            "Gemini gcp.gemini generate_content gemini-3-flash whole in=2 max=64 items=1",
        ),
        (
            "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse",
            r#"{"contents":[{"parts":[{"text":"four"}]}]}"#,
            "Gemini gcp.gemini generate_content gemini-3-flash streamed in=1 max=- items=1",
        ),
        (
            "/v1beta/models/gemini-embedding-001:embedContent",
            r#"{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"four"}]}}"#,
            "Gemini gcp.gemini embeddings gemini-embedding-001 whole in=1 max=- items=1",
        ),
        (
            "/v1beta/models/gemini-embedding-001:batchEmbedContents",
            r#"{"requests":[{"model":"m","content":{"parts":[{"text":"four"}]}},{"content":{"parts":[{"text":"four"}]}}]}"#,
            "Gemini gcp.gemini embeddings gemini-embedding-001 whole in=2 max=- items=2",
        ),
        (
            "/v1beta/models/gemini-3-flash:countTokens",
            r#"{"contents":[{"parts":[{"text":"four"}]}]}"#,
            "Gemini gcp.gemini count_tokens gemini-3-flash whole in=1 max=- items=1",
        ),
        (
            "/v1/audio/speech",
            r#"{"model":"tts-1","input":"four"}"#,
            "- _OTHER _OTHER tts-1 whole in=1 max=- items=1",
        ),
        (
            "/proxy/https://api.openai.com/v1/chat/completions",
            r#"{"model":"gpt-5"}"#,
            "OpenAi openai chat gpt-5 whole in=0 max=- items=1",
        ),
    ] {
        assert_eq!(line(&call(path, body).await), expected, "{path} {body}");
    }
}

#[tokio::test]
async fn a_request_without_a_body_is_described_by_its_headers() {
    for (header, dialect, provider) in [
        (
            "anthropic-version",
            Some(Dialect::Anthropic),
            Provider::ANTHROPIC,
        ),
        ("x-goog-api-key", Some(Dialect::Gemini), Provider::GEMINI),
        ("accept", None, Provider::OTHER),
    ] {
        let request = Request::get("/v1/models")
            .header(header, "x")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let passed = pass(&DescribeLayer::new(), request).await.unwrap();
        let call = passed.call().unwrap();
        assert_eq!(call.dialect(), dialect, "{header}");
        assert_eq!(*call.provider(), provider, "{header}");
        assert_eq!(*call.operation(), Operation::OTHER, "{header}");
        assert_eq!(
            (call.model(), call.input_tokens(), call.items()),
            (None, 0, 1)
        );
    }
}

#[tokio::test]
async fn a_get_of_a_path_that_is_posted_to_is_not_a_call_to_a_model() {
    let request = Request::get("/v1/responses")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(*passed.call().unwrap().operation(), Operation::OTHER);
}

#[tokio::test]
async fn the_service_says_who_serves_and_for_which_account() {
    let layer = DescribeLayer::new()
        .provider(Provider::new("groq"))
        .account("team-a");
    let request = Request::post("/v1/chat/completions")
        .body(Full::<Bytes>::from(r#"{"model":"m"}"#))
        .unwrap();
    let passed = pass(&layer, request).await.unwrap();
    let call = passed.call().unwrap();
    assert_eq!(call.provider().as_str(), "groq");
    assert_eq!(call.account(), Some("team-a"));
    assert_eq!(call.dialect(), Some(Dialect::OpenAi));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_received_when_its_head_is() {
    let begun = Instant::now();
    let request = Request::post("/v1/messages")
        .body(Slow::new(Duration::from_secs(5)))
        .unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(passed.call().unwrap().received_at(), begun);
}

// === bodies ===

#[tokio::test]
async fn a_request_passes_as_it_came() {
    let body = r#"{"model" : "gpt-5",  "extra":[1.0, 1e2], "model":"twice"} "#;
    let request = Request::post("/v1/chat/completions?a=b")
        .header("x-request-id", "7")
        .header("authorization", "Bearer k")
        .body(Full::<Bytes>::from(body))
        .unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(passed.method(), Method::POST);
    assert_eq!(passed.uri(), "/v1/chat/completions?a=b");
    assert_eq!(passed.headers().len(), 2);
    assert_eq!(passed.headers()["x-request-id"], "7");
    assert_eq!(passed.headers()["authorization"], "Bearer k");
    assert_eq!(passed.body().size_hint().exact(), Some(body.len() as u64));
    assert_eq!(bytes(passed).await, body);
}

#[tokio::test]
async fn a_body_of_one_frame_is_not_copied() {
    let body = Bytes::from(vec![b' '; 1_000]);
    let at = body.as_ptr();
    let request = Request::post("/").body(Full::new(body)).unwrap();
    let passed = bytes(pass(&DescribeLayer::new(), request).await.unwrap()).await;
    assert_eq!(passed.as_ptr(), at);
}

#[tokio::test]
async fn a_body_that_is_not_json_passes_byte_for_byte_described_by_what_is_known() {
    for body in [
        &b"{\"model\":\"gpt-5\",\"stream\":true,\"messages\":[{\"content\":\"fo"[..],
        b"{\"model\":\"gpt-5\",\"stream\":true,\"messages\":oops}",
        b"{\"model\":\"gpt-5\",\"stream\":true}}}}",
        b"{\"model\":\"gpt-5\",\"stream\":true,\"\xff\xfe\":1}",
    ] {
        let request = Request::post("/v1/chat/completions")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let passed = pass(&DescribeLayer::new(), request).await.unwrap();
        let call = passed.call().unwrap();
        assert_eq!((call.model(), call.streamed()), (Some("gpt-5"), true));
        assert_eq!(bytes(passed).await, body);
    }
    for body in [
        &b""[..],
        b"null",
        b"[1,2]",
        b"\"model\"",
        b"7",
        b"\xff\0",
        b"model=gpt-5&stream=true",
    ] {
        let request = Request::post("/v1/chat/completions")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let passed = pass(&DescribeLayer::new(), request).await.unwrap();
        // What cannot be read may be text, all of it.
        let is_json = serde_json::from_slice::<serde_json::Value>(body).is_ok();
        let tokens = if is_json { 0 } else { body.len().div_ceil(4) };
        assert_eq!(
            line(passed.call().unwrap()),
            format!("OpenAi openai chat - whole in={tokens} max=- items=1")
        );
        assert_eq!(bytes(passed).await, body);
    }
}

#[tokio::test]
async fn what_is_nested_without_end_neither_panics_nor_hides_what_came_before() {
    for bracket in ["[", "{\"a\":"] {
        let body = format!(
            "{{\"model\":\"gpt-5\",\"messages\":{}",
            bracket.repeat(100_000)
        );
        assert_eq!(
            call("/v1/chat/completions", &body).await.model(),
            Some("gpt-5")
        );
    }
}

#[tokio::test]
async fn a_body_of_many_frames_is_put_together() {
    let body = r#"{"model":"gpt-5","messages":[{"content":"four"}]}"#;
    let frames = ["", &body[..1], &body[1..20], "", &body[20..], ""].map(str::to_owned);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "7".parse().unwrap());
    let script = Script::data(frames).then(Step::Trailers(trailers));
    let request = Request::post("/v1/chat/completions").body(script).unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(passed.call().unwrap().model(), Some("gpt-5"));
    assert_eq!(bytes(passed).await, body);
}

proptest! {
    #[test]
    fn any_body_in_any_frames_passes_byte_for_byte(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12),
    ) {
        let whole = frames.concat();
        let request = Request::post("/v1/messages").body(Script::data(frames)).unwrap();
        let passing = pin!(async { bytes(pass(&DescribeLayer::new(), request).await.unwrap()).await });
        let passed = passing.poll(&mut Context::from_waker(Waker::noop()));
        prop_assert_eq!(passed, Poll::Ready(Bytes::from(whole)));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_sent() {
    let script = Script::data(["{\"model\":"]).then(Step::Error("reset by the caller".into()));
    let request = Request::post("/v1/messages").body(script).unwrap();
    let error = pass(&DescribeLayer::new(), request).await.unwrap_err();
    assert_eq!(error.to_string(), "reset by the caller");
}

// === the limit ===

#[track_caller]
fn assert_too_large(result: Result<Sent, BoxError>, limit: usize) {
    let error = result.unwrap_err();
    let too_large = error.downcast_ref::<TooLarge>().expect("another error");
    assert_eq!(too_large.limit_bytes(), limit);
    assert_eq!(too_large.retry_after(), None);
    let refusal = Refusal::find(&*error).expect("no refusal");
    assert_eq!(
        (refusal.kind(), refusal.is_retryable()),
        (RefusalKind::TooLarge, false)
    );
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let layer = DescribeLayer::new().max_body_bytes(100).unwrap();
    let frames = |lengths: &[usize]| {
        let frames: Vec<_> = lengths.iter().map(|&length| vec![b' '; length]).collect();
        Request::post("/").body(Script::data(frames)).unwrap()
    };
    for at_limit in [&[100][..], &[40, 60], &[100, 0], &[0, 99, 1]] {
        let passed = pass(&layer, frames(at_limit)).await.unwrap();
        assert_eq!(bytes(passed).await.len(), 100, "{at_limit:?}");
    }
    for over in [&[101][..], &[40, 61], &[100, 1], &[0, 99, 1, 1]] {
        assert_too_large(pass(&layer, frames(over)).await, 100);
    }
}

#[tokio::test]
async fn the_limit_is_ten_megabytes_unless_set() {
    let request = |length| {
        Request::post("/")
            .body(Full::new(Bytes::from(vec![b' '; length])))
            .unwrap()
    };
    let passed = pass(&DescribeLayer::new(), request(MAX_BODY_BYTES))
        .await
        .unwrap();
    assert_eq!(bytes(passed).await.len(), 10_485_760);
    assert_too_large(
        pass(&DescribeLayer::new(), request(MAX_BODY_BYTES + 1)).await,
        MAX_BODY_BYTES,
    );
}

#[tokio::test]
async fn a_body_that_is_said_to_be_over_the_limit_is_refused_without_being_read() {
    let layer = DescribeLayer::new().max_body_bytes(10).unwrap();
    for announced in ["11", "99999999999"] {
        let script = Script::data(["short"]);
        let polls = script.polls();
        let request = Request::post("/")
            .header("content-length", announced)
            .body(script)
            .unwrap();
        assert_too_large(pass(&layer, request).await, 10);
        assert_eq!(polls.load(Ordering::Relaxed), 0, "{announced}");
    }
    let script = Script::data(["more than ten"]).with_known_length();
    let polls = script.polls();
    assert_too_large(
        pass(&layer, Request::post("/").body(script).unwrap()).await,
        10,
    );
    assert_eq!(polls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_body_is_read_no_further_than_over_the_limit() {
    let layer = DescribeLayer::new().max_body_bytes(10).unwrap();
    let script = Script::data(["12345678", "90ab", "never read", "nor this"]);
    let polls = script.polls();
    let request = Request::post("/")
        .header("content-length", "nonsense")
        .body(script)
        .unwrap();
    assert_too_large(pass(&layer, request).await, 10);
    assert_eq!(polls.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_body_that_lies_about_its_length_is_limited_all_the_same() {
    let layer = DescribeLayer::new().max_body_bytes(10).unwrap();
    let request = Request::post("/")
        .header("content-length", "3")
        .body(Script::data(["eleven bytes"]))
        .unwrap();
    assert_too_large(pass(&layer, request).await, 10);
}

#[test]
fn a_limit_of_zero_is_no_limit_and_is_not_taken() {
    let error = DescribeLayer::new().max_body_bytes(0).unwrap_err();
    assert_eq!((error.field(), error.value()), ("max_body_bytes", "0"));
}

// === callers ===

async fn caller_of(layer: &DescribeLayer, uri: &str, headers: &[(&str, &str)]) -> Option<Caller> {
    let mut request = Request::post(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    pass(layer, request)
        .await
        .unwrap()
        .call()
        .unwrap()
        .caller()
        .cloned()
}

#[tokio::test]
async fn a_credential_makes_the_same_caller_every_time_and_another_makes_another() {
    let layer = DescribeLayer::new();
    let with = async |name, value| {
        caller_of(&layer, "/v1/messages", &[(name, value)])
            .await
            .unwrap()
    };
    for name in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
        let one = with(name, "sk-one").await;
        assert_eq!(with(name, "sk-one").await, one, "{name}");
        assert_ne!(with(name, "sk-two").await, one, "{name}");
        assert_eq!(one.as_str().len(), 32);
        assert!(
            one.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{one}"
        );
    }
    let by_query = caller_of(
        &layer,
        "/v1beta/models/m:generateContent?alt=sse&key=sk-one",
        &[],
    )
    .await;
    assert_eq!(by_query, Some(with("x-goog-api-key", "sk-one").await));
    assert_eq!(caller_of(&layer, "/v1/messages?monkey=1", &[]).await, None);
}

#[tokio::test]
async fn clones_of_a_layer_know_the_same_callers_and_other_layers_do_not() {
    let layer = DescribeLayer::new();
    let caller = async |layer: &DescribeLayer| {
        caller_of(layer, "/", &[("x-api-key", "sk-one")])
            .await
            .unwrap()
    };
    let one = caller(&layer).await;
    assert_eq!(caller(&layer.clone()).await, one);
    assert_eq!(caller(&layer.clone().max_body_bytes(5).unwrap()).await, one);
    assert_ne!(caller(&DescribeLayer::new()).await, one);
}

#[tokio::test]
async fn layers_with_the_same_secret_know_the_same_callers() {
    let caller = async |secret: u8| {
        let layer = DescribeLayer::new().caller_secret([secret; 16]);
        caller_of(&layer, "/", &[("x-api-key", "sk-one")])
            .await
            .unwrap()
    };
    assert_eq!(caller(1).await, caller(1).await);
    assert_ne!(caller(1).await, caller(2).await);
}

#[tokio::test]
async fn a_credential_appears_nowhere_but_in_its_header() {
    const CREDENTIAL: &str = "sk-very-secret";
    let layer = DescribeLayer::new().caller_secret(*b"0123456789abcdef");
    let request = Request::post("/v1/messages")
        .header("x-api-key", CREDENTIAL)
        .body(Full::<Bytes>::from(r#"{"model":"claude"}"#))
        .unwrap();
    let mut service = layer.layer(service_fn(echo));
    let future = service.call(request);
    let mut texts = vec![format!("{layer:?} {service:?} {future:?}")];
    let passed = future.await.unwrap();
    let call = passed.call().unwrap();
    texts.push(format!("{call:?}"));
    texts.push(format!("{:?}", passed.extensions()));
    texts.push(format!("{} {:?}", call.caller().unwrap(), call.caller()));
    for text in texts {
        assert!(!text.contains(CREDENTIAL), "{text}");
        assert!(!text.contains("very"), "{text}");
        assert!(
            !text.contains("0123456789abcdef") && !text.contains("[48, 49"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn the_service_may_name_callers_itself() {
    let layer = DescribeLayer::new().caller_by(|parts| {
        let tenant = parts.headers.get("x-tenant")?.to_str().ok()?;
        Some(Caller::named(tenant))
    });
    let headers = [("x-tenant", "acme"), ("x-api-key", "sk-one")];
    assert_eq!(
        caller_of(&layer, "/", &headers).await,
        Some(Caller::named("acme"))
    );
    assert_eq!(caller_of(&layer, "/", &headers[1..]).await, None);
}

// === readiness and the way in ===

#[tokio::test]
async fn the_inner_service_is_readied_before_it_is_called() {
    let (mut service, mut handle) = mock::spawn_layer::<Sent, &str, _>(DescribeLayer::new());
    handle.allow(0);
    // Nothing of the inner service is needed to read a body.
    assert!(matches!(service.poll_ready::<Sent>(), Poll::Ready(Ok(()))));
    let request = Request::post("/v1/messages")
        .body(Full::<Bytes>::from(r#"{"model":"m"}"#))
        .unwrap();
    let mut answer = Box::pin(service.call(request));
    assert!(
        answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    assert!(
        pin!(handle.next_request())
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );

    handle.allow(1);
    let answering = async {
        let (request, send) = handle.next_request().await.unwrap();
        assert_eq!(request.call().unwrap().model(), Some("m"));
        send.send_response("done");
    };
    let (answer, ()) = tokio::join!(answer, answering);
    assert_eq!(answer.unwrap(), "done");
}

#[tokio::test]
async fn an_error_of_the_inner_service_passes() {
    let inner = service_fn(async |_: Sent| Err::<Response<()>, BoxError>("inner".into()));
    let request = Request::post("/").body(Empty::<Bytes>::new()).unwrap();
    let error = DescribeLayer::new()
        .layer(inner)
        .oneshot(request)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "inner");
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_sends_its_request_never_reaches_the_inner_service() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let inner = service_fn(move |request: Sent| {
        counted.fetch_add(1, Ordering::Relaxed);
        echo(request)
    });
    let script = Script::data(["{\"model\":"]).then(Step::Hang);
    let request = Request::post("/v1/messages").body(script).unwrap();
    let mut future = Box::pin(DescribeLayer::new().layer(inner).oneshot(request));
    assert!(
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    drop(future);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

/// A body of `{}` that comes after a while.
struct Slow {
    until: Pin<Box<Sleep>>,
    sent: bool,
}

impl Slow {
    fn new(wait: Duration) -> Self {
        Self {
            until: Box::pin(tokio::time::sleep(wait)),
            sent: false,
        }
    }
}

impl Body for Slow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.sent {
            return Poll::Ready(None);
        }
        ready!(self.until.as_mut().poll(cx));
        self.sent = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"{}")))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_holds_no_place_behind_it() {
    let inner = ConcurrencyLimit::new(service_fn(echo), 1);
    let service = DescribeLayer::new().layer(inner);
    let begun = Instant::now();
    let slow = Request::post("/slow")
        .body(Slow::new(Duration::from_secs(60)))
        .unwrap();
    let quick = Request::post("/quick")
        .body(Slow::new(Duration::from_secs(1)))
        .unwrap();
    let slow = async {
        service.clone().oneshot(slow).await.unwrap();
        begun.elapsed()
    };
    let quick = async {
        service.clone().oneshot(quick).await.unwrap();
        begun.elapsed()
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!(quick, Duration::from_secs(1));
    assert_eq!(slow, Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_saturated_inner_service_is_waited_for_and_its_place_given_back() {
    let work = service_fn(async |request: Sent| {
        tokio::time::sleep(Duration::from_secs(10)).await;
        echo(request).await
    });
    let service = DescribeLayer::new().layer(ConcurrencyLimit::new(work, 1));
    let begun = Instant::now();
    let request = || Request::post("/").body(Empty::<Bytes>::new()).unwrap();
    let one = async |abandoned: bool| {
        let answer = service.clone().oneshot(request());
        if abandoned {
            tokio::time::timeout(Duration::from_secs(5), answer)
                .await
                .unwrap_err();
        } else {
            answer.await.unwrap();
        }
        begun.elapsed().as_secs()
    };
    let times = tokio::join!(one(false), one(true), one(false));
    assert_eq!(times, (10, 5, 20));
}

#[tokio::test]
async fn a_credential_of_another_provider_makes_nobody_somebody_else() {
    let layer = DescribeLayer::new();
    for (path, own) in [
        ("/v1/messages", "x-api-key"),
        ("/v1beta/models/m:generateContent", "x-goog-api-key"),
        ("/openai/deployments/d/chat/completions", "api-key"),
        ("/v1/chat/completions", "authorization"),
    ] {
        let mut callers = Vec::new();
        for other in ["", "one", "two"] {
            let mut request = Request::post(path).body(Full::new(Bytes::new())).unwrap();
            for name in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
                if !other.is_empty() {
                    request.headers_mut().insert(name, other.parse().unwrap());
                }
            }
            request.headers_mut().insert(own, "mine".parse().unwrap());
            let passed = pass(&layer, request).await.unwrap();
            callers.push(passed.call().unwrap().caller().unwrap().clone());
        }
        assert!(callers.iter().all(|caller| *caller == callers[0]), "{path}");
    }
}
