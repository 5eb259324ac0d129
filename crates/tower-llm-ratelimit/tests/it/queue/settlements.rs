//! Calls that wait for others to be settled: many reserve far more than they use.

use std::time::Duration;

use crate::support::{
    Ask, HOUR, MINUTE, MINUTE_FORGOTTEN, MS, Open, SECOND, admitted, asked, limited, open, refusal,
    refused, stats,
};
use futures_util::future::join_all;
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, KeyBy};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer, Reserve};
use tower_llm_testkit::mock::{nothing_arrived, start};

/// The result of 80 calls at once that reserve 100 tokens each and use 20.
#[derive(Debug)]
struct Scene {
    served: usize,
    /// For each refused call: how long it waited, and its retry-after.
    refused: Vec<(Duration, Option<Duration>)>,
}

async fn eighty_calls(builder: RateLimitBuilder<Open>, callers: usize) -> Scene {
    let layer = builder
        .max_waiting(100)
        .max_wait(30 * SECOND)
        .build()
        .expect("legal settings");
    let handle = layer.handle();
    let service = layer.layer(service_fn(|ask: Ask| async move {
        sleep(5 * MS).await;
        Ok::<_, BoxError>(ask.id)
    }));
    let began = Instant::now();
    let calls = (0..80).map(|id| {
        let ask = Ask::of(&format!("caller-{}", id % callers), 0, 100);
        let call = service.clone().oneshot(ask);
        async move {
            let response = call.await;
            match response {
                Ok(response) => {
                    response.used(10, 10);
                    Ok(())
                }
                Err(error) => Err((began.elapsed(), limited(&error).retry_after())),
            }
        }
    });
    let mut scene = Scene {
        served: 0,
        refused: Vec::new(),
    };
    for outcome in join_all(calls).await {
        match outcome {
            Ok(()) => scene.served += 1,
            Err(refused) => scene.refused.push(refused),
        }
    }
    assert_eq!(scene.served + scene.refused.len(), 80);
    for stats in handle.stats() {
        assert_eq!((stats.waiting, stats.violations), (0, 0));
        // In 30 s a bucket drains half of a minute's amount.
        let most = stats.limit.amount() * 3 / 2 * stats.keys as u64;
        assert!(stats.consumed <= most, "{stats:?}");
        assert_eq!(stats.admitted, scene.served as u64);
    }
    scene
}

fn thousand() -> Limit {
    Limit::tokens(1_000).per_minute()
}

