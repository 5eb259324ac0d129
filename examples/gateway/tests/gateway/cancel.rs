//! Clients that disconnect at any point.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::{runtime::Handle, time::timeout};
use tower_llm_testkit::{Behavior, Fault, InBand, RetryAfter, SimulatedProvider};

use crate::support::{Connection, Running, SOON, eventually, get};

const STREAMS: u64 = 1000;
const AT_ONCE: usize = 60;
/// Fewer than callers at once, so that some leave while they wait.
const PLACES: &str = "10";

const PATHS: [(&str, &str); 7] = [
    ("/v1/chat/completions", r#"{"stream":true}"#),
    ("/v1/responses", r#"{"stream":true}"#),
    ("/v1/completions", r#"{"stream":true}"#),
    (
        "/openai/deployments/d/chat/completions",
        r#"{"stream":true}"#,
    ),
    ("/v1/messages", r#"{"stream":true}"#),
    ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}"),
    ("/v1beta/models/m:streamGenerateContent", "{}"),
];

const FAULTS: [Fault; 12] = [
    Fault::Throttled(RetryAfter::Untold),
    Fault::QuotaExhausted,
    Fault::Overloaded,
    Fault::Status(500),
    Fault::ResetBeforeHead,
    Fault::ResetAfter(0),
    Fault::ResetAfter(3),
    Fault::CutAfter(3),
    Fault::ErrorAfter(3, InBand::Overloaded),
    Fault::FailedAfter(2, InBand::ServerError),
    Fault::NoAnswer,
    Fault::StallAfter(2),
];

/// Where a caller leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    InItsRequest { bytes: usize },
    BeforeTheHead { after: Duration },
    BetweenFrames { frames: usize },
    InsideAFrame { bytes: usize },
    AfterTheLast,
}

/// `SplitMix64`: the same points on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }

    fn leaves(&mut self) -> Leaves {
        match self.below(10) {
            0 => Leaves::InItsRequest {
                bytes: self.index(80),
            },
            1 | 2 => Leaves::BeforeTheHead {
                after: Duration::from_micros(self.below(8_000)),
            },
            3..=5 => Leaves::BetweenFrames {
                frames: 1 + self.index(25),
            },
            6..=8 => Leaves::InsideAFrame {
                bytes: 1 + self.index(4_000),
            },
            _ => Leaves::AfterTheLast,
        }
    }
}

async fn call(gateway: &Running, (path, body): (&str, &str), leaves: Leaves) {
    let mut connection = Connection::open(gateway.addr).await;
    if let Leaves::InItsRequest { bytes } = leaves {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let bytes = bytes.min(request.len() - 1);
        return connection.write(&request.as_bytes()[..bytes]).await;
    }
    connection.send("POST", path, "", body).await;
    let reading = async {
        match leaves {
            Leaves::InItsRequest { .. } => {}
            Leaves::BeforeTheHead { after } => tokio::time::sleep(after).await,
            Leaves::BetweenFrames { frames } => {
                if connection.head(false).await.is_none() {
                    return;
                }
                for _ in 0..frames {
                    if !matches!(connection.chunk().await, Ok(Some(_))) {
                        return;
                    }
                }
            }
            Leaves::InsideAFrame { bytes } => {
                while connection.bytes().len() < bytes && connection.more().await > 0 {}
            }
            Leaves::AfterTheLast => drop(connection.answer(false).await),
        }
    };
    // Some faults never end by themselves: the caller leaves then.
    let _ = timeout(Duration::from_millis(300), reading).await;
}

async fn leaves_nothing_behind(seed: u64, faults: &[Fault]) {
    let provider = SimulatedProvider::start().await.unwrap();
    let answer = Behavior::new()
        .output_tokens(30)
        .head_delay(Duration::from_millis(2))
        .first_token(Duration::from_millis(1))
        .gap(Duration::from_millis(1));
    let mut random = Random(seed);
    provider.script((0..STREAMS).map(|_| match faults {
        // Half of the calls meet one.
        [_, ..] if random.below(2) == 0 => answer.clone().fault(faults[random.index(faults.len())]),
        _ => answer.clone(),
    }));
    let tasks = Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    // All are to meet their faults, and none an open circuit.
    let flags = ["--bulkhead-default-concurrent", PLACES, "--breaker", "off"];
    let gateway = Running::over(&provider, &flags).await;
    let calls: Vec<_> = (0..STREAMS)
        .map(|_| (PATHS[random.index(PATHS.len())], random.leaves()))
        .collect();

    stream::iter(calls)
        .for_each_concurrent(AT_ONCE, |(request, leaves)| call(&gateway, request, leaves))
        .await;

    eventually("all permits are free and no call waits", async || {
        gateway.held() == 0
    })
    .await;
    let metrics = get(gateway.addr, "/metrics").await.text();
    for line in metrics.lines() {
        if line.starts_with("bulkhead_in_flight{") || line.starts_with("bulkhead_waiting{") {
            assert!(line.ends_with(" 0"), "{line}");
        }
    }
    let counts = provider
        .wait_for(SOON, |counts| {
            counts.in_flight == 0 && counts.open_streams == 0
        })
        .await
        .unwrap();
    // Many got to the end, and many left on the way.
    assert!(counts.finished > 100, "{counts:?}");
    assert!(counts.closed_by_caller > 50, "{counts:?}");
    println!("{counts:?}");

    // Its pooled connections go with it; until then each idle one is a task here and one at the provider.
    assert_eq!(gateway.stop().await.cut, 0);
    eventually("the tasks have ended", async || {
        tasks.num_alive_tasks() <= before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_cancelled_anywhere_leave_nothing_behind() {
    leaves_nothing_behind(1, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_cancelled_among_faults_leave_nothing_behind() {
    leaves_nothing_behind(2, &FAULTS).await;
}

#[tokio::test]
async fn over_http_2_one_stream_that_is_given_up_closes_its_upstream_alone() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};

    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(2));
    let gateway = Running::over(&provider, &[]).await;
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<bytes::Bytes>>();
    let stream = || {
        let request = http::Request::post(format!("http://{}/v1/messages", gateway.addr))
            .body(Full::from(r#"{"stream":true}"#))
            .unwrap();
        client.request(request)
    };
    let mut given_up = stream().await.unwrap().into_body();
    let kept = stream().await.unwrap().into_body();
    given_up.frame().await.unwrap().unwrap();
    assert_eq!(gateway.held(), 2);

    drop(given_up);

    eventually("one permit is free", async || gateway.held() == 1).await;
    let closed_one = |counts: &tower_llm_testkit::Counts| counts.closed_by_caller == 1;
    provider.wait_for(SOON, closed_one).await.unwrap();
    assert_eq!(provider.counts().open_streams, 1);
    drop(kept);
    eventually("all permits are free", async || gateway.held() == 0).await;
}

#[tokio::test]
async fn the_upstream_is_closed_when_the_caller_leaves() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    for (path, body) in PATHS {
        for fault in [Fault::NoAnswer, Fault::StallAfter(2)] {
            provider.reset_counts();
            provider.push(fault);
            let mut connection = Connection::open(gateway.addr).await;
            connection.send("POST", path, "", body).await;
            provider
                .wait_for(SOON, |counts| counts.faults == 1)
                .await
                .unwrap();
            if fault != Fault::NoAnswer {
                connection.head(false).await.unwrap();
            }
            drop(connection);
            let counts = provider
                .wait_for(SOON, |counts| counts.in_flight == 0)
                .await
                .unwrap();
            assert_eq!(
                counts.closed_by_caller + counts.closed_before_head,
                1,
                "{path}"
            );
        }
    }
    eventually("all permits are free", async || gateway.held() == 0).await;
}
