//! What a hit costs, from the bytes of the request to the first frame of a stored stream.
//!
//! `described` is what it costs without a cache: the same layer that describes a call, around a service that answers at once.
//! The yardstick is what a cache with a canonical key cannot do without, in the usual way: parsing the body into a
//! [`serde_json::Value`], writing it sorted, and hashing it. The rest of the answer is dropped unread.

use std::hint::black_box;

use benches::{Case, Suite, payload};
use bytes::Bytes;
use tower::{Layer, service_fn};
use tower_llm_core::{DescribeLayer, Served};

use crate::{
    calls::{EVENTS, OURS, answer, builder, cached, call, first_frame},
    peers,
};

const YARDSTICK: &str = "serde_json, sorted, blake3";

pub(crate) fn measure(suite: &mut Suite) {
    for (name, bytes) in [
        ("hit-2k", 2_000),
        ("hit-10k", 10_000),
        ("hit-100k", 100_000),
    ] {
        let body = payload::chat_request(bytes);
        // Two threads send bodies of their own, not one that they count references to.
        hit(suite, name, body.to_vec().leak());
    }
    peers::get(suite);
}

fn hit(suite: &mut Suite, name: &str, body: &'static [u8]) {
    let case = Case::new(name).bytes(body.len());
    let request = move || Bytes::from_static(black_box(body));
    let frames = payload::forever(payload::chat_stream(200));
    let first = frames[0].len();
    let upstream = service_fn(answer(EVENTS, frames));

    let described = suite.subject(&case, "described", || {
        let mut service = DescribeLayer::new().layer(upstream.clone());
        move || {
            assert_eq!(
                first_frame(call(&mut service, request()).into_body()),
                first
            )
        }
    });
    let (mut ours, layer) = cached(builder(), upstream);
    assert_eq!(
        read(call(&mut ours, request()).into_body()),
        frames.concat()
    );
    let stored = layer.handle().stats();
    assert_eq!((stored.misses, stored.stored), (1, 1));
    let again = call(&mut ours, request());
    assert_eq!(read(again.into_body()), frames.concat());

    let yardstick = suite.subject(&case, YARDSTICK, || {
        move || {
            let json: serde_json::Value =
                serde_json::from_slice(black_box(body)).expect("the body is JSON");
            // Its objects are B-trees: what is written is sorted.
            blake3::hash(&serde_json::to_vec(&json).expect("a value can be written"))
        }
    });
    let hit = suite.subject(&case, OURS, || {
        let mut service = ours.clone();
        move || {
            let response = call(&mut service, request());
            assert_eq!(response.extensions().get(), Some(&Served::Hit));
            assert_eq!(first_frame(response.into_body()), first);
        }
    });
    if let (Some(yardstick), Some(hit)) = (yardstick, hit) {
        suite.figure(name, OURS, "of the yardstick's time", || hit / yardstick);
    }
    if let (Some(described), Some(hit)) = (described, hit) {
        suite.figure(name, OURS, "ns over a described call", || hit - described);
    }
    peers::keyed_by_body(suite, &case, body, frames);
}

fn read<B>(body: B) -> Vec<u8>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let whole = http_body_util::BodyExt::collect(body);
    benches::now(whole)
        .expect("it does not fail")
        .to_bytes()
        .into()
}
