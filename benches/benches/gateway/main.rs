//! What the whole gateway costs, beside what a bare reverse proxy needs to pass a call on.
//!
//! Each server has one thread, whose processor time is divided by the number of requests; the system's part of it, for
//! sockets, is in. The provider and the callers have threads of their own. All callers keep their connection, and send the
//! next request when they have the whole answer. The rounds of the subjects take turns.
//!
//! An open stream is measured by what the server's thread has allocated for it and not freed.

mod servers;

use std::{cell::LazyCell, collections::HashMap, net::SocketAddr, time::Duration};

use benches::{Suite, payload};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{runtime, task::JoinSet};
use tower_llm_testkit::Behavior;

use self::servers::{Server, Servers};

const CALLERS: usize = 8;
const REQUESTS: usize = 2_000;
const ROUNDS: usize = 9;
const TOKENS: u64 = 200;
const STREAMS: usize = 200;

const PROXY: &str = "bare hyper proxy";
const HIT: &str = "gateway, a hit";
const MISS: &str = "gateway, a miss that is stored";
const PASSED: &str = "gateway as it starts, not cacheable";
const LIMITED: &str = "gateway with everything on, not cacheable";
const SUBJECTS: [&str; 5] = [PROXY, HIT, MISS, PASSED, LIMITED];

/// A figure for each subject.
type Figures = HashMap<&'static str, f64>;

/// What is asked of which server.
struct Subject<'a> {
    name: &'static str,
    server: &'a Server,
    body: &'a str,
    /// Whether each request asks for something else.
    is_new: bool,
}

fn main() {
    let mut suite = Suite::new("gateway");
    for (name, is_streamed) in [("an answer", false), ("a stream", true)] {
        let case = format!("CPU per request, {name} of {TOKENS} tokens");
        let measured = LazyCell::new(|| per_request(is_streamed));
        figures(&mut suite, &case, "us", &SUBJECTS, &measured);
    }
    let measured = LazyCell::new(per_stream);
    figures(
        &mut suite,
        "an open stream",
        "bytes",
        &[PROXY, LIMITED],
        &measured,
    );
}

/// Writes the figure of each subject down, and what part of the bare proxy's it is.
fn figures(
    suite: &mut Suite,
    case: &str,
    unit: &str,
    subjects: &[&'static str],
    measured: &LazyCell<Figures, impl FnOnce() -> Figures>,
) {
    for &subject in subjects {
        suite.figure(case, subject, unit, || measured[subject]);
        if subject != PROXY {
            let ratio = || measured[subject] / measured[PROXY];
            suite.figure(case, subject, "of the bare proxy's", ratio);
        }
    }
}

// === processor time ===

/// The median of each subject, in microseconds.
fn per_request(is_streamed: bool) -> Figures {
    let servers = Servers::start(Behavior::new().output_tokens(TOKENS));
    let repeated = body(is_streamed, 0.0);
    let creative = body(is_streamed, 0.7);
    let subject = |name, server, body, is_new| Subject {
        name,
        server,
        body,
        is_new,
    };
    let subjects = [
        subject(PROXY, &servers.proxy, &repeated, false),
        subject(HIT, &servers.limited, &repeated, false),
        subject(MISS, &servers.limited, &repeated, true),
        subject(PASSED, &servers.started, &creative, false),
        subject(LIMITED, &servers.limited, &creative, false),
    ];
    let callers = callers();
    let mut us: [Vec<f64>; SUBJECTS.len()] = Default::default();
    let mut number = 0;
    for round in 0..=ROUNDS {
        for (subject, us) in subjects.iter().zip(&mut us) {
            let took = callers.block_on(subject.round(number));
            number += REQUESTS;
            // The first one connects, and has the answer stored.
            if round > 0 {
                us.push(took);
            }
        }
    }
    let medians = subjects.iter().zip(us).map(|(subject, mut us)| {
        us.sort_by(f64::total_cmp);
        (subject.name, us[ROUNDS / 2])
    });
    medians.collect()
}

impl Subject<'_> {
    /// The processor time of the server for a request, in microseconds.
    async fn round(&self, first: usize) -> f64 {
        let mut callers = JoinSet::new();
        let client = client();
        let before = self.server.processor_time().await;
        for caller in 0..CALLERS {
            let (client, addr) = (client.clone(), self.server.addr);
            let (body, is_new) = (self.body.to_owned(), self.is_new);
            callers.spawn(async move {
                for number in (first..first + REQUESTS).skip(caller).step_by(CALLERS) {
                    let number = if is_new { number } else { 0 };
                    let response = ask(&client, addr, numbered(&body, number)).await;
                    let answer = response.into_body().collect().await;
                    assert!(!answer.expect("it is whole").to_bytes().is_empty());
                }
            });
        }
        callers.join_all().await;
        let after = self.server.processor_time().await;
        (after - before).as_secs_f64() * 1e6 / REQUESTS as f64
    }
}

// === memory ===

/// What each server holds for a stream whose first token has come and whose next one has not, in bytes.
fn per_stream() -> Figures {
    let hour = Duration::from_secs(3_600);
    let servers = Servers::start(Behavior::new().output_tokens(TOKENS).gap(hour));
    let body = body(true, 0.7);
    let held = |server| callers().block_on(held_by_streams(server, &body));
    [
        (PROXY, held(&servers.proxy)),
        (LIMITED, held(&servers.limited)),
    ]
    .into()
}

async fn held_by_streams(server: &Server, body: &str) -> f64 {
    let client = client();
    // The first one makes what all share.
    let _first = open(&client, server.addr, body).await;
    let before = server.held().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(open(&client, server.addr, body).await);
    }
    let held = server.held().await - before;
    held as f64 / STREAMS as f64
}

/// A stream of which the first content has come.
async fn open(client: &HttpClient, addr: SocketAddr, body: &str) -> Incoming {
    let mut stream = ask(client, addr, numbered(body, 0)).await.into_body();
    let mut come = Vec::new();
    while !come.windows(CONTENT.len()).any(|part| part == CONTENT) {
        let frame = stream.frame().await.expect("the stream is open");
        come.extend_from_slice(
            &frame
                .expect("it does not fail")
                .into_data()
                .unwrap_or_default(),
        );
    }
    stream
}

/// What only a frame with a token has.
const CONTENT: &[u8] = br#""delta":{"content":""#;

// === requests ===

type HttpClient = Client<HttpConnector, Full<Bytes>>;

fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

fn callers() -> runtime::Runtime {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be built")
}

/// A request of 2 KB.
fn body(is_streamed: bool, temperature: f64) -> String {
    let body = payload::chat_request(2_000);
    let mut json: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
    json["stream"] = is_streamed.into();
    json["temperature"] = temperature.into();
    json.to_string()
}

fn numbered(body: &str, number: usize) -> Bytes {
    let numbered = body.replacen("You are", &format!("#{number:011} You are"), 1);
    assert!(numbered.len() > body.len(), "the system's message is there");
    numbered.into()
}

async fn ask(client: &HttpClient, addr: SocketAddr, body: Bytes) -> Response<Incoming> {
    let request = Request::post(format!("http://{addr}/v1/chat/completions"))
        .header(
            header::AUTHORIZATION,
            "Bearer sk-proj-0123456789abcdefghijklmnopqrstuvwxyz",
        )
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "text/event-stream")
        .header(header::USER_AGENT, "OpenAI/Python 2.8.0")
        .body(Full::new(body));
    let response = client.request(request.expect("its parts are right")).await;
    let response = response.expect("it is answered");
    assert_eq!(response.status(), StatusCode::OK);
    response
}
