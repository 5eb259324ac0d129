//! What a hit costs the whole gateway, beside what a bare reverse proxy needs to pass a call on.
//!
//! Each server has one thread, whose processor time is divided by the number of requests; the system's part of it, for
//! sockets, is in. The provider and the callers have threads of their own. All callers keep their connection, and send the
//! next request when they have the whole answer. The rounds of the subjects take turns.

use std::{cell::LazyCell, net::SocketAddr, sync::mpsc, thread};

use benches::{Suite, payload};
use bytes::Bytes;
use cpu_time::ThreadTime;
use gateway::{Gateway, Settings};
use http::{Request, StatusCode, Uri, uri::Scheme};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, runtime, task::JoinSet};
use tower_llm_testkit::{Behavior, SimulatedProvider};

use crate::calls::{Numbered, request, unstreamed};

const CASE: &str = "gateway, CPU per request";
const UNIT: &str = "us";
const CALLERS: usize = 8;
const REQUESTS: usize = 2_000;
const ROUNDS: usize = 9;
const TOKENS: u64 = 200;

/// A server with a thread of its own.
struct Server {
    addr: SocketAddr,
    runtime: runtime::Handle,
}

/// What is asked of which server.
struct Subject<'a> {
    name: &'static str,
    server: &'a Server,
    body: Numbered,
    /// Whether each request asks for something else.
    is_new: bool,
    us: Vec<f64>,
}

pub(crate) fn measure(suite: &mut Suite) {
    for (name, is_streamed) in [("an answer", false), ("a stream", true)] {
        let all = LazyCell::new(|| compare(is_streamed));
        let find = |wanted: &str| {
            let found = all.iter().find(|(subject, _)| *subject == wanted);
            found.expect("it was measured").1
        };
        let case = format!("{CASE}, {name} of {TOKENS} tokens");
        for subject in [PROXY, HIT, MISS, PASSED] {
            suite.figure(&case, subject, UNIT, || find(subject));
        }
        suite.figure(&case, HIT, "of the bare proxy's", || {
            find(HIT) / find(PROXY)
        });
        suite.figure(&case, PASSED, "of the bare proxy's", || {
            find(PASSED) / find(PROXY)
        });
    }
}

const PROXY: &str = "bare hyper proxy";
const HIT: &str = "gateway, a hit";
const MISS: &str = "gateway, a miss that is stored";
const PASSED: &str = "gateway, not cacheable";

