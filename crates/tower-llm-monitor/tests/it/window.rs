//! The last minute, beside all time.

use tokio::time::advance;
use tower_llm_monitor::{MonitorLayer, Stats};

use crate::support::{SECOND, answer, call, call_after, request, snapshot};

fn recent(monitor: &MonitorLayer) -> Stats {
    snapshot(monitor).total.recent
}

#[tokio::test(start_paused = true)]
async fn a_call_is_recent_for_a_minute() {
    let monitor = MonitorLayer::new();
    recent(&monitor);
    call(&monitor, request(), Ok(answer())).await;
    for second in 1..=70 {
        advance(SECOND).await;
        let recent = recent(&monitor);
        // Steps are of five seconds, so it is forgotten up to six seconds late, and never early.
        match second {
            0..60 => assert_eq!(recent.calls, 1, "after {second} s"),
            66.. => assert_eq!(recent.calls, 0, "after {second} s"),
            _ => {}
        }
        let over = recent.over.as_secs();
        assert!(
            (second.min(60)..=66).contains(&over),
            "{over} s after {second} s"
        );
    }
    assert_eq!(snapshot(&monitor).total.since_start.calls, 1);
}

#[tokio::test(start_paused = true)]
async fn rates_are_by_the_time_that_the_window_covers() {
    let monitor = MonitorLayer::new();
    for _ in 0..30 {
        call(&monitor, request(), Ok(answer())).await;
        advance(SECOND).await;
        recent(&monitor);
    }
    // The layer is only half a minute old.
    let half = recent(&monitor);
    assert_eq!(
        (half.over, half.calls_per_second()),
        (30 * SECOND, Some(1.0))
    );
    assert_eq!(half.tokens_per_minute(), Some(12.0 * 60.0));
    assert!((half.cost_per_hour().unwrap() - 0.000_008_25 * 3_600.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn readings_that_are_rare_make_the_window_longer_and_not_the_rate_wrong() {
    let monitor = MonitorLayer::new();
    for _ in 0..600 {
        call(&monitor, request(), Ok(answer())).await;
        advance(SECOND).await;
    }
    let all = recent(&monitor);
    assert_eq!((all.calls, all.over), (600, 600 * SECOND));
    assert_eq!(all.calls_per_second(), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn percentiles_of_the_last_minute_forget_what_was_slow_before() {
    let monitor = MonitorLayer::new();
    for _ in 0..100 {
        call_after(&monitor, request(), 10 * SECOND, Ok(answer())).await;
        recent(&monitor);
    }
    assert!(recent(&monitor).latency.p50 >= 10 * SECOND);
    for _ in 0..100 {
        call_after(&monitor, request(), SECOND, Ok(answer())).await;
        recent(&monitor);
    }
    let snapshot = snapshot(&monitor);
    assert_eq!(snapshot.total.recent.latency.max, SECOND);
    assert_eq!(snapshot.total.since_start.latency.max, 10 * SECOND);
    assert!(snapshot.total.since_start.latency.p95 >= 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn several_readers_see_the_same() {
    let monitor = MonitorLayer::new();
    call(&monitor, request(), Ok(answer())).await;
    for _ in 0..3 {
        assert_eq!(
            (recent(&monitor).calls, snapshot(&monitor).rows.len()),
            (1, 1)
        );
    }
}
