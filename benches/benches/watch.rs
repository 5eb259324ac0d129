//! What it costs to watch a response to its end over reading it unwatched.
//!
//! Each case is one body, read to its end; `bare` reads the same body without a watcher. What is parsed by the peers is
//! what a layer would have to parse without a scanner: every event into a value. The bodies lie in the cache, and nothing
//! else runs between two frames: a server's figures are higher.

use std::hint::black_box;

use benches::{Case, Frames, Suite, drain, now, payload, peer};
use bytes::Bytes;
use eventsource_stream::EventStream;
use futures_util::{StreamExt, stream};
use http::{Response, header::CONTENT_TYPE};
use http_body::Body;
use tower_llm_core::{Completion, Guard, HttpBody, Outcome, Watch};

const SSE: &str = "text/event-stream";
const JSON: &str = "application/json";
/// What a busy connection's read returns.
const READ: usize = 8 * 1024;
const TOKENS: usize = 200;

/// Checks that the end was seen.
struct Check;

impl Guard for Check {
    fn end(&mut self, completion: &Completion) {
        assert_eq!(completion.outcome, Outcome::Success);
        assert_eq!(completion.usage.map(|usage| usage.input), Some(1_024));
    }
}

fn main() {
    let mut suite = Suite::new("watch");
    let streams = [
        ("chat-stream", payload::chat_stream(TOKENS)),
        ("responses-stream", payload::responses_stream(TOKENS)),
        ("anthropic-stream", payload::anthropic_stream(TOKENS)),
        ("gemini-stream", payload::gemini_stream(5 * TOKENS)),
    ];
    for (name, events) in &streams {
        for (frames, of) in [
            (events.clone(), "an event"),
            (payload::in_frames(events, READ), "8 KB"),
        ] {
            let case = format!("{name}, frames of {of}");
            body(&mut suite, &case, SSE, frames);
        }
    }
    let chat = payload::chat_response(10_000);
    body(
        &mut suite,
        "chat 10 KB",
        JSON,
        payload::in_frames(&[chat], READ),
    );
    let embeddings = payload::embeddings_response(100_000);
    body(
        &mut suite,
        "embeddings 100 KB",
        JSON,
        payload::in_frames(&[embeddings], READ),
    );
    follow(&mut suite);
}

fn body(suite: &mut Suite, case: &str, content_type: &'static str, frames: Vec<Bytes>) {
    let frames = payload::forever(frames);
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let response = move || response(content_type, frames);
    let case = Case::new(case).bytes(bytes);

    let bare = suite.subject(&case, "bare", || {
        move || assert_eq!(read(response()), bytes)
    });
    let watched = suite.subject(&case, "tower-llm-core", || {
        move || assert_eq!(read(HttpBody.watch(None, response(), Check)), bytes)
    });
    if content_type == SSE {
        suite.subject(&case, &peer("eventsource-stream"), || {
            move || assert!(parse_events(response()))
        });
    } else {
        suite.subject(&case, &peer("serde_json"), || {
            move || assert!(parse_whole(response(), bytes))
        });
    }
    if let (Some(bare), Some(watched)) = (bare, watched) {
        let (net, gross) = (bytes as f64 / (watched - bare), bytes as f64 / watched);
        println!("{bytes} bytes: {net:.2} GB/s over bare, {gross:.2} GB/s in all\n");
    }
}

/// Layers around the one that leads read nothing again.
fn follow(suite: &mut Suite) {
    let frames = payload::forever(payload::chat_stream(TOKENS));
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let response = move || response(SSE, frames);

    let case = Case::new("frame, one watch").calls(frames.len());
    suite.subject(&case, "bare", || {
        move || assert_eq!(read(response()), bytes)
    });
    let one = suite.subject(&case, "tower-llm-core", || {
        move || assert_eq!(read(HttpBody.watch(None, response(), Check)), bytes)
    });
    let case = Case::new("follow").calls(frames.len());
    let three = suite.subject(&case, "tower-llm-core", || {
        move || {
            let led = HttpBody.watch(None, response(), Check);
            let followed = HttpBody.watch(None, led, Check);
            assert_eq!(read(HttpBody.watch(None, followed, Check)), bytes);
        }
    });
    if let (Some(one), Some(three)) = (one, three) {
        let ns = (three - one) / frames.len() as f64;
        println!("two that follow add {ns:.1} ns to each frame\n");
    }
}

fn response(content_type: &'static str, frames: &'static [Bytes]) -> Response<Frames> {
    let mut response = Response::new(Frames::new(black_box(frames)));
    let content_type = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn read<B>(response: Response<B>) -> usize
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    drain(black_box(response).into_body())
}

/// Whether usage is seen by parsing every event.
fn parse_events(response: Response<Frames>) -> bool {
    let frames = response.into_body().frames().iter();
    let frames = stream::iter(frames.map(|frame| Ok::<_, std::convert::Infallible>(frame.clone())));
    let mut events = EventStream::new(frames);
    let mut has_usage = false;
    while let Some(event) = now(events.next()) {
        let event = event.expect("the events are well-formed");
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(&event.data) {
            has_usage |= ["/usage", "/usageMetadata", "/response/usage"]
                .iter()
                .any(|path| json.pointer(path).is_some_and(|usage| !usage.is_null()));
        }
    }
    has_usage
}

/// Whether usage is seen by collecting the body and parsing it.
fn parse_whole(response: Response<Frames>, bytes: usize) -> bool {
    let mut whole = Vec::with_capacity(bytes);
    for frame in response.into_body().frames() {
        whole.extend_from_slice(frame);
    }
    let json: serde_json::Value = serde_json::from_slice(&whole).expect("the body is JSON");
    json["usage"].is_object()
}
