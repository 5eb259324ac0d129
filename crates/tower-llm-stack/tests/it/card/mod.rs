//! What is promised of each of the five layers: alone, around a client that is there already, in at most five more lines; and a
//! whole preset in one.
//!
//! Each test has its lines between two comments, and calls a simulated provider through them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod hyper;
mod reqwest_middleware;
mod tonic;

use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{Either, select};
use tower_llm_stack::{BoxError, Refusal};
use tower_llm_testkit::{Fault, SimulatedProvider};

use crate::{
    adapter_tonic::{answer, message, unavailable},
    support::{Server, eventually, serve},
};

type Answer = Result<Bytes, BoxError>;

/// How a provider answers.
#[derive(Clone, Copy)]
enum Script {
    Well,
    /// The first call has no answer.
    SilentOnce,
    /// The first call fails.
    FailsOnce,
    Fails,
}

/// A provider on the loopback.
enum Upstream {
    Http(SimulatedProvider),
    Grpc(Server),
}

impl Upstream {
    async fn http(script: Script) -> Self {
        let provider = SimulatedProvider::start().await.unwrap();
        match script {
            Script::Well => {}
            Script::SilentOnce => provider.push(Fault::NoAnswer),
            Script::FailsOnce => provider.push(Fault::Status(500)),
            Script::Fails => provider.set(Fault::Status(500)),
        }
        Self::Http(provider)
    }

    async fn grpc(script: Script) -> Self {
        let server = serve(move |number, _| async move {
            match (script, number) {
                (Script::SilentOnce, 0) => std::future::pending().await,
                (Script::FailsOnce, 0) | (Script::Fails, _) => unavailable(),
                _ => answer(vec![message(b"pong")], std::future::ready(())),
            }
        });
        Self::Grpc(server.await)
    }

    fn url(&self, path: &str) -> String {
        match self {
            Self::Http(provider) => format!("{}{path}", provider.url()),
            Self::Grpc(server) => server.url(path),
        }
    }

    fn requests(&self) -> usize {
        match self {
            Self::Http(provider) => usize::try_from(provider.counts().requests).unwrap(),
            Self::Grpc(server) => server.seen.requests(),
        }
    }
}

// === the effect of each layer ===

fn assert_refused(answer: Answer, layer: &str) {
    let error = answer.unwrap_err();
    assert_eq!(Refusal::find(&*error).map(Refusal::layer), Some(layer));
}

async fn the_third_call_is_refused(upstream: &Upstream, ask: impl AsyncFn() -> Answer) {
    for _ in 0..2 {
        ask().await.unwrap();
    }
    assert_refused(ask().await, "ratelimit");
    assert_eq!(upstream.requests(), 2);
}

async fn the_second_call_is_a_hit(upstream: &Upstream, ask: impl AsyncFn() -> Answer) {
    let answer = ask().await.unwrap();
    assert_eq!(ask().await.unwrap(), answer);
    assert_eq!(upstream.requests(), 1);
}

async fn a_call_is_refused_while_another_runs(upstream: &Upstream, ask: impl AsyncFn() -> Answer) {
    let first = pin!(ask());
    let arrived = pin!(eventually("the first call arrives", || upstream.requests() == 1));
    let Either::Right(((), first)) = select(first, arrived).await else {
        panic!("the first call has no answer");
    };
    let second = pin!(ask());
    let Either::Right((second, _)) = select(first, second).await else {
        panic!("the first call has no answer");
    };
    assert_refused(second, "bulkhead");
    assert_eq!(upstream.requests(), 1);
}

async fn the_sixth_call_is_refused_after_five_failures(
    upstream: &Upstream,
    ask: impl AsyncFn() -> Answer,
) {
    for _ in 0..5 {
        let answer = ask().await;
        assert!(answer.is_err_and(|error| Refusal::find(&*error).is_none()));
    }
    assert_refused(ask().await, "breaker");
    assert_eq!(upstream.requests(), 5);
}

async fn a_call_that_failed_is_sent_again(upstream: &Upstream, ask: impl AsyncFn() -> Answer) {
    ask().await.unwrap();
    assert_eq!(upstream.requests(), 2);
}

async fn a_call_that_failed_is_sent_again_and_its_answer_is_a_hit_then(
    upstream: &Upstream,
    ask: impl AsyncFn() -> Answer,
) {
    let answer = ask().await.unwrap();
    assert_eq!(ask().await.unwrap(), answer);
    assert_eq!(upstream.requests(), 2);
}

// === the lines ===

/// The number of lines that each test of `source` adds, in order.
fn added(source: &str) -> Vec<(&str, usize)> {
    let tests = source.split("#[tokio::test]").skip(1);
    tests
        .map(|test| {
            let (_, name) = test.split_once("async fn ").unwrap();
            let (name, body) = name.split_once('(').unwrap();
            let (_, added) = body.split_once("// added\n").unwrap();
            let (added, rest) = added.split_once("// end\n").unwrap();
            assert!(!rest.contains("// added"), "{name}: in one place");
            let lines = added.lines().filter(|line| !line.trim().is_empty());
            (name, lines.count())
        })
        .collect()
}

#[test]
fn each_layer_takes_at_most_five_lines_and_a_preset_one() {
    let sources = [
        include_str!("hyper.rs"),
        include_str!("reqwest_middleware.rs"),
        include_str!("tonic.rs"),
    ];
    for source in sources {
        let mut added = added(source);
        let (preset, lines) = added.pop().unwrap();
        assert_eq!((preset, lines), ("preset", 1));
        let layers: Vec<_> = added.iter().map(|(layer, _)| *layer).collect();
        let five = ["ratelimit", "cache", "bulkhead", "breaker", "fanout"];
        assert_eq!(layers, five);
        assert!(added.iter().all(|(_, lines)| *lines <= 5), "{added:?}");
    }
}