/// 45 calls have used 900 tokens: the next one still fits, and the one after it never fits within 30 s.
fn assert_46_are_served(scene: &Scene) {
    assert_eq!(scene.served, 46);
    for &(waited, retry_after) in &scene.refused {
        assert!(
            waited < SECOND,
            "a call that waits in vain is refused at once: {waited:?}"
        );
        let retry_after = retry_after.expect("usage expires at a known time");
        // The first slice ends after five seconds; each call uses at most what the first one did.
        assert_eq!(waited + retry_after, MINUTE_FORGOTTEN);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_served_by_what_others_use_and_not_by_what_they_reserve() {
    assert_46_are_served(&eighty_calls(open().limit(thousand()), 1).await);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_several_limits_together() {
    let limits = [
        Limit::requests(1_000).per_minute(),
        thousand(),
        Limit::output_tokens(1_000).per_minute(),
        Limit::tokens(10_000)
            .per_hour()
            .bucket(10_000)
            .by(KeyBy::shared()),
    ];
    assert_46_are_served(&eighty_calls(open().limits(limits), 1).await);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_provider_is_shared_by_callers_that_wait_for_it() {
    let providers = RateLimitLayer::for_providers()
        .watch(Open)
        .reserve(Reserve::InputAndMaximum)
        .enforce_reported_limits(false)
        .limit(thousand());
    assert_46_are_served(&eighty_calls(providers, 4).await);
    // Additional limits of the callers do not block any of them.
    let both = open().limits([thousand(), thousand().by(KeyBy::provider())]);
    assert_46_are_served(&eighty_calls(both, 4).await);
}

#[tokio::test(start_paused = true)]
async fn each_caller_waits_for_a_limit_of_its_own() {
    let scene = eighty_calls(open().limit(Limit::tokens(200).per_minute()), 4).await;
    // Each of four callers has used 100 tokens after five calls: a sixth fits.
    assert_eq!(scene.served, 4 * 6);
    assert!(scene.refused.iter().all(|&(waited, _)| waited < SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_also_serves_what_drains_during_the_wait() {
    let scene = eighty_calls(open().limit(thousand().bucket(1_000)), 1).await;
    // 46 at once, and 500 tokens drain within 30 s, which is enough for 25 calls.
    assert_eq!(scene.served, 46 + 25);
    for &(waited, retry_after) in &scene.refused {
        // The last served call is in flight meanwhile, and its end is unknown.
        let until = waited + retry_after.unwrap();
        assert!(until >= 30 * SECOND, "{waited:?} {retry_after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_used_up_daily_limit_refuses_at_once() {
    let day = Limit::tokens(1_000).per_day_in("UTC");
    let scene = eighty_calls(open().limit(day), 1).await;
    assert_eq!(scene.served, 46);
    assert!(scene.refused.iter().all(|&(waited, _)| waited < SECOND));
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_reservations_and_not_for_usage() {
    for limit in [thousand(), Limit::tokens(1_000).per_day_in("UTC")] {
        let layer = open().limit(limit).max_waiting(9).max_wait(30 * SECOND);
        let layer = layer.build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let running = admitted(&service, &mut upstream, Ask::of("ann", 0, 400));
        admitted(&service, &mut upstream, Ask::of("ann", 0, 600)).used(0, 600);
        // 600 are used: 401 cannot fit before they are forgotten, whatever the first call uses.
        assert!(refused(&service, Ask::of("ann", 0, 401)) > 30 * SECOND);
        let mut waits = start(&service, Ask::of("ann", 0, 400).id(1));
        assert_pending!(waits.poll());
        assert_eq!(stats(&layer.handle()).refused, 1);
        // It uses all that it reserved: from now on the other call waits in vain.
        running.used(0, 400);
        assert!(waits.is_woken());
        let error = assert_ready!(waits.poll()).map(drop).unwrap_err();
        assert!(limited(&error).retry_after() > Some(30 * SECOND));
        assert!(limited(&error).limit().is_some());
        nothing_arrived(&mut upstream);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_is_forgotten_does_not_hide_what_others_use() {
    // It streams for longer than the window counts its reservation.
    let layer = open()
        .limit(thousand())
        .max_waiting(9)
        .max_wait(30 * SECOND);
    let layer = layer.build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let stream = admitted(&service, &mut upstream, Ask::of("ann", 0, 1_000));
    advance(MINUTE_FORGOTTEN).await;
    admitted(&service, &mut upstream, Ask::of("ann", 0, 1_000)).used(0, 1_000);
    assert!(refused(&service, Ask::of("ann", 0, 1)) > 30 * SECOND);
    stream.used(0, 10);
    assert!(refused(&service, Ask::of("ann", 0, 1)) > 30 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn retry_after_without_waiting_is_the_known_time_or_a_second() {
    for limit in [thousand(), thousand().bucket(1_000)] {
        let layer = open().limit(limit).build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let running = admitted(&service, &mut upstream, Ask::of("ann", 0, 1_000));
        // It may end at any time.
        assert_eq!(refused(&service, Ask::of("ann", 0, 100)), SECOND);
        running.used(0, 950);
        let wait = refused(&service, Ask::of("ann", 0, 100));
        assert!(wait >= 3 * SECOND && wait <= MINUTE_FORGOTTEN, "{wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_count_as_used_and_are_not_waited_for() {
    // A request counts whatever its outcome: waiting for those in flight would be in vain.
    let limits = [Limit::requests(2).per_minute(), Limit::cost(2).per_minute()];
    for limit in limits {
        let layer = open().limit(limit).max_waiting(9).max_wait(30 * SECOND);
        let layer = layer.build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let _running = [0; 2].map(|_| admitted(&service, &mut upstream, Ask::tokens(1)));
        assert_eq!(refused(&service, Ask::tokens(1)), MINUTE_FORGOTTEN);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_two_limits_names_the_longer_time_and_its_limit() {
    let short = Limit::tokens(10).per_minute();
    let long = Limit::requests(1).per_hour();
    for limits in [[short.clone(), long.clone()], [long.clone(), short.clone()]] {
        for other_key in [false, true] {
            let mut limits = limits.clone();
            if other_key {
                limits[0] = limits[0].clone().by(KeyBy::shared());
            }
            let layer = open().limits(limits).build().unwrap();
            let (service, mut upstream) = asked(&layer);
            admitted(&service, &mut upstream, Ask::tokens(10)).used(10, 0);
            let error = refusal(&service, Ask::tokens(10));
            let refused = limited(&error);
            assert_eq!(refused.retry_after(), Some(HOUR + HOUR / 12));
            assert_eq!(refused.limit().map(Limit::amount), Some(1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_refused_after_a_wait_gets_the_longest_time_too() {
    let limits = [
        Limit::tokens(60).per_minute().bucket(60),
        Limit::tokens(60).per_hour().bucket(60).by(KeyBy::shared()),
    ];
    let layer = open().limits(limits).max_waiting(9).max_wait(MINUTE);
    let layer = layer.build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = admitted(&service, &mut upstream, Ask::tokens(60));
    let mut waits = start(&service, Ask::tokens(30));
    assert_pending!(waits.poll());
    running.used(60, 0);
    assert!(waits.is_woken());
    let error = assert_ready!(waits.poll()).map(drop).unwrap_err();
    assert_eq!(limited(&error).retry_after(), Some(30 * MINUTE));
    nothing_arrived(&mut upstream);
}
