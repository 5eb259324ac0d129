//! What a hit in Redis costs, from the bytes of the request to the first frame of a stored stream; nothing is held in memory.
//!
//! A GET of the answer as it is stored, by the same client, is what the store alone takes.

use std::time::Duration;

use benches::{Suite, payload, runtime};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tower::{Service, service_fn};
use tower_llm_cache::SharedCache;
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::RedisServer;

use crate::calls::{EVENTS, OURS, answer, builder, cached, first_frame, request};

const HITS: usize = 10_000;

pub(crate) fn measure(suite: &mut Suite) {
    for (case, tokens) in [("l2-hit, 4 KB", 8), ("l2-hit, 70 KB", 200)] {
        hit(suite, case, tokens);
    }
}

fn hit(suite: &mut Suite, case: &str, tokens: usize) {
    // Measured together, if one of the figures is wanted.
    let mut measured = None;
    let figures = [
        (OURS, "us at p50"),
        (OURS, "us at p99"),
        ("a GET", "us at p50"),
        ("a GET", "us at p99"),
    ];
    for (i, (subject, unit)) in figures.into_iter().enumerate() {
        suite.figure(case, subject, unit, || {
            let figures = measured.get_or_insert_with(|| runtime().block_on(latencies(tokens)));
            figures[i]
        });
    }
}

/// p50 and p99 of a hit, and of a GET.
async fn latencies(tokens: usize) -> [f64; 4] {
    let server = RedisServer::start().await;
    let server = server.expect("`cargo xtask test` installs redis-server");
    let redis = Redis::builder(server.url()).connect().await;
    let redis = redis.expect("it runs");
    let shared = SharedCache::new(redis.clone());
    let frames = payload::forever(payload::chat_stream(tokens));
    let upstream = service_fn(answer(EVENTS, frames));
    let (mut service, layer) = cached(builder().memory(None).shared(shared), upstream);
    let body = payload::chat_request(2_000);
    let sent = service.call(request(body.clone())).await;
    let answer = sent.expect("it is answered").into_body().collect().await;
    assert_eq!(
        answer.expect("it does not fail").to_bytes(),
        frames.concat()
    );
    // A task stores it.
    while layer.handle().stats().shared_stored == 0 {
        tokio::task::yield_now().await;
    }

    let mut hits = Vec::with_capacity(HITS);
    for _ in 0..HITS {
        let begun = Instant::now();
        let response = service.call(request(body.clone())).await;
        let body = response.expect("it is answered").into_body();
        assert_eq!(first_frame(body), frames[0].len());
        hits.push(begun.elapsed());
    }
    assert_eq!(layer.handle().stats().shared_hits, HITS as u64);

    let page = redis.scan("*").next().await.expect("a page");
    let key = page.expect("it runs").remove(0);
    let mut gets = Vec::with_capacity(HITS);
    for _ in 0..HITS {
        let begun = Instant::now();
        let value = redis.get(key.clone()).await.expect("it runs");
        assert!(value.is_some());
        gets.push(begun.elapsed());
    }
    let [hit, slow_hit] = quantiles(hits);
    let [get, slow_get] = quantiles(gets);
    [hit, slow_hit, get, slow_get]
}

/// p50 and p99, in microseconds.
pub(crate) fn quantiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    [times.len() / 2, times.len() * 99 / 100].map(|at| times[at].as_secs_f64() * 1e6)
}
