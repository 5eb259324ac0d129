//! The state of a monitor, as plain data.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap};
use tower_llm_core::Usage;

use crate::{
    Alert, RecordStats, Times, Usd,
    kinds::{LAYERS, OUTCOMES},
    rows::Labels,
    tally::{Counters, Recent, Total},
    times::seconds,
};

/// Everything that a monitor has counted, as of one moment; see [`MonitorHandle::snapshot`](crate::MonitorHandle::snapshot).
///
/// It serializes with serde: times are in seconds, costs in dollars.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Time since the layer was built.
    #[serde(rename = "uptime_seconds", serialize_with = "seconds")]
    pub uptime: Duration,
    /// All calls.
    pub total: Summary,
    /// The calls of each provider, operation and model, in the order in which they were first seen.
    pub rows: Vec<RowSnapshot>,
    /// The date of the prices; see [`PriceTable::as_of`](crate::PriceTable::as_of).
    pub prices_as_of: String,
    /// Numbers of the service's own; see [`MonitorHandle::set_gauge`](crate::MonitorHandle::set_gauge).
    pub gauges: BTreeMap<&'static str, f64>,
    /// What became of the records; `None` if there are none.
    pub records: Option<RecordStats>,
    /// The alerts that are raised, as of the last [check](crate::MonitorHandle::check).
    pub alerts: Vec<Alert>,
}

/// The calls of one provider, operation and model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RowSnapshot {
    /// The provider, or `other`.
    pub provider: Box<str>,
    /// The operation, or `other`.
    pub operation: Box<str>,
    /// The model, or `other`.
    pub model: Box<str>,
    /// What they add up to.
    #[serde(flatten)]
    pub summary: Summary,
}

/// What calls add up to, since the start and lately.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Calls that have begun and not ended.
    pub in_flight: u64,
    /// Calls that have ended since the layer was built.
    pub since_start: Stats,
    /// Calls that have ended within the last minute, or since the reading before if that is longer ago.
    pub recent: Stats,
}

/// What calls that have ended add up to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The time in which they ended.
    #[serde(rename = "over_seconds", serialize_with = "seconds")]
    pub over: Duration,
    /// Calls.
    pub calls: u64,
    /// Calls by outcome.
    pub outcomes: Counts,
    /// Refused calls by the layer that refused them; `waiting` if their caller left, or their time was up, before they cost anything:
    /// in a queue, or while they shared another call.
    pub refused_by: Counts,
    /// Calls answered from a cache's store.
    pub cache_hits: u64,
    /// Calls that joined another one in flight.
    pub cache_followers: u64,
    /// Calls that were sent, or failed on the way: all that were neither refused nor served by a cache.
    pub cache_misses: u64,
    /// Time from the call to the end of its response, of all calls that were not refused.
    pub latency: Times,
    /// Time from the call to the first content token, of streams that no cache served.
    pub first_token: Times,
    /// Mean time between the tokens of each stream that ended well and that no cache served.
    pub between_tokens: Times,
    /// Tokens that providers charge for.
    pub tokens: Tokens,
    /// Tokens of cached answers, which cost nothing.
    pub saved_tokens: Tokens,
    /// Calls whose tokens are estimated, because they ended before the provider reported them.
    pub estimated_calls: u64,
    /// Answers without a report of their use.
    pub calls_without_usage: u64,
    /// What the tokens cost, without those of [`unpriced_calls`](Self::unpriced_calls).
    #[serde(rename = "cost_usd")]
    pub cost: Usd,
    /// What the tokens of cached answers would have cost.
    #[serde(rename = "saved_cost_usd")]
    pub saved_cost: Usd,
    /// Calls whose cost is not known: their model has no price, or their use was not reported.
    pub unpriced_calls: u64,
    /// Size of the request bodies, as far as it was known before they were sent.
    pub request_bytes: u64,
    /// Size of the response bodies.
    pub response_bytes: u64,
    /// Attempts by outcome, which the [attempt layer](crate::MonitorLayer::attempts) counts: of one call there may be several, and each
    /// is counted by the provider and model that it was sent to.
    pub attempts: Counts,
    /// Tokens that providers charge for all attempts.
    pub attempt_tokens: Tokens,
    /// What these cost, as far as it is known.
    #[serde(rename = "attempt_cost_usd")]
    pub attempt_cost: Usd,
    /// Output tokens for each second of a stream after its first token, over all streams that ended well and that no cache served.
    pub tokens_per_second: Option<f64>,
}

/// Tokens; `cached_input` and `cache_write` are parts of `input`, and `reasoning` is a part of `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tokens {
    /// All input.
    pub input: u64,
    /// All output.
    pub output: u64,
    /// Read from the provider's prompt cache.
    pub cached_input: u64,
    /// Written to the provider's prompt cache.
    pub cache_write: u64,
    /// Not seen by the caller.
    pub reasoning: u64,
}

/// Counts by a closed set of labels. In JSON, those that are zero are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    labels: &'static [&'static str],
    counts: Box<[u64]>,
}

// === impl RowSnapshot ===

impl RowSnapshot {
    pub(crate) fn new(labels: &Labels, summary: Summary) -> Self {
        Self {
            provider: (*labels.provider).into(),
            operation: (*labels.operation).into(),
            model: (*labels.model).into(),
            summary,
        }
    }
}

// === impl Stats ===

impl Stats {
    pub(crate) fn of_total(total: &Total, over: Duration) -> Self {
        let streams = total.streams.as_deref();
        let [first_token, between_tokens] = match streams {
            Some(streams) => [streams.first_token.times(), streams.between_tokens.times()],
            None => [Times::default(); 2],
        };
        Self::new(
            &total.counters,
            over,
            [total.latency.times(), first_token, between_tokens],
        )
    }

