//! What the provider sent is what the caller gets.

use std::time::Duration;

use tower_llm_testkit::{Behavior, Cut, Fault, LineEnding, SimulatedProvider, wire};

use crate::support::{Answer, Connection, Running, SOON, request, within};

/// Every endpoint with and without its stream; the words of the bodies don't matter.
pub(crate) const CALLS: [(&str, &str); 17] = [
    ("/v1/chat/completions", r#"{"model":"m","messages":[]}"#),
    (
        "/v1/chat/completions",
        r#"{"model":"m","messages":[],"stream":true}"#,
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#,
    ),
    ("/v1/responses", r#"{"model":"m","input":"hi"}"#),
    (
        "/v1/responses",
        r#"{"model":"m","input":"hi","stream":true}"#,
    ),
    ("/v1/embeddings", r#"{"model":"m","input":["one","two"]}"#),
    ("/v1/completions", r#"{"model":"m","prompt":"hi"}"#),
    (
        "/v1/completions",
        r#"{"model":"m","prompt":"hi","stream":true}"#,
    ),
    (
        "/openai/deployments/d/chat/completions?api-version=2025-04-01",
        r#"{"messages":[]}"#,
    ),
    (
        "/openai/deployments/d/chat/completions?api-version=2025-04-01",
        r#"{"messages":[],"stream":true}"#,
    ),
    (
        "/v1/messages",
        r#"{"model":"m","max_tokens":9,"messages":[]}"#,
    ),
    (
        "/v1/messages",
        r#"{"model":"m","max_tokens":9,"messages":[],"stream":true}"#,
    ),
    (
        "/v1/messages/count_tokens",
        r#"{"model":"m","messages":[]}"#,
    ),
    (
        "/v1beta/models/m:generateContent?key=k",
        r#"{"contents":[]}"#,
    ),
    (
        "/v1beta/models/m:streamGenerateContent?alt=sse&key=k",
        r#"{"contents":[]}"#,
    ),
    (
        "/v1beta/models/m:streamGenerateContent",
        r#"{"contents":[]}"#,
    ),
    ("/v1beta/models/m:embedContent", r#"{"content":{}}"#),
];

/// Compares with what the provider says it sends: status, each header, each byte.
fn assert_as_sent(answer: &Answer, path: &str, body: &str, behavior: &Behavior) {
    let sent = wire::reply(path, body.as_bytes(), behavior);
    assert_eq!(answer.status, sent.status, "{path}");
    for name in sent.headers.keys() {
        let values =
            |headers: &http::HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(
            values(&answer.headers),
            values(&sent.headers),
            "{path}: {name}"
        );
    }
    let of_ours = [
        "cache-status",
        "content-length",
        "date",
        "transfer-encoding",
    ];
    let added: Vec<_> = answer
        .headers
        .keys()
        .filter(|name| !sent.headers.contains_key(*name))
        .map(http::HeaderName::as_str)
        .filter(|name| !of_ours.contains(name))
        .collect();
    assert!(added.is_empty(), "{path}: {added:?}");
    assert!(answer.complete, "{path}");
    let bytes: Vec<u8> = sent
        .frames
        .iter()
        .flat_map(|frame| frame.bytes.to_vec())
        .collect();
    assert_eq!(answer.text(), String::from_utf8(bytes).unwrap(), "{path}");
}

async fn all_as_sent(behavior: Behavior) {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior.clone());
    let gateway = Running::over(&provider, &[]).await;
    for (path, body) in CALLS {
        let answer = gateway.post(path, body).await;
        assert_as_sent(&answer, path, body, &behavior);
        let recorded = provider.recorded().pop().unwrap();
        assert_eq!(
            (recorded.path.as_str(), &recorded.body[..]),
            (path, body.as_bytes())
        );
    }
    assert_eq!(gateway.held(), 0);
}

#[tokio::test]
async fn every_dialect_passes_byte_for_byte_streamed_or_not() {
    all_as_sent(Behavior::new().output_tokens(7).reasoning_tokens(2)).await;
}

#[tokio::test]
async fn however_a_body_is_cut_into_frames_its_bytes_are_the_same() {
    for cut in [Cut::Every(1), Cut::Every(13), Cut::Whole] {
        all_as_sent(Behavior::new().cut(cut).line_ending(LineEnding::CrLf)).await;
    }
}

#[tokio::test]
async fn frames_arrive_as_they_were_sent_and_in_their_order() {
    let provider = SimulatedProvider::start().await.unwrap();
    // Far enough apart that the sockets can't join them.
    let behavior = Behavior::new()
        .output_tokens(5)
        .gap(Duration::from_millis(30));
    provider.set(behavior.clone());
    let gateway = Running::over(&provider, &[]).await;
    let (path, body) = ("/v1beta/models/m:streamGenerateContent", "{}");

    let answer = gateway.post(path, body).await;

    let mut sent = wire::body(path, body.as_bytes(), &behavior);
    // The last token and the end are sent together.
    let end = sent.split_off(sent.len() - 2).concat();
    let mut came = answer.chunks;
    let rest = came.split_off(sent.len()).concat();
    assert_eq!(came, sent);
    assert_eq!(rest, end);
}

/// What came so far is read while the provider sends no more.
#[tokio::test]
async fn no_frame_waits_for_the_next() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    for (path, body) in CALLS {
        let whole = Behavior::new().output_tokens(3);
        let reply = wire::reply(path, body.as_bytes(), &whole);
        if !reply.streamed {
            continue;
        }
        for events in 1..reply.frames.len() {
            let behavior = whole.clone().fault(Fault::StallAfter(events));
            let sent = wire::body(path, body.as_bytes(), &behavior).concat();
            provider.set(behavior);
            let mut connection = Connection::open(gateway.addr).await;
            connection.send("POST", path, "", body).await;
            within(SOON, connection.head(false)).await.unwrap();
            let mut came = Vec::new();
            while came.len() < sent.len() {
                let chunk = within(SOON, connection.chunk()).await;
                came.extend(chunk.unwrap().expect("it goes on"));
            }
            assert_eq!(came, sent, "{path} after {events}");
        }
    }
}

#[tokio::test]
async fn other_methods_and_unknown_paths_of_a_provider_pass() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;

    let answer = request(gateway.addr, "GET", "/v1/models?limit=3", "", "").await;
    assert_as_sent(&answer, "/v1/models", "", &Behavior::new());
    assert_eq!(
        provider.recorded().pop().unwrap().path,
        "/v1/models?limit=3"
    );

    for (method, status) in [("HEAD", 405), ("OPTIONS", 405), ("DELETE", 405)] {
        let answer = request(gateway.addr, method, "/v1/models", "", "").await;
        assert_eq!(answer.status, status, "{method}");
        assert_eq!(provider.recorded().pop().unwrap().method.as_str(), method);
        let has_length = answer.headers["content-length"] != "0";
        assert!(has_length, "{method}");
    }
    let answer = gateway.post("/v1/files/f-1", "x").await;
    assert_eq!(answer.status, 404);
    assert_eq!(provider.recorded().pop().unwrap().path, "/v1/files/f-1");

    let seen = provider.counts().requests;
    let answer = gateway.post("/elsewhere", "{}").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"]["code"], "not_found");
    assert_eq!(provider.counts().requests, seen);
}

#[tokio::test]
async fn http_2_without_tls_is_spoken_too() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};

    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<bytes::Bytes>>();
    for (path, body) in CALLS {
        let request = http::Request::post(format!("http://{}{path}", gateway.addr))
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap();
        let response = within(SOON, client.request(request)).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let sent = wire::body(path, body.as_bytes(), &Behavior::new());
        assert_eq!(bytes, sent.concat(), "{path}");
        let recorded = provider.recorded().pop().unwrap();
        assert_eq!(recorded.headers["host"], provider.addr().to_string());
    }
}
