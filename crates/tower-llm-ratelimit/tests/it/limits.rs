//! What is admitted and what is not: to the call, the token and the nanosecond.

use std::{convert::Infallible, sync::Arc, time::Duration};

use crate::support::{
    Ask, HOUR, MINUTE, MINUTE_FORGOTTEN, NS, SECOND, admitted, asked, consumed, exceeds, limited,
    open, passes, refusal, refused, remaining, stats, unary,
};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, advance},
};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{Call, KeyBy, Operation, Provider, Refusal, RefusalKind};
use tower_llm_ratelimit::{Limit, RateLimited, Unit};
use tower_llm_testkit::mock::nothing_arrived;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn if_a_hundred_calls_race_for_the_last_slot_exactly_one_wins() {
    for limit in [
        Limit::tokens(15).per_minute(),
        Limit::tokens(15).per_minute().bucket(15),
        Limit::tokens(15).per_day_in("UTC"),
    ] {
        let layer = unary().limit(limit).build().unwrap();
        let model = layer.layer(service_fn(|_: Ask| async { Ok::<_, Infallible>(()) }));
        let all_here = Arc::new(Barrier::new(100));
        let mut calls = JoinSet::new();
        for _ in 0..100 {
            let (model, all_here) = (model.clone(), Arc::clone(&all_here));
            calls.spawn(async move {
                all_here.wait().await;
                model.oneshot(Ask::of("ann", 5, 10)).await
            });
        }
        let results = calls.join_all().await;
        let (admitted, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((admitted.len(), refused.len()), (1, 99));
        for result in refused {
            assert!(limited(&result.unwrap_err()).limit().is_some());
        }
        let stats = stats(&layer.handle());
        assert_eq!((stats.admitted, stats.refused), (1, 99));
        assert_eq!((stats.consumed, stats.remaining), (15, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn each_unit_counts_what_it_is_named_after() {
    let limits = [
        (Limit::requests(2), Unit::Requests, 1),
        (Limit::input_tokens(60), Unit::InputTokens, 30),
        (Limit::output_tokens(24), Unit::OutputTokens, 12),
        (Limit::tokens(84), Unit::Tokens, 42),
    ];
    for (limit, unit, each) in limits {
        let layer = unary().limit(limit.per_minute()).build().unwrap();
        let (service, mut upstream) = asked(&layer);
        admitted(&service, &mut upstream, Ask::of("ann", 30, 12));
        admitted(&service, &mut upstream, Ask::of("ann", 30, 12));
        let error = refusal(&service, Ask::of("ann", 30, 12));
        assert_eq!(limited(&error).limit().unwrap().unit(), unit);
        nothing_arrived(&mut upstream);
        assert_eq!(consumed(&layer.handle()), [2 * each]);
        assert_eq!(remaining(&layer.handle(), "ann"), [0]);
        // Another caller has its own limit.
        admitted(&service, &mut upstream, Ask::of("bob", 30, 12));
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_admits_a_call_exactly_at_its_retry_time() {
    let periods = [
        (Limit::requests(2).per_second(), SECOND),
        (Limit::requests(2).per_minute(), MINUTE),
        (Limit::requests(2).per_hour(), HOUR),
        (Limit::requests(2).per_day(), 24 * HOUR),
        (Limit::requests(2).per(7 * SECOND), 7 * SECOND),
    ];
    for (limit, period) in periods {
        let layer = unary().limit(limit).build().unwrap();
        let (service, mut upstream) = asked(&layer);
        admitted(&service, &mut upstream, Ask::tokens(1));
        // In the fourth of its twelve slices.
        advance(period * 7 / 24).await;
        admitted(&service, &mut upstream, Ask::tokens(1));

        let wait = refused(&service, Ask::tokens(1));
        // The first call's slice counts until the thirteenth after it begins; each is rounded up to a whole nanosecond.
        let slice = Duration::from_nanos((period.as_nanos() as u64).div_ceil(12));
        assert_eq!(wait, slice * 13 - period * 7 / 24);
        advance(wait - NS).await;
        assert_eq!(refused(&service, Ask::tokens(1)), NS);
        nothing_arrived(&mut upstream);
        advance(NS).await;
        admitted(&service, &mut upstream, Ask::tokens(1));
        assert_eq!(refused(&service, Ask::tokens(1)), slice * 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_admits_a_call_exactly_at_its_retry_time() {
    // One token each 60/7 seconds, which is not a whole number of nanoseconds.
    let limit = Limit::tokens(7).per_minute().bucket(3);
    let layer = unary().limit(limit).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(3));
    for (tokens, wait) in [(1, 8_571_428_572), (2, 17_142_857_143), (3, 25_714_285_715)] {
        assert_eq!(refused(&service, Ask::tokens(tokens)).as_nanos(), wait);
    }
    advance(Duration::from_nanos(17_142_857_142)).await;
    assert_eq!(refused(&service, Ask::tokens(2)), NS);
    advance(NS).await;
    admitted(&service, &mut upstream, Ask::tokens(2));
    // Fractions of a nanosecond are not lost: seven such waits are a minute.
    let began = Instant::now();
    for _ in 0..7 {
        let wait = refused(&service, Ask::tokens(1));
        advance(wait - NS).await;
        assert_eq!(refused(&service, Ask::tokens(1)), NS);
        advance(NS).await;
        admitted(&service, &mut upstream, Ask::tokens(1));
    }
    assert_eq!(began.elapsed(), MINUTE);
    advance(HOUR).await;
    admitted(&service, &mut upstream, Ask::tokens(3));
    refused(&service, Ask::tokens(1));
}

/// Three limits, of two kinds of key: the organisation's requests, and each caller's requests and tokens.
fn organisation() -> [Limit; 3] {
    [
        Limit::requests(4).per_minute().by(KeyBy::shared()),
        Limit::requests(3).per_minute(),
        Limit::tokens(100).per_minute().bucket(100),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_call_refused_by_one_limit_charges_nothing_to_the_others() {
    let cases: [(&[Ask], Ask, Limit); 3] = [
        // Only the caller's tokens are used up.
        (
            &[Ask::tokens(90)],
            Ask::tokens(11),
            organisation()[2].clone(),
        ),
        // Only the caller's requests are used up.
        (
            &[Ask::tokens(1), Ask::tokens(1), Ask::tokens(1)],
            Ask::tokens(1),
            organisation()[1].clone(),
        ),
        // Only the organisation's requests are used up, by other callers.
        (
            &[
                Ask::of("bob", 1, 0),
                Ask::of("bob", 1, 0),
                Ask::of("cid", 1, 0),
                Ask::of("cid", 1, 0),
            ],
            Ask::tokens(1),
            organisation()[0].clone(),
        ),
    ];
    for (before, ask, by) in cases {
        let layer = unary().limits(organisation()).build().unwrap();
        let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
        for ask in before {
            admitted(&service, &mut upstream, ask.clone());
        }
        let (taken, left) = (consumed(&handle), remaining(&handle, "ann"));
        for _ in 0..5 {
            let error = refusal(&service, ask.clone());
            assert_eq!(limited(&error).limit(), Some(&by));
        }
        nothing_arrived(&mut upstream);
        assert_eq!(consumed(&handle), taken);
        if !left.is_empty() {
            assert_eq!(remaining(&handle, "ann"), left);
        }
        let refused: Vec<_> = handle.stats().iter().map(|one| one.refused).collect();
        let expected = organisation().map(|limit| 5 * u64::from(limit == by));
        assert_eq!(refused, expected);
        let admitted: Vec<_> = handle.stats().iter().map(|one| one.admitted).collect();
        assert_eq!(admitted, [before.len() as u64; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_slowest_of_its_limits() {
    let layer = unary()
        .limit(Limit::requests(1).per_minute())
        .limit(Limit::requests(1).per_hour().by(KeyBy::shared()))
        .limit(Limit::tokens(1).per_second().bucket(1))
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(1));
    let error = refusal(&service, Ask::tokens(1));
    let hour = Limit::requests(1).per_hour().by(KeyBy::shared());
    assert_eq!(limited(&error).limit(), Some(&hour));
    let wait = limited(&error).retry_after().unwrap();
    assert_eq!(wait, HOUR * 13 / 12);
    advance(wait - NS).await;
    assert_eq!(refused(&service, Ask::tokens(1)), NS);
    advance(NS).await;
    admitted(&service, &mut upstream, Ask::tokens(1));
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_a_limit_is_never_admitted() {
    let cases = [
        (Limit::tokens(100).per_minute(), 100),
        (Limit::tokens(100).per_minute().bucket(40), 40),
        (Limit::tokens(40).per_hour().bucket(100), 100),
        (Limit::tokens(100).per_day_in("UTC"), 100),
    ];
    for (limit, most) in cases {
        let requests = Limit::requests(10).per_minute().by(KeyBy::shared());
        // It does not wait either.
        let layer = unary().limit(requests).limit(limit.clone()).max_waiting(9);
        let layer = layer.build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let error = refusal(&service, Ask::of("ann", most, 1));
        let never = exceeds(&error);
        assert_eq!((never.amount(), never.capacity()), (most + 1, most));
        assert_eq!(never.limit(), &limit);
        assert_eq!(never.retry_after(), None);
        let expected = format!(
            "the call needs {} tokens, but the limit admits at most {most} at once",
            most + 1
        );
        assert_eq!(error.to_string(), expected);
        let refusal = Refusal::find(&*error).unwrap();
        assert_eq!(refusal.kind(), RefusalKind::RateLimited);
        assert_eq!(refusal.layer(), "ratelimit");
        assert_eq!(
            (refusal.retry_after(), refusal.is_retryable()),
            (None, false)
        );
        assert_eq!(consumed(&layer.handle()), [0, 0]);
        assert_eq!(layer.handle().stats()[1].refused, 1);
        // One token less, and it fits.
        admitted(&service, &mut upstream, Ask::of("ann", most, 0));
        assert_eq!(consumed(&layer.handle()), [1, most]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_limit_and_the_time() {
    let layer = unary()
        .limit(Limit::tokens(10).per_minute())
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(10));
    advance(Duration::from_micros(1)).await;
    let error = refusal(&service, Ask::tokens(1));
    let text = "rate limit of 10 tokens per minute exceeded; retry after 65.000s";
    assert_eq!(error.to_string(), text);
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(
        (refusal.kind(), refusal.layer()),
        (RefusalKind::RateLimited, "ratelimit")
    );
    assert!(refusal.is_retryable());
    let wait = MINUTE_FORGOTTEN - Duration::from_micros(1);
    assert_eq!(refusal.retry_after(), Some(wait));
    let limited: &RateLimited = limited(&error);
    assert_eq!(limited.retry_after(), Some(wait));
    assert!(!limited.is_provider_limit());
}

#[tokio::test(start_paused = true)]
async fn an_undescribed_call_costs_one_request_of_a_shared_key() {
    let limits = [
        Limit::requests(2).per_minute(),
        Limit::tokens(1).per_minute(),
    ];
    let layer = unary().limits(limits).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut unknown = Ask::tokens(1);
    unknown.call = None;
    admitted(&service, &mut upstream, unknown.clone());
    admitted(&service, &mut upstream, unknown.clone());
    refused(&service, unknown);
    assert_eq!(consumed(&layer.handle()), [2, 0]);
    admitted(&service, &mut upstream, Ask::tokens(1));
}

#[tokio::test(start_paused = true)]
async fn embeddings_and_counts_reserve_no_output_and_counts_no_tokens() {
    let limits = [
        Limit::requests(9).per_minute(),
        Limit::tokens(2_000).per_minute(),
    ];
    let layer = unary().limits(limits).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut expected = [0, 0];
    for (operation, tokens) in [
        (Operation::EMBEDDINGS, 30),
        (Operation::COUNT_TOKENS, 0),
        // A typed response reports no usage, and none is guessed.
        (Operation::CHAT, 30),
    ] {
        let mut ask = Ask::tokens(0);
        ask.call = Some(
            Call::builder(Provider::OPENAI, operation)
                .input_tokens(30)
                .build(),
        );
        admitted(&service, &mut upstream, ask);
        expected = [expected[0] + 1, expected[1] + tokens];
        assert_eq!(consumed(&layer.handle()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn usage_beyond_the_reservation_is_paid_off_before_the_next_call() {
    for limit in [
        Limit::tokens(60).per_minute(),
        Limit::tokens(60).per_minute().bucket(60),
    ] {
        let layer = open().limit(limit).build().unwrap();
        let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
        let call = admitted(&service, &mut upstream, Ask::of("ann", 10, 10));
        call.used(40, 50);
        let stats = stats(&handle);
        assert_eq!((stats.overrun, stats.refunded), (70, 0));
        assert_eq!(
            (stats.consumed, stats.remaining, stats.violations),
            (90, 0, 1)
        );

        let wait = refused(&service, Ask::tokens(1));
        advance(wait - NS).await;
        // A call that needs no tokens waits too.
        assert_eq!(refused(&service, Ask::tokens(0)), NS);
        advance(NS).await;
        admitted(&service, &mut upstream, Ask::tokens(1)).used(1, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn unused_reservations_are_available_to_the_next_call_at_once() {
    for limit in [
        Limit::tokens(60).per_minute(),
        Limit::tokens(60).per_minute().bucket(60),
        Limit::tokens(60).per_day_in("Pacific/Auckland"),
    ] {
        let layer = open().limit(limit).build().unwrap();
        let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
        let first = admitted(&service, &mut upstream, Ask::of("ann", 10, 50));
        assert!(!passes(&service, Ask::tokens(1)));
        first.used(10, 20);
        assert_eq!(remaining(&handle, "ann"), [30]);
        refused(&service, Ask::tokens(31));
        admitted(&service, &mut upstream, Ask::tokens(30)).used(30, 0);
        let stats = stats(&handle);
        assert_eq!((stats.overrun, stats.refunded), (0, 30));
        assert_eq!((stats.consumed, stats.violations), (60, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn unseen_and_idle_keys_hold_no_state() {
    let layer = unary()
        .limit(Limit::tokens(10).per_minute())
        .build()
        .unwrap();
    let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
    assert!(remaining(&handle, "ann").is_empty());
    admitted(&service, &mut upstream, Ask::tokens(4));
    let stats = handle.stats_of(&tower_llm_core::Key::new("ann"));
    assert_eq!(
        (stats[0].remaining, stats[0].full_in),
        (6, MINUTE_FORGOTTEN)
    );
    assert_eq!(stats[0].waiting, 0);
    advance(MINUTE_FORGOTTEN).await;
    let stats = handle.stats_of(&tower_llm_core::Key::new("ann"));
    assert_eq!((stats[0].remaining, stats[0].full_in), (10, Duration::ZERO));
}

/// A call of `operation` with 30 tokens of input.
fn of(operation: Operation) -> Ask {
    let call = Call::builder(Provider::OPENAI, operation).input_tokens(30);
    let mut ask = Ask::tokens(0);
    ask.call = Some(call.build());
    ask
}

#[tokio::test(start_paused = true)]
async fn calls_without_tokens_are_not_refused_by_token_limits() {
    for operation in [Operation::COUNT_TOKENS, Operation::RETRIEVE] {
        let limits = [
            Limit::requests(3).per_minute(),
            Limit::tokens(30).per_minute(),
            Limit::input_tokens(30).per_minute().bucket(30),
        ];
        let layer = open()
            .key_by(KeyBy::shared())
            .limits(limits)
            .build()
            .unwrap();
        let (service, mut upstream) = asked(&layer);
        // It has used more than the limit.
        admitted(&service, &mut upstream, of(Operation::CHAT)).used(90, 0);
        refused(&service, of(Operation::CHAT));
        for _ in 0..2 {
            admitted(&service, &mut upstream, of(operation.clone())).used(30, 0);
        }
        assert_eq!(consumed(&layer.handle()), [3, 90, 90]);
        // It counts as a request all the same.
        refused(&service, of(operation));
    }
}

#[tokio::test(start_paused = true)]
async fn embeddings_are_not_refused_by_output_limits() {
    let layer = open()
        .key_by(KeyBy::shared())
        .limit(Limit::output_tokens(10).per_minute())
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, of(Operation::CHAT)).used(30, 10);
    refused(&service, of(Operation::CHAT));
    admitted(&service, &mut upstream, of(Operation::EMBEDDINGS)).used(30, 0);
}

#[tokio::test(start_paused = true)]
async fn a_typed_call_is_charged_its_estimate() {
    for limit in [
        Limit::tokens(10).per_minute(),
        Limit::tokens(10).per_minute().bucket(10),
    ] {
        let layer = unary()
            .limit(limit)
            .key_by(KeyBy::shared())
            .build()
            .unwrap();
        let (service, mut upstream) = asked(&layer);
        let call = Call::builder(Provider::OPENAI, Operation::CHAT).input_tokens(4);
        let call = call.build();
        let ask = || Ask {
            call: Some(call.clone()),
            ..Ask::tokens(0)
        };
        admitted(&service, &mut upstream, ask());
        admitted(&service, &mut upstream, ask());
        refused(&service, ask());
        assert_eq!(consumed(&layer.handle()), [8]);
        // Earlier usage does not change the estimate of later calls.
        for _ in 0..30 {
            advance(MINUTE_FORGOTTEN).await;
            admitted(&service, &mut upstream, ask());
        }
        admitted(&service, &mut upstream, ask());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cost_is_counted_in_the_units_of_the_service() {
    let layer = unary()
        .limits([
            Limit::cost(10).per_minute(),
            Limit::requests(9).per_minute(),
        ])
        .key_by(KeyBy::shared())
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    let ask = |cost| {
        let call = Call::builder(Provider::OPENAI, Operation::new("image")).cost(cost);
        let mut ask = Ask::tokens(0);
        ask.call = Some(call.build());
        ask
    };
    admitted(&service, &mut upstream, ask(4));
    admitted(&service, &mut upstream, ask(6));
    let error = refusal(&service, ask(1));
    let text = "rate limit of 10 cost units per minute exceeded; retry after 65.000s";
    assert_eq!(error.to_string(), text);
    assert_eq!(exceeds(&refusal(&service, ask(11))).amount(), 11);
    assert_eq!(consumed(&layer.handle()), [10, 2]);
    // An undescribed request costs one.
    advance(MINUTE_FORGOTTEN).await;
    admitted(
        &service,
        &mut upstream,
        Ask {
            call: None,
            ..ask(1)
        },
    );
    assert_eq!(consumed(&layer.handle()), [11, 3]);
    assert_eq!(Limit::cost(5).per_second().unit(), Unit::Cost);
}
