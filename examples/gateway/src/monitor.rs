//! A layer that counts and logs, and an example of a layer that watches calls to their end.
//!
//! It stands where the [`Call`] is known and a refusal is still an error, so it sees what the inner layers refuse as well as
//! what they let through.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};
use tower_llm_stack::{
    BoxError, BreakerHandle, BulkheadHandle, CacheHandle, Call, Completion, Described, Failure,
    Guard, HttpBody, Operation, Outcome, Provider, RateLimitHandle,
    cache::CacheStats,
    core::{Armed, Bill, Guarded, Watched},
};

use crate::{
    admin::unit,
    breaker::{Breakers, Circuits, SCOPES, STATES},
    limits::Limiters,
    report::Report,
    sharing::Sharing,
    targets::Healths,
};

const CALLS: &str = "llm_calls_total";
const TOKENS: &str = "llm_tokens_total";
const FIRST_TOKEN: &str = "llm_time_to_first_token_seconds";
const DURATION: &str = "llm_call_duration_seconds";
const IN_FLIGHT: &str = "bulkhead_in_flight";
const WAITING: &str = "bulkhead_waiting";
const LIMIT: &str = "bulkhead_limit";
const REFUSED: &str = "bulkhead_refused_total";
const CACHE_CALLS: &str = "cache_calls_total";
const CACHE_BYPASSED: &str = "cache_bypassed_total";
const CACHE_STORED: &str = "cache_stored_total";
const CACHE_EVICTED: &str = "cache_evicted_total";
const CACHE_SHARED: &str = "cache_shared_total";
const CACHE_RENEWED: &str = "cache_renewed_total";
const CACHE_SECONDS: &str = "cache_seconds";
const CACHE_ENTRIES: &str = "cache_entries";
const CACHE_BYTES: &str = "cache_bytes";
const CACHE_SUSPENDED: &str = "cache_memory_suspended";
const CIRCUITS: &str = "breaker_circuits";
const CIRCUITS_REFUSED: &str = "breaker_refused_total";
const LIMIT_ADMITTED: &str = "ratelimit_admitted_total";
const LIMIT_REFUSED: &str = "ratelimit_refused_total";
const LIMIT_WAITING: &str = "ratelimit_waiting";
const LIMIT_CONSUMED: &str = "ratelimit_consumed";
const LIMIT_OVERRUN: &str = "ratelimit_overrun_total";
const LIMIT_REFUNDED: &str = "ratelimit_refunded_total";
const LIMIT_VIOLATIONS: &str = "ratelimit_violations_total";
const LIMIT_WITHOUT_REDIS: &str = "ratelimit_without_redis_total";
const LIMIT_UNSETTLED: &str = "ratelimit_unsettled_total";
const TARGET_UP: &str = "target_up";
const REDIS_UP: &str = "redis_up";
const REDIS_FAILURES: &str = "redis_failures_total";
const REDIS_OUTAGES: &str = "redis_outages_total";

