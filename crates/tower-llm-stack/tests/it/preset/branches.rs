//! Extra branches: retries and hedges.

use tower_llm_stack::{
    TimedOut,
    fanout::{Budget, FanoutBuilder, Pace},
};
use tower_llm_testkit::RetryAfter;

use super::*;

const FAILS: Fault = Fault::Status(500);

fn around(preset: Preset, fanout: FanoutBuilder, upstream: &Upstream) -> Client {
    let only = Only {
        fanout: Some(fanout.build().unwrap()),
        ..Only::default()
    };
    only.around(preset, upstream)
}

/// No budget is spent.
fn unlimited() -> Budget {
    Budget::with_reserve(1.0, 1_000.0).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_has_extra_branches() {
    for (preset, extra) in numbers("extra branches of a call") {
        let upstream = Upstream::always(FAILS);
        let client = around(preset, preset.fanout(), &upstream);
        assert_eq!(call(&client, plain()).await.unwrap().status(), 500);
        assert_eq!(upstream.calls(), 1 + extra, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_slowest_calls_are_hedged() {
    for (preset, percent) in switch("hedges, in % of calls") {
        // Each takes another time, up to a second.
        let upstream = Upstream::new(|number| {
            let millis = (number as u64 * 7919) % 1_000;
            Behavior::new().head_delay(Duration::from_millis(millis))
        });
        let fanout = preset.fanout().build().unwrap();
        let only = Only {
            fanout: Some(fanout.clone()),
            ..Only::default()
        };
        let client = only.around(preset, &upstream);
        for _ in 0..2_000 {
            read(call(&client, plain()).await).await.unwrap();
        }
        let ratio = fanout.stats().extra_ratio();
        let expected = percent.map_or(0.0, |percent| percent.parse::<f64>().unwrap() / 100.0);
        assert!((ratio - expected).abs() < 0.01, "{preset:?}: {ratio}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_retry_waits_for_its_backoff() {
    for (preset, most) in times("first backoff of a retry, at most") {
        let mut longest = Duration::ZERO;
        for _ in 0..200 {
            let upstream = Upstream::once(FAILS);
            let client = around(preset, preset.fanout(), &upstream);
            read(call(&client, plain()).await).await.unwrap();
            longest = longest.max(upstream.gaps()[0]);
        }
        // Jitter is drawn from all of it, and timers are exact to a millisecond.
        assert!(longest <= most + SECOND / 1000, "{preset:?}: {longest:?}");
        assert!(longest > most.mul_f64(0.9), "{preset:?}: {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn later_retries_wait_longer_up_to_a_maximum() {
    for (preset, most) in times("longest backoff") {
        let upstream = Upstream::always(FAILS);
        let many = preset.fanout().branches(200).budget(unlimited());
        let client = around(preset, many.deadline(86_400 * SECOND), &upstream);
        call(&client, plain()).await.unwrap();
        assert_eq!(upstream.calls(), 200);
        let longest = upstream.gaps().into_iter().max().unwrap();
        assert!(longest <= most + SECOND / 1000, "{preset:?}: {longest:?}");
        assert!(longest > most.mul_f64(0.9), "{preset:?}: {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_the_providers_time_up_to_a_maximum() {
    for (preset, most) in times("longest `retry-after` that a retry waits for") {
        for (wait, calls) in [(most, 2), (most + SECOND, 1)] {
            let throttled = Fault::Throttled(RetryAfter::Seconds(wait.as_secs()));
            let upstream = Upstream::once(throttled);
            // The deadline is another switch.
            let fanout = preset.fanout().deadline(86_400 * SECOND);
            let _ = call(&around(preset, fanout, &upstream), plain()).await;
            assert_eq!(upstream.calls(), calls, "{preset:?}: {wait:?}");
            assert!(upstream.gaps().iter().all(|gap| *gap >= wait), "{preset:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_branches_together_have_a_deadline() {
    for (preset, deadline) in switch("until the answer counts, all branches together") {
        let upstream = Upstream::always(Fault::NoAnswer);
        let client = around(preset, preset.fanout(), &upstream);
        let ended = timed(call(&client, plain()));
        let ended = tokio::time::timeout(86_000 * SECOND, ended).await.ok();
        let elapsed = ended.map(|(elapsed, answer)| {
            assert!(TimedOut::find(&*answer.unwrap_err()).is_some());
            elapsed
        });
        assert_eq!(elapsed, deadline.map(time), "{preset:?}");
    }
}

/// Calls that all fail, one after the other: so many were saved up that ten more than the budget may be sent.
#[tokio::test(start_paused = true)]
async fn extra_branches_stay_within_the_budget() {
    const CALLS: usize = 500;
    for (preset, percent) in numbers("budget of extra branches, in % of calls") {
        let upstream = Upstream::always(FAILS);
        // Without a backoff no time passes, in which the reserve would fill.
        let at_once = Pace::after_failure(1);
        let quick = tower_llm_stack::fanout::Backoff::exponential(SECOND / 1000, SECOND / 1000);
        let fanout = preset.fanout().pace(at_once).backoff(quick.unwrap());
        let client = around(preset, fanout, &upstream);
        for _ in 0..CALLS {
            call(&client, plain()).await.unwrap();
        }
        let extra = upstream.calls() - CALLS;
        let budget = CALLS * percent / 100;
        assert!(
            (budget..=budget + 12).contains(&extra),
            "{preset:?}: {extra}"
        );
    }
}
