//! Embeddings requests that are larger than their provider takes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::time::{sleep, timeout};
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Completion, CompletionPrompts, Described, Dialect, EmbeddingInputs,
    EmbeddingLimits, Failure, OnEndLayer, Operation, Outcome, Provider, Refusal, RequestBody,
    TimedOut, Usage,
};
use tower_llm_fanout::{
    CompletionParts, EmbeddingParts, FanoutLayer, ItemTooLong, Report, SplitLayer,
};

use crate::support::MS;

type Body = RequestBody<Full<Bytes>>;
type Client = BoxCloneSyncService<Request<Body>, Response<Full<Bytes>>, BoxError>;
type Ended = Arc<Mutex<Vec<Completion>>>;

fn request(provider: Provider, body: String) -> Request<Body> {
    let call = Call::builder(provider, Operation::EMBEDDINGS).dialect(Dialect::OpenAi);
    let mut request = Request::new(RequestBody::held(body));
    request.extensions_mut().insert(call.build());
    request
}

/// A text with so many tokens by its estimate, which names its number.
fn text(number: usize, tokens: u64) -> String {
    let padding = (tokens as usize * 4).saturating_sub(5);
    format!("\"{number:05}{}\"", "x".repeat(padding))
}

fn body(texts: &[String]) -> String {
    format!(r#"{{"model":"m","input":[{}]}}"#, texts.join(","))
}

/// What one call to the provider had: its items, and their tokens.
type Sent = Arc<Mutex<Vec<Vec<(usize, u64)>>>>;

/// Answers with one vector for each text, that has its number, in reverse order.
fn provider(sent: &Sent, at_once: &Arc<AtomicUsize>, is_base64: bool) -> Client {
    let (sent, at_once) = (Arc::clone(sent), Arc::clone(at_once));
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let call = request.call().unwrap().into_owned();
        let body = request.body().as_bytes().unwrap().clone();
        let (sent, at_once) = (Arc::clone(&sent), Arc::clone(&at_once));
        async move {
            let inputs = EmbeddingInputs::read(&body).unwrap();
            let numbers = inputs.all().iter().map(|text| text[1..6].parse().unwrap());
            let items: Vec<(usize, u64)> = numbers.zip(inputs.tokens()).collect();
            let tokens: u64 = items.iter().map(|item| item.1).sum();
            assert_eq!(call.items(), items.len() as u64);
            assert_eq!(call.input_tokens(), tokens);
            at_once.fetch_add(1, Relaxed);
            sleep(MS).await;
            assert!(at_once.fetch_sub(1, Relaxed) <= 8, "calls at once");
            let vectors: Vec<_> = items
                .iter()
                .enumerate()
                .rev()
                .map(|(index, (number, _))| match is_base64 {
                    true => format!(r#"{{"embedding":"{number:05}","index":{index}}}"#),
                    false => format!(r#"{{"embedding":[{number}.5],"index":{index}}}"#),
                })
                .collect();
            let answer = format!(
                r#"{{"data":[{}],"model":"m","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#,
                vectors.join(",")
            );
            sent.lock().unwrap().push(items);
            Ok(json(200, answer))
        }
    }))
}

fn json(status: u16, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    response.body(Full::new(body.into())).unwrap()
}

fn split() -> SplitLayer<EmbeddingParts> {
    let layer = FanoutLayer::split(8, EmbeddingParts::new()).report_headers(true);
    layer.build().unwrap()
}

async fn read<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> String
where
    B::Error: std::fmt::Debug,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Sends texts with so many tokens through the layer, and checks what the provider and the caller get.
