//! Alerts: raised after a while, resolved after a while, and in between nothing.

use std::time::Duration;

use tokio::time::{Instant, advance};
use tower_llm_monitor::{Alerts, Change, Measure, MonitorLayer, Snapshot, Threshold};

use crate::support::{SECOND, answer, call, call_after, json, request, request_to, snapshot};

const MINUTE: Duration = Duration::from_secs(60);

/// A snapshot in which the gauge `load` has this value.
fn with_load(load: f64) -> Snapshot {
    let monitor = MonitorLayer::new();
    monitor.handle().set_gauge("load", load);
    snapshot(&monitor)
}

fn load_above(bound: f64) -> Threshold {
    Threshold::above(Measure::Gauge("load"), bound)
}

/// Shows alerts a value each second; returns what has changed, and at which second.
fn changes(alerts: &mut Alerts, values: impl IntoIterator<Item = f64>) -> Vec<(u64, Change)> {
    let start = Instant::now();
    let mut changes = Vec::new();
    for (second, value) in (0..).zip(values) {
        for event in alerts.on(&with_load(value), start + second * SECOND) {
            changes.push((u64::from(second), event.change));
        }
    }
    changes
}

fn alerts(threshold: Threshold) -> Alerts {
    Alerts::new([threshold]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_alert_is_raised_when_the_value_has_been_wrong_for_long_enough() {
    let wrong_for = |seconds: usize| {
        let values = std::iter::repeat_n(0.9, seconds).chain([0.1, 0.1]);
        changes(&mut alerts(load_above(0.8)), values)
    };
    assert_eq!(wrong_for(60), []);
    assert_eq!(wrong_for(61), [(60, Change::Raised)]);
}

#[tokio::test(start_paused = true)]
async fn it_is_resolved_beyond_the_second_bound_and_not_between_the_two() {
    let threshold = || load_above(0.8).clears_at(0.5).lasting(2 * SECOND);
    let values = [
        0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.9, 0.5, 0.5, 0.51, 0.5, 0.5, 0.5, 0.1,
    ];
    let expected = [(2, Change::Raised), (12, Change::Resolved)];
    assert_eq!(changes(&mut alerts(threshold()), values), expected);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_swings_around_its_bound_raises_one_alert() {
    let swinging = (0..300).map(|second| if second % 2 == 0 { 0.81 } else { 0.79 });
    let at_once = load_above(0.8).lasting(Duration::ZERO);
    assert_eq!(
        changes(&mut alerts(at_once), swinging.clone()),
        [(0, Change::Raised)]
    );
    // It is not wrong for a second without a break.
    assert_eq!(
        changes(&mut alerts(load_above(0.8).lasting(2 * SECOND)), swinging),
        []
    );
}

#[tokio::test(start_paused = true)]
async fn the_bound_itself_is_right() {
    let at_once = load_above(0.8).lasting(Duration::ZERO);
    assert_eq!(
        changes(&mut alerts(at_once), [0.8, 0.800_1]),
        [(1, Change::Raised)]
    );
    let below = Threshold::below(Measure::Gauge("load"), 0.8).lasting(Duration::ZERO);
    assert_eq!(
        changes(&mut alerts(below), [0.8, 0.799_9]),
        [(1, Change::Raised)]
    );
}

#[tokio::test(start_paused = true)]
async fn success_below_its_bound_raises_and_resolves() {
    let success = Threshold::below(Measure::SuccessRatio, 0.95).min_calls(20);
    let monitor = MonitorLayer::builder().alerts([success]).build().unwrap();
    let handle = monitor.handle();
    let mut events = Vec::new();
    for second in 0..400 {
        let is_broken = (100..200).contains(&second);
        let status = if is_broken { 500 } else { 200 };
        call(
            &monitor,
            request(),
            Ok(json(status, "{\"choices\":[{\"finish_reason\":\"stop\"}]}")),
        )
        .await;
        advance(SECOND).await;
        events.extend(handle.check().into_iter().map(|event| (second, event)));
        let raised = handle.snapshot().alerts;
        assert_eq!(raised.len(), events.len() % 2, "after {second} s");
    }
    let [(raised_at, raised), (resolved_at, resolved)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        (raised.change, &*raised.alert.name),
        (Change::Raised, "success_ratio")
    );
    assert!(raised.alert.value.unwrap() < 0.95);
    // Four failures in the minute, and then a minute.
    assert!((163..170).contains(raised_at), "raised after {raised_at} s");
    assert_eq!(resolved.change, Change::Resolved);
    assert_eq!(
        resolved.alert.raised,
        Duration::from_secs(resolved_at - raised_at)
    );
    assert!(
        (315..330).contains(resolved_at),
        "resolved after {resolved_at} s"
    );
}

#[tokio::test(start_paused = true)]
async fn too_few_calls_are_not_judged() {
    for (calls, raised) in [(19, 0), (20, 1)] {
        let success = Threshold::below(Measure::SuccessRatio, 0.95).lasting(Duration::ZERO);
        let monitor = MonitorLayer::builder().alerts([success]).build().unwrap();
        for _ in 0..calls {
            call(&monitor, request(), Ok(json(500, "{}"))).await;
        }
        assert_eq!(monitor.handle().check().len(), raised);
    }
}

#[tokio::test(start_paused = true)]
async fn every_measure_is_judged_by_its_own_value() {
    let raised = async |threshold: Threshold| {
        let threshold = threshold.lasting(Duration::ZERO).min_calls(1);
        let monitor = MonitorLayer::builder().alerts([threshold]).build().unwrap();
        call_after(&monitor, request(), SECOND, Ok(answer())).await;
        call_after(
            &monitor,
            request_to("unheard"),
            3 * SECOND,
            Ok(json(500, "{}")),
        )
        .await;
        let mut hit = answer();
        hit.extensions_mut().insert(tower_llm_core::Served::Hit);
        call(&monitor, request(), Ok(hit)).await;
        monitor.handle().check().len()
    };
    // A value just below what was measured, and one just above.
    for (measure, below, above) in [
        (Measure::LatencyMean, 1.33, 1.34),
        (Measure::LatencyP95, 2.99, 3.01),
        (Measure::LatencyP99, 2.99, 3.01),
        (Measure::HitRatio, 0.33, 0.34),
        (Measure::SuccessRatio, 0.66, 0.67),
        // In four seconds.
        (
            Measure::CostPerHour,
            0.000_008_25 * 899.0,
            0.000_008_25 * 901.0,
        ),
        (Measure::CostPerCall, 0.000_004, 0.000_004_2),
    ] {
        assert_eq!(
            raised(Threshold::above(measure, below)).await,
            1,
            "{measure}"
        );
        assert_eq!(
            raised(Threshold::above(measure, above)).await,
            0,
            "{measure}"
        );
        assert_eq!(
            raised(Threshold::below(measure, above)).await,
            1,
            "{measure}"
        );
        assert_eq!(
            raised(Threshold::below(measure, below)).await,
            0,
            "{measure}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_cache_the_hit_ratio_raises_nothing() {
    let usual = Alerts::usual()
        .into_iter()
        .map(|threshold| threshold.lasting(Duration::ZERO));
    let monitor = MonitorLayer::builder().alerts(usual).build().unwrap();
    for _ in 0..100 {
        call(&monitor, request(), Ok(answer())).await;
    }
    assert_eq!(monitor.handle().check(), []);
}

#[tokio::test(start_paused = true)]
async fn a_row_can_have_an_alert_of_its_own() {
    let latency = Threshold::above(Measure::LatencyP95, 5.0)
        .lasting(Duration::ZERO)
        .min_calls(1);
    let monitor = MonitorLayer::builder()
        .alerts([latency.each_row()])
        .build()
        .unwrap();
    for _ in 0..100 {
        call(&monitor, request(), Ok(answer())).await;
    }
    call_after(&monitor, request_to("gpt-5"), 6 * SECOND, Ok(answer())).await;
    let events = monitor.handle().check();
    let [event] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(&*event.alert.subject.as_ref().unwrap().model, "gpt-5");
    let json = serde_json::to_value(event).unwrap();
    assert_eq!(
        (&json["change"], &json["subject"]["model"]),
        (&"raised".into(), &"gpt-5".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_checks_at_its_interval() {
    let load = load_above(0.8).lasting(Duration::ZERO);
    let monitor = MonitorLayer::builder().alerts([load]).build().unwrap();
    let handle = monitor.handle();
    handle.set_gauge("load", 0.9);
    let mut events = 0;
    let watch = handle.watch_alerts(SECOND, |_| events += 1);
    assert!(tokio::time::timeout(MINUTE, watch).await.is_err());
    assert_eq!(events, 1);
}
