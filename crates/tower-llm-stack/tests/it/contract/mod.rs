//! What the layers guarantee to each other: one module for each event, one test for each layer that it affects.
//!
//! | event | caller's limit | provider's limit | bulkhead | breaker |
//! |---|---|---|---|---|
//! | cached answer | one request, no tokens | nothing | nothing | nothing |
//! | follower of a call in flight | one request, no tokens | nothing | nothing | nothing |
//! | call that its caller has left, and a cache finishes | what it has used, at its end | the same | freed at its end | its verdict |
//! | batch of embeddings, stored in part | one request, tokens of what was sent | the same | freed at end | what was sent |
//! | refusal by any layer | refunded | refunded whole | freed | neutral |
//! | caller leaves, before or inside the body | settled by what was seen | same | freed at once | neutral; a probe is given back |
//! | caller leaves while an inner layer queues the call | refunded | refunded whole | leaves the queue | neutral |
//! | 200 with an error inside the stream | by outcome | by outcome | freed at end | failure |
//! | stream cut without terminal marker | seen | seen | freed | failure |
//! | the client's own timeout | seen | seen | freed | failure of the model |
//! | the request's body breaks off | by what was seen | same | freed | neutral |
//! | 429, with a provider's limit that learns | - | calls wait | freed | neutral |
//! | store unavailable | as configured: the process's share, all, or none | same | - | its own state |
//! | retry | once per call | each attempt | each attempt | each attempt |
//! | branch | once per call | each branch reserves and settles | each its own permit | each its own verdict; a losing one's is neutral |
//! | failure of a branch before its content | the answer's | each branch reserves and settles | freed at end | each its own verdict |
//!
//! The first four rows are in `cached`, the last three in `attempts`; those before them are in `client_errors`, `throttled` and
//! `unavailable`. What becomes of a shared call when its callers leave, or it fails, is in `shared`. The first two are in `typed`
//! too, for a service with types of its own. `whole` has the events again in a stack with a cache and extra branches.
//!
//! What the monitor counts of each is in `monitor`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod attempts;
mod cached;
mod client_errors;
pub(crate) mod layers;
#[cfg(feature = "monitor")]
mod monitor;
mod shared;
mod throttled;
mod typed;
#[cfg(feature = "redis")]
mod unavailable;
mod whole;

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, future, poll};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use layers::{
    A_REQUEST, Attempts, Body, Client, ESTIMATED_INPUT, INPUT, Layers, NEITHER, NOTHING, REQUEST,
    RESERVED_OF_CALLER, RESERVED_OF_PROVIDER, Stand, Taken, USED, answer, boxed, model, request,
    taken, verdicts,
};
use tower::{ServiceExt, layer::layer_fn, retry, service_fn};
use tower_llm_stack::{BoxError, Key, Refusal, RequestBody, breaker::State};
use tower_llm_testkit::{Behavior, Fault, InBand, wire};

/// Calls, and reads to the end.
async fn read(client: &Client) {
    let response = client.clone().oneshot(request()).await.unwrap();
    // The error of a broken body is the upstream's, and part of the event.
    let _ = response.into_body().collect().await;
}

/// The layer that refuses a call.
async fn refused_by(client: &Client) -> &'static str {
    let error = client.clone().oneshot(request()).await.unwrap_err();
    Refusal::find(&*error).unwrap().layer()
}

/// The output in the first `events` events of a response, in tokens of four bytes.
fn output_seen(events: usize) -> u64 {
    let frames = wire::body("/v1/chat/completions", REQUEST.as_bytes(), &answer());
    let text = |frame: &Bytes| -> usize {
        let json = frame.strip_prefix(b"data: ").unwrap();
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        let content = json.pointer("/choices/0/delta/content");
        content.map_or(0, |content| content.as_str().unwrap().len())
    };
    let bytes: usize = frames.iter().take(events).map(text).sum();
    assert!(bytes > 0, "some output was seen");
    u64::try_from(bytes).unwrap().div_ceil(4)
}

// === the table ===

