//! What an answer takes in memory beyond its own bytes.

use std::cell::LazyCell;

use benches::{Suite, drain, held_by, payload};
use futures_util::FutureExt as _;
use tower::service_fn;
use tower_llm_cache::Memory;

use crate::calls::{JSON, Numbered, answer, builder, cached, call, unstreamed};

const ENTRIES: u64 = 100_000;
const BYTES: usize = 2_048;

pub(crate) fn measure(suite: &mut Suite) {
    for (name, memory) in [
        ("lru", Memory::lru()),
        ("tiny_lfu", Memory::tiny_lfu()),
        ("fifo", Memory::fifo()),
    ] {
        let bytes = LazyCell::new(|| bytes_per_entry(memory));
        suite.figure("memory-100k", name, "bytes an entry of 2 KB", || *bytes);
        suite.figure("memory-100k", name, "of the body's bytes", || {
            *bytes / BYTES as f64
        });
    }
}

/// What one of 100,000 answers takes, as the allocator was asked for it.
fn bytes_per_entry(memory: Memory) -> f64 {
    let mut body = payload::chat_response(BYTES / 2).to_vec();
    assert!(body.len() < BYTES);
    // White space after the document makes it as long as it is to be.
    body.resize(BYTES, b' ');
    let frames = payload::forever(vec![body.into()]);
    let (mut service, layer) = cached(
        builder().memory(memory.max_bytes(1 << 30)),
        service_fn(answer(JSON, frames)),
    );
    let mut body = Numbered::new(&unstreamed(&payload::chat_request(500)));
    // What the thread holds for its next key is there before.
    drain(call(&mut service, body.with(ENTRIES)).into_body());
    let cache = layer.handle();
    // Without Redis it waits for nothing.
    let cleared = cache.clear().now_or_never();
    assert!(cleared.is_some_and(|cleared| cleared.is_ok()));
    let ((), held) = held_by(|| {
        for number in 0..ENTRIES {
            drain(call(&mut service, body.with(number)).into_body());
        }
        assert_eq!(cache.stats().entries, ENTRIES);
    });
    held as f64 / ENTRIES as f64
}
