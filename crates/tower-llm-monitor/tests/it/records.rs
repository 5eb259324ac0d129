//! Records: one for each call, in batches, bounded.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::oneshot,
    time::{advance, timeout},
};
use tower_llm_core::{Attempt, BoxError, Outcome, Refusal, RefusalKind, Served, Usage};
use tower_llm_monitor::{MonitorHandle, MonitorLayer, Record, RecordStats, Sink};

use crate::support::{
    COST, MODEL, SECOND, answer, call, call_after, json, request, request_to, snapshot,
};

/// What was written, in batches; it fails while it is told to.
#[derive(Clone, Default)]
struct Written {
    batches: Arc<Mutex<Vec<Vec<Record>>>>,
    fails: Arc<Mutex<usize>>,
}

impl Sink for Written {
    async fn write(&mut self, batch: &[Record]) -> Result<(), BoxError> {
        let mut fails = self.fails.lock().unwrap();
        if *fails > 0 {
            *fails -= 1;
            return Err("away".into());
        }
        self.batches.lock().unwrap().push(batch.to_vec());
        Ok(())
    }
}

impl Written {
    fn sizes(&self) -> Vec<usize> {
        self.batches.lock().unwrap().iter().map(Vec::len).collect()
    }

    fn records(&self) -> Vec<Record> {
        self.batches.lock().unwrap().concat()
    }
}

/// The 29th of November 2026, always.
fn date() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_910_400)
}

fn recorded(capacity: usize) -> MonitorLayer {
    let builder = MonitorLayer::builder().records(capacity);
    builder.record_id_header("x-request-id").build().unwrap()
}

/// Writes what there is.
async fn written(handle: &MonitorHandle) -> Vec<Record> {
    let sink = Written::default();
    handle
        .recorder(sink.clone(), date)
        .unwrap()
        .run(async {})
        .await;
    sink.records()
}

