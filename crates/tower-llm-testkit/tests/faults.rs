//! Each fault as a caller sees it.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

mod common;

use std::{error::Error, io, time::Duration};

use common::{GENERATING, PATIENCE, ask, client, give_up_once_arrived, post, read, request};
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use tokio::time::timeout;
use tower_llm_testkit::{
    Behavior, Cut, Fault, InBand, LineEnding, RetryAfter, SimulatedProvider, fixtures, wire,
};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const GEMINI: &str = "/v1beta/models/m:generateContent";
const AZURE: &str = "/openai/deployments/d/chat/completions?api-version=2024-10-21";
const STREAM: &str = r#"{"model":"m","stream":true}"#;

async fn faulty(fault: Fault, path: &str) -> common::Arrived {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(fault);
    let arrived = ask(&provider, path, STREAM).await;
    let counts = provider.counts();
    assert_eq!(
        (counts.faults, counts.finished, counts.output_tokens),
        (1, 1, 0),
        "{fault:?}"
    );
    arrived
}

#[tokio::test]
async fn throttling_is_reported_as_each_provider_does() {
    let seconds = Fault::Throttled(RetryAfter::Seconds(7));
    let openai = faulty(seconds, CHAT).await;
    assert_eq!(
        (openai.status, &openai.headers["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    assert_eq!(openai.headers["x-ratelimit-remaining-tokens"], "0");
    assert_eq!(openai.json()["error"]["code"], "rate_limit_exceeded");

    let azure = faulty(Fault::Throttled(RetryAfter::Millis(1500)), AZURE).await;
    assert_eq!(
        (azure.status, &azure.headers["retry-after-ms"]),
        (429, &"1500".parse().unwrap())
    );
    assert!(!azure.headers.contains_key("retry-after"));
    assert_eq!(azure.json()["error"]["code"], "429");

    let anthropic = faulty(seconds, MESSAGES).await;
    assert_eq!(
        (anthropic.status, &anthropic.headers["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    assert_eq!(anthropic.json()["error"]["type"], "rate_limit_error");
    assert!(anthropic.headers.contains_key("request-id"));

    let gemini = faulty(Fault::Throttled(RetryAfter::Millis(36_250)), GEMINI).await;
    assert!(!gemini.headers.contains_key("retry-after"));
    assert_eq!(gemini.json()["error"]["status"], "RESOURCE_EXHAUSTED");
    assert_eq!(
        gemini.json()["error"]["details"][1]["retryDelay"],
        "36.250s"
    );

    let untold = faulty(Fault::Throttled(RetryAfter::Untold), CHAT).await;
    assert!(
        !untold.headers.contains_key("retry-after")
            && !untold.headers.contains_key("retry-after-ms")
    );
}

#[tokio::test]
async fn other_errors_have_the_status_and_type_of_the_dialect() {
    for (fault, path, status, place, text) in [
        (
            Fault::QuotaExhausted,
            CHAT,
            429,
            "/error/type",
            "insufficient_quota",
        ),
        (
            Fault::QuotaExhausted,
            MESSAGES,
            429,
            "/error/details/error_code",
            "enforced_spend_limit_reached",
        ),
        (
            Fault::QuotaExhausted,
            GEMINI,
            429,
            "/error/details/0/violations/0/quotaId",
            "GenerateRequestsPerDayPerProjectPerModel",
        ),
        (
            Fault::Overloaded,
            CHAT,
            503,
            "/error/code",
            "server_is_overloaded",
        ),
        (
            Fault::Overloaded,
            MESSAGES,
            529,
            "/error/type",
            "overloaded_error",
        ),
        (
            Fault::Overloaded,
            GEMINI,
            503,
            "/error/details/0/reason",
            "MODEL_CAPACITY_EXHAUSTED",
        ),
        (Fault::Status(500), CHAT, 500, "/error/type", "server_error"),
        (
            Fault::Status(500),
            MESSAGES,
            500,
            "/error/type",
            "api_error",
        ),
        (Fault::Status(500), GEMINI, 500, "/error/status", "INTERNAL"),
        (
            Fault::Status(401),
            AZURE,
            401,
            "/error/code",
            "invalid_api_key",
        ),
    ] {
        let arrived = faulty(fault, path).await;
        assert_eq!(arrived.status, status, "{fault:?} {path}");
        let json = arrived.json();
        assert_eq!(
            json.pointer(place).and_then(|value| value.as_str()),
            Some(text),
            "{fault:?} {path}"
        );
    }
}

/// The kind of the I/O error below a client's error.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

#[tokio::test]
async fn a_reset_in_mid_stream_comes_after_its_events() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::ResetAfter(3));
    for (i, (path, body, streamed)) in (1..).zip(GENERATING) {
        let arrived = ask(&provider, path, body).await;
        let error = arrived.error.as_ref().unwrap();
        assert_eq!(
            io_kind(error),
            Some(io::ErrorKind::ConnectionReset),
            "{path}: {error:?}"
        );
        let whole = wire::body(path, body.as_bytes(), &Behavior::new());
        if streamed {
            assert_eq!(arrived.bytes(), whole[..3].concat(), "{path}");
        } else {
            assert_eq!(arrived.bytes(), whole[0][..whole[0].len() / 2], "{path}");
        }
        let counts = provider.counts();
        assert_eq!(
            (counts.aborted, counts.finished, counts.closed_by_caller),
            (i, 0, 0)
        );
        assert_eq!((counts.in_flight, counts.open_streams), (0, 0));
    }
}

#[tokio::test]
async fn a_reset_before_the_response_headers() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::ResetBeforeHead);
    let error = client()
        .request(post(&provider, CHAT, STREAM))
        .await
        .unwrap_err();
    assert_eq!(
        io_kind(&error),
        Some(io::ErrorKind::ConnectionReset),
        "{error:?}"
    );
    let counts = provider.counts();
    assert_eq!(
        (counts.aborted, counts.input_tokens, counts.in_flight),
        (1, 0, 0)
    );
}

#[tokio::test]
async fn a_clean_end_never_sends_the_end_marker() {
    let provider = SimulatedProvider::start().await.unwrap();
    for (path, body, streamed) in GENERATING {
        provider.set(Fault::CutAfter(2));
        let arrived = ask(&provider, path, body).await;
        let whole = wire::body(path, body.as_bytes(), &Behavior::new());
        assert!(arrived.error.is_none(), "{path}");
        if streamed {
            assert_eq!(arrived.bytes(), whole[..2].concat(), "{path}");
        }
        provider.set(Fault::CutAfter(usize::MAX));
        let text = ask(&provider, path, body).await.text();
        // Half of a body that is not streamed may well hold one; what it lacks is its last bracket.
        assert!(
            streamed || serde_json::from_str::<serde_json::Value>(&text).is_err(),
            "{path}"
        );
        for marker in [
            "[DONE]",
            "message_stop",
            "\"stop_reason\":\"",
            "response.completed",
            "STOP",
            "\"stop\"",
        ] {
            assert!(!streamed || !text.contains(marker), "{path}: {marker}");
        }
    }
    assert_eq!(provider.counts().finished, 2 * GENERATING.len() as u64);
    provider.set(Fault::CutAfter(0));
    assert!(ask(&provider, CHAT, STREAM).await.frames.is_empty());
}

#[tokio::test]
async fn an_error_inside_the_stream_is_its_last_event() {
    let provider = SimulatedProvider::start().await.unwrap();
    let last = async |fault, path: &str, body: &str| {
        provider.set(fault);
        let arrived = ask(&provider, path, body).await;
        assert_eq!(arrived.status, 200);
        arrived
            .events()
            .pop()
            .unwrap_or_else(|| (String::new(), arrived.json()))
    };
    let overloaded = Fault::ErrorAfter(2, InBand::Overloaded);
    let (_, chat) = last(overloaded, CHAT, STREAM).await;
    assert_eq!(chat["error"]["code"], "server_is_overloaded");
    let (name, anthropic) = last(overloaded, MESSAGES, STREAM).await;
    assert_eq!(
        (&name[..], &anthropic["error"]["type"]),
        ("error", &"overloaded_error".into())
    );
    let (name, responses) = last(overloaded, "/v1/responses", STREAM).await;
    assert_eq!(
        (&name[..], &responses["sequence_number"]),
        ("error", &2.into())
    );
    let rate = Fault::FailedAfter(2, InBand::RateLimited);
    let (name, responses) = last(rate, "/v1/responses", STREAM).await;
    assert_eq!(name, "response.failed");
    assert_eq!(
        responses["response"]["error"]["code"],
        "rate_limit_exceeded"
    );
    let stream = "/v1beta/models/m:streamGenerateContent";
    let (_, gemini) = last(
        Fault::ErrorAfter(2, InBand::ServerError),
        &format!("{stream}?alt=sse"),
        "{}",
    )
    .await;
    assert_eq!(gemini["error"]["code"], 500);
    let (_, array) = last(Fault::ErrorAfter(2, InBand::ServerError), stream, "{}").await;
    assert_eq!(array[2]["error"]["status"], "INTERNAL");
    let (_, unary) = last(overloaded, CHAT, "{}").await;
    assert_eq!(unary["error"]["type"], "service_unavailable_error");
}

#[tokio::test]
async fn silence_before_the_headers_and_in_mid_stream() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.script([Fault::NoAnswer, Fault::StallAfter(2)]);
    let client = client();
    let never = client.request(post(&provider, CHAT, STREAM));
    give_up_once_arrived(&provider, never).await;
    provider
        .wait_for(PATIENCE, |counts| counts.closed_before_head == 1)
        .await
        .unwrap();

    let mut body = client
        .request(post(&provider, CHAT, STREAM))
        .await
        .unwrap()
        .into_body();
    let sent = wire::body(CHAT, STREAM.as_bytes(), &Behavior::new())[..2].concat();
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        let frame = timeout(PATIENCE, body.frame()).await.unwrap();
        seen.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!(seen, sent);
    timeout(Duration::from_millis(50), body.frame())
        .await
        .unwrap_err();
    assert_eq!(provider.counts().open_streams, 1);
    drop(body);
    let counts = provider
        .wait_for(PATIENCE, |counts| counts.closed_by_caller == 1)
        .await
        .unwrap();
    assert_eq!(
        (counts.in_flight, counts.faults, counts.output_tokens),
        (0, 2, 1)
    );
}

#[tokio::test]
async fn request_headers_ask_for_faults() {
    let provider = SimulatedProvider::start().await.unwrap();
    for (fault, status) in [
        ("429", 429),
        ("529", 529),
        ("500", 500),
        ("quota", 429),
        ("overloaded", 503),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("x-sim-fault", fault.parse().unwrap());
        let asked = request(&provider, Method::POST, CHAT, STREAM, headers);
        assert_eq!(
            client().request(asked).await.unwrap().status(),
            status,
            "{fault}"
        );
    }
    let mut headers = HeaderMap::new();
    headers.insert("x-sim-output-tokens", "3".parse().unwrap());
    headers.insert("x-sim-fault", "cut".parse().unwrap());
    headers.insert("x-sim-fault-after", "4".parse().unwrap());
    let asked = request(&provider, Method::POST, CHAT, STREAM, headers);
    let arrived = read(client().request(asked).await.unwrap()).await;
    let expected = Behavior::new().output_tokens(3).fault(Fault::CutAfter(4));
    assert_eq!(
        arrived.bytes(),
        wire::body(CHAT, STREAM.as_bytes(), &expected).concat()
    );
    assert_eq!(arrived.events().len(), 4);
}

#[tokio::test]
async fn any_cut_delivers_the_same_bytes_and_keeps_its_boundaries() {
    let provider = SimulatedProvider::start().await.unwrap();
    for (path, body, _) in GENERATING {
        for ending in [LineEnding::Lf, LineEnding::CrLf] {
            let plain = Behavior::new().line_ending(ending);
            let whole = wire::body(path, body.as_bytes(), &plain).concat();
            for cut in [
                Cut::Events,
                Cut::Whole,
                Cut::Every(1),
                Cut::Every(7),
                Cut::At(vec![1, 50, 51, 200]),
            ] {
                let behavior = plain.clone().cut(cut.clone());
                provider.set(behavior.clone());
                let arrived = ask(&provider, path, body).await;
                assert!(arrived.bytes() == whole, "{path} {cut:?}");
                // A read may break a frame in two, but two frames are never joined.
                let ends = |frames: &[bytes::Bytes]| -> Vec<usize> {
                    frames
                        .iter()
                        .scan(0, |end, frame| {
                            *end += frame.len();
                            Some(*end)
                        })
                        .collect()
                };
                let arrived = ends(&arrived.frames);
                let sent = ends(&wire::body(path, body.as_bytes(), &behavior));
                assert!(
                    sent.iter().all(|end| arrived.contains(end)),
                    "{path} {cut:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn fixtures_are_replayed_as_they_are() {
    let provider = SimulatedProvider::start().await.unwrap();
    for fixture in fixtures::all() {
        provider.set(Behavior::replay(fixture));
        let arrived = ask(&provider, fixture.path, "{}").await;
        assert_eq!(arrived.status, fixture.status, "{}", fixture.name);
        assert!(arrived.bytes() == fixture.body, "{}", fixture.name);
        for (name, value) in &fixture.header_map() {
            assert_eq!(arrived.headers.get(name), Some(value), "{}", fixture.name);
        }
    }
}