/// The medians of all subjects, in microseconds.
fn compare(is_streamed: bool) -> Vec<(&'static str, f64)> {
    let provider = Server::start("provider", || async {
        let provider = SimulatedProvider::start().await.expect("a port is free");
        provider.set(Behavior::new().output_tokens(TOKENS));
        (provider.addr(), async move {
            let _provider = provider;
            std::future::pending().await
        })
    });
    let upstream = provider.addr;
    let proxy = Server::start("proxy", move || bare_proxy(upstream));
    let gateway = Server::start("gateway", move || async move {
        let url = format!("http://{upstream}/v1");
        let flags = ["--listen", "127.0.0.1:0", "--openai-base-url", &url];
        let settings = Settings::from_flags(flags).expect("the flags are right");
        let gateway = Gateway::bind(settings).await.expect("a port is free");
        (gateway.addr(), async move {
            gateway.serve(std::future::pending()).await;
        })
    });

    let deterministic = unstreamed(&payload::chat_request(2_000));
    let text = std::str::from_utf8(&deterministic).expect("JSON is UTF-8");
    let text = match is_streamed {
        true => text.replacen(r#""stream":false"#, r#""stream":true"#, 1),
        false => text.to_owned(),
    };
    let creative = text.replacen(r#""temperature":0"#, r#""temperature":0.7"#, 1);
    let subject = |name, server, body: &str, is_new| Subject {
        name,
        server,
        body: Numbered::new(body.as_bytes()),
        is_new,
        us: Vec::new(),
    };
    let mut subjects = [
        subject(PROXY, &proxy, &text, false),
        subject(HIT, &gateway, &text, false),
        subject(MISS, &gateway, &text, true),
        subject(PASSED, &gateway, &creative, false),
    ];
    let callers = runtime::Builder::new_current_thread().enable_all().build();
    let callers = callers.expect("a runtime can be built");
    let mut number = 0;
    for round in 0..=ROUNDS {
        for subject in &mut subjects {
            let us = callers.block_on(subject.round(&mut number));
            // The first one connects, and has the answer stored.
            if round > 0 {
                subject.us.push(us);
            }
        }
    }
    let medians = subjects.iter_mut().map(|subject| {
        subject.us.sort_by(f64::total_cmp);
        (subject.name, subject.us[ROUNDS / 2])
    });
    medians.collect()
}

impl Subject<'_> {
    /// The processor time of the server for a request, in microseconds.
    async fn round(&self, number: &mut u64) -> f64 {
        let mut callers = JoinSet::new();
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let before = self.server.processor_time().await;
        for _ in 0..CALLERS {
            let (client, addr, mut body) = (client.clone(), self.server.addr, self.body.clone());
            let (is_new, first) = (self.is_new, *number);
            *number += (REQUESTS / CALLERS) as u64;
            callers.spawn(async move {
                for i in 0..(REQUESTS / CALLERS) as u64 {
                    let number = if is_new { 1 + first + i } else { 0 };
                    ask(&client, addr, body.with(number)).await;
                }
            });
        }
        callers.join_all().await;
        let after = self.server.processor_time().await;
        (after - before).as_secs_f64() * 1e6 / REQUESTS as f64
    }
}

async fn ask(client: &Client<HttpConnector, Full<Bytes>>, addr: SocketAddr, body: Bytes) {
    let mut request = request(body);
    let path = format!("http://{addr}{}", request.uri().path());
    *request.uri_mut() = path.parse().expect("the address is one");
    let response = client.request(request).await.expect("it is answered");
    assert_eq!(response.status(), StatusCode::OK);
    let answer = response.into_body().collect().await;
    assert!(!answer.expect("it is whole").to_bytes().is_empty());
}

impl Server {
    /// Starts what `start` makes: the address that it listens on, and its future.
    fn start<F, S, Serve>(name: &str, start: S) -> Self
    where
        S: FnOnce() -> F + Send + 'static,
        F: Future<Output = (SocketAddr, Serve)>,
        Serve: Future<Output = ()>,
    {
        let (started, has_started) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned());
        let spawned = thread.spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be built");
            let (addr, serve) = runtime.block_on(start());
            let handle = runtime.handle().clone();
            let _ = started.send((addr, handle));
            runtime.block_on(serve);
        });
        spawned.expect("a thread can be started");
        let (addr, runtime) = has_started.recv().expect("the server starts");
        Self { addr, runtime }
    }

    /// What its thread has used so far.
    async fn processor_time(&self) -> std::time::Duration {
        let now = self
            .runtime
            .spawn(async { ThreadTime::now().as_duration() });
        now.await.expect("the server runs")
    }
}

/// Passes calls on as they come, with hyper's server and its client.
async fn bare_proxy(upstream: SocketAddr) -> (SocketAddr, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener.local_addr().expect("it listens");
    let client = Client::builder(TokioExecutor::new()).build_http::<Incoming>();
    let serve = async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a caller connects");
            let client = client.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                let path = request.uri().path_and_query().cloned();
                let uri = Uri::builder()
                    .scheme(Scheme::HTTP)
                    .authority(upstream.to_string())
                    .path_and_query(path.expect("a request has a path"))
                    .build();
                *request.uri_mut() = uri.expect("the parts are right");
                request.headers_mut().remove(http::header::HOST);
                client.request(request)
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    };
    (addr, serve)
}
