//! What calls add up to.

use std::time::Duration;

use tower_llm_core::{Completion, Outcome, Served, Usage};

use crate::{
    Usd,
    kinds::{self, LAYERS, OUTCOMES},
    times::{Distribution, Sparse, nanos},
    used::{Request, Used},
};

/// Everything that is added up. Each field is a sum, so two of them can be merged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) outcomes: [u64; OUTCOMES.len()],
    pub(crate) refused_by: [u64; LAYERS.len()],
    pub(crate) hits: u64,
    pub(crate) followers: u64,
    pub(crate) misses: u64,
    pub(crate) used: Usage,
    pub(crate) saved: Usage,
    pub(crate) estimated: u64,
    pub(crate) without_usage: u64,
    pub(crate) unpriced: u64,
    pub(crate) cost: Usd,
    pub(crate) saved_cost: Usd,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    /// Output tokens of streams, and how long these took from their first token to their end, in nanos.
    pub(crate) streamed_output: u64,
    pub(crate) streaming: u64,
    /// Attempts, as the layer inside of the fan-out sees them.
    pub(crate) attempts: [u64; OUTCOMES.len()],
    pub(crate) attempted: Usage,
    pub(crate) attempted_cost: Usd,
}

/// What the calls of one thread add up to, until it is read.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) counters: Counters,
    latency: Distribution<u32>,
    // Made by the first stream.
    streams: Option<Box<Streams>>,
}

#[derive(Debug)]
struct Streams {
    first_token: Distribution<u32>,
    between_tokens: Distribution<u32>,
}

/// All calls since the start.
#[derive(Clone, Debug)]
pub(crate) struct Total {
    pub(crate) counters: Counters,
    pub(crate) latency: Distribution<u64>,
    pub(crate) streams: Option<Box<StreamTotal>>,
}

#[derive(Clone, Debug)]
pub(crate) struct StreamTotal {
    pub(crate) first_token: Distribution<u64>,
    pub(crate) between_tokens: Distribution<u64>,
}

/// The calls of some seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    pub(crate) counters: Counters,
    pub(crate) latency: Sparse,
    pub(crate) first_token: Sparse,
    pub(crate) between_tokens: Sparse,
}

// === impl Counters ===

impl Counters {
    pub(crate) fn calls(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    pub(crate) fn attempts(&self) -> u64 {
        self.attempts.iter().sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let add = |to: &mut [u64], from: &[u64]| {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        };
        add(&mut self.outcomes, &other.outcomes);
        add(&mut self.refused_by, &other.refused_by);
        add(&mut self.attempts, &other.attempts);
        self.attempted = self.attempted.plus(&other.attempted);
        self.attempted_cost = self.attempted_cost.plus(other.attempted_cost);
        self.hits += other.hits;
        self.followers += other.followers;
        self.misses += other.misses;
        self.used = self.used.plus(&other.used);
        self.saved = self.saved.plus(&other.saved);
        self.estimated += other.estimated;
        self.without_usage += other.without_usage;
        self.unpriced += other.unpriced;
        self.cost = self.cost.plus(other.cost);
        self.saved_cost = self.saved_cost.plus(other.saved_cost);
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.streamed_output += other.streamed_output;
        self.streaming = self.streaming.saturating_add(other.streaming);
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            counters: Counters::default(),
            latency: Distribution::new(),
            streams: None,
        }
    }

    /// Counts a call that took so long.
    pub(crate) fn end(&mut self, request: &Request, latency: Duration, completion: &Completion) {
        let counters = &mut self.counters;
        counters.outcomes[kinds::outcome(completion.outcome)] += 1;
        counters.request_bytes += request.body_bytes;
        counters.response_bytes += completion.body_bytes;
        if completion.outcome == Outcome::Refused {
            counters.refused_by[kinds::layer(completion.refused_by)] += 1;
            return;
        }
        match completion.served {
            Some(Served::Hit) => counters.hits += 1,
            Some(_) => counters.followers += 1,
            None => counters.misses += 1,
        }
        self.latency.record(latency);
    }

    /// Counts what a call used.
    pub(crate) fn settle(&mut self, used: &Used) {
        let counters = &mut self.counters;
        counters.used = counters.used.plus(&used.paid);
        counters.saved = counters.saved.plus(&used.saved);
        counters.estimated += u64::from(used.is_estimated);
        counters.without_usage += u64::from(used.is_unknown);
        counters.cost = counters.cost.plus(used.cost.unwrap_or_default());
        counters.unpriced += u64::from(used.cost.is_none());
        counters.saved_cost = counters.saved_cost.plus(used.saved_cost);
    }

    /// Counts an attempt.
    pub(crate) fn attempt(&mut self, used: &Used, completion: &Completion) {
        let counters = &mut self.counters;
        counters.attempts[kinds::outcome(completion.outcome)] += 1;
        counters.attempted = counters.attempted.plus(&used.paid);
        let cost = used.cost.unwrap_or_default();
        counters.attempted_cost = counters.attempted_cost.plus(cost);
    }

    /// Counts how a stream went, of which a first token has arrived.
    pub(crate) fn stream(&mut self, first_token: Duration, rest: Duration, output: Option<u64>) {
        let streams = self.streams.get_or_insert_with(|| {
            Box::new(Streams {
                first_token: Distribution::new(),
                between_tokens: Distribution::new(),
            })
        });
        streams.first_token.record(first_token);
        let Some(output) = output else { return };
        self.counters.streamed_output += output;
        let streaming = &mut self.counters.streaming;
        *streaming = streaming.saturating_add(nanos(rest));
        if let Some(gaps) = output.checked_sub(1).filter(|gaps| *gaps > 0) {
            let gap = nanos(rest) / gaps;
            streams.between_tokens.record(Duration::from_nanos(gap));
        }
    }

    /// Moves everything to where it is kept.
    pub(crate) fn drain(&mut self, total: &mut Total, recent: &mut Recent) {
        let counters = std::mem::take(&mut self.counters);
        total.counters.add(&counters);
        recent.counters.add(&counters);
        self.latency.drain(&mut total.latency, &mut recent.latency);
        if let Some(streams) = &mut self.streams {
            let Streams {
                first_token,
                between_tokens,
            } = &mut **streams;
            if first_token.is_empty() {
                return;
            }
            let total = total.streams();
            first_token.drain(&mut total.first_token, &mut recent.first_token);
            between_tokens.drain(&mut total.between_tokens, &mut recent.between_tokens);
        }
    }
}

// === impl Total ===

impl Total {
    pub(crate) fn new() -> Self {
        Self {
            counters: Counters::default(),
            latency: Distribution::new(),
            streams: None,
        }
    }

    fn streams(&mut self) -> &mut StreamTotal {
        self.streams.get_or_insert_with(|| {
            Box::new(StreamTotal {
                first_token: Distribution::new(),
                between_tokens: Distribution::new(),
            })
        })
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        self.latency.merge(&other.latency);
        if let Some(other) = &other.streams {
            let streams = self.streams();
            streams.first_token.merge(&other.first_token);
            streams.between_tokens.merge(&other.between_tokens);
        }
    }
}

// === impl Recent ===

impl Recent {
    pub(crate) fn is_empty(&self) -> bool {
        let Counters { used, saved, .. } = &self.counters;
        let settled = used.plus(saved) != Usage::default();
        self.counters.calls() == 0 && self.counters.attempts() == 0 && !settled
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        self.latency.merge(&other.latency);
        self.first_token.merge(&other.first_token);
        self.between_tokens.merge(&other.between_tokens);
    }
}
