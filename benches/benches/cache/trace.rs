//! How many requests of real traffic a cache answers.
//!
//! The requests are those of Mooncake's trace of conversations, in their order; a synthetic body stands for each. Time does not
//! pass, so nothing expires. The ceiling is what a cache without a limit answers: the repetitions in the trace.

use std::{cell::LazyCell, convert::Infallible, future::ready};

use benches::{Suite, drain, now, payload};
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Full;
use tower::{Service, service_fn};
use tower_llm_cache::{CacheStats, Memory};

use crate::calls::{Described, JSON, Numbered, builder, cached, request, response, unstreamed};

const TRACE: &str = include_str!("../../data/mooncake_conversation.txt");
const BYTES_PER_TOKEN: usize = 4;

/// Tells the upstream, and is no part of the key.
const ANSWER_BYTES: &str = "x-answer-bytes";

/// A request of the trace.
#[derive(Clone, Copy)]
struct Request {
    /// Equal for those that ask the same.
    identity: usize,
    answer_bytes: usize,
}

pub(crate) fn measure(suite: &mut Suite) {
    const CASE: &str = "mooncake-conversation";
    const UNIT: &str = "% of requests are hits";
    let requests = LazyCell::new(requests);
    let all = LazyCell::new(|| replay(&requests, Memory::lru().max_bytes(1 << 40)));
    let percent = |stats: &CacheStats| 100.0 * stats.hit_ratio();
    suite.figure(CASE, "ceiling", UNIT, || {
        assert_eq!((all.hits, all.misses), (118, 11_913));
        percent(&all)
    });
    for share in [2, 10, 30] {
        for (name, memory) in [
            ("lru", Memory::lru()),
            ("tiny_lfu", Memory::tiny_lfu()),
            ("fifo", Memory::fifo()),
        ] {
            let subject = format!("{name}, {share} % of the bytes");
            suite.figure(CASE, &subject, UNIT, || {
                let max_bytes = all.bytes * share / 100;
                percent(&replay(&requests, memory.max_bytes(max_bytes)))
            });
        }
    }
}

fn requests() -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for line in TRACE.lines().filter(|line| !line.starts_with('#')) {
        let number = |text: &str| text.parse::<usize>().expect("the trace holds numbers");
        let request = match line.strip_prefix('=') {
            Some(first) => requests[number(first)],
            None => Request {
                identity: requests.len(),
                answer_bytes: number(line) * BYTES_PER_TOKEN,
            },
        };
        requests.push(request);
    }
    requests
}

/// Makes all calls of the trace, one after the other.
fn replay(requests: &[Request], memory: Memory) -> CacheStats {
    let upstream = service_fn(|request: Described| {
        let bytes = request.headers()[ANSWER_BYTES].to_str();
        let bytes = bytes.ok().and_then(|text| text.parse().ok());
        ready(Ok::<_, Infallible>(response(
            JSON,
            answer(bytes.expect("the request says how long its answer is")),
        )))
    });
    let (mut service, layer) = cached(builder().memory(memory), upstream);
    let mut body = Numbered::new(&unstreamed(&payload::chat_request(500)));
    for asked in requests {
        let mut request = request(body.with(asked.identity as u64));
        let bytes = HeaderValue::from(asked.answer_bytes);
        request.headers_mut().insert(ANSWER_BYTES, bytes);
        let answered = now(service.call(request)).expect("the call is answered");
        drain(answered.into_body());
    }
    layer.handle().stats()
}

fn answer(bytes: usize) -> Full<Bytes> {
    let text = "x".repeat(bytes);
    Full::from(format!(
        r#"{{"choices":[{{"message":{{"content":"{text}"}},"finish_reason":"stop"}}]}}"#
    ))
}
