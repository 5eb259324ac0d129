//! What a call is charged if it is refused, fails, or is dropped before its response headers.

use std::future::pending;

use futures_util::FutureExt;
use http_body_util::Full;
use tokio::time::timeout;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Deadline, Operation, Provider, Refusal, RefusalKind, TimedOut,
};
use tower_llm_ratelimit::{CutShort, RateLimitBuilder, RateLimitHandle, RateLimitLayer};
use tower_llm_testkit::{Behavior, Fault, RetryAfter, SimulatedProvider};

use crate::http_support::{
    APIS, Answer, Api, Cost, ESTIMATED, INPUT, MAXIMUM, NOTHING, OUTPUT, PATIENCE, REQUEST,
    RESERVED, Request, assert_settled, call, call_events, client, consumed, counting, every_limit,
    settled, stack, stack_over, tokens,
};

fn behavior() -> Behavior {
    Behavior::new().input_tokens(INPUT).output_tokens(OUTPUT)
}

#[tokio::test]
async fn an_error_status_is_charged_by_what_it_means() {
    let provider = SimulatedProvider::start().await.unwrap();
    let cases = [
        (Fault::Throttled(RetryAfter::Seconds(3)), REQUEST),
        (Fault::Throttled(RetryAfter::Millis(300)), REQUEST),
        (Fault::Throttled(RetryAfter::Untold), REQUEST),
        (Fault::QuotaExhausted, NOTHING),
        (Fault::Overloaded, NOTHING),
        (Fault::Status(529), NOTHING),
        (Fault::Status(500), REQUEST),
        (Fault::Status(504), REQUEST),
        (Fault::Status(400), REQUEST),
        (Fault::Status(401), REQUEST),
        (Fault::Status(413), REQUEST),
    ];
    for (api, (fault, cost)) in APIS.iter().flat_map(|&api| cases.map(|case| (api, case))) {
        for streamed in [true, false] {
            provider.set(fault);
            let layer = counting().build().unwrap();
            let seen = call(&stack(&layer), api.request(&provider, streamed)).await;
            assert!(seen.status >= Some(400));
            assert_settled(&layer.handle(), cost, &(api, fault, streamed));
        }
    }
}

#[tokio::test]
async fn an_error_whose_body_is_not_read_is_charged_by_its_status_alone() {
    let provider = SimulatedProvider::start().await.unwrap();
    let cases = [
        (Fault::Throttled(RetryAfter::Seconds(3)), REQUEST),
        // Only its body distinguishes it from a rate limit.
        (Fault::QuotaExhausted, REQUEST),
        (Fault::Status(529), NOTHING),
        (Fault::Status(500), REQUEST),
        (Fault::Status(400), REQUEST),
    ];
    for (api, (fault, cost)) in APIS.iter().flat_map(|&api| cases.map(|case| (api, case))) {
        provider.set(fault);
        let layer = counting().build().unwrap();
        let seen = call_events(&stack(&layer), api.request(&provider, true), 0).await;
        assert_eq!(seen.body, "");
        assert_settled(&layer.handle(), cost, &(api, fault));
    }
}

// === before the response headers ===

#[tokio::test]
async fn a_future_dropped_before_its_first_poll_costs_nothing() {
    let provider = SimulatedProvider::start().await.unwrap();
    let layer = counting().build().unwrap();
    drop(stack(&layer).oneshot(Api::Chat.request(&provider, true)));
    assert_settled_nothing(&layer.handle());
    assert_eq!(provider.counts().requests, 0);
}

fn assert_settled_nothing(handle: &RateLimitHandle) {
    assert_eq!(consumed(handle), NOTHING);
    assert_eq!(settled(handle), (NOTHING, NOTHING));
    assert_eq!(handle.stats()[0].admitted, 0);
}

/// The inner service has been called; whether it sent the request is unknown.
#[tokio::test]
async fn a_call_dropped_before_its_first_poll_is_charged_its_input() {
    let layer = counting().build().unwrap();
    let mut service = layer.layer(client());
    let described = Call::builder(Provider::OPENAI, Operation::CHAT)
        .input_tokens(ESTIMATED)
        .max_output_tokens(MAXIMUM);
    let mut request = Request::new(Full::default());
    request.extensions_mut().insert(described.build());
    let call = service.ready().await.unwrap().call(request);
    assert_eq!(consumed(&layer.handle()), RESERVED);
    drop(call);
    assert_settled(&layer.handle(), tokens(ESTIMATED, 0), &"dropped");
}

#[tokio::test]
async fn a_call_dropped_before_its_response_headers_is_charged_its_input() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::NoAnswer);
    for api in APIS {
        provider.reset_counts();
        let layer = counting().build().unwrap();
        let call = stack(&layer).oneshot(api.request(&provider, true));
        let arrived = provider.wait_for(PATIENCE, |counts| counts.requests == 1);
        tokio::select! {
            _ = call => panic!("the provider never answers"),
            arrived = arrived => assert!(arrived.is_ok()),
        }
        assert_settled(&layer.handle(), tokens(ESTIMATED, 0), &api);
    }
}

