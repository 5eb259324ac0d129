//! Warming: bounded, with progress, and whatever fails.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tower::{Layer, ServiceBuilder, service_fn};
use tower_llm_cache::{CacheLayer, Scope, Warming};
use tower_llm_core::{BoxError, DescribeLayer, RequestBody};

use crate::support::WHOLE;

type Asked = Request<Full<Bytes>>;
type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, BoxError>>>>;

fn ask(index: usize) -> Asked {
    let body = format!(
        r#"{{"model":"gpt-5.4","stream":true,"messages":[{{"role":"user","content":"{index}"}}]}}"#
    );
    Request::post("/v1/chat/completions")
        .body(Full::from(body))
        .unwrap()
}

fn frames(frames: &[&'static str]) -> Body {
    let frames: Vec<_> = frames
        .iter()
        .map(|frame| Ok(Frame::data(Bytes::from(*frame))))
        .collect();
    StreamBody::new(stream::iter(frames))
}

/// The number in a question.
fn number(request: &Request<RequestBody>) -> usize {
    let body = request.body().as_bytes().unwrap();
    let digits = body.iter().copied().skip_while(|byte| *byte != b'"');
    let text = String::from_utf8(digits.collect()).unwrap();
    let at = text.find(r#""content":""#).unwrap() + r#""content":""#.len();
    text[at..].split('"').next().unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_are_sent_twenty_at_once_and_failures_do_not_stop_them() {
    let cache = CacheLayer::builder(Scope::shared()).build().unwrap();
    let handle = cache.handle();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let provider = {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        service_fn(move |request: Request<RequestBody>| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, SeqCst);
                match number(&request) {
                    7 => Err(BoxError::from("the network is down")),
                    8 => {
                        let mut response = Response::new(frames(&["{}"]));
                        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                        Ok(response)
                    }
                    9 => Ok(Response::new(frames(&WHOLE[..2]))),
                    _ => Ok(Response::new(frames(&WHOLE))),
                }
            }
        })
    };
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .service(cache.layer(provider));

    let progress = Mutex::new(Vec::new());
    let warmed = Warming::new()
        .concurrency(NonZeroUsize::new(20).unwrap())
        .on_progress(|so_far| progress.lock().unwrap().push(so_far.ended()))
        .run(service.clone(), (0..1000).map(ask))
        .await;

    assert_eq!(
        (warmed.answered, warmed.cached, warmed.ended()),
        (997, 0, 1000)
    );
    let mut failed = warmed.failed;
    failed.sort_by_key(|failure| failure.index());
    assert_eq!(
        failed
            .iter()
            .map(|failure| failure.index())
            .collect::<Vec<_>>(),
        [7, 8, 9]
    );
    assert_eq!(failed[0].to_string(), "request 7: the network is down");
    assert_eq!(failed[1].status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(
        failed[2].to_string(),
        "request 9: the response is not a complete answer: Failed(Truncated)"
    );
    assert_eq!(most.load(SeqCst), 20);
    assert_eq!(
        progress.into_inner().unwrap(),
        (1..=1000).collect::<Vec<_>>()
    );
    assert_eq!((handle.stats().stored, handle.stats().entries), (997, 997));

    let again = Warming::new().run(service, (0..5).map(ask)).await;
    assert_eq!(
        (again.answered, again.cached, again.failed.len()),
        (0, 5, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_warming_that_is_dropped_leaves_no_call_behind() {
    let cache = CacheLayer::builder(Scope::shared()).build().unwrap();
    let handle = cache.handle();
    let provider = service_fn(|_: Request<RequestBody>| {
        std::future::pending::<Result<Response<Body>, BoxError>>()
    });
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .service(cache.layer(provider));
    let run = Warming::new().run(service, (0..100).map(ask));
    let timed_out = tokio::time::timeout(Duration::from_secs(1), run).await;
    assert!(timed_out.is_err());
    assert_eq!(handle.stats().in_flight, 0);
    assert_eq!(handle.stats().misses, 20);
}
