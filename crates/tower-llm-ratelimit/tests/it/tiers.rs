//! Tiers: a caller's amount, and what happens when its tier changes.

use std::{borrow::Cow, sync::Mutex, time::Duration};

use crate::support::{
    Ask, HOUR, NS, SECOND, admitted, asked, consumed, exceeds, limited, open, passes, ready,
    refusal, refused, remaining, stats, unary,
};
use tokio::time::advance;
use tower::Service;
use tower_layer::Layer;
use tower_llm_core::{Described, KeyBy};
use tower_llm_ratelimit::Limit;
use tower_llm_testkit::mock::{arrived, nothing_arrived, poll_ready, start};

/// The documented plans.
fn plans() -> Limit {
    Limit::requests(100)
        .per_hour()
        .tier("pro", 1_000)
        .tier("enterprise", 10_000)
}

/// The plan that the request names; a real service would look up its caller.
fn by_header(request: &dyn Described) -> Cow<'static, str> {
    let plan = request.header("x-plan").unwrap_or_default();
    String::from_utf8_lossy(plan).into_owned().into()
}

fn on(caller: &str, plan: &'static str) -> Ask {
    Ask::of(caller, 1, 0).header("x-plan", plan)
}

#[tokio::test(start_paused = true)]
async fn each_plan_admits_exactly_its_limit() {
    for (plan, amount) in [
        ("free", 100),
        ("", 100),
        ("unheard-of", 100),
        ("pro", 1_000),
        ("Pro", 100),
        ("enterprise", 10_000),
    ] {
        let layer = unary().limit(plans()).tier_by(by_header).build().unwrap();
        let service = layer.layer(ready());
        for _ in 0..amount {
            assert!(passes(&service, on("ann", plan)));
        }
        let error = refusal(&service, on("ann", plan));
        assert_eq!(limited(&error).limit(), Some(&plans()));
        assert_eq!(limited(&error).retry_after(), Some(HOUR * 13 / 12));
        assert_eq!(consumed(&layer.handle()), [amount], "{plan}");
        assert!(passes(&service, on("bob", plan)));
    }
}

