//! What a key costs that a rate limiter keeps: with its text, its state and its part of the table.

use std::{
    borrow::Cow,
    convert::Infallible,
    future::{Ready, ready},
    slice,
};

use benches::held_by;
use futures_util::FutureExt;
use tower::{Layer, Service, service_fn, util::ServiceFn};
use tower_llm_core::{Call, Caller, Described, Operation, Provider, Unary};
use tower_llm_ratelimit::{Limit, RateLimit, RateLimitLayer};

const SHARDS: u64 = 16;

/// When so many entries are exceeded, a shard's table of 8,192 buckets doubles.
const FULL: u64 = 7_168;

/// More than by which any shard's share of the keys is likely to differ from the others'.
const SPREAD: u64 = 500;

struct Prompt(Call);

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.0))
    }
}

type Answer = fn(Prompt) -> Ready<Result<(), Infallible>>;

fn limiter(limits: &[Limit], max_keys: usize) -> RateLimit<ServiceFn<Answer>, Unary> {
    let layer = RateLimitLayer::for_callers()
        .limits(limits.to_vec())
        .max_keys(max_keys)
        .watch(Unary)
        .build()
        .expect("the limits can be");
    let answer: Answer = |_| ready(Ok(()));
    layer.layer(service_fn(answer))
}

/// Makes a call that ends at once, let through or not.
fn call_as(limiter: &mut RateLimit<ServiceFn<Answer>, Unary>, caller: u64) {
    let caller = Caller::named(format!("caller-{caller}"));
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).caller(caller);
    let call = call.input_tokens(10).max_output_tokens(10).build();
    let called = limiter.call(Prompt(call)).now_or_never();
    drop(called.expect("no call waits"));
}

/// Has `keys` callers make a call each; says how many bytes each costs from then on.
fn bytes_per_key(limits: &[Limit], keys: u64) -> f64 {
    let mut limiter = limiter(limits, 1_000_000);
    let ((), bytes) = held_by(|| (0..keys).for_each(|key| call_as(&mut limiter, 100_000 + key)));
    let ((), bytes_again) = held_by(|| call_as(&mut limiter, 100_000));
    assert_eq!(
        bytes_again, 0,
        "a call of a known key holds nothing when it is over"
    );
    bytes as f64 / keys as f64
}

#[test]
fn an_idle_key_costs_at_most_250_bytes_even_right_after_its_table_has_doubled() {
    let tokens = || Limit::tokens(1_000_000).per_minute();
    let (window, bucket) = (tokens(), tokens().bucket(10_000));
    // Right before all tables double, and right after.
    let [before, after] = [SHARDS * (FULL - SPREAD), SHARDS * (FULL + SPREAD)];
    for (name, limits, most) in [
        ("a sliding window", slice::from_ref(&window), 250.0),
        ("a bucket", slice::from_ref(&bucket), 250.0),
        // Beyond one, limits lie in a box of their own.
        ("both", &[window.clone(), bucket.clone()], 490.0),
    ] {
        let [before, after] = [before, after].map(|keys| bytes_per_key(limits, keys));
        println!("{name}: {before:.1} bytes a key in full tables, {after:.1} in half-empty ones");
        assert!(
            before < after && after <= most,
            "{name}: {after} bytes a key"
        );
    }
}

#[test]
fn a_flood_of_invented_keys_holds_no_more_than_the_maximum_of_keys() {
    let mut limiter = limiter(&[Limit::tokens(20).per_minute()], 1_600);
    let mut flood = |keys: std::ops::Range<u64>| {
        let flood = || keys.for_each(|key| call_as(&mut limiter, 100_000 + key));
        held_by(flood).1
    };
    let of_places = flood(0..8_000);
    assert!(of_places <= 1_600 * 250, "{of_places} bytes");
    assert_eq!(flood(8_000..16_000), 0);
}
