//! What is counted of each call.

use http_body_util::BodyExt;
use tower_llm_core::{
    Call, ClassifiedError, Failure, Operation, Outcome, Provider, Refusal, RefusalKind, Served,
};
use tower_llm_monitor::{MonitorLayer, PriceTable};

use crate::support::{
    Answer, CONTENT, COST, DONE, ERROR, MODEL, ROLE, SECOND, STOP, USAGE, answer, assert_counts,
    call, call_after, json, of, only_row, open, request, request_to, snapshot, stats,
};

/// An answer, and what is counted of its call: outcome, refusing layer, cost in billionths, calls whose cost is not known.
#[tokio::test(start_paused = true)]
async fn every_end_of_a_call_is_counted_once_as_what_it_was() {
    type Case = (&'static str, fn() -> Answer, Option<&'static str>, u64, u64);
    let cases: [Case; 14] = [
        ("success", || Ok(answer()), None, COST, 0),
        (
            "success",
            || Ok(json(200, r#"{"choices":[{"finish_reason":"stop"}]}"#)),
            None,
            0,
            1,
        ),
        ("throttled", || Ok(json(429, "{}")), None, 0, 0),
        (
            "exhausted",
            || Ok(json(429, r#"{"error":{"code":"insufficient_quota"}}"#)),
            None,
            0,
            0,
        ),
        ("overloaded", || Ok(json(529, "{}")), None, 0, 0),
        ("failed_status", || Ok(json(500, "{}")), None, 0, 0),
        ("client_error", || Ok(json(400, "{}")), None, 0, 0),
        ("failed_transport", || Err("reset".into()), None, 0, 0),
        (
            "failed_timeout",
            || Err(ClassifiedError::new(Outcome::Failed(Failure::Timeout), "late").into()),
            None,
            // Its input is charged for: the provider was at work.
            5 * 250,
            0,
        ),
        (
            "refused",
            || Err(Refusal::new(RefusalKind::Unavailable, "bulkhead").into()),
            Some("bulkhead"),
            0,
            0,
        ),
        (
            "refused",
            || Err(Refusal::new(RefusalKind::RateLimited, "ratelimit").into()),
            Some("ratelimit"),
            0,
            0,
        ),
        (
            "refused",
            || Err(Refusal::new(RefusalKind::Unavailable, "a layer of the user's").into()),
            Some("other"),
            0,
            0,
        ),
        (
            "refused",
            || Err(ClassifiedError::new(Outcome::Refused, "given up").into()),
            Some("waiting"),
            0,
            0,
        ),
        (
            "superseded",
            || Err(ClassifiedError::new(Outcome::Superseded, "lost").into()),
            None,
            5 * 250,
            0,
        ),
    ];
    for (outcome, answer, refused_by, cost, unpriced) in cases {
        let monitor = MonitorLayer::new();
        call(&monitor, request(), answer()).await;
        let stats = stats(&monitor);
        assert_counts(&stats.outcomes, &[(outcome, 1)]);
        let refused: Vec<_> = refused_by.iter().map(|layer| (*layer, 1)).collect();
        assert_counts(&stats.refused_by, &refused);
        assert_eq!((stats.calls, stats.cost.as_nanos()), (1, cost), "{outcome}");
        assert_eq!(stats.unpriced_calls, unpriced, "{outcome}");
        let is_sent = u64::from(refused_by.is_none());
        assert_eq!(
            (stats.latency.count, stats.cache_misses),
            (is_sent, is_sent),
            "{outcome}"
        );
        assert_eq!(stats.request_bytes, 100);
        assert_eq!(snapshot(&monitor).total.in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_is_found_by_provider_operation_and_model() {
    let monitor = MonitorLayer::builder()
        .models(["our-model"])
        .build()
        .unwrap();
    let described = |provider, operation, model: Option<&str>| {
        let call = Call::builder(provider, operation);
        of(match model {
            Some(model) => call.model(model).build(),
            None => call.build(),
        })
    };
    let (openai, chat) = (Provider::OPENAI, Operation::CHAT);
    let requests = [
        described(openai.clone(), chat.clone(), Some(MODEL)),
        described(openai.clone(), chat.clone(), Some("gpt-5-mini-2025-08-07")),
        described(Provider::ANTHROPIC, chat.clone(), Some("our-model")),
        described(openai.clone(), Operation::EMBEDDINGS, Some("another")),
        described(Provider::new("mistral"), chat.clone(), None),
        http::Request::new(()),
    ];
    for request in requests {
        call(&monitor, request, Ok(answer())).await;
    }
    let rows = snapshot(&monitor).rows;
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                &*row.provider,
                &*row.operation,
                &*row.model,
                row.summary.since_start.calls,
            )
        })
        .collect();
    let expected = [
        ("other", "other", "other", 1),
        ("openai", "chat", MODEL, 2),
        ("anthropic", "chat", "our-model", 1),
        ("openai", "embeddings", "other", 1),
        ("other", "chat", "other", 1),
    ];
    assert_eq!(rows, expected);
}

#[tokio::test(start_paused = true)]
async fn the_rows_add_up_to_the_total() {
    let monitor = MonitorLayer::new();
    for (model, calls) in [(MODEL, 3), ("gpt-5", 2), ("unheard", 1)] {
        for _ in 0..calls {
            call_after(&monitor, request_to(model), SECOND, Ok(answer())).await;
        }
    }
    let snapshot = snapshot(&monitor);
    let sum = |of: fn(&tower_llm_monitor::Stats) -> u64| -> u64 {
        snapshot
            .rows
            .iter()
            .map(|row| of(&row.summary.since_start))
            .sum()
    };
    let total = &snapshot.total.since_start;
    assert_eq!((total.calls, sum(|stats| stats.calls)), (6, 6));
    assert_eq!(
        (total.latency.count, sum(|stats| stats.latency.count)),
        (6, 6)
    );
    assert_eq!(
        (total.tokens.input, sum(|stats| stats.tokens.input)),
        (54, 54)
    );
    assert_eq!(total.cost.as_nanos(), sum(|stats| stats.cost.as_nanos()));
    // The model that is not known has no price: its cost is not known, and not zero.
    assert_eq!(
        (total.unpriced_calls, total.unpriced_ratio()),
        (1, Some(1.0 / 6.0))
    );
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_invented_models_are_one_row() {
    let monitor = MonitorLayer::new();
    for model in 0..100_000 {
        call(
            &monitor,
            request_to(&format!("invented-{model}")),
            Ok(answer()),
        )
        .await;
    }
    let row = only_row(&monitor);
    assert_eq!(
        (&*row.model, row.summary.since_start.calls),
        ("other", 100_000)
    );
}

#[tokio::test(start_paused = true)]
async fn names_that_are_known_are_bounded_too() {
    let models = (0..500).map(|model| format!("model-{model}"));
    let layer = MonitorLayer::builder().models(models).max_rows(20).build();
    let monitor = layer.unwrap();
    for model in 0..500 {
        call(
            &monitor,
            request_to(&format!("model-{model}")),
            Ok(answer()),
        )
        .await;
    }
    let snapshot = snapshot(&monitor);
    assert_eq!(
        (snapshot.rows.len(), snapshot.total.since_start.calls),
        (20, 500)
    );
    assert_eq!(snapshot.rows[0].summary.since_start.calls, 500 - 19);
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_times_and_a_speed() {
    let monitor = MonitorLayer::new();
    let (sender, mut body) = open(&monitor).await;
    assert_eq!(snapshot(&monitor).total.in_flight, 1);
    let mut pass = async |frame| {
        sender.send(frame);
        body.frame().await.unwrap().unwrap();
    };
    tokio::time::advance(SECOND).await;
    pass(ROLE).await;
    tokio::time::advance(SECOND).await;
    pass(CONTENT).await;
    tokio::time::advance(SECOND).await;
    for frame in [CONTENT, STOP, USAGE, DONE] {
        pass(frame).await;
    }
    drop(sender);
    assert!(body.frame().await.is_none());

    let stats = stats(&monitor);
    assert_counts(&stats.outcomes, &[("success", 1)]);
    assert_eq!(
        (stats.first_token.count, stats.first_token.max),
        (1, 2 * SECOND)
    );
    assert_eq!((stats.latency.count, stats.latency.min), (1, 3 * SECOND));
    // Three tokens: two gaps in a second.
    assert_eq!(
        (stats.between_tokens.count, stats.between_tokens.mean),
        (1, SECOND / 2)
    );
    assert_eq!(stats.tokens_per_second, Some(3.0));
    let bytes = [ROLE, CONTENT, CONTENT, STOP, USAGE, DONE]
        .map(str::len)
        .iter()
        .sum::<usize>();
    assert_eq!(stats.response_bytes, bytes as u64);
    assert_eq!(snapshot(&monitor).total.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_off_are_counted_as_that_and_cost_what_was_seen() {
    // What has passed, whether the caller leaves then, the outcome, and the output that is charged.
    for (frames, leaves, outcome, output) in [
        (&[ROLE, CONTENT][..], true, "abandoned", 2),
        (&[ROLE, CONTENT], false, "failed_truncated", 2),
        (&[ROLE, CONTENT, ERROR], false, "failed_in_band", 2),
        (&[ROLE, CONTENT, STOP, USAGE, DONE], true, "success", 3),
    ] {
        let monitor = MonitorLayer::new();
        let (sender, mut body) = open(&monitor).await;
        for frame in frames {
            sender.send(frame);
            body.frame().await.unwrap().unwrap();
        }
        if !leaves {
            drop(sender);
            let _ = body.collect().await;
        } else {
            drop(body);
        }
        let stats = stats(&monitor);
        assert_counts(&stats.outcomes, &[(outcome, 1)]);
        assert_eq!(stats.tokens.output, output, "{outcome}");
        assert_eq!(
            stats.estimated_calls,
            u64::from(outcome != "success"),
            "{outcome}"
        );
        let is_success = outcome == "success";
        assert_eq!(
            stats.tokens_per_second.is_some(),
            is_success && stats.between_tokens.max > std::time::Duration::ZERO
        );
        assert_eq!(snapshot(&monitor).total.in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cached_answer_is_a_hit_that_costs_nothing_and_saves_its_cost() {
    for (served, hits, followers) in [(Served::Hit, 1, 0), (Served::Follower, 0, 1)] {
        let monitor = MonitorLayer::new();
        let mut cached = answer();
        cached.extensions_mut().insert(served);
        call(&monitor, request(), Ok(cached)).await;
        let stats = stats(&monitor);
        assert_eq!(
            (stats.cache_hits, stats.cache_followers, stats.cache_misses),
            (hits, followers, 0)
        );
        assert_eq!((stats.tokens.input, stats.cost.as_nanos()), (0, 0));
        assert_eq!(
            (stats.saved_tokens.input, stats.saved_cost.as_nanos()),
            (9, COST)
        );
        assert_eq!((stats.hit_ratio(), stats.unpriced_calls), (Some(1.0), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn counting_tokens_costs_nothing() {
    let monitor = MonitorLayer::new();
    let count = Call::builder(Provider::ANTHROPIC, Operation::COUNT_TOKENS).model("claude-opus-5");
    call(
        &monitor,
        of(count.build()),
        Ok(json(200, r#"{"input_tokens":2095}"#)),
    )
    .await;
    let stats = stats(&monitor);
    assert_counts(&stats.outcomes, &[("success", 1)]);
    assert_eq!((stats.tokens.input, stats.unpriced_calls), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_users_prices_replace_those_that_ship() {
    let price = tower_llm_monitor::Price::per_million(1_000.0, 0.0).unwrap();
    let prices = PriceTable::default().set(MODEL, price);
    let monitor = MonitorLayer::builder().prices(prices).build().unwrap();
    call(&monitor, request(), Ok(answer())).await;
    assert_eq!(stats(&monitor).cost.to_string(), "$0.009000000");
    assert_eq!(snapshot(&monitor).prices_as_of, "2026-11-29");
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_is_json_with_units_in_its_names() {
    let monitor = MonitorLayer::new();
    monitor.handle().set_gauge("memory_ratio", 0.25);
    call_after(&monitor, request(), SECOND, Ok(answer())).await;
    let json = serde_json::to_value(snapshot(&monitor)).unwrap();
    let row = &json["rows"][0];
    assert_eq!(
        (&row["provider"], &row["model"]),
        (&"openai".into(), &MODEL.into())
    );
    let stats = &row["since_start"];
    assert_eq!(stats["outcomes"], serde_json::json!({"success": 1}));
    assert_eq!(stats["latency"]["max"], 1.0);
    assert_eq!(stats["cost_usd"], 0.000_008_25);
    assert_eq!(json["gauges"]["memory_ratio"], 0.25);
    assert_eq!(json["total"]["in_flight"], 0);
    assert_eq!(json["uptime_seconds"], 1.0);
}