/// The baseline for the other rows.
mod answer_that_is_read_to_its_end {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::new([]);
        read(&layers.stack()).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_settled_by_usage() {
        assert_eq!(event().await.of_caller(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_settled_by_usage() {
        assert_eq!(event().await.of_provider(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_held_to_the_end_of_the_body() {
        let layers = Layers::new([]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        assert_eq!(stand.of_provider(), RESERVED_OF_PROVIDER);
        response.into_body().collect().await.unwrap();
        assert_eq!(stand.places_held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_a_success() {
        assert_eq!(event().await.verdicts(), verdicts(1, 0));
    }
}

mod refusal_by_the_callers_limit {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::with_room(1, 100, 100, []);
        read(&layers.stack()).await;
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_keeps_earlier_charges() {
        assert_eq!(event().await.of_caller(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_not_checked() {
        let stand = event().await;
        let stats = &stand.providers.stats()[0];
        assert_eq!((stats.admitted, stats.refused), (1, 0));
        assert_eq!(stand.of_provider(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_is_requested() {
        let layers = Layers::with_room(1, 100, 1, [Fault::StallAfter(3).into()]);
        let held = layers.stack().oneshot(request()).await.unwrap();
        // It would also have been refused for lack of a permit.
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_only_earlier_calls() {
        assert_eq!(event().await.verdicts(), verdicts(1, 0));
    }
}

mod refusal_by_the_providers_limit {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::with_room(100, 1, 100, []);
        read(&layers.stack()).await;
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), USED);
        // The call was admitted and refunded: one request, and what both calls had reserved beyond the 19 tokens.
        let [requests, tokens] = &stand.callers.stats()[..] else {
            panic!("two limits");
        };
        assert_eq!((requests.admitted, requests.refunded), (2, 1));
        let reserved = 2 * RESERVED_OF_CALLER.tokens;
        assert_eq!(tokens.refunded, reserved - USED.tokens);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_keeps_earlier_charges() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), USED);
        let stats = &stand.providers.stats()[0];
        assert_eq!((stats.admitted, stats.refused), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_is_requested() {
        let layers = Layers::with_room(100, 1, 1, [Fault::StallAfter(3).into()]);
        let held = layers.stack().oneshot(request()).await.unwrap();
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_only_earlier_calls() {
        assert_eq!(event().await.verdicts(), verdicts(1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_given_back() {
        let layers = Layers::with_room(100, 1, 100, []);
        read(&layers.stack()).await;
        layers.half_open();
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        assert_eq!(layers.stand().probes(), (State::HalfOpen, 0));
    }
}

mod refusal_by_the_bulkhead {
    use super::*;

    /// One call holds the permit and breaks off; the other is refused meanwhile.
    async fn event() -> Stand {
        let layers = Layers::with_room(100, 100, 1, [Fault::NoAnswer.into()]);
        let mut held = layers.stack().oneshot(request());
        assert!(poll!(&mut held).is_pending());
        assert_eq!(refused_by(&layers.stack()).await, "bulkhead");
        let stand = layers.stand();
        // The reservations of the other call remain.
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        assert_eq!(stand.of_provider(), RESERVED_OF_PROVIDER);
        assert_eq!(stand.places_held(), 1);
        drop(held);
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), INPUT);
        assert_eq!(stand.callers.stats()[0].refunded, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), INPUT);
        assert_eq!(stand.providers.stats()[0].refunded, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_free_when_its_holder_has_ended() {
        assert_eq!(event().await.places_held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_neither() {
        assert_eq!(event().await.verdicts(), NEITHER);
    }
}

mod refusal_by_the_breaker {
    use super::*;

    /// A call that is refused after one that succeeded.
    async fn event() -> Stand {
        let layers = Layers::new([]);
        read(&layers.stack()).await;
        let stand = layers.stand();
        stand.breaker.trip(&model(), Duration::from_secs(60));
        assert_eq!(refused_by(&layers.stack()).await, "breaker");
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), USED);
        let stats = &stand.callers.stats()[0];
        assert_eq!((stats.admitted, stats.refunded), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_not_checked() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), USED);
        let stats = &stand.providers.stats()[0];
        assert_eq!((stats.admitted, stats.refused), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_is_requested() {
        let stand = event().await;
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_only_a_refusal() {
        let stand = event().await;
        assert_eq!(stand.verdicts(), NEITHER);
        assert_eq!(stand.breaker.stats_of(&model()).unwrap().refused, 1);
    }
}

mod caller_leaves_before_the_body {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::new([Fault::NoAnswer.into()]);
        let mut call = layers.stack().oneshot(request());
        assert!(poll!(&mut call).is_pending());
        let stand = layers.stand();
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        assert_eq!(stand.of_provider(), RESERVED_OF_PROVIDER);
        assert_eq!(stand.places_held(), 1);
        drop(call);
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_the_input() {
        assert_eq!(event().await.of_caller(), INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_the_input() {
        assert_eq!(event().await.of_provider(), INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_free_at_once() {
        assert_eq!(event().await.places_held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_nothing() {
        assert_eq!(event().await.verdicts(), NEITHER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_given_back() {
        let layers = Layers::new([Fault::NoAnswer.into()]);
        layers.half_open();
        let mut call = layers.stack().oneshot(request());
        assert!(poll!(&mut call).is_pending());
        assert_eq!(layers.stand().probes(), (State::HalfOpen, 1));
        drop(call);
        assert_eq!(layers.stand().probes(), (State::HalfOpen, 0));
    }
}

/// The call was never sent.
mod caller_leaves_while_the_call_waits_for_a_permit {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::with_queue([Fault::NoAnswer.into()]);
        let holder = layers.stack().oneshot(request());
        let mut holder = Box::pin(holder);
        assert!(poll!(&mut holder).is_pending());
        let mut calls: Vec<_> = (0..3)
            .map(|_| Box::pin(layers.stack().oneshot(request())))
            .collect();
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
        let stand = layers.stand();
        assert_eq!((stand.places_held(), stand.waiting()), (1, 3));
        assert_eq!(stand.of_provider().requests, 4);
        drop(calls);
        drop(holder);
        stand
    }

    // Only the sent call stays charged.
    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_refunded_whole() {
        assert_eq!(event().await.of_caller(), INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_refunded_whole() {
        assert_eq!(event().await.of_provider(), INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_empty() {
        let stand = event().await;
        assert_eq!((stand.places_held(), stand.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_nothing() {
        assert_eq!(event().await.verdicts(), verdicts(0, 0));
    }
}

mod caller_leaves_inside_the_body {
    use super::*;

    const EVENTS: usize = 4;

    async fn event() -> Stand {
        let layers = Layers::new([answer().fault(Fault::StallAfter(EVENTS))]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        let mut body = response.into_body();
        for _ in 0..EVENTS {
            body.frame().await.unwrap().unwrap();
        }
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        drop(body);
        stand
    }

    fn seen() -> Taken {
        taken(1, ESTIMATED_INPUT + output_seen(EVENTS))
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_settled_by_what_was_seen() {
        assert_eq!(event().await.of_caller(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_settled_by_what_was_seen() {
        assert_eq!(event().await.of_provider(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_free_at_once() {
        assert_eq!(event().await.places_held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_nothing() {
        assert_eq!(event().await.verdicts(), NEITHER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_given_back() {
        let layers = Layers::new([answer().fault(Fault::StallAfter(EVENTS))]);
        layers.half_open();
        let response = layers.stack().oneshot(request()).await.unwrap();
        assert_eq!(layers.stand().probes(), (State::HalfOpen, 1));
        drop(response);
        assert_eq!(layers.stand().probes(), (State::HalfOpen, 0));
    }
}

mod success_with_an_error_inside_the_stream {
    use super::*;

    const EVENTS: usize = 4;

    /// Each kind of error, and what the call is charged: nothing if the provider had no capacity, one request if it was
    /// throttled, and what was seen if it failed.
    fn kinds() -> [(InBand, Taken); 3] {
        let seen = taken(1, ESTIMATED_INPUT + output_seen(EVENTS));
        [
            (InBand::Overloaded, NOTHING),
            (InBand::RateLimited, A_REQUEST),
            (InBand::ServerError, seen),
        ]
    }

    async fn event(error: InBand) -> Stand {
        let layers = Layers::new([answer().fault(Fault::ErrorAfter(EVENTS, error))]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        response.into_body().collect().await.unwrap();
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_settled_by_outcome() {
        for (error, left) in kinds() {
            assert_eq!(event(error).await.of_caller(), left, "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_settled_by_outcome() {
        for (error, left) in kinds() {
            assert_eq!(event(error).await.of_provider(), left, "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_free_at_the_end() {
        for (error, _) in kinds() {
            assert_eq!(event(error).await.places_held(), 0, "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_a_failure_unless_throttled() {
        for (error, counted) in [
            (InBand::Overloaded, verdicts(0, 1)),
            (InBand::RateLimited, NEITHER),
            (InBand::ServerError, verdicts(0, 1)),
        ] {
            assert_eq!(event(error).await.verdicts(), counted, "{error:?}");
        }
    }
}

mod stream_cut_without_terminal_marker {
    use super::*;

    const EVENTS: usize = 4;

    async fn event() -> Stand {
        let layers = Layers::new([answer().fault(Fault::CutAfter(EVENTS))]);
        read(&layers.stack()).await;
        layers.stand()
    }

    fn seen() -> Taken {
        taken(1, ESTIMATED_INPUT + output_seen(EVENTS))
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_what_was_seen() {
        assert_eq!(event().await.of_caller(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_what_was_seen() {
        assert_eq!(event().await.of_provider(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_free() {
        assert_eq!(event().await.places_held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_a_failure() {
        assert_eq!(event().await.verdicts(), verdicts(0, 1));
    }
}