const FIRST_TOKEN_SECONDS: [f64; 12] = [
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
const DURATION_SECONDS: [f64; 14] = [
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

static PROVIDERS: [Provider; 4] = [
    Provider::OPENAI,
    Provider::AZURE_OPENAI,
    Provider::ANTHROPIC,
    Provider::GEMINI,
];
static OPERATIONS: [Operation; 5] = [
    Operation::CHAT,
    Operation::TEXT_COMPLETION,
    Operation::GENERATE_CONTENT,
    Operation::EMBEDDINGS,
    Operation::COUNT_TOKENS,
];

/// Where everything is counted; shared by its clones.
#[derive(Clone)]
pub(crate) struct Metrics {
    // Of this gateway, not the process's: two of them in one test must not count together.
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

/// Counts calls, tokens and times by provider.
#[derive(Clone)]
pub(crate) struct MonitorLayer {
    metrics: Metrics,
}

/// The service of [`MonitorLayer`].
#[derive(Clone)]
pub(crate) struct Monitor<S> {
    inner: S,
    metrics: Metrics,
}

/// One call, from when it was received to when its body has ended.
pub(crate) struct Watching {
    metrics: Metrics,
    provider: &'static str,
    operation: &'static str,
    since: Instant,
    report: Report,
    /// `None` if they are counted when the call has ended that goes on without its caller.
    tokens: Option<Tokens>,
}

/// Counts the tokens of one call.
struct Tokens {
    metrics: Metrics,
    provider: &'static str,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(FIRST_TOKEN.to_owned()), &FIRST_TOKEN_SECONDS)
            .and_then(|builder| {
                let duration = Matcher::Full(DURATION.to_owned());
                builder.set_buckets_for_metric(duration, &DURATION_SECONDS)
            })
            .expect("there are buckets")
            .build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe_counter!(CALLS, "Calls that have ended, by outcome.");
            describe_counter!(TOKENS, "Tokens that the providers reported.");
            describe_histogram!(
                FIRST_TOKEN,
                "Time from the request to the first content token of a stream."
            );
            describe_histogram!(
                DURATION,
                "Time from the request to the end of the response body."
            );
            describe_gauge!(IN_FLIGHT, "Permits in use.");
            describe_gauge!(WAITING, "Calls that wait for a permit.");
            describe_gauge!(LIMIT, "Permits in all.");
            describe_counter!(REFUSED, "Calls refused because no permit was free.");
            describe_counter!(
                CACHE_CALLS,
                "Cacheable calls, by where their answer came from."
            );
            describe_counter!(CACHE_BYPASSED, "Calls that were not looked up, by reason.");
            describe_counter!(CACHE_STORED, "Answers stored.");
            describe_counter!(CACHE_EVICTED, "Answers evicted to make room.");
            describe_counter!(CACHE_SHARED, "Answers in Redis, by what became of them.");
            describe_counter!(
                CACHE_RENEWED,
                "Calls for a new answer, ahead of or after the old one's time."
            );
            describe_gauge!(
                CACHE_SECONDS,
                "Time to the response headers since the start, by result and quantile."
            );
            describe_gauge!(CACHE_ENTRIES, "Answers held.");
            describe_gauge!(CACHE_BYTES, "Size of all answers held.");
            describe_gauge!(
                CACHE_SUSPENDED,
                "1 while the memory is out of use: Redis answers, but the gateway hears of no removals."
            );
            describe_gauge!(CIRCUITS, "Circuits by scope and state.");
            describe_counter!(
                CIRCUITS_REFUSED,
                "Calls refused because a circuit was open."
            );
            describe_counter!(LIMIT_ADMITTED, "Calls admitted by a limit.");
            describe_counter!(
                LIMIT_REFUSED,
                "Calls refused because they were over a limit."
            );
            describe_gauge!(LIMIT_WAITING, "Calls that wait for a limit.");
            describe_gauge!(
                LIMIT_CONSUMED,
                "Requests or tokens used since the start, plus those reserved now."
            );
            describe_counter!(
                LIMIT_OVERRUN,
                "Requests or tokens used beyond what was reserved."
            );
            describe_counter!(LIMIT_REFUNDED, "Requests or tokens reserved and not used.");
            describe_counter!(LIMIT_VIOLATIONS, "Calls whose usage exceeded a limit.");
            describe_counter!(
                LIMIT_WITHOUT_REDIS,
                "Calls that this gateway's part of a limit decided, because Redis was unavailable."
            );
            describe_counter!(
                LIMIT_UNSETTLED,
                "Calls whose usage did not reach Redis, or may not have reached it."
            );
            describe_gauge!(
                TARGET_UP,
                "Whether a target with a health check takes calls: 1 or 0."
            );
            describe_gauge!(REDIS_UP, "Whether Redis is up: 1 or 0.");
            describe_counter!(REDIS_FAILURES, "Commands that Redis did not serve.");
            describe_counter!(REDIS_OUTAGES, "How often Redis became unavailable.");
        });
        Self {
            handle: recorder.handle(),
            recorder: Arc::new(recorder),
        }
    }

    /// Everything, in Prometheus' text format, with the state of the layers as of now.
    pub(crate) fn render(
        &self,
        bulkhead: &BulkheadHandle,
        limiters: &Limiters,
        cache: Option<&CacheHandle>,
        breakers: &Breakers,
        health: &Healths,
        sharing: Option<&Sharing>,
    ) -> String {
        for stats in bulkhead.stats() {
            let name = stats.key.map(|key| key.to_string());
            let targets = breakers.iter().map(|(name, _)| *name);
            let provider = known(targets, name.as_deref());
            metrics::with_local_recorder(&*self.recorder, || {
                gauge!(IN_FLIGHT, "provider" => provider).set(gauged(stats.in_flight as u64));
                gauge!(WAITING, "provider" => provider).set(gauged(stats.waiting as u64));
                gauge!(LIMIT, "provider" => provider).set(gauged(stats.limit as u64));
                counter!(REFUSED, "provider" => provider).absolute(stats.refused);
            });
        }
        for (provider, handle) in &limiters.providers {
            self.note_limits(provider, handle);
        }
        if let Some(handle) = &limiters.callers {
            self.note_limits("caller", handle);
        }
        if let Some(handle) = cache {
            self.note_cache(&handle.stats());
        }
        for (provider, handle) in breakers {
            self.note_circuits(provider, handle);
        }
        metrics::with_local_recorder(&*self.recorder, || {
            for (target, health) in health {
                let up = f64::from(u8::from(health.is_up()));
                gauge!(TARGET_UP, "provider" => *target).set(up);
            }
        });
        if let Some(sharing) = sharing {
            self.note_sharing(sharing, limiters);
        }
        self.handle.render()
    }

    fn note_limits(&self, of: &'static str, handle: &RateLimitHandle) {
        for stats in handle.stats() {
            let unit = unit(stats.limit.unit());
            let period = match stats.limit.period().as_secs() {
                60 => "minute",
                _ => "hour",
            };
            let labels = [("of", of), ("unit", unit), ("period", period)];
            metrics::with_local_recorder(&*self.recorder, || {
                counter!(LIMIT_ADMITTED, &labels).absolute(stats.admitted);
                counter!(LIMIT_REFUSED, &labels).absolute(stats.refused);
                gauge!(LIMIT_WAITING, &labels).set(gauged(stats.waiting as u64));
                gauge!(LIMIT_CONSUMED, &labels).set(gauged(stats.consumed));
                counter!(LIMIT_OVERRUN, &labels).absolute(stats.overrun);
                counter!(LIMIT_REFUNDED, &labels).absolute(stats.refunded);
                counter!(LIMIT_VIOLATIONS, &labels).absolute(stats.violations);
            });
        }
    }

    fn note_cache(&self, stats: &CacheStats) {
        metrics::with_local_recorder(&*self.recorder, || {
            counter!(CACHE_CALLS, "result" => "hit").absolute(stats.hits);
            counter!(CACHE_CALLS, "result" => "miss").absolute(stats.misses);
            counter!(CACHE_CALLS, "result" => "collapsed").absolute(stats.collapsed);
            for (reason, calls) in stats.bypassed() {
                counter!(CACHE_BYPASSED, "reason" => reason.as_str()).absolute(calls);
            }
            counter!(CACHE_STORED).absolute(stats.stored);
            counter!(CACHE_EVICTED).absolute(stats.evicted);
            for (result, answers) in [
                ("hit", stats.shared_hits),
                ("stored", stats.shared_stored),
                ("not_stored", stats.shared_not_stored),
                ("failed", stats.shared_failures),
                ("unreadable", stats.shared_unreadable),
            ] {
                counter!(CACHE_SHARED, "result" => result).absolute(answers);
            }
            counter!(CACHE_RENEWED, "when" => "ahead").absolute(stats.refreshes);
            counter!(CACHE_RENEWED, "when" => "stale").absolute(stats.revalidations);
            for (result, latency) in [("hit", stats.hit_latency), ("miss", stats.miss_latency)] {
                for (quantile, time) in [("0.5", latency.p50), ("0.99", latency.p99)] {
                    let labels = [("result", result), ("quantile", quantile)];
                    gauge!(CACHE_SECONDS, &labels).set(time.as_secs_f64());
                }
            }
            gauge!(CACHE_ENTRIES).set(gauged(stats.entries));
            gauge!(CACHE_BYTES).set(gauged(stats.bytes));
            gauge!(CACHE_SUSPENDED).set(f64::from(u8::from(stats.memory_suspended)));
        });
    }

    fn note_circuits(&self, provider: &'static str, handle: &BreakerHandle) {
        let stats = handle.stats();
        for (scope, of) in SCOPES {
            let circuits = Circuits::of(&stats, scope);
            metrics::with_local_recorder(&*self.recorder, || {
                for ((_, state), number) in STATES.iter().zip(circuits.in_state) {
                    let labels = [("provider", provider), ("of", of), ("state", *state)];
                    gauge!(CIRCUITS, &labels).set(gauged(number));
                }
                let labels = [("provider", provider), ("of", of)];
                counter!(CIRCUITS_REFUSED, &labels).absolute(circuits.refused);
            });
        }
    }

    fn note_sharing(&self, sharing: &Sharing, limiters: &Limiters) {
        let health = sharing.health();
        metrics::with_local_recorder(&*self.recorder, || {
            gauge!(REDIS_UP).set(f64::from(u8::from(health.up)));
            counter!(REDIS_FAILURES).absolute(health.failures);
            counter!(REDIS_OUTAGES).absolute(health.outages);
        });
        let providers = limiters
            .providers
            .iter()
            .map(|(provider, handle)| (*provider, handle));
        let callers = limiters.callers.iter().map(|handle| ("caller", handle));
        for (of, handle) in providers.chain(callers) {
            metrics::with_local_recorder(&*self.recorder, || {
                counter!(LIMIT_WITHOUT_REDIS, "of" => of).absolute(handle.decided_without_store());
                counter!(LIMIT_UNSETTLED, "of" => of).absolute(handle.unsettled());
            });
        }
    }

    /// Folds the recent samples of the histograms, which would otherwise grow until the next scrape.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn watching(&self, call: Option<&Call>, report: Report) -> Watching {
        let provider = call.map(|call| call.provider().as_str());
        let operation = call.map(|call| call.operation().as_str());
        let provider = known(PROVIDERS.iter().map(Provider::as_str), provider);
        Watching {
            metrics: self.clone(),
            tokens: Some(Tokens {
                metrics: self.clone(),
                provider,
            }),
            provider,
            operation: known(OPERATIONS.iter().map(Operation::as_str), operation),
            since: call.map_or_else(Instant::now, Call::received_at),
            report,
        }
    }
}