    pub(crate) fn of_recent(recent: &Recent, over: Duration) -> Self {
        let distributions = [&recent.latency, &recent.first_token, &recent.between_tokens];
        Self::new(
            &recent.counters,
            over,
            distributions.map(|times| times.times()),
        )
    }

    fn new(counters: &Counters, over: Duration, times: [Times; 3]) -> Self {
        let [latency, first_token, between_tokens] = times;
        let streaming = Duration::from_nanos(counters.streaming);
        Self {
            over,
            calls: counters.calls(),
            outcomes: Counts::new(&OUTCOMES, &counters.outcomes),
            refused_by: Counts::new(&LAYERS, &counters.refused_by),
            cache_hits: counters.hits,
            cache_followers: counters.followers,
            cache_misses: counters.misses,
            latency,
            first_token,
            between_tokens,
            tokens: Tokens::of(&counters.used),
            saved_tokens: Tokens::of(&counters.saved),
            estimated_calls: counters.estimated,
            calls_without_usage: counters.without_usage,
            cost: counters.cost,
            saved_cost: counters.saved_cost,
            unpriced_calls: counters.unpriced,
            request_bytes: counters.request_bytes,
            response_bytes: counters.response_bytes,
            attempts: Counts::new(&OUTCOMES, &counters.attempts),
            attempt_tokens: Tokens::of(&counters.attempted),
            attempt_cost: counters.attempted_cost,
            tokens_per_second: ratio(counters.streamed_output as f64, streaming.as_secs_f64()),
        }
    }

    /// The ratio of successes to calls that say something about the provider: neither refused, nor given up by their caller, nor at
    /// fault themselves. `None` if there is no such call.
    #[must_use]
    pub fn success_ratio(&self) -> Option<f64> {
        let neutral = ["client_error", "refused", "abandoned", "superseded"];
        let neutral: u64 = neutral
            .iter()
            .map(|outcome| self.outcomes.of(outcome))
            .sum();
        ratio(
            self.outcomes.of("success") as f64,
            (self.calls - neutral) as f64,
        )
    }

    /// The ratio of calls that a cache served, hits and followers, to all that were not refused.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let served = self.cache_hits + self.cache_followers;
        ratio(served as f64, (served + self.cache_misses) as f64)
    }

    /// The ratio of refused calls to all.
    #[must_use]
    pub fn refused_ratio(&self) -> Option<f64> {
        ratio(self.outcomes.of("refused") as f64, self.calls as f64)
    }

    /// Attempts beyond one for each call: hedges, retries, failovers, candidates. For all calls together: a branch may go to another
    /// row than its call.
    #[must_use]
    pub fn extra_attempts(&self) -> u64 {
        let attempts: u64 = self.attempts.iter().map(|(_, attempts)| attempts).sum();
        let sent = attempts - self.attempts.of("refused");
        sent.saturating_sub(self.cache_misses)
    }

    /// Tokens, input and output, of attempts whose answer no caller got. For all calls together.
    #[must_use]
    pub fn wasted_tokens(&self) -> u64 {
        let all = |tokens: &Tokens| tokens.input + tokens.output;
        all(&self.attempt_tokens).saturating_sub(all(&self.tokens))
    }

    /// What these cost.
    #[must_use]
    pub fn wasted_cost(&self) -> Usd {
        Usd::from_nanos(
            self.attempt_cost
                .as_nanos()
                .saturating_sub(self.cost.as_nanos()),
        )
    }

    /// Calls a second.
    #[must_use]
    pub fn calls_per_second(&self) -> Option<f64> {
        ratio(self.calls as f64, self.over.as_secs_f64())
    }

    /// Input and output tokens a minute.
    #[must_use]
    pub fn tokens_per_minute(&self) -> Option<f64> {
        let tokens = self.tokens.input + self.tokens.output;
        ratio(tokens as f64 * 60.0, self.over.as_secs_f64())
    }

    /// Dollars an hour, of what is known.
    #[must_use]
    pub fn cost_per_hour(&self) -> Option<f64> {
        ratio(self.cost.as_dollars() * 3_600.0, self.over.as_secs_f64())
    }

    /// The ratio of calls whose cost is not known to those that were neither refused nor served by a cache.
    #[must_use]
    pub fn unpriced_ratio(&self) -> Option<f64> {
        ratio(self.unpriced_calls as f64, self.cache_misses as f64)
    }

    /// Dollars for each call that was sent and whose cost is known.
    #[must_use]
    pub fn cost_per_call(&self) -> Option<f64> {
        let priced = self.cache_misses.saturating_sub(self.unpriced_calls);
        ratio(self.cost.as_dollars(), priced as f64)
    }
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

// === impl Tokens ===

impl Tokens {
    pub(crate) const fn of(usage: &Usage) -> Self {
        Self {
            input: usage.input,
            output: usage.output,
            cached_input: usage.cached_input,
            cache_write: usage.cache_write,
            reasoning: usage.reasoning,
        }
    }
}

// === impl Counts ===

impl Counts {
    fn new(labels: &'static [&'static str], counts: &[u64]) -> Self {
        Self {
            labels,
            counts: counts.into(),
        }
    }

    /// The count of one label; 0 for a label that is not in the set.
    #[must_use]
    pub fn of(&self, label: &str) -> u64 {
        self.iter()
            .find(|(known, _)| *known == label)
            .map_or(0, |(_, count)| count)
    }

    /// All labels with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.labels.iter().copied().zip(self.counts.iter().copied())
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (label, count) in self.iter().filter(|(_, count)| *count > 0) {
            map.serialize_entry(label, &count)?;
        }
        map.end()
    }
}
