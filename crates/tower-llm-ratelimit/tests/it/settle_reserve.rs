//! What a call reserves, by policy and by observed output lengths.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use tokio::time::advance;
use tower::{ServiceExt, service_fn};
use tower_llm_core::{BoxError, Described, KeyBy};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer, Reserve};
use tower_llm_testkit::{Behavior, SimulatedProvider};

use crate::http_support::{
    Answer, Cost, REQUEST, Request, Stack, call, consumed, counting, every_limit, settled, stack,
    stack_over, taken, tokens,
};

/// 20 tokens by our estimate.
const TEXT: &str =
    "abcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcd";
const UNTIL_LEARNED: u64 = 1_024;
const HOUR: Duration = Duration::from_secs(3_600);

fn post(path: &str, body: String) -> Request {
    http::Request::post(format!("http://provider{path}"))
        .body(Full::from(body))
        .expect("a legal request")
}

/// A chat with `model` in OpenAI's format, with more members at its end.
fn chat_at(path: &str, model: &str, more: &str) -> Request {
    let body =
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{TEXT}"}}]{more}}}"#);
    post(path, body)
}

fn openai(max: Option<u64>) -> Request {
    let more = max.map_or(String::new(), |max| format!(r#","max_tokens":{max}"#));
    chat_at("/v1/chat/completions", "m", &more)
}

fn responses(max: Option<u64>) -> Request {
    let max = max.map_or(String::new(), |max| {
        format!(r#","max_output_tokens":{max}"#)
    });
    post(
        "/v1/responses",
        format!(r#"{{"model":"m","input":"{TEXT}"{max}}}"#),
    )
}

fn azure(max: Option<u64>) -> Request {
    let more = max.map_or(String::new(), |max| {
        format!(r#","max_completion_tokens":{max}"#)
    });
    chat_at(
        "/openai/deployments/d/chat/completions?api-version=1",
        "m",
        &more,
    )
}

fn anthropic(max: Option<u64>) -> Request {
    let more = max.map_or(String::new(), |max| format!(r#","max_tokens":{max}"#));
    chat_at("/v1/messages", "m", &more)
}

fn gemini(max: Option<u64>) -> Request {
    let max = max.map_or(String::new(), |max| {
        format!(r#","generationConfig":{{"maxOutputTokens":{max}}}"#)
    });
    let body = format!(r#"{{"contents":[{{"parts":[{{"text":"{TEXT}"}}]}}]{max}}}"#);
    post("/v1beta/models/m:generateContent", body)
}

/// What `request` reserves while it is in flight.
fn reserved(builder: &RateLimitBuilder, request: Request) -> Cost {
    let layer = builder.clone().build().expect("legal settings");
    let service = stack_over(
        &layer,
        service_fn(|_: http::Request<_>| pending::<Result<Answer, BoxError>>()),
    );
    let mut call = Box::pin(service.oneshot(request));
    assert!((&mut call).now_or_never().is_none());
    assert_eq!(taken(&layer.handle()), consumed(&layer.handle()));
    consumed(&layer.handle())
}

/// Limits of providers, one of each unit, shared by all calls.
fn providers() -> RateLimitBuilder {
    RateLimitLayer::for_providers()
        .limits(every_limit())
        .key_by(KeyBy::shared())
}

#[tokio::test]
async fn each_policy_reserves_what_it_documents() {
    let larger = |output: u64| [1, 20, output, output.max(20)];
    let cases = [
        // With a maximum of 500, of 7, and without one.
        (
            Reserve::InputAndMaximum,
            [tokens(20, 500), tokens(20, 7), tokens(20, UNTIL_LEARNED)],
        ),
        (
            Reserve::LargerOfInputAndMaximum,
            [larger(500), larger(7), larger(UNTIL_LEARNED)],
        ),
        (
            Reserve::InputAndExpected,
            [tokens(20, 500), tokens(20, 7), tokens(20, UNTIL_LEARNED)],
        ),
        (Reserve::Input, [tokens(20, 0); 3]),
    ];
    for request in [openai, responses, azure, anthropic, gemini] {
        for (reserve, costs) in cases {
            let builder = counting().reserve(reserve);
            for (max, cost) in [Some(500), Some(7), None].into_iter().zip(costs) {
                assert_eq!(
                    reserved(&builder, request(max)),
                    cost,
                    "{reserve:?} {max:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_maximum_is_reserved_up_to_the_expected_output_if_the_provider_counts_actual_output() {
    let builder = counting().reserve(Reserve::InputAndExpected);
    assert_eq!(
        reserved(&builder, anthropic(Some(1_023))),
        tokens(20, 1_023)
    );
    assert_eq!(
        reserved(&builder, anthropic(Some(64_000))),
        tokens(20, UNTIL_LEARNED)
    );
}

#[tokio::test]
async fn limits_of_providers_reserve_as_each_provider_does() {
    let like = |request: fn(Option<u64>) -> Request| {
        [Some(5_000), Some(7), None].map(|max| reserved(&providers(), request(max)))
    };
    let openais = [[1, 20, 5_000, 5_000], [1, 20, 7, 20], [1, 20, 1_024, 1_024]];
    assert_eq!(like(openai), openais);
    assert_eq!(like(responses), openais);
    assert_eq!(
        like(azure),
        [tokens(20, 5_000), tokens(20, 7), tokens(20, 1_024)]
    );
    assert_eq!(
        like(anthropic),
        [tokens(20, 1_024), tokens(20, 7), tokens(20, 1_024)]
    );
    assert_eq!(like(gemini), [tokens(20, 0); 3]);
}

#[tokio::test]
async fn limits_of_callers_reserve_input_and_maximum() {
    for request in [openai, azure, anthropic, gemini] {
        assert_eq!(
            reserved(&counting(), request(Some(5_000))),
            tokens(20, 5_000)
        );
        assert_eq!(reserved(&counting(), request(None)), tokens(20, 1_024));
    }
}

#[tokio::test]
async fn an_undescribed_request_reserves_one_request() {
    let other = http::Request::get("http://provider/v1/models").body(Full::default());
    assert_eq!(reserved(&counting(), other.unwrap()), REQUEST);
}

// === calls without output ===

#[tokio::test]
async fn embeddings_reserve_and_cost_their_input_alone() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().input_tokens(33).output_tokens(9));
    let embedding = format!(r#"{{"model":"e","input":["{TEXT}","{TEXT}"]}}"#);
    let gemini = format!(r#"{{"content":{{"parts":[{{"text":"{TEXT}"}}]}}}}"#);
    let cases = [
        (
            "/v1/embeddings",
            embedding.clone(),
            tokens(40, 0),
            tokens(33, 0),
        ),
        (
            "/openai/deployments/e/embeddings",
            embedding,
            tokens(40, 0),
            tokens(33, 0),
        ),
        // The response reports no usage: the estimate stands.
        (
            "/v1beta/models/e:embedContent",
            gemini,
            tokens(20, 0),
            tokens(20, 0),
        ),
    ];
    for (path, body, reserve, cost) in cases {
        for builder in [counting(), providers()] {
            assert_eq!(
                reserved(&builder, post(path, body.clone())),
                reserve,
                "{path}"
            );
            let layer = builder.build().unwrap();
            let request = crate::http_support::post(&provider, path, body.clone());
            assert_eq!(call(&stack(&layer), request).await.status, Some(200));
            assert_eq!(consumed(&layer.handle()), cost, "{path}");
        }
    }
}

#[tokio::test]
async fn calls_without_tokens_cost_one_request_whatever_they_return() {
    let answers = [
        (200, r#"{"input_tokens":5000}"#),
        (200, r#"{"totalTokens":5000}"#),
        (
            200,
            r#"{"usage":{"input_tokens":5000,"output_tokens":300}}"#,
        ),
        (200, r#"{"input_tok"#),
        (400, r#"{"error":{"type":"invalid_request_error"}}"#),
        (500, "{}"),
    ];
    for path in [
        "/v1/messages/count_tokens",
        "/v1beta/models/m:countTokens",
        // Their responses contain tokens that an earlier call used.
        "/v1/responses/resp_1/cancel",
        "/v1/batches/batch_1/cancel",
        "/v1/chat/completions/chatcmpl-1",
    ] {
        for (status, answer) in answers {
            let request = chat_at(path, "m", r#","max_tokens":900"#);
            assert_eq!(reserved(&counting(), request.clone()), REQUEST);
            let layer = counting().build().unwrap();
            let service = stack_over(
                &layer,
                service_fn(move |_: http::Request<_>| async move {
                    Ok::<_, Infallible>(json(status, answer.to_owned()))
                }),
            );
            call(&service, request).await;
            assert_eq!(consumed(&layer.handle()), REQUEST, "{path}: {answer}");
            assert_eq!(settled(&layer.handle()), ([0; 4], [0; 4]));
        }
    }
}

fn json(status: u16, body: String) -> http::Response<Full<Bytes>> {
    http::Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::from(body))
        .expect("a legal request")
}

// === observed output lengths ===

/// A service whose responses have the set length and report it, behind the limits of `builder`.
fn answering(builder: RateLimitBuilder) -> (Stack, Arc<AtomicU64>, RateLimitLayer) {
    let layer = builder.build().expect("legal settings");
    let length = Arc::new(AtomicU64::new(0));
    let of_service = Arc::clone(&length);
    let inner = service_fn(move |_: http::Request<_>| {
        let output = of_service.load(Ordering::Relaxed);
        let body = format!(r#"{{"usage":{{"prompt_tokens":20,"completion_tokens":{output}}}}}"#);
        async move { Ok::<_, Infallible>(json(200, body)) }
    });
    (stack_over(&layer, inner), length, layer)
}

/// The output that `request` reserves on the layer with its observations: the charge until the first poll ends.
async fn expected(layer: &RateLimitLayer, request: Request) -> u64 {
    let before = consumed(&layer.handle())[2];
    let never = service_fn(|_: http::Request<_>| pending::<Result<Answer, BoxError>>());
    let mut call = Box::pin(stack_over(layer, never).oneshot(request));
    assert!((&mut call).now_or_never().is_none());
    consumed(&layer.handle())[2] - before
}

#[tokio::test]
async fn observed_output_lengths_are_reserved_next() {
    let (service, length, layer) = answering(counting());
    length.store(100, Ordering::Relaxed);
    for seen in 0..20 {
        assert_eq!(
            expected(&layer, openai(None)).await,
            1_024,
            "after {seen} responses"
        );
        call(&service, openai(None)).await;
    }
    // Steps grow by a factor of the square root of two: this is the first one that is at least 100.
    assert_eq!(expected(&layer, openai(None)).await, 128);
    // One in twenty-one is long, which is less than one in twenty.
    length.store(4_000, Ordering::Relaxed);
    call(&service, openai(None)).await;
    assert_eq!(expected(&layer, openai(None)).await, 128);
    call(&service, openai(None)).await;
    assert_eq!(expected(&layer, openai(None)).await, 4_096);
}

#[tokio::test]
async fn output_is_observed_per_provider_and_model() {
    let (service, length, layer) = answering(counting());
    length.store(60, Ordering::Relaxed);
    for _ in 0..20 {
        call(&service, openai(None)).await;
    }
    assert_eq!(expected(&layer, openai(None)).await, 64);
    assert_eq!(expected(&layer, responses(None)).await, 64);
    for other in [azure(None), anthropic(None), gemini(None)] {
        assert_eq!(expected(&layer, other).await, 1_024);
    }
    let other_model = chat_at("/v1/chat/completions", "n", "");
    assert_eq!(expected(&layer, other_model).await, 1_024);
}

#[tokio::test]
async fn a_call_with_a_maximum_is_observed_only_if_it_should_stay_below_it() {
    for (reserve, learned) in [
        (Reserve::InputAndMaximum, 1_024),
        (Reserve::InputAndExpected, 12),
    ] {
        let (service, length, layer) = answering(counting().reserve(reserve));
        length.store(10, Ordering::Relaxed);
        for _ in 0..20 {
            call(&service, anthropic(Some(2_000))).await;
        }
        assert_eq!(
            expected(&layer, anthropic(None)).await,
            learned,
            "{reserve:?}"
        );
        assert_eq!(expected(&layer, anthropic(Some(11))).await, 11);
    }
}

#[tokio::test]
async fn the_configured_percentile_is_used() {
    for (ratio, learned) in [(0.5, 12), (0.51, 128), (1.0, 128)] {
        let (service, length, layer) = answering(counting().output_percentile(ratio));
        for output in [10, 100].repeat(10) {
            length.store(output, Ordering::Relaxed);
            call(&service, openai(None)).await;
        }
        assert_eq!(expected(&layer, openai(None)).await, learned, "{ratio}");
    }
}

#[tokio::test]
async fn only_successful_calls_are_observed() {
    let provider = SimulatedProvider::start().await.unwrap();
    let layer = counting().build().unwrap();
    let service = stack(&layer);
    let chat = |stream: bool| {
        let more = format!(r#","stream":{stream},"stream_options":{{"include_usage":true}}"#);
        let body = chat_at("/", "m", &more).into_body();
        crate::http_support::post(&provider, "/v1/chat/completions", body)
    };
    provider.set(Behavior::new().output_tokens(10));
    for read in 0..20 {
        // Dropped before the end.
        crate::http_support::call_events(&service, chat(true), read % 10).await;
    }
    for fault in ["429", "500", "reset", "cut", "error", "overloaded"].repeat(4) {
        let mut request = chat(true);
        request
            .headers_mut()
            .insert("x-sim-fault", fault.parse().unwrap());
        call(&service, request).await;
    }
    assert_eq!(expected(&layer, openai(None)).await, 1_024);
    for _ in 0..20 {
        call(&service, chat(true)).await;
    }
    assert_eq!(expected(&layer, openai(None)).await, 12);
}

#[tokio::test]
async fn output_beyond_the_expected_length_is_charged_on_top() {
    let (service, length, layer) = answering(counting());
    length.store(3_000, Ordering::Relaxed);
    call(&service, openai(None)).await;
    assert_eq!(consumed(&layer.handle()), tokens(20, 3_000));
    assert_eq!(settled(&layer.handle()).1, [0, 0, 1_976, 1_976]);
}

#[tokio::test]
async fn an_answer_with_a_lower_maximum_is_not_observed() {
    let (service, length, layer) = answering(counting().reserve(Reserve::InputAndExpected));
    length.store(1, Ordering::Relaxed);
    for _ in 0..20 {
        call(&service, anthropic(Some(1))).await;
    }
    assert_eq!(expected(&layer, anthropic(None)).await, UNTIL_LEARNED);
}

/// The expected output was reserved like a named maximum. Once it exceeded a limit, no call was admitted, so no other
/// length was ever observed.
#[tokio::test(start_paused = true)]
async fn an_expected_output_alone_never_rejects_a_call_permanently() {
    let providers = RateLimitLayer::for_providers;
    for (reserve, limit) in [
        (
            Reserve::InputAndExpected,
            Limit::output_tokens(5_000).per_minute(),
        ),
        (
            Reserve::InputAndMaximum,
            Limit::tokens(90_000).per_minute().bucket(5_000),
        ),
    ] {
        let builder = providers().reserve(reserve).limit(limit);
        let (service, length, layer) = answering(builder);
        length.store(4_900, Ordering::Relaxed);
        for _ in 0..50 {
            call(&service, openai(None)).await;
            advance(HOUR).await;
        }
        assert_eq!(layer.handle().stats()[0].admitted, 50);
    }
    // The expected output of a call without a maximum exceeds the limit from the first call on.
    let builder = providers().limit(Limit::tokens(1_000).per_minute());
    let (service, _, layer) = answering(builder);
    let _unread = service.clone().oneshot(openai(None)).await.unwrap();
    assert_eq!(layer.handle().stats()[0].consumed, 1_000);
    // A maximum that the request names is always reserved.
    let never = service.clone().oneshot(openai(Some(1_001))).await;
    let never = never.map(drop).unwrap_err().to_string();
    assert!(never.contains("needs 1001 tokens"), "{never}");
}

#[tokio::test(start_paused = true)]
async fn outputs_of_large_plans_do_not_block_small_plans() {
    let limit = Limit::tokens(10_000).per_minute().tier("pro", 1_000_000);
    let by = |request: &dyn Described| match request.header("plan") {
        Some(_) => "pro".into(),
        None => "free".into(),
    };
    let builder = RateLimitLayer::for_callers().limit(limit).tier_by(by);
    let (service, length, layer) = answering(builder);
    length.store(12_000, Ordering::Relaxed);
    for _ in 0..20 {
        let mut request = openai(None);
        request.headers_mut().insert("plan", "pro".parse().unwrap());
        call(&service, request).await;
    }
    advance(HOUR).await;
    call(&service, openai(None)).await;
    assert_eq!(layer.handle().stats()[0].admitted, 21);
}

#[tokio::test]
async fn a_prompt_that_may_be_cached_is_not_too_large() {
    // 20 tokens, which may all be cached; then the provider counts none of them.
    let layers = || RateLimitLayer::for_providers().limit(Limit::input_tokens(10).per_minute());
    let (service, _, layer) = answering(layers());
    let _unread = service.clone().oneshot(anthropic(None)).await.unwrap();
    assert_eq!(layer.handle().stats()[0].consumed, 10);

    for (builder, request) in [
        (layers(), openai(None)),
        (layers().count_cached_input(true), anthropic(None)),
    ] {
        let (service, _, _) = answering(builder);
        let never = service.oneshot(request).await.map(drop).unwrap_err();
        let never = never.to_string();
        assert!(never.contains("needs 20 input tokens"), "{never}");
    }
}