#[tokio::test]
async fn a_connection_that_fails_before_the_headers_charges_the_request() {
    let provider = SimulatedProvider::start().await.unwrap();
    for api in APIS {
        provider.set(Fault::ResetBeforeHead);
        let layer = counting().build().unwrap();
        let seen = call(&stack(&layer), api.request(&provider, true)).await;
        assert_eq!((seen.status, seen.failed), (None, true));
        assert_settled(&layer.handle(), REQUEST, &api);
    }
    let request = Api::Chat.request(&provider, true);
    provider.shutdown().await;
    let layer = counting().build().unwrap();
    let seen = call(&stack(&layer), request).await;
    assert_eq!((seen.status, seen.failed), (None, true));
    assert_settled(&layer.handle(), REQUEST, &"nobody listens");
}

/// The charge of a call whose inner service fails with `error`.
async fn failed_with<E>(error: E) -> Cost
where
    E: std::error::Error + Clone + Send + Sync + 'static,
{
    let layer = counting().build().expect("legal settings");
    let inner = service_fn(move |_: http::Request<_>| {
        let error: BoxError = error.clone().into();
        async move { Err::<Answer, _>(error) }
    });
    let provider = SimulatedProvider::start().await.expect("a free port");
    let request = Api::Messages.request(&provider, false);
    assert!(stack_over(&layer, inner).oneshot(request).await.is_err());
    let cost = consumed(&layer.handle());
    assert_settled(&layer.handle(), cost, &"once");
    cost
}

#[tokio::test]
async fn a_call_that_another_layer_refuses_costs_nothing() {
    let refusal = Refusal::new(RefusalKind::Unavailable, "bulkhead");
    assert_eq!(failed_with(refusal).await, NOTHING);
}

#[tokio::test]
async fn a_call_that_another_layer_times_out_is_charged_its_input() {
    let timed_out = TimedOut::new(Deadline::FirstToken, PATIENCE);
    assert_eq!(failed_with(timed_out).await, tokens(ESTIMATED, 0));
}

#[tokio::test]
async fn a_call_that_panics_is_charged_its_input() {
    let layer = counting().build().unwrap();
    let inner = service_fn(|_: http::Request<_>| async {
        if true {
            panic!("scripted panic");
        }
        pending::<Result<Answer, BoxError>>().await
    });
    let provider = SimulatedProvider::start().await.unwrap();
    let call = stack_over(&layer, inner).oneshot(Api::Gemini.request(&provider, true));
    assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    assert_settled(&layer.handle(), tokens(ESTIMATED, 0), &"panicked");
}

#[tokio::test]
async fn a_reservation_is_held_until_an_unfinished_body_is_dropped() {
    let layer = counting().build().unwrap();
    let inner = service_fn(|_: http::Request<_>| pending::<Result<Answer, BoxError>>());
    let provider = SimulatedProvider::start().await.unwrap();
    let call = stack_over(&layer, inner).oneshot(Api::Chat.request(&provider, true));
    let mut call = Box::pin(call);
    for _ in 0..3 {
        assert!((&mut call).now_or_never().is_none());
        assert_eq!(consumed(&layer.handle()), RESERVED);
    }
    drop(call);
    assert_settled(&layer.handle(), tokens(ESTIMATED, 0), &"dropped");
}

// === policies ===

/// The charge of a stream dropped after five events, of which two contain tokens.
async fn dropped_midway(cut_short: CutShort, api: Api) -> (Cost, Cost) {
    let provider = SimulatedProvider::start().await.expect("a free port");
    provider.set(behavior().fault(Fault::StallAfter(5)));
    let layer = counting()
        .cut_short(cut_short)
        .build()
        .expect("legal settings");
    let seen = call_events(&stack(&layer), api.request(&provider, true), 5).await;
    let cost = consumed(&layer.handle());
    assert_settled(&layer.handle(), cost, &(cut_short, api));
    (cost, seen.cost(api, true))
}

#[tokio::test]
async fn a_broken_stream_is_charged_by_the_policy() {
    for api in APIS {
        let (cost, seen) = dropped_midway(CutShort::ChargeSeen, api).await;
        assert_eq!(cost, seen, "{api:?}");
        let (cost, seen) = dropped_midway(CutShort::KeepReserved, api).await;
        let kept = [0, 1, 2, 3].map(|limit| seen[limit].max(RESERVED[limit]));
        assert_eq!(cost, kept, "{api:?}");
        let (cost, _) = dropped_midway(CutShort::Refund, api).await;
        assert_eq!(cost, REQUEST, "{api:?}");
    }
}