fn stats(monitor: &MonitorLayer) -> RecordStats {
    snapshot(monitor).records.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_record_says_what_became_of_its_call() {
    let monitor = recorded(10);
    let mut named = request();
    named
        .headers_mut()
        .insert("x-request-id", "r-1".parse().unwrap());
    call_after(&monitor, named, SECOND, Ok(answer())).await;
    let refusal = Refusal::new(RefusalKind::RateLimited, "ratelimit");
    call(&monitor, request_to("unheard"), Err(refusal.into())).await;
    let mut hit = answer();
    hit.extensions_mut().insert(Served::Hit);
    call(&monitor, request(), Ok(hit)).await;
    advance(2 * SECOND).await;

    let records = written(&monitor.handle()).await;
    let [answered, refused, cached] = &records[..] else {
        panic!("{records:?}");
    };
    let expected = serde_json::json!({
        "id": "r-1",
        "ended_unix_ms": 1_795_910_398_000_u64,
        "caller": "team",
        "account": null,
        "provider": "openai",
        "operation": "chat",
        "model": MODEL,
        "streamed": false,
        "outcome": "success",
        "refused_by": null,
        "status": 200,
        "finish": "stop",
        "cache": null,
        "tokens": {"input": 9, "output": 3, "cached_input": 0, "cache_write": 0, "reasoning": 0},
        "saved_tokens": {"input": 0, "output": 0, "cached_input": 0, "cache_write": 0, "reasoning": 0},
        "estimated": false,
        "cost_usd": 0.000_008_25,
        "latency_seconds": 1.0,
        "first_token_seconds": null,
        "request_bytes": 100,
        "response_bytes": answered.response_bytes,
        "attempts": [],
    });
    assert_eq!(serde_json::to_value(answered).unwrap(), expected);
    assert_eq!(
        (refused.outcome, refused.refused_by),
        ("refused", Some("ratelimit"))
    );
    // The model as it was asked for, whatever row it is counted in.
    assert_eq!(
        (
            refused.model.as_deref(),
            refused.cost.map(|cost| cost.as_nanos())
        ),
        (Some("unheard"), Some(0))
    );
    assert_eq!(
        (cached.cache, cached.saved_tokens.input, cached.tokens.input),
        (Some("hit"), 9, 0)
    );
    assert_ne!(refused.id, cached.id);
    assert_eq!(refused.id.len(), 32);
    assert_eq!(
        monitor
            .handle()
            .snapshot()
            .total
            .since_start
            .cost
            .as_nanos(),
        COST
    );
}

#[tokio::test(start_paused = true)]
async fn a_record_lists_the_branches_of_its_call() {
    let monitor = recorded(10);
    let mut lost = Attempt::started(Some("a".into()), Duration::ZERO);
    lost.ended = Some(3 * SECOND);
    lost.outcome = Some(Outcome::Superseded);
    lost.usage = Some(Usage::new(5, 2));
    let winner = Attempt::started(Some("b".into()), 2 * SECOND);
    let mut answer = answer();
    let attempts: Arc<[Attempt]> = [lost, winner].into();
    answer.extensions_mut().insert(attempts);
    call(&monitor, request(), Ok(answer)).await;

    let records = written(&monitor.handle()).await;
    let tokens = serde_json::json!({"input": 5, "output": 2, "cached_input": 0, "cache_write": 0, "reasoning": 0});
    let expected = serde_json::json!([
        {"target": "a", "started_seconds": 0.0, "ended_seconds": 3.0, "outcome": "superseded", "tokens": tokens},
        {"target": "b", "started_seconds": 2.0, "ended_seconds": null, "outcome": null, "tokens": null},
    ]);
    assert_eq!(
        serde_json::to_value(&records[0].attempts).unwrap(),
        expected
    );
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_too_long_is_replaced() {
    for (length, is_kept) in [(128, true), (129, false), (0, false)] {
        let monitor = recorded(10);
        let id = "x".repeat(length);
        let mut request = request();
        request
            .headers_mut()
            .insert("x-request-id", id.parse().unwrap());
        call(&monitor, request, Ok(answer())).await;
        assert_eq!(
            *written(&monitor.handle()).await[0].id == *id,
            is_kept,
            "{length}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_a_hundred_records_or_a_second() {
    let monitor = recorded(1_000);
    let sink = Written::default();
    let recorder = monitor.handle().recorder(sink.clone(), date).unwrap();
    let recorder = tokio::spawn(recorder.run(pending()));
    tokio::task::yield_now().await;
    for _ in 0..250 {
        call(&monitor, request(), Ok(answer())).await;
    }
    // Woken by the first hundred, and before the second is over.
    timeout(SECOND / 2, pending::<()>()).await.unwrap_err();
    assert_eq!(sink.sizes(), [100, 100]);
    assert_eq!(stats(&monitor).queued, 50);
    timeout(SECOND, pending::<()>()).await.unwrap_err();
    assert_eq!(sink.sizes(), [100, 100, 50]);
    assert_eq!((stats(&monitor).written, stats(&monitor).dropped), (250, 0));
    recorder.abort();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_and_counts_and_no_call_waits() {
    let monitor = recorded(10);
    for _ in 0..25 {
        call(&monitor, request(), Ok(answer())).await;
    }
    assert_eq!((stats(&monitor).queued, stats(&monitor).dropped), (10, 15));
    assert_eq!(written(&monitor.handle()).await.len(), 10);
    assert_eq!((stats(&monitor).queued, stats(&monitor).written), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_gets_the_same_batch_again_until_it_is_written() {
    let monitor = recorded(10);
    let sink = Written::default();
    *sink.fails.lock().unwrap() = 3;
    let recorder = monitor.handle().recorder(sink.clone(), date).unwrap();
    let recorder = tokio::spawn(recorder.run(pending()));
    call(&monitor, request(), Ok(answer())).await;
    timeout(SECOND * 7 / 2, pending::<()>()).await.unwrap_err();
    assert_eq!((sink.sizes(), stats(&monitor).failed_writes), (vec![], 3));
    // Meanwhile others queue, and are not written before it.
    call(&monitor, request_to("later"), Ok(answer())).await;
    timeout(SECOND * 5, pending::<()>()).await.unwrap_err();
    let models: Vec<_> = sink
        .records()
        .iter()
        .map(|record| record.model.clone().unwrap())
        .collect();
    assert_eq!(models, ["gpt-5-mini".into(), Box::<str>::from("later")]);
    assert_eq!((stats(&monitor).written, stats(&monitor).dropped), (2, 0));
    recorder.abort();
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_is_stopped_writes_all_there_is() {
    let monitor = recorded(1_000);
    let sink = Written::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let recorder = monitor.handle().recorder(sink.clone(), date).unwrap();
    let recorder = tokio::spawn(recorder.run(async {
        let _ = stopped.await;
    }));
    for _ in 0..250 {
        call(&monitor, request(), Ok(json(500, "{}"))).await;
    }
    drop(stop);
    recorder.await.unwrap();
    assert_eq!(sink.records().len(), 250);
    assert_eq!((stats(&monitor).queued, stats(&monitor).written), (0, 250));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_at_the_end_is_counted_as_dropped() {
    let monitor = recorded(1_000);
    for _ in 0..250 {
        call(&monitor, request(), Ok(answer())).await;
    }
    let sink = Written::default();
    *sink.fails.lock().unwrap() = usize::MAX;
    monitor
        .handle()
        .recorder(sink.clone(), date)
        .unwrap()
        .run(async {})
        .await;
    assert_eq!((stats(&monitor).queued, stats(&monitor).dropped), (0, 250));
}

#[tokio::test(start_paused = true)]
async fn without_records_there_is_no_recorder() {
    let monitor = MonitorLayer::new();
    call(&monitor, request(), Ok(answer())).await;
    assert!(
        monitor
            .handle()
            .recorder(Written::default(), date)
            .is_none()
    );
    assert_eq!(snapshot(&monitor).records, None);
}
