//! Readiness, and every end of a call: `call` uses the service that was readied, and each call is settled once.
//!
//! The mock panics if it is called without having been readied.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::support::{
    Ask, MINUTE_FORGOTTEN, SECOND, admitted, asked, consumed, open, refused, remaining, stats,
    unary, waiting,
};
use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer;
use tower_llm_core::{
    Availability, Completion, Entry, Failure, Gate, GateLayer, KeyBy, Outcome, Refusal,
    RefusalKind, Usage,
};
use tower_llm_ratelimit::{CutShort, Limit, RateLimitBuilder};
use tower_llm_testkit::mock::{arrived, nothing_arrived, poll_ready, start};
use tower_test::mock;

/// Limits of requests and tokens, in which each kind of end looks different.
fn both_units() -> RateLimitBuilder<crate::support::Open> {
    open()
        .limit(Limit::requests(10).per_minute())
        .limit(Limit::tokens(100).per_minute())
}

/// One call of 40 tokens a minute, and others wait.
fn one_at_a_time() -> RateLimitBuilder<crate::support::Open> {
    both_units()
        .limit(Limit::input_tokens(10).per_minute())
        .max_waiting(5)
        .max_wait(Duration::from_secs(100))
}

// === readiness ===

#[tokio::test(start_paused = true)]
async fn an_admitted_call_uses_the_readied_service() {
    let layer = both_units().build().unwrap();
    let (mut service, mut upstream) = asked(&layer);
    upstream.allow(0);
    assert_pending!(poll_ready(&mut service));
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    // A clone would have to be readied first, which is impossible from here on.
    upstream.allow(0);
    let mut call = task::spawn(service.call(Ask::tokens(1).id(7)));
    let (ask, answer) = arrived(&mut upstream);
    assert_eq!(ask.id, 7);
    answer.send_response(70);
    assert_eq!(assert_ready_ok!(call.poll()).response, 70);
    assert_pending!(poll_ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_readies_a_service_before_calling_it() {
    let layer = one_at_a_time().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let first = admitted(&service, &mut upstream, Ask::of("ann", 10, 30));
    let mut second = start(&service, Ask::of("ann", 10, 30).id(2));
    assert_pending!(second.poll());
    upstream.allow(0);
    first.used(0, 0);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    nothing_arrived(&mut upstream);
    // It is charged and has left the queue while it waits for the inner service.
    assert_eq!(waiting(&layer.handle()), [0, 0, 0]);
    assert_eq!(consumed(&layer.handle()), [2, 40, 10]);
    upstream.allow(1);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    let (ask, answer) = arrived(&mut upstream);
    assert_eq!(ask.id, 2);
    answer.send_response(20);
    assert_ready_ok!(second.poll()).used(10, 5);
    assert_eq!(consumed(&layer.handle()), [2, 15, 10]);
}

#[tokio::test(start_paused = true)]
async fn readiness_is_the_inner_service_s_and_never_waits_for_a_limit() {
    let layer = one_at_a_time().max_waiting(1).build().unwrap();
    let (mut service, mut upstream) = asked(&layer);
    let _running = admitted(&service, &mut upstream, Ask::of("ann", 10, 0));
    let _waiting = start(&service, Ask::of("ann", 10, 0));
    assert_ready_ok!(poll_ready(&mut service));
    assert_ready_err!(task::spawn(service.call(Ask::of("ann", 10, 0))).poll());
    assert_ready_ok!(poll_ready(&mut service));
    upstream.send_error("gone");
    let error = assert_ready_err!(poll_ready(&mut service));
    assert_eq!(error.to_string(), "gone");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_or_refused_call_holds_no_inner_permit() {
    for max_waiting in [0, 1] {
        let layer = unary()
            .limit(Limit::requests(1).per_minute())
            .max_waiting(max_waiting)
            .max_wait(100 * SECOND)
            .build()
            .unwrap();
        let (mock, mut upstream) = mock::pair::<Ask, usize>();
        let service = layer.layer(ConcurrencyLimit::new(mock, 1));
        let mut first = start(&service, Ask::tokens(1));
        arrived(&mut upstream).1.send_response(1);
        assert_ready_ok!(first.poll());
        drop(first);

        let mut held = service.clone();
        assert_ready_ok!(poll_ready(&mut held));
        let mut second = task::spawn(held.call(Ask::tokens(1).id(2)));
        assert_eq!(second.poll().is_ready(), max_waiting == 0);
        // The service stays, as on an idle connection, and a call of another key gets the permit anyway.
        let mut other = start(&service, Ask::of("bob", 1, 0).id(3));
        assert_pending!(other.poll());
        let (ask, answer) = arrived(&mut upstream);
        assert_eq!(ask.id, 3);
        if max_waiting == 1 {
            // The limit is free before the permit is, and the call gets both.
            advance(MINUTE_FORGOTTEN).await;
            assert_pending!(second.poll());
            nothing_arrived(&mut upstream);
            answer.send_response(3);
            assert_ready_ok!(other.poll());
            drop(other);
            assert_pending!(second.poll());
            assert_eq!(arrived(&mut upstream).0.id, 2);
        }
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn no_deadlock_over_an_inner_service_that_admits_one_call_at_a_time() {
    let layer = unary()
        .limit(Limit::requests(1).per_second().bucket(1))
        .limit(
            Limit::requests(3)
                .per_second()
                .bucket(3)
                .by(KeyBy::shared()),
        )
        .max_waiting(100)
        .max_wait(Duration::from_secs(3_600))
        .build()
        .unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let inner = ConcurrencyLimit::new(
        service_fn({
            let polls = Arc::clone(&polls);
            move |ask: Ask| {
                let polls = Arc::clone(&polls);
                async move {
                    sleep(SECOND).await;
                    polls.fetch_add(1, Relaxed);
                    Ok::<_, Infallible>(ask.id)
                }
            }
        }),
        1,
    );
    let (service, began) = (layer.layer(inner), Instant::now());
    let mut calls = JoinSet::new();
    for id in 0..60 {
        let ask = Ask::of(["ann", "bob", "cid"][id % 3], 1, 0).id(id);
        calls.spawn(service.clone().oneshot(ask));
    }
    let answered = calls.join_all().await;
    let mut ids: Vec<_> = answered.into_iter().map(Result::unwrap).collect();
    ids.sort_unstable();
    assert_eq!(ids, Vec::from_iter(0..60));
    assert_eq!(began.elapsed(), 60 * SECOND);
    assert_eq!(
        (polls.load(Relaxed), consumed(&layer.handle())),
        (60, vec![60, 60])
    );
    assert_eq!(waiting(&layer.handle()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn services_of_a_layer_and_its_clones_share_limits() {
    let layer = unary()
        .limit(Limit::requests(2).per_minute())
        .build()
        .unwrap();
    let (first, mut upstream) = asked(&layer);
    let (second, mut second_upstream) = asked(&layer.clone());
    admitted(&first, &mut upstream, Ask::tokens(1));
    admitted(&second, &mut second_upstream, Ask::tokens(1));
    refused(&first.clone(), Ask::tokens(1));
    refused(&second, Ask::tokens(1));
    assert_eq!(stats(&layer.handle()).refused, 2);
    // Another layer with the same settings has its own limits.
    let apart = unary()
        .limit(Limit::requests(2).per_minute())
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&apart);
    admitted(&service, &mut upstream, Ask::tokens(1));
}

// === ends ===

#[tokio::test(start_paused = true)]
async fn a_call_is_settled_as_documented() {
    let retry_after = None;
    let with = |outcome, usage: Option<(u64, u64)>, seen, status| {
        let mut completion = Completion::new(outcome);
        completion.usage = usage.map(|(input, output)| Usage::new(input, output));
        completion.output_seen = seen;
        completion.status = status;
        completion
    };
    let bare = |outcome| with(outcome, None, 0, None);
    let failed = Outcome::Failed;
    // Ten input tokens and thirty output tokens are reserved: the requests and tokens that stay charged.
    let cases = [
        (bare(Outcome::Success), [1, 40]),
        (with(Outcome::Success, Some((9, 3)), 99, None), [1, 12]),
        (with(Outcome::Success, Some((20, 50)), 0, None), [1, 70]),
        (with(Outcome::Success, None, 7, None), [1, 17]),
        (bare(Outcome::Throttled { retry_after }), [1, 0]),
        (bare(Outcome::ClientError), [1, 0]),
        (bare(Outcome::Exhausted), [0, 0]),
        (bare(Outcome::Overloaded { retry_after }), [0, 0]),
        (bare(Outcome::Refused), [0, 0]),
        (bare(failed(Failure::Transport)), [1, 0]),
        (
            with(failed(Failure::Transport), None, 0, Some(200)),
            [1, 10],
        ),
        (with(failed(Failure::Status), None, 0, Some(500)), [1, 0]),
        (bare(failed(Failure::Timeout)), [1, 10]),
        (bare(failed(Failure::Panic)), [1, 10]),
        (
            with(failed(Failure::Truncated), None, 7, Some(200)),
            [1, 17],
        ),
        (
            with(failed(Failure::InBand), Some((9, 1)), 7, Some(200)),
            [1, 16],
        ),
        (
            with(failed(Failure::Stalled), Some((9, 8)), 7, Some(200)),
            [1, 17],
        ),
        (bare(Outcome::Abandoned), [1, 10]),
        (with(Outcome::Abandoned, None, 5, Some(200)), [1, 15]),
        (with(Outcome::Superseded, None, 5, Some(200)), [1, 15]),
    ];
    for (completion, expected) in cases {
        let layer = both_units().build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let call = admitted(&service, &mut upstream, Ask::of("ann", 10, 30));
        assert_eq!(consumed(&layer.handle()), [1, 40]);
        call.ended(&completion);
        assert_eq!(consumed(&layer.handle()), expected, "{completion:?}");
        let left = [10 - expected[0], 100 - expected[1]];
        assert_eq!(remaining(&layer.handle(), "ann"), left, "{completion:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_response_is_charged_by_the_policy() {
    let mut seen = Completion::new(Outcome::Abandoned);
    seen.output_seen = 50;
    for (policy, unseen, expected) in [
        (CutShort::ChargeSeen, [1, 10], [1, 60]),
        (CutShort::KeepReserved, [1, 40], [1, 60]),
        (CutShort::Refund, [1, 0], [1, 0]),
    ] {
        let layer = both_units().cut_short(policy).build().unwrap();
        let (service, mut upstream) = asked(&layer);
        drop(admitted(&service, &mut upstream, Ask::of("ann", 10, 30)));
        assert_eq!(consumed(&layer.handle()), unseen, "{policy:?}");
        let call = admitted(&service, &mut upstream, Ask::of("ann", 10, 30));
        call.ended(&seen);
        let sum = [unseen[0] + expected[0], unseen[1] + expected[1]];
        assert_eq!(consumed(&layer.handle()), sum, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_future_dropped_at_any_point_settles_once() {
    for polls in 0..3 {
        let layer = both_units().build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let mut call = start(&service, Ask::of("ann", 10, 30));
        for _ in 0..polls {
            assert_pending!(call.poll());
        }
        assert_eq!(consumed(&layer.handle()), [1, 40]);
        drop(call);
        // It has been called: whether the input was read is unknown.
        arrived(&mut upstream);
        assert_eq!(consumed(&layer.handle()), [1, 10]);
        assert_eq!(remaining(&layer.handle(), "ann"), [9, 90]);
        let stats = layer.handle().stats();
        assert_eq!((stats[1].refunded, stats[1].overrun), (30, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_inner_error_is_settled_by_its_kind() {
    let layer = both_units().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut call = start(&service, Ask::of("ann", 10, 30));
    arrived(&mut upstream).1.send_error("connection refused");
    assert_ready_err!(call.poll());
    assert_eq!(consumed(&layer.handle()), [1, 0]);
    // Refused by an inner layer, so it was never sent.
    let mut call = start(&service, Ask::of("ann", 10, 30));
    let refusal = Refusal::new(RefusalKind::Unavailable, "bulkhead");
    arrived(&mut upstream).1.send_error(refusal);
    assert_ready_err!(call.poll());
    assert_eq!(consumed(&layer.handle()), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_inner_service_is_settled_as_a_failure() {
    let layer = both_units().build().unwrap();
    let mut in_call = layer.layer(service_fn(|ask: Ask| {
        assert_ne!(ask.id, 1, "scripted panic");
        async move {
            assert_ne!(ask.id, 2, "scripted panic");
            Ok::<_, Infallible>(ask.id)
        }
    }));
    let call = || drop(in_call.call(Ask::of("ann", 10, 30).id(1)));
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!(consumed(&layer.handle()), [1, 10]);

    let mut in_poll = task::spawn(in_call.call(Ask::of("ann", 10, 30).id(2)));
    assert!(catch_unwind(AssertUnwindSafe(|| in_poll.poll().is_ready())).is_err());
    drop(in_poll);
    assert_eq!(consumed(&layer.handle()), [2, 20]);
    let mut well = task::spawn(in_call.call(Ask::of("ann", 10, 30)));
    assert_ready!(well.poll()).unwrap().used(1, 1);
    assert_eq!(consumed(&layer.handle()), [3, 22]);
}

#[tokio::test(start_paused = true)]
async fn an_unsent_call_is_refunded_in_full() {
    for is_gone in [true, false] {
        let layer = one_at_a_time().build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let first = admitted(&service, &mut upstream, Ask::of("ann", 10, 30));
        let mut second = start(&service, Ask::of("ann", 10, 30));
        assert_pending!(second.poll());
        upstream.allow(0);
        first.ended(&Completion::new(Outcome::Refused));
        assert_pending!(second.poll());
        assert_eq!(consumed(&layer.handle()), [1, 40, 10]);
        // It is admitted, and the inner service is not ready: the caller disconnects, or the service fails.
        if is_gone {
            drop(second);
        } else {
            upstream.send_error("gone");
            let error = assert_ready!(second.poll()).map(drop).unwrap_err();
            assert_eq!(error.to_string(), "gone");
        }
        assert_eq!(consumed(&layer.handle()), [0, 0, 0]);
        assert_eq!(remaining(&layer.handle(), "ann"), [10, 100, 10]);
        assert_eq!(layer.handle().stats()[0].refused, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiting_call_is_charged_nothing() {
    let layer = one_at_a_time().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = admitted(&service, &mut upstream, Ask::of("ann", 10, 30));
    let never_polled = start(&service, Ask::of("ann", 10, 30));
    let mut polled = start(&service, Ask::of("ann", 10, 30));
    assert_pending!(polled.poll());
    assert_eq!(waiting(&layer.handle()), [2, 2, 2]);
    drop(never_polled);
    assert_eq!(waiting(&layer.handle()), [1, 1, 1]);
    drop(polled);
    assert_eq!(waiting(&layer.handle()), [0, 0, 0]);
    assert_eq!(consumed(&layer.handle()), [1, 40, 10]);
    running.used(10, 30);
    assert_eq!(consumed(&layer.handle()), [1, 40, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_look_says_when_there_is_room_and_takes_nothing() {
    let layer = both_units().build().unwrap();
    let look = |tokens| {
        let ask = Ask::tokens(tokens);
        layer.gate().would_admit(&Entry::new(&ask, true))
    };
    let (service, mut upstream) = asked(&layer);
    assert_eq!(look(100), Availability::Now);
    let mut call = start(&service, Ask::tokens(40));
    let (_, answer) = arrived(&mut upstream);
    assert_eq!(look(60), Availability::Now);
    assert_eq!(
        look(61),
        Availability::Unknown,
        "what the call will use is not known"
    );
    answer.send_response(40);
    drop(assert_ready_ok!(call.poll()));
    let Availability::After(wait) = look(61) else {
        panic!("it is known when there is room");
    };
    advance(wait - Duration::from_millis(1)).await;
    assert_ne!(look(61), Availability::Now);
    advance(Duration::from_millis(1)).await;
    assert_eq!(look(61), Availability::Now);
    assert_eq!(look(101), Availability::Never);
    let stats = layer.handle().stats();
    let counted = stats.iter().map(|stats| (stats.admitted, stats.refused));
    assert!(counted.eq([(1, 0); 2]), "a look is no call: {stats:?}");
}
