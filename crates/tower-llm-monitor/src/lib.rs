//! Counts calls to language models: outcomes, latencies, tokens and cost, by provider, operation and model.
//!
//! Generic layers count a call when its response headers arrive. A model's answer has hardly begun then: how it ends, what it
//! uses and what it costs is known at the end of its stream. This layer counts each call there, whether it is answered, refused by
//! an inner layer, served by a cache, cut off or abandoned.
//!
//! - [`MonitorHandle::snapshot`] returns everything as plain data, which serializes with serde: since the start, and of the last
//!   minute.
//! - Outcomes are those of [`Outcome`](tower_llm_core::Outcome), refusals are counted by the layer that refused, and what a cache
//!   served is told from what was paid for.
//! - Latency, time to the first token and time between tokens have percentiles within 0.8 %.
//! - Cost is by a [`PriceTable`]. A call whose cost is not known is counted as such, and not as free.
//! - [`MonitorLayer::attempts`] is a second layer, for inside of a fan-out: it counts attempts, and what the lost ones cost.
//! - [`Alerts`] judge what was counted lately by thresholds, each with a duration and a second bound at which it clears.
//! - A [`Record`] says what became of one call. A [`Recorder`] writes them to a [`Sink`], such as [`JsonLines`].
//!
//! It measures calls, not the process. Memory and the like are the service's to measure; [`MonitorHandle::set_gauge`] puts them into
//! the snapshot and under alerts.
//!
//! # Labels
//!
//! Callers choose what is in a request, so its names are labels only if they are known: the providers and operations that core
//! names, the models of the price table, and those that the builder adds. All others are `other`, and no more than
//! [`max_rows`](MonitorBuilder::max_rows) combinations are counted apart.
//!
//! # Cost, drop and time
//!
//! - A call costs two readings of the clock, a look-up of its row without a lock, and one lock that threads do not share, up to
//!   eight of them. It allocates nothing. The time is the same however many calls were counted, and a frame costs nothing beyond
//!   what reading the response costs.
//! - The guard in `gate` counts a call when its body ends or is dropped. `rows` finds where, `tally` adds up, and `used` decides
//!   what a call has used. `books` is what readings see: totals, and a window in steps of five seconds.
//! - A call whose caller has left, and that a cache reads to its end, is counted as abandoned at once, and its tokens at its end.
//! - Times are measured from when the call reaches this layer. Time is tokio's, which tests can pause.
//! - Memory: see [`max_rows`](MonitorBuilder::max_rows).
//!
//! # Metrics
//!
//! With the feature `metrics`, [`MonitorHandle::publish`] sets these, all of them with the labels `provider`, `operation` and `model`
//! except for the last two. Those that end in `_seconds` are histograms: `_bucket`, `_sum` and `_count`. What is not an integer is
//! published as a gauge, and rises as a counter does.
//!
//! | metric | meaning | label |
//! |---|---|---|
//! | `llm_calls_total` | calls that have ended | `outcome` |
//! | `llm_calls_in_flight` | calls that have begun and not ended | |
//! | `llm_refused_total` | refused calls, by the layer that refused | `layer` |
//! | `llm_cache_calls_total` | calls that were not refused, by where the answer came from | `result` |
//! | `llm_call_duration_seconds` | time to the end of the response | |
//! | `llm_time_to_first_token_seconds` | time to the first content token of a stream | |
//! | `llm_time_between_tokens_seconds` | mean time between the tokens of a stream | |
//! | `llm_tokens_total` | tokens that providers charge for; `cached_input` and others are parts of `input` and `output` | `type` |
//! | `llm_saved_tokens_total` | tokens of cached answers | `type` |
//! | `llm_cost_usd_total` | what the tokens cost | |
//! | `llm_saved_cost_usd_total` | what those of cached answers would have cost | |
//! | `llm_unpriced_calls_total` | calls whose cost is not known | |
//! | `llm_estimated_calls_total` | calls whose tokens are estimated | |
//! | `llm_request_bytes_total` | size of the request bodies | |
//! | `llm_response_bytes_total` | size of the response bodies | |
//! | `llm_attempts_total` | attempts that have ended | `outcome` |
//! | `llm_attempt_tokens_total` | tokens of all attempts | `type` |
//! | `llm_attempt_cost_usd_total` | what those cost | |
//! | `llm_alert_raised` | 1 while the alert is raised | `alert` |
//! | `llm_records_total` | records that were written, or dropped | `result` |
//!
//! Histograms are those of the crate `hdrhistogram`. Its synchronized variant records through a channel, which allocates; a lock of
//! its own for each thread is cheaper, and keeps the counters that belong together consistent.
//!
//! # Example
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_llm_core::{DescribeLayer, RequestBody};
//! use tower_llm_monitor::MonitorLayer;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tower_llm_core::BoxError> {
//! let monitor = MonitorLayer::new();
//! let service = ServiceBuilder::new()
//!     .layer(DescribeLayer::new())
//!     .layer(monitor.clone())
//!     .service(service_fn(async |_: Request<RequestBody>| {
//!         let body = r#"{"choices":[],"usage":{"prompt_tokens":2000,"completion_tokens":300}}"#;
//!         let response = Response::builder().header("content-type", "application/json");
//!         Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
//!     }));
//!
//! let request = Request::post("/v1/chat/completions")
//!     .body(Full::new(Bytes::from(r#"{"model":"gpt-5-mini","messages":[]}"#)))?;
//! service.oneshot(request).await?.into_body().collect().await?;
//!
//! let snapshot = monitor.handle().snapshot();
//! let row = &snapshot.rows[0];
//! assert_eq!((&*row.provider, &*row.operation, &*row.model), ("openai", "chat", "gpt-5-mini"));
//! let stats = &row.summary.since_start;
//! assert_eq!(stats.outcomes.of("success"), 1);
//! assert_eq!(stats.tokens.output, 300);
//! assert_eq!(stats.cost.to_string(), "$0.001100000");
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod alerts;
mod attempt;
mod books;
mod cost;
#[cfg(feature = "metrics")]
mod export;
mod gate;
mod handle;
mod kinds;
mod layer;
mod record;
mod rows;
mod snapshot;
#[cfg(feature = "tracing")]
mod span;
mod tally;
mod times;
mod used;

pub use self::{
    alerts::{Alert, AlertEvent, Alerts, Change, Measure, Side, Subject, Threshold},
    attempt::{AttemptGate, AttemptGuard, AttemptLayer},
    cost::{Price, PriceTable, Usd},
    gate::{Monitor, MonitorGate, MonitorGuard, ResponseFuture},
    handle::MonitorHandle,
    layer::{MonitorBuilder, MonitorLayer},
    record::{AttemptRecord, JsonLines, Record, RecordStats, Recorder, Sink},
    snapshot::{Counts, RowSnapshot, Snapshot, Stats, Summary, Tokens},
    times::Times,
};
