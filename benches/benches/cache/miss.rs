//! What a miss costs: a stream that passes, is recorded, and is stored when it has ended.
//!
//! Each call has a key of its own, and the memory is full, so that each insertion evicts an answer. `described` has no cache;
//! `watched` is read for its verdict by another layer, as in a stack, which the cache then does not do again. The time of a
//! frame is the difference between streams of few frames and of many.

use std::{
    future::{Ready, ready},
    sync::atomic::{AtomicU64, Ordering},
};

use benches::{Case, Frames, Suite, drain, payload};
use bytes::Bytes;
use http::Response;
use tower::{Layer, service_fn};
use tower_llm_cache::Memory;
use tower_llm_core::{BoxError, Completion, DescribeLayer, Guard, HttpBody, Watch, Watched};

use crate::calls::{Described, EVENTS, Numbered, OURS, answer, builder, cached, call, response};

const FEW: usize = 1;
/// Frames of a stream that are no tokens.
const OTHERS: usize = 4;
const MANY: usize = 200;
const MEMORY: u64 = 8 << 20;

/// The layer that reads the stream first.
struct Inner;

impl Guard for Inner {
    fn end(&mut self, completion: &Completion) {
        assert!(completion.finish.is_some());
    }
}

type WatchedAnswer = Ready<Result<Response<Watched<Frames, Inner>>, BoxError>>;

fn watched(frames: &'static [Bytes]) -> impl Fn(Described) -> WatchedAnswer + Clone {
    move |_| {
        let response = response(EVENTS, Frames::new(frames));
        ready(Ok(HttpBody.watch(None, response, Inner)))
    }
}

pub(crate) fn measure(suite: &mut Suite) {
    let few = miss(suite, FEW);
    let many = miss(suite, MANY);
    let frames = (MANY - FEW) as f64;
    for (i, subject) in [(0, "around a service"), (1, "around a layer that reads")] {
        if let (Some(few), Some(many)) = (few[i], many[i]) {
            suite.figure("miss, recording", subject, "ns a frame", || {
                (many - few) / frames
            });
            suite.figure(
                "miss, recording",
                subject,
                "ns a call without frames",
                || few - (many - few) / frames * (FEW + OTHERS) as f64,
            );
        }
    }
}

/// What the cache adds to a stream of `tokens`, alone and around another layer that reads it.
fn miss(suite: &mut Suite, tokens: usize) -> [Option<f64>; 2] {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let frames = payload::forever(payload::chat_stream(tokens));
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let case = Case::new(format!("miss, a stream of {} frames", frames.len()));
    let body = Numbered::new(&payload::chat_request(2_000));
    let next = || {
        let mut body = body.clone();
        move || body.with(NUMBER.fetch_add(1, Ordering::Relaxed))
    };

    let plain = service_fn(answer(EVENTS, frames));
    let read = service_fn(watched(frames));
    let described = suite.subject(&case, "described", || {
        let (mut service, mut next) = (DescribeLayer::new().layer(plain.clone()), next());
        move || assert_eq!(drain(call(&mut service, next()).into_body()), bytes)
    });
    let watched = suite.subject(&case, "watched", || {
        let (mut service, mut next) = (DescribeLayer::new().layer(read.clone()), next());
        move || assert_eq!(drain(call(&mut service, next()).into_body()), bytes)
    });

    let full = || builder().memory(Memory::lru().max_bytes(MEMORY));
    let (ours, layer) = cached(full(), plain.clone());
    let alone = suite.subject(&case, OURS, || {
        let (mut service, mut next) = (ours.clone(), next());
        move || assert_eq!(drain(call(&mut service, next()).into_body()), bytes)
    });
    let stats = layer.handle().stats();
    assert_eq!((stats.hits, stats.not_stored), (0, 0));
    let (ours, layer) = cached(full(), read.clone());
    let within = suite.subject(&case, &format!("{OURS}, around `watched`"), || {
        let (mut service, mut next) = (ours.clone(), next());
        move || assert_eq!(drain(call(&mut service, next()).into_body()), bytes)
    });
    let stats = layer.handle().stats();
    assert_eq!((stats.hits, stats.not_stored), (0, 0));

    let over = |with: Option<f64>, without: Option<f64>| Some(with? - without?);
    [over(alone, described), over(within, watched)]
}