// === impl MonitorLayer ===

impl MonitorLayer {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for MonitorLayer {
    type Service = Monitor<S>;

    fn layer(&self, inner: S) -> Monitor<S> {
        let metrics = self.metrics.clone();
        Monitor { inner, metrics }
    }
}

// === impl Monitor ===

impl<S, A, B> Service<Request<A>> for Monitor<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes>,
{
    type Response = Response<Watched<B, Watching>>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let call = request.call().map(Cow::into_owned);
        let report = Report::new(&request, call.as_ref());
        let mut armed = Armed::new(self.metrics.watching(call.as_ref(), report.clone()));
        let inner = armed.enter(|| self.inner.call(request));
        let inner = Guarded::new(inner, HttpBody, call, armed);
        ResponseFuture { inner, report }
    }
}

pin_project! {
    /// A call, up to its response.
    pub(crate) struct ResponseFuture<F> {
        #[pin]
        inner: Guarded<F, HttpBody, Watching>,
        report: Report,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes>,
{
    type Output = Result<Response<Watched<B, Watching>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Err(error) = &result {
            this.report.error(&**error);
        }
        Poll::Ready(result)
    }
}

// === impl Watching ===

impl Guard for Watching {
    fn first_token(&mut self, at: Instant) {
        let seconds = at.saturating_duration_since(self.since).as_secs_f64();
        metrics::with_local_recorder(&*self.metrics.recorder, || {
            histogram!(FIRST_TOKEN, "provider" => self.provider).record(seconds);
        });
    }

    fn outlived(&mut self, bill: &Bill) {
        if let Some(tokens) = self.tokens.take() {
            bill.settle_later(Box::new(tokens));
        }
    }

    fn end(&mut self, completion: &Completion) {
        // A call without a response ended with an error, which tells more.
        if completion.status.is_some() {
            self.report.end(completion);
        }
        let provider = self.provider;
        let ended_at = completion.ended_at.unwrap_or_else(Instant::now);
        let seconds = ended_at.saturating_duration_since(self.since).as_secs_f64();
        metrics::with_local_recorder(&*self.metrics.recorder, || {
            let outcome = label(completion.outcome);
            counter!(CALLS, "provider" => provider, "operation" => self.operation, "outcome" => outcome)
                .increment(1);
            histogram!(DURATION, "provider" => provider).record(seconds);
        });
        if let Some(tokens) = self.tokens.take() {
            tokens.count(completion);
        }
    }
}

// === impl Tokens ===

impl Tokens {
    fn count(&self, completion: &Completion) {
        // The tokens of a cached answer were counted when it was made.
        let usage = completion.usage.filter(|_| completion.served.is_none());
        metrics::with_local_recorder(&*self.metrics.recorder, || {
            for usage in usage.into_iter().chain(completion.extra_usage) {
                for (direction, tokens) in [("input", usage.input), ("output", usage.output)] {
                    counter!(TOKENS, "provider" => self.provider, "direction" => direction)
                        .increment(tokens);
                }
            }
        });
    }
}

impl Guard for Tokens {
    fn end(&mut self, completion: &Completion) {
        self.count(completion);
    }
}

/// The name as one of those that are known: labels are a closed set, whatever a caller sends.
fn known(names: impl Iterator<Item = &'static str>, name: Option<&str>) -> &'static str {
    let mut names = names;
    names.find(|known| Some(*known) == name).unwrap_or("other")
}

pub(crate) fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Throttled { .. } => "throttled",
        Outcome::Exhausted => "exhausted",
        Outcome::Overloaded { .. } => "overloaded",
        Outcome::Failed(Failure::Status) => "failed_status",
        Outcome::Failed(Failure::Transport) => "failed_transport",
        Outcome::Failed(Failure::InBand) => "failed_in_band",
        Outcome::Failed(Failure::Truncated) => "failed_truncated",
        Outcome::Failed(Failure::Stalled) => "failed_stalled",
        Outcome::Failed(Failure::Timeout) => "failed_timeout",
        Outcome::Failed(Failure::Slow) => "failed_slow",
        Outcome::Failed(_) => "failed",
        Outcome::ClientError => "client_error",
        Outcome::Refused => "refused",
        Outcome::Abandoned => "abandoned",
        Outcome::Superseded => "superseded",
        _ => "other",
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; no gateway has 2^52 calls or tokens"
)]
fn gauged(count: u64) -> f64 {
    count as f64
}
