//! HTTP calls to a pool: streams that break off before their first content.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::time::sleep;
use tower::{ServiceExt, util::BoxCloneSyncService};
use tower_llm_core::{BoxError, Call, Operation, Outcome, Provider, RequestBody};
use tower_llm_fanout::{FanoutLayer, Pick, Pool, Report, Target};
use tower_llm_testkit::mock::{Upstream, stream};

use crate::support::MS;

type Request = http::Request<RequestBody>;
type Client = BoxCloneSyncService<Request, http::Response<Upstream>, BoxError>;

const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n";
const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\n";
const DONE: &str =
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

fn request() -> Request {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .streamed(true)
        .build();
    let mut request = http::Request::new(RequestBody::<Full<Bytes>>::held("{}"));
    request.extensions_mut().insert(call);
    request
}

/// Answers with a stream of these frames, `pause` apart; the last one may be an error.
fn streams(frames: &'static [Result<&'static str, &'static str>], pause: Duration) -> Client {
    BoxCloneSyncService::new(tower::service_fn(move |_: Request| async move {
        let (sender, upstream) = Upstream::new();
        tokio::spawn(async move {
            for frame in frames {
                sleep(pause).await;
                match frame {
                    Ok(frame) => sender.send(frame),
                    Err(error) => sender.fail(*error),
                }
            }
        });
        Ok(stream(upstream))
    }))
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_before_content_fails_over_unseen() {
    let dead = streams(&[Ok(ROLE), Err("connection reset")], 10 * MS);
    let live = streams(&[Ok(ROLE), Ok(HELLO), Ok(DONE)], 10 * MS);
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .target(Target::new("dead", dead))
        .target(Target::new("live", live));
    let pool = pool.build().unwrap();
    let service = FanoutLayer::failover(1).build().unwrap().across(&pool);
    let response = service.oneshot(request()).await.unwrap();

    let report: Report = response.extensions().get::<Report>().unwrap().clone();
    assert_eq!(report.winner().unwrap().target.as_deref(), Some("live"));
    let attempts: Vec<_> = report
        .attempts()
        .iter()
        .map(|attempt| {
            (
                attempt.target.as_deref().unwrap(),
                attempt.started,
                attempt.outcome.unwrap(),
            )
        })
        .collect();
    assert!(matches!(
        attempts[0],
        ("dead", Duration::ZERO, Outcome::Failed(_))
    ));
    assert_eq!(attempts[1], ("live", 20 * MS, Outcome::Success));

    // The call stays in flight to the end of its body.
    let in_flight = || {
        let stats = pool.stats();
        (stats[0].in_flight, stats[1].in_flight)
    };
    assert_eq!(in_flight(), (0, 1));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, [ROLE, HELLO, DONE].concat());
    assert_eq!(in_flight(), (0, 0));
    let stats = pool.stats();
    assert_eq!((stats[0].failures, stats[1].failures), (1, 0));
    // The time until the first content, and not that of the whole stream.
    assert_eq!(
        (stats[1].first_token, stats[1].latency),
        (Some(20 * MS), None)
    );
}

#[tokio::test(start_paused = true)]
async fn headers_name_the_target_only_if_they_are_wanted() {
    let dead = streams(&[Err("connection reset")], MS);
    let live = streams(&[Ok(HELLO), Ok(DONE)], MS);
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool
        .target(Target::new("dead", dead))
        .target(Target::new("live", live));
    let pool = pool.build().unwrap();
    for (is_wanted, expected) in [(true, [Some("2"), Some("live")]), (false, [None, None])] {
        let failover = FanoutLayer::failover(1).report_headers(is_wanted);
        let service = failover.build().unwrap().across(&pool);
        let response = service.oneshot(request()).await.unwrap();
        let names = ["x-fanout-attempts", "x-fanout-target"];
        let headers = names.map(|name| response.headers().get(name));
        assert_eq!(
            headers.map(|value| value.map(|value| value.to_str().unwrap())),
            expected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_is_no_longer_in_flight() {
    let slow = streams(&[Ok(HELLO), Ok(HELLO), Ok(DONE)], 10 * MS);
    let pool = Pool::builder()
        .target(Target::new("slow", slow))
        .build()
        .unwrap();
    let service = FanoutLayer::failover(0).build().unwrap().across(&pool);
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(pool.stats()[0].in_flight, 1);
    drop(response);
    let stats = &pool.stats()[0];
    assert_eq!((stats.in_flight, stats.calls, stats.failures), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_call_of_a_target_replaces_that_of_the_request() {
    let seen = |request: Request| async move {
        let call = request.extensions().get::<Call>().unwrap();
        assert_eq!((call.account(), call.may_queue()), (Some("b"), false));
        let (sender, upstream) = Upstream::new();
        sender.send(HELLO);
        sender.send(DONE);
        Ok::<_, BoxError>(stream(upstream))
    };
    let target = |name: &'static str| {
        Target::new(name, tower::service_fn(seen))
            .describe(move |call| call.to_builder().account(name).build())
    };
    let pool = Pool::builder()
        .pick(Pick::in_order())
        .target(target("b"))
        .target(target("c"));
    let service = FanoutLayer::failover(0)
        .build()
        .unwrap()
        .across(&pool.build().unwrap());
    service.oneshot(request()).await.unwrap();
}
