//! The metrics as Prometheus reads them.

use std::{collections::BTreeSet, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use tower_llm_core::Served;
use tower_llm_monitor::{Measure, MonitorLayer, Threshold};

use crate::support::{
    CONTENT, DONE, MODEL, ROLE, SECOND, STOP, USAGE, answer, call, call_after, open, request,
    request_to,
};

/// What a scrape shows.
fn scrape(monitor: &MonitorLayer) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || monitor.handle().publish());
    recorder.handle().render()
}

/// The value of a series, which has these labels among others.
#[track_caller]
fn value(scrape: &str, name: &str, labels: &[&str]) -> f64 {
    let mut series = scrape.lines().filter(|line| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    });
    let only = series
        .next()
        .unwrap_or_else(|| panic!("{name} {labels:?} in {scrape}"));
    assert_eq!(series.next(), None);
    only.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn used() -> MonitorLayer {
    let load = Threshold::above(Measure::Gauge("load"), 0.5).lasting(Duration::ZERO);
    let builder = MonitorLayer::builder().records(10).alerts([load]);
    let monitor = builder.build().unwrap();
    call_after(&monitor, request(), 2 * SECOND, Ok(answer())).await;
    call_after(&monitor, request(), 20 * SECOND, Ok(answer())).await;
    let (sender, body) = open(&monitor).await;
    for frame in [ROLE, CONTENT, STOP, USAGE, DONE] {
        sender.send(frame);
    }
    drop(sender);
    http_body_util::BodyExt::collect(body).await.unwrap();
    monitor
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_is_published() {
    let monitor = used().await;
    let mut hit = answer();
    hit.extensions_mut().insert(Served::Hit);
    call(&monitor, request(), Ok(hit)).await;
    call(&monitor, request_to("unheard"), Err("reset".into())).await;
    monitor.handle().set_gauge("load", 0.9);
    let _ = monitor.handle().check();
    let scrape = scrape(&monitor);
    let model = &format!("model=\"{MODEL}\"")[..];
    let count = |name, labels: &[&str]| value(&scrape, name, &[&[model], labels].concat());
    assert_eq!(count("llm_calls_total", &["outcome=\"success\""]), 4.0);
    assert_eq!(count("llm_calls_total", &["outcome=\"refused\""]), 0.0);
    assert_eq!(count("llm_cache_calls_total", &["result=\"hit\""]), 1.0);
    assert_eq!(count("llm_tokens_total", &["type=\"input\""]), 27.0);
    assert_eq!(count("llm_saved_tokens_total", &["type=\"output\""]), 3.0);
    assert!((count("llm_cost_usd_total", &[]) - 3.0 * 0.000_008_25).abs() < 1e-12);
    assert_eq!(count("llm_calls_in_flight", &[]), 0.0);
    let other = ["model=\"other\"", "outcome=\"failed_transport\""];
    assert_eq!(value(&scrape, "llm_calls_total", &other), 1.0);
    assert!(scrape.contains("llm_alert_raised{alert=\"load\"} 1"));
    assert!(scrape.contains("llm_records_total{result=\"written\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn a_histogram_counts_what_is_within_each_bound() {
    let scrape = scrape(&used().await);
    let bucket = |le| {
        let le = format!("le=\"{le}\"");
        value(&scrape, "llm_call_duration_seconds_bucket", &[&le])
    };
    // Calls of 0, 2 and 20 seconds.
    let buckets = ["0.025", "1", "2.5", "10", "30", "600", "+Inf"].map(bucket);
    assert_eq!(buckets, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
    assert_eq!(value(&scrape, "llm_call_duration_seconds_sum", &[]), 22.0);
    assert_eq!(value(&scrape, "llm_call_duration_seconds_count", &[]), 3.0);
    assert_eq!(
        value(&scrape, "llm_time_to_first_token_seconds_count", &[]),
        1.0
    );
}

/// The table in the crate's documentation lists what is published, and nothing else.
#[tokio::test(start_paused = true)]
async fn the_documentation_lists_all_metrics_and_their_labels() {
    let documented: BTreeSet<String> = include_str!("../../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `llm_"))
        .map(|line| {
            let (name, rest) = line.split_once('`').unwrap();
            let own = rest.split('|').nth(2).unwrap().trim().trim_matches('`');
            format!("llm_{name} {own}").trim_end().to_owned()
        })
        .collect();
    let scrape = scrape(&used().await);
    let published: BTreeSet<String> = scrape
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (name, rest) = line.split_once('{').unwrap();
            let labels = rest.split_once('}').unwrap().0;
            let own = labels
                .split(',')
                .filter_map(|label| label.split('=').next());
            let own: Vec<_> = own
                .filter(|label| !["provider", "operation", "model"].contains(label))
                .collect();
            let parts = ["_bucket", "_sum", "_count"];
            let name = parts
                .iter()
                .find_map(|part| name.strip_suffix(part))
                .unwrap_or(name);
            let own: Vec<_> = own.into_iter().filter(|label| *label != "le").collect();
            format!("{name} {}", own.join(",")).trim_end().to_owned()
        })
        .collect();
    assert_eq!(documented, published);
}