#[tokio::test(start_paused = true)]
async fn use_before_a_change_of_plan_counts_in_the_new_one() {
    for limit in [plans(), plans().bucket(100)] {
        let layer = unary()
            .limit(limit)
            .tier_by(|_| "free".into())
            .build()
            .unwrap();
        let (handle, service) = (layer.handle(), layer.layer(ready()));
        let calls = |number: usize| {
            for _ in 0..number {
                assert!(passes(&service, Ask::tokens(1)));
            }
            refused(&service, Ask::tokens(1))
        };
        calls(100);
        assert!(handle.set_tier_by(|_| "pro".into()));
        calls(900);
        assert!(handle.set_tier_by(|_| "enterprise".into()));
        calls(9_000);
        // Back in the lower tier, all usage counts: there is room once all but 99 are forgotten or have leaked.
        assert!(handle.set_tier_by(|_| "free".into()));
        let wait = calls(0);
        assert_eq!(remaining(&handle, "ann"), [0]);
        assert_eq!(consumed(&handle), [10_000]);
        advance(wait - NS).await;
        assert_eq!(refused(&service, Ask::tokens(1)), NS);
        advance(NS).await;
        assert!(passes(&service, Ask::tokens(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_does_not_name_the_tier_keeps_its_own_amount() {
    let layer = unary()
        .limit(Limit::requests(2).per_minute().tier("pro", 4))
        .limit(Limit::tokens(30).per_minute())
        .limit(
            Limit::requests(5)
                .per_minute()
                .by(KeyBy::shared())
                .tier("vip", 6),
        )
        .tier_by(by_header)
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    for _ in 0..3 {
        admitted(&service, &mut upstream, on("ann", "pro"));
    }
    refused(&service, on("ann", "vip"));
    let large = Ask::of("ann", 28, 0).header("x-plan", "pro");
    let error = refusal(&service, large);
    assert_eq!(limited(&error).limit().unwrap().amount(), 30);
    admitted(&service, &mut upstream, on("bob", ""));
    admitted(&service, &mut upstream, on("bob", "vip"));
    // The organisation has six for a vip, of which five are used, and five for others.
    refused(&service, on("cid", "pro"));
    admitted(&service, &mut upstream, on("cid", "vip"));
    refused(&service, on("dan", "vip"));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_grows_and_shrinks_with_its_tier_but_not_below_one() {
    let limit = Limit::tokens(100).per_minute().bucket(10);
    let limit = limit.tier("large", 250).tier("small", 9);
    let layer = unary().limit(limit).tier_by(by_header).build().unwrap();
    let (service, _upstream) = asked(&layer);
    for (plan, burst) in [("", 10), ("large", 25), ("small", 1)] {
        let over = Ask::of("ann", burst + 1, 0).header("x-plan", plan);
        let error = refusal(&service, over);
        assert_eq!(exceeds(&error).capacity(), burst);
    }
    assert_eq!(consumed(&layer.handle()), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_fills_up_at_the_speed_of_its_tier() {
    let limit = Limit::tokens(60).per_minute().bucket(60).tier("pro", 600);
    let layer = unary().limit(limit).tier_by(by_header).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(
        &service,
        &mut upstream,
        Ask::of("ann", 600, 0).header("x-plan", "pro"),
    );
    assert_eq!(refused(&service, on("ann", "pro")), SECOND / 10);
    // 540, plus one more than the free tier's burst, at the free tier's speed.
    assert_eq!(refused(&service, on("ann", "free")), 541 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_is_settled_in_its_first_tier() {
    for limit in [
        Limit::tokens(100).per_minute().tier("pro", 1_000),
        Limit::tokens(100)
            .per_minute()
            .bucket(100)
            .tier("pro", 1_000),
    ] {
        let layer = open()
            .limit(limit)
            .tier_by(|_| "pro".into())
            .build()
            .unwrap();
        let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
        let call = admitted(&service, &mut upstream, Ask::of("ann", 100, 800));
        handle.set_tier_by(|_| "free".into());
        assert_eq!(remaining(&handle, "ann"), [0]);
        call.used(30, 10);
        assert_eq!(
            (consumed(&handle), remaining(&handle, "ann")),
            (vec![40], vec![60])
        );

        handle.set_tier_by(|_| "pro".into());
        let call = admitted(&service, &mut upstream, Ask::of("ann", 1, 0));
        handle.set_tier_by(|_| "free".into());
        // Far over the limit of the free tier, but within that of the tier in which it was admitted.
        call.used(500, 0);
        assert_eq!(stats(&handle).violations, 0);
        assert_eq!(consumed(&handle), [540]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_policy_corrupts_no_state() {
    let layer = unary()
        .limit(plans())
        .tier_by(|request| match request.header("x-plan") {
            Some(b"panic") => panic!("scripted panic"),
            _ => "pro".into(),
        })
        .build()
        .unwrap();
    let (handle, (mut service, mut upstream)) = (layer.handle(), asked(&layer));
    admitted(&service, &mut upstream, Ask::tokens(1));
    assert!(poll_ready(&mut service).is_ready());
    let call = std::panic::AssertUnwindSafe(|| service.call(on("ann", "panic")));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(consumed(&handle), [1]);
    admitted(&service, &mut upstream, Ask::tokens(1));
    assert!(handle.set_tier_by(|_| "free".into()));
    admitted(&service, &mut upstream, Ask::tokens(1));
    assert_eq!(consumed(&handle), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_key_corrupts_no_state() {
    let by_tenant = KeyBy::custom(|request| match request.header("x-tenant") {
        Some(b"panic") => panic!("scripted panic"),
        tenant => tower_llm_core::Key::new(String::from_utf8_lossy(tenant.unwrap_or_default())),
    });
    let layer = unary()
        .limit(Limit::requests(3).per_minute())
        .limit(Limit::tokens(50).per_minute().by(by_tenant))
        .build()
        .unwrap();
    let (handle, (mut service, mut upstream)) = (layer.handle(), asked(&layer));
    let ask = |tenant| Ask::tokens(1).header("x-tenant", tenant);
    admitted(&service, &mut upstream, ask("acme"));
    assert!(poll_ready(&mut service).is_ready());
    let call = std::panic::AssertUnwindSafe(|| service.call(ask("panic")));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(consumed(&handle), [1, 1]);
    admitted(&service, &mut upstream, ask("acme"));
    admitted(&service, &mut upstream, ask("acme"));
    refused(&service, ask("acme"));
    assert_eq!(consumed(&handle), [3, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_policy_may_replace_the_policy_and_read_the_state() {
    let handle_of_policy = std::sync::Arc::new(Mutex::new(None));
    let of_policy = std::sync::Arc::clone(&handle_of_policy);
    let layer = unary()
        .limit(plans())
        .tier_by(move |_| {
            let handle: Option<tower_llm_ratelimit::RateLimitHandle> =
                of_policy.lock().unwrap().clone();
            if let Some(handle) = handle {
                assert_eq!(handle.stats().len(), 1);
                handle.set_tier_by(|_| "pro".into());
            }
            "free".into()
        })
        .build()
        .unwrap();
    *handle_of_policy.lock().unwrap() = Some(layer.handle());
    let service = layer.layer(ready());
    for _ in 0..1_000 {
        assert!(passes(&service, Ask::tokens(1)));
    }
    refused(&service, Ask::tokens(1));
    *handle_of_policy.lock().unwrap() = None;
}

#[test]
fn without_tiers_a_policy_is_not_accepted() {
    let layer = unary()
        .limit(Limit::requests(1).per_second())
        .build()
        .unwrap();
    assert!(!layer.handle().set_tier_by(|_| "pro".into()));
}

#[tokio::test(start_paused = true)]
async fn a_tier_changed_at_run_time_applies_to_waiting_calls() {
    let limit = Limit::tokens(60).per_minute().bucket(60).tier("pro", 600);
    let layer = unary()
        .limit(limit)
        .tier_by(|_| "free".into())
        .max_waiting(9)
        .max_wait(Duration::from_secs(600))
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60));
    let mut first = start(&service, Ask::tokens(60).id(1));
    let mut second = start(&service, Ask::tokens(60).id(2));
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());
    layer.handle().set_tier_by(|_| "pro".into());
    for (call, id) in [(&mut first, 1), (&mut second, 2)] {
        assert!(call.is_woken());
        assert!(call.poll().is_pending());
        assert_eq!(arrived(&mut upstream).0.id, id);
    }
    let stats = layer.handle().stats();
    assert_eq!((stats[0].waiting, stats[0].consumed), (0, 180));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_that_is_too_large_for_its_new_tier_is_refused() {
    let limit = Limit::tokens(60).per_minute().bucket(60).tier("trial", 6);
    let layer = unary()
        .limit(limit)
        .tier_by(|_| "free".into())
        .max_waiting(9)
        .max_wait(Duration::from_secs(600))
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60));
    let mut large = start(&service, Ask::tokens(7));
    let mut small = start(&service, Ask::tokens(6).id(2));
    assert!(large.poll().is_pending());
    assert!(small.poll().is_pending());
    layer.handle().set_tier_by(|_| "trial".into());
    let error = match large.poll() {
        std::task::Poll::Ready(Err(error)) => error,
        other => panic!("{:?}", other.map(|result| result.is_ok())),
    };
    assert_eq!(crate::support::exceeds(&error).capacity(), 6);
    drop(large);
    // At six tokens a minute, the caller's usage takes that long to drain.
    advance(Duration::from_secs(599)).await;
    assert!(small.poll().is_pending());
    nothing_arrived(&mut upstream);
    advance(SECOND).await;
    assert!(small.poll().is_pending());
    assert_eq!(arrived(&mut upstream).0.id, 2);
}
