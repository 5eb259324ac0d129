//! What was counted, for the `metrics` facade.
//!
//! Nothing is recorded for it on the way of a call: [`MonitorHandle::publish`](crate::MonitorHandle::publish) sets all metrics to
//! what was counted until then. Histograms are published as Prometheus reads them: a counter `_bucket` for each upper bound,
//! `_count` and `_sum`.

use std::{sync::Arc, time::Duration};

use metrics::{Label, SharedString, counter, gauge};

use crate::{
    RecordStats,
    kinds::{LAYERS, OUTCOMES},
    rows::Labels,
    tally::Total,
    times::Distribution,
};

const FIRST_TOKEN: [(f64, &str); 12] = [
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.5, "2.5"),
    (5.0, "5"),
    (10.0, "10"),
    (30.0, "30"),
    (60.0, "60"),
    (120.0, "120"),
];
const DURATION: [(f64, &str); 14] = [
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.5, "2.5"),
    (5.0, "5"),
    (10.0, "10"),
    (30.0, "30"),
    (60.0, "60"),
    (120.0, "120"),
    (300.0, "300"),
    (600.0, "600"),
];
const BETWEEN_TOKENS: [(f64, &str); 10] = [
    (0.001, "0.001"),
    (0.002_5, "0.0025"),
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
];

/// Publishes one row.
pub(crate) fn row(labels: &Labels, in_flight: u64, total: &Total) {
    let of = |name: &'static str, more: &[(&'static str, &'static str)]| {
        let own = [
            ("provider", &labels.provider),
            ("operation", &labels.operation),
            ("model", &labels.model),
        ];
        let own = own.map(|(key, value)| Label::new(key, SharedString::from(Arc::clone(value))));
        let more = more
            .iter()
            .map(|(key, value)| Label::from_static_parts(key, value));
        (name, own.into_iter().chain(more).collect::<Vec<Label>>())
    };
    let count = |name, more: &[(&'static str, &'static str)], value: u64| {
        let (name, labels) = of(name, more);
        counter!(name, labels).absolute(value);
    };
    let set = |name, value: f64| {
        let (name, labels) = of(name, &[]);
        gauge!(name, labels).set(value);
    };
    let counters = &total.counters;
    #[expect(clippy::cast_precision_loss, reason = "no service has 2^52 calls")]
    set("llm_calls_in_flight", in_flight as f64);
    for (label, calls) in OUTCOMES.iter().zip(counters.outcomes) {
        count("llm_calls_total", &[("outcome", label)], calls);
    }
    for (label, calls) in LAYERS.iter().zip(counters.refused_by) {
        count("llm_refused_total", &[("layer", label)], calls);
    }
    for (label, attempts) in OUTCOMES.iter().zip(counters.attempts) {
        count("llm_attempts_total", &[("outcome", label)], attempts);
    }
    for (label, calls) in [
        ("hit", counters.hits),
        ("follower", counters.followers),
        ("miss", counters.misses),
    ] {
        count("llm_cache_calls_total", &[("result", label)], calls);
    }
    for (name, usage) in [
        ("llm_tokens_total", &counters.used),
        ("llm_saved_tokens_total", &counters.saved),
        ("llm_attempt_tokens_total", &counters.attempted),
    ] {
        for (kind, tokens) in [
            ("input", usage.input),
            ("output", usage.output),
            ("cached_input", usage.cached_input),
            ("cache_write", usage.cache_write),
            ("reasoning", usage.reasoning),
        ] {
            count(name, &[("type", kind)], tokens);
        }
    }
    count("llm_unpriced_calls_total", &[], counters.unpriced);
    count("llm_estimated_calls_total", &[], counters.estimated);
    count("llm_request_bytes_total", &[], counters.request_bytes);
    count("llm_response_bytes_total", &[], counters.response_bytes);
    set("llm_cost_usd_total", counters.cost.as_dollars());
    set("llm_saved_cost_usd_total", counters.saved_cost.as_dollars());
    set(
        "llm_attempt_cost_usd_total",
        counters.attempted_cost.as_dollars(),
    );

    let histogram =
        |names: [&'static str; 3], times: &Distribution<u64>, bounds: &[(f64, &'static str)]| {
            let [bucket, sum, all] = names;
            let counts = times.at_most(
                bounds
                    .iter()
                    .map(|(bound, _)| Duration::from_secs_f64(*bound)),
            );
            for ((_, le), calls) in bounds.iter().zip(counts) {
                count(bucket, &[("le", le)], calls);
            }
            count(bucket, &[("le", "+Inf")], times.count());
            count(all, &[], times.count());
            set(sum, times.sum().as_secs_f64());
        };
    histogram(
        [
            "llm_call_duration_seconds_bucket",
            "llm_call_duration_seconds_sum",
            "llm_call_duration_seconds_count",
        ],
        &total.latency,
        &DURATION,
    );
    if let Some(streams) = &total.streams {
        histogram(
            [
                "llm_time_to_first_token_seconds_bucket",
                "llm_time_to_first_token_seconds_sum",
                "llm_time_to_first_token_seconds_count",
            ],
            &streams.first_token,
            &FIRST_TOKEN,
        );
        histogram(
            [
                "llm_time_between_tokens_seconds_bucket",
                "llm_time_between_tokens_seconds_sum",
                "llm_time_between_tokens_seconds_count",
            ],
            &streams.between_tokens,
            &BETWEEN_TOKENS,
        );
    }
}

/// Publishes what is not of one row.
pub(crate) fn others(alerts: &[(&str, bool)], records: Option<RecordStats>) {
    for (name, is_raised) in alerts {
        let label = Label::new("alert", (*name).to_owned());
        gauge!("llm_alert_raised", vec![label]).set(f64::from(u8::from(*is_raised)));
    }
    let Some(records) = records else { return };
    for (result, records) in [("written", records.written), ("dropped", records.dropped)] {
        counter!("llm_records_total", "result" => result).absolute(records);
    }
}