async fn check(provider_name: &'static str, tokens: &[u64], is_base64: bool) {
    let limits = EmbeddingLimits::of(&Provider::new(provider_name));
    let texts: Vec<_> = (tokens.iter().enumerate())
        .map(|(number, &tokens)| text(number, tokens))
        .collect();
    let (sent, at_once) = <(Sent, Arc<AtomicUsize>)>::default();
    let service = split().layer(provider(&sent, &at_once, is_base64));
    let request = request(Provider::new(provider_name), body(&texts));
    let response = service.oneshot(request).await.unwrap();

    let all: u64 = tokens.iter().map(|&tokens| tokens.max(2)).sum();
    let vectors: Vec<_> = (0..tokens.len())
        .map(|number| match is_base64 {
            true => format!(r#"{{"index":{number},"embedding":"{number:05}"}}"#),
            false => format!(r#"{{"index":{number},"embedding":[{number}.5]}}"#),
        })
        .collect();
    let expected = format!(
        r#"{{"data":[{}],"model":"m","usage":{{"prompt_tokens":{all},"total_tokens":{all}}}}}"#,
        vectors.join(",")
    );
    assert_eq!(
        response.headers()["content-length"],
        expected.len().to_string()
    );
    assert!(
        read(response).await == expected,
        "each vector at the position of its text"
    );

    let mut sent = sent.lock().unwrap();
    sent.sort_unstable();
    let most = limits.tokens.unwrap_or(u64::MAX);
    let tokens_of = |call: &[(usize, u64)]| call.iter().map(|item| item.1).sum::<u64>();
    for call in &*sent {
        assert!(call.len() as u64 <= limits.items && tokens_of(call) <= most);
    }
    for pair in sent.windows(2) {
        let is_full = pair[0].len() as u64 == limits.items;
        let has_room = tokens_of(&pair[0]) + pair[1][0].1 <= most;
        assert!(is_full || !has_room, "a call could have had one more");
    }
}

#[test]
fn ten_thousand_texts_are_split_within_all_limits_of_every_provider() {
    let providers = [
        "openai",
        "cohere",
        "voyage",
        "gemini",
        "vertex",
        "mistral",
        "a server of our own",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    for name in providers {
        let limits = EmbeddingLimits::of(&Provider::new(name));
        let longest = limits.tokens_per_item.unwrap_or(10_000);
        // Most are short; some are as long as may be.
        let tokens = prop_oneof![
            200 => 1..=60_u64,
            5 => 60..=500_u64,
            1 => Just(longest),
        ];
        let tokens = prop::collection::vec(tokens, 10_000);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(3));
        let checked = runner.run(&(tokens, any::<bool>()), |(tokens, is_base64)| {
            runtime.block_on(check(name, &tokens, is_base64));
            Ok(())
        });
        checked.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_text_that_no_call_takes_fails_at_once_by_its_position() {
    let (sent, at_once) = <(Sent, Arc<AtomicUsize>)>::default();
    let service = split().layer(provider(&sent, &at_once, false));
    let mut texts: Vec<_> = (0..3_000).map(|number| text(number, 2)).collect();
    texts[2_999] = text(2_999, 8_192);
    let longest = request(Provider::OPENAI, body(&texts));
    service.clone().oneshot(longest).await.unwrap();
    assert_eq!(sent.lock().unwrap().len(), 2);

    texts[2_999] = text(2_999, 8_193);
    let too_long = request(Provider::OPENAI, body(&texts));
    let error = service.oneshot(too_long).await.unwrap_err();
    assert_eq!(error.downcast_ref::<ItemTooLong>().unwrap().item(), 2_999);
    assert_eq!(
        error.to_string(),
        "input 2999 has about 8193 tokens, and at most 8192 can be sent"
    );
    assert!(Refusal::find(&*error).is_some_and(|refusal| !refusal.is_retryable()));
    assert_eq!(Completion::of_error(&*error).outcome, Outcome::Refused);
    assert_eq!(sent.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_needs_no_parts_or_cannot_have_them_passes_as_it_is() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    let echo = BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        seen.fetch_add(1, Relaxed);
        let body = request.into_body().as_bytes().unwrap().clone();
        async move { Ok::<_, BoxError>(Response::new(Full::new(body))) }
    }));
    let layer = split();
    let many: Vec<_> = (0..3_000).map(|number| text(number, 2)).collect();
    let late = body(&many).replace("\"model\"", "\"late_chunking\":true,\"model\"");
    for body in [body(&many[..2_048]), late, "no json".to_owned()] {
        let request = request(Provider::OPENAI, body.clone());
        let response = layer.layer(echo.clone()).oneshot(request).await.unwrap();
        assert!(response.extensions().get::<Report>().is_none());
        assert!(read(response).await == body);
    }
    assert_eq!(calls.load(Relaxed), 3);
}

/// Answers the first call, and then as told.
fn first_then(after: Duration, then: fn() -> Result<Response<Full<Bytes>>, BoxError>) -> Client {
    let calls = Arc::new(AtomicUsize::new(0));
    let good = provider(&Sent::default(), &Arc::default(), false);
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let (number, good) = (calls.fetch_add(1, Relaxed), good.clone());
        async move {
            if number == 0 {
                return good.oneshot(request).await;
            }
            sleep(after).await;
            then()
        }
    }))
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_fails_the_call_and_what_was_sent_is_paid_for() {
    let texts: Vec<_> = (0..5_000).map(|number| text(number, 3)).collect();
    // Parts of 2,048, 2,048 and 904 texts.
    let [first, _, last] = [2_048 * 3, 2_048 * 3, 904 * 3];
    let throttled = || {
        Ok(json(
            429,
            r#"{"error":{"type":"rate_limit_error"}}"#.to_owned(),
        ))
    };
    let unreadable = || Ok(json(200, r#"{"data":[]}"#.to_owned()));
    let failed = |kind| Some(Outcome::Failed(kind));
    type Then = fn() -> Result<Response<Full<Bytes>>, BoxError>;
    let cases: [(Then, Option<u16>, Option<Outcome>, u64); 3] = [
        // One at a time, so that the third part is not sent.
        (throttled, Some(429), None, first),
        (
            || Err("reset".into()),
            None,
            failed(Failure::Transport),
            first,
        ),
        // All are read when the last one is there; this one tells no usage.
        (
            unreadable,
            None,
            failed(Failure::InBand),
            first + first + last,
        ),
    ];
    for (then, status, outcome, used) in cases {
        let ended = Ended::default();
        let seen = Arc::clone(&ended);
        let layer = FanoutLayer::split(1, EmbeddingParts::new())
            .build()
            .unwrap();
        let service = OnEndLayer::new(move |_: Option<&Call>, end: &Completion| {
            seen.lock().unwrap().push(end.clone());
        })
        .layer(layer.layer(first_then(MS, then)));
        let answer = service
            .oneshot(request(Provider::OPENAI, body(&texts)))
            .await;
        match answer {
            Ok(response) => {
                assert_eq!(Some(response.status().as_u16()), status);
                read(response).await;
            }
            Err(error) => assert_eq!(Some(Completion::of_error(&*error).outcome), outcome),
        }
        let ended = ended.lock().unwrap();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].extra_usage, Some(Usage::new(used, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_in_parts_is_one_call_that_used_what_all_parts_used() {
    let ended = Ended::default();
    let seen = Arc::clone(&ended);
    let (sent, at_once) = <(Sent, Arc<AtomicUsize>)>::default();
    let service = OnEndLayer::new(move |_: Option<&Call>, end: &Completion| {
        seen.lock().unwrap().push(end.clone());
    })
    .layer(split().layer(provider(&sent, &at_once, true)));
    let texts: Vec<_> = (0..5_000).map(|number| text(number, 3)).collect();
    let whole = request(Provider::OPENAI, body(&texts));
    let response = service.clone().oneshot(whole).await.unwrap();
    let report = response.extensions().get::<Report>().unwrap().clone();
    assert_eq!(report.attempts().len(), 3);
    assert_eq!(response.headers()["x-fanout-attempts"], "3");
    // Its caller pays for all, whatever it reads.
    drop(response);
    let used = (Some(Usage::new(15_000, 0)), None);
    {
        let mut ended = ended.lock().unwrap();
        let end = ended.pop().unwrap();
        assert_eq!((end.usage, end.extra_usage), used);
    }

    // One that leaves pays for the parts that have been answered.
    let slow = first_then(Duration::from_secs(9), || Err("reset".into()));
    let seen = Arc::clone(&ended);
    let service = OnEndLayer::new(move |_: Option<&Call>, end: &Completion| {
        seen.lock().unwrap().push(end.clone());
    })
    .layer(split().layer(slow));
    let call = service.oneshot(request(Provider::OPENAI, body(&texts)));
    timeout(Duration::from_secs(1), call).await.unwrap_err();
    let end = ended.lock().unwrap().pop().unwrap();
    assert_eq!(end.outcome, Outcome::Abandoned);
    assert_eq!(end.extra_usage, Some(Usage::new(2_048 * 3, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_up_has_timed_out() {
    let slow = first_then(Duration::from_secs(9), || Err("reset".into()));
    let layer = FanoutLayer::split(8, EmbeddingParts::new()).deadline(100 * MS);
    let service = layer.build().unwrap().layer(slow);
    let texts: Vec<_> = (0..5_000).map(|number| text(number, 3)).collect();
    let error = service
        .oneshot(request(Provider::OPENAI, body(&texts)))
        .await
        .unwrap_err();
    let seen = Completion::of_error(&*error);
    assert_eq!(seen.outcome, Outcome::Failed(Failure::Timeout));
    // All parts were sent.
    assert_eq!(seen.extra_usage, Some(Usage::new(15_000, 0)));
    assert!(
        std::iter::successors(Some(&*error as &dyn std::error::Error), |error| error
            .source())
        .any(|error| error.is::<TimedOut>())
    );
}

#[tokio::test(start_paused = true)]
async fn prompts_in_a_list_are_split_and_their_choices_numbered_through() {
    let answer = |request: Request<Body>| async move {
        let call = request.call().unwrap().into_owned();
        let body = request.body().as_bytes().unwrap().clone();
        let prompts = CompletionPrompts::read(&body).unwrap();
        // The maximum of each part is its part of the whole.
        assert_eq!(
            call.max_output_tokens(),
            Some(20 * prompts.all().len() as u64)
        );
        let choices: Vec<_> = (0..2 * prompts.all().len())
            .map(|index| format!(r#"{{"text":{},"index":{index}}}"#, prompts.all()[index / 2]))
            .collect();
        let body = format!(
            r#"{{"choices":[{}],"usage":{{"total_tokens":5}}}}"#,
            choices.join(",")
        );
        Ok::<_, BoxError>(json(200, body))
    };
    let limits = EmbeddingLimits::new(2).tokens(5);
    let layer = FanoutLayer::split(1, CompletionParts::new(limits))
        .build()
        .unwrap();
    let body = r#"{"prompt":["a","bbbbbbbbbbbbbbbb","c","d","e"],"n":2,"max_tokens":10}"#;
    let call = Call::builder(Provider::OPENAI, Operation::TEXT_COMPLETION)
        .dialect(Dialect::OpenAi)
        .max_output_tokens(100);
    let mut request = Request::new(RequestBody::held(body));
    request.extensions_mut().insert(call.build());
    let response = layer
        .layer(service_fn(answer))
        .oneshot(request)
        .await
        .unwrap();
    let texts = ["a", "bbbbbbbbbbbbbbbb", "c", "d", "e"];
    let choices: Vec<_> = (0..10)
        .map(|index| format!(r#"{{"index":{index},"text":"{}"}}"#, texts[index / 2]))
        .collect();
    let expected = format!(
        r#"{{"choices":[{}],"usage":{{"total_tokens":15}}}}"#,
        choices.join(",")
    );
    assert_eq!(read(response).await, expected);
    assert_eq!(layer.stats().branches, 3);

    let streamed = r#"{"prompt":["a","b","c"],"stream":true}"#;
    assert!(CompletionPrompts::read(streamed.as_bytes()).is_none());
}
