//! What it costs to read what a request asks for over handing it on unread.
//!
//! Each case is one request whose body has come in one piece, through the layer to a service that answers at once; `bare` is
//! the same request given to that service itself. The peer only parses the body, into a value: a scale to read the
//! figures by, not something that does the same.

use std::{convert::Infallible, hint::black_box};

use benches::{Case, Suite, now, payload, peer};
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};
use tower_llm_core::{Call, DescribeLayer};

fn main() {
    let mut suite = Suite::new("describe");
    let chat = "/v1/chat/completions";
    let messages = "/v1/messages";
    let gemini = "/v1beta/models/gemini-3-pro:generateContent";
    body(&mut suite, "chat 2 KB", chat, payload::chat_request(2_000));
    body(
        &mut suite,
        "chat 10 KB",
        chat,
        payload::chat_request(10_000),
    );
    body(
        &mut suite,
        "chat 100 KB",
        chat,
        payload::chat_request(100_000),
    );
    body(
        &mut suite,
        "anthropic 10 KB",
        messages,
        payload::anthropic_request(10_000),
    );
    body(
        &mut suite,
        "gemini 10 KB",
        gemini,
        payload::gemini_request(10_000),
    );
}

fn body(suite: &mut Suite, case: &str, path: &'static str, body: Bytes) {
    let case = Case::new(case).bytes(body.len());
    // Two threads hand on bodies of their own, not one that they count references to.
    let body: &'static [u8] = body.to_vec().leak();
    let request = move || request(path, Bytes::from_static(black_box(body)));
    let layer = DescribeLayer::new();

    let bare = suite.subject(&case, "bare", || {
        let mut service = service_fn(tokens);
        move || assert_eq!(now(service.call(request())), Ok(None))
    });
    let described = suite.subject(&case, "tower-llm-core", || {
        let mut service = layer.layer(service_fn(tokens));
        move || {
            let tokens = now(service.call(request())).expect("no body is too large");
            // A quarter of what is text, and most of it is.
            assert!(tokens.is_some_and(|tokens| tokens > body.len() as u64 / 8));
        }
    });
    suite.subject(&case, &peer("serde_json"), || {
        move || {
            let json = serde_json::from_slice::<serde_json::Value>(black_box(body));
            assert!(json.expect("the body is JSON").is_object());
        }
    });
    if let (Some(bare), Some(described)) = (bare, described) {
        let ns = described - bare;
        let rate = body.len() as f64 / ns;
        println!(
            "{} bytes: {ns:.0} ns over bare, {rate:.2} GB/s\n",
            body.len()
        );
    }
}

async fn tokens<B>(request: Request<B>) -> Result<Option<u64>, Infallible> {
    let call = request.extensions().get::<Call>();
    Ok(call.map(Call::input_tokens))
}

fn request(path: &'static str, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::post(path)
        .body(Full::new(body))
        .expect("the path is one");
    let headers = request.headers_mut();
    for (name, value) in [
        (
            header::AUTHORIZATION,
            "Bearer sk-proj-0123456789abcdefghijklmnopqrstuvwxyz",
        ),
        (header::CONTENT_TYPE, "application/json"),
        (header::ACCEPT, "text/event-stream"),
        (header::USER_AGENT, "OpenAI/Python 2.8.0"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    request
}