#[tokio::test]
async fn cut_short_policies_do_not_affect_successes_or_refusals() {
    let provider = SimulatedProvider::start().await.unwrap();
    for cut_short in [CutShort::KeepReserved, CutShort::Refund] {
        for (behavior, cost) in [
            (behavior(), tokens(INPUT, OUTPUT)),
            (Fault::Throttled(RetryAfter::Untold).into(), REQUEST),
            (Fault::Status(400).into(), REQUEST),
            (Fault::Overloaded.into(), NOTHING),
        ] {
            provider.set(behavior);
            let layer = counting().cut_short(cut_short).build().unwrap();
            call(&stack(&layer), Api::Messages.request(&provider, true)).await;
            assert_settled(&layer.handle(), cost, &cut_short);
        }
    }
}

/// The charge of a call to `api` with 13 cached input tokens and 5 reasoning output tokens.
async fn with_cached_input(builder: RateLimitBuilder, api: Api) -> Cost {
    let provider = SimulatedProvider::start().await.expect("a free port");
    let behavior = behavior().cached_input_tokens(13).reasoning_tokens(5);
    provider.set(behavior.cache_write_tokens(4));
    let layer = builder
        .limits(every_limit())
        .build()
        .expect("legal settings");
    let service = stack(&layer);
    let mut costs = [NOTHING; 2];
    for (streamed, cost) in [false, true].into_iter().zip(&mut costs) {
        let before = consumed(&layer.handle());
        call(&service, api.request(&provider, streamed)).await;
        let after = consumed(&layer.handle());
        *cost = [0, 1, 2, 3].map(|limit| after[limit] - before[limit]);
    }
    assert_eq!(costs[0], costs[1], "{api:?}: streamed or not");
    costs[0]
}

#[tokio::test]
async fn cached_input_counts_as_its_provider_counts_it() {
    for api in [Api::ChatUsage, Api::Responses, Api::Messages, Api::Gemini] {
        // Tokens written to the cache count everywhere.
        let cost = match api {
            Api::Messages => tokens(INPUT - 13, OUTPUT),
            _ => tokens(INPUT, OUTPUT),
        };
        let provider = || RateLimitLayer::for_providers().enforce_reported_limits(false);
        assert_eq!(with_cached_input(provider(), api).await, cost, "{api:?}");
        let callers = RateLimitLayer::for_callers();
        let in_full = tokens(INPUT, OUTPUT);
        assert_eq!(with_cached_input(callers, api).await, in_full, "{api:?}");
        let counted = provider().count_cached_input(true);
        assert_eq!(with_cached_input(counted, api).await, in_full, "{api:?}");
        let free = provider().count_cached_input(false);
        let cost = with_cached_input(free, api).await;
        assert_eq!(cost, tokens(INPUT - 13, OUTPUT), "{api:?}");
    }
}

#[tokio::test]
async fn output_counts_by_its_weight() {
    for api in [Api::ChatUsage, Api::Messages, Api::Gemini] {
        let weighed = RateLimitLayer::for_callers().output_weight(5);
        let cost = with_cached_input(weighed, api).await;
        assert_eq!(cost, tokens(INPUT, 5 * OUTPUT), "{api:?}");
    }
}

#[tokio::test]
async fn output_that_was_seen_counts_by_its_weight_too() {
    let provider = SimulatedProvider::start().await.unwrap();
    let (_, events) = {
        let layer = counting().build().unwrap();
        crate::http_support::whole(&stack(&layer), Api::Chat.request(&provider, true)).await
    };
    provider.set(behavior().fault(Fault::StallAfter(events - 3)));
    let layer = counting().output_weight(5).build().unwrap();
    let request = Api::Chat.request(&provider, true);
    let seen = call_events(&stack(&layer), request, events - 3).await;
    let [_, input, output, _] = seen.cost(Api::Chat, true);
    assert!(output > 0);
    assert_settled(&layer.handle(), tokens(input, 5 * output), &seen);
}

#[tokio::test]
async fn a_body_held_open_holds_what_its_call_reserved() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior());
    let layer = counting().build().unwrap();
    let service = stack(&layer);
    let mut bodies = Vec::new();
    for held in 1..=3 {
        let response = service
            .clone()
            .oneshot(Api::Messages.request(&provider, true));
        bodies.push(timeout(PATIENCE, response).await.unwrap().unwrap());
        assert_eq!(consumed(&layer.handle()), RESERVED.map(|cost| held * cost));
    }
    for left in (0..3).rev() {
        let seen = crate::http_support::read_events(bodies.pop().unwrap(), usize::MAX).await;
        assert_eq!(seen.cost(Api::Messages, true), tokens(INPUT, OUTPUT));
        let ended = tokens(INPUT, OUTPUT).map(|cost| (3 - left) * cost);
        let expected = [0, 1, 2, 3].map(|limit| left * RESERVED[limit] + ended[limit]);
        assert_eq!(consumed(&layer.handle()), expected);
    }
}
