//! Decision records: one for each call, written by a task of its own.
//!
//! A call puts what is known of it at its end into a bounded queue, which never waits: if it is full, the record is dropped and
//! counted. A [`Recorder`] takes records out in batches, of a hundred or of a second, and hands them to a [`Sink`].

mod json_lines;
mod queue;
mod recorder;

use std::{future::Future, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::Instant;
use tower_llm_core::{Attempt, BoxError, Call, Caller, Completion, FinishReason, Served};

pub(crate) use self::queue::{Begun, Queue};
pub use self::{json_lines::JsonLines, recorder::Recorder};
use crate::{Tokens, Usd, kinds::OUTCOMES, times::seconds, used::Used};

/// What became of one call. It holds nothing of what was asked or answered.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// The request's id, or a number that no other record has.
    pub id: Box<str>,
    /// When the call ended, in milliseconds since 1970.
    pub ended_unix_ms: u64,
    /// The caller.
    pub caller: Option<Box<str>>,
    /// The account at the provider, if the request names one.
    pub account: Option<Box<str>>,
    /// The provider.
    pub provider: Box<str>,
    /// The operation.
    pub operation: Box<str>,
    /// The model, as the request names it.
    pub model: Option<Box<str>>,
    /// Whether the request asks for a stream.
    pub streamed: bool,
    /// How it ended, as in [`Stats::outcomes`](crate::Stats::outcomes).
    pub outcome: &'static str,
    /// The layer that refused it.
    pub refused_by: Option<&'static str>,
    /// The response's HTTP status.
    pub status: Option<u16>,
    /// Why the model stopped.
    pub finish: Option<&'static str>,
    /// `hit` or `follower`, if a cache served it.
    pub cache: Option<&'static str>,
    /// What the provider charges for.
    pub tokens: Tokens,
    /// What a cache saved.
    pub saved_tokens: Tokens,
    /// Whether the tokens are an estimate.
    pub estimated: bool,
    /// What it cost; `None` if that is not known.
    #[serde(rename = "cost_usd")]
    pub cost: Option<Usd>,
    /// Time from the call to its end, or until its caller left.
    #[serde(rename = "latency_seconds", serialize_with = "seconds")]
    pub latency: Duration,
    /// Time from the call to the first content token of a stream.
    #[serde(rename = "first_token_seconds", serialize_with = "optional_seconds")]
    pub first_token: Option<Duration>,
    /// Size of the request body, if it was known before it was sent.
    pub request_bytes: Option<u64>,
    /// Size of what has passed of the response body.
    pub response_bytes: u64,
    /// The branches of a call that a fan-out has answered, in the order in which they started; none if it made only one, or all
    /// failed.
    pub attempts: Vec<AttemptRecord>,
}

/// What became of one branch of a call.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AttemptRecord {
    /// Where it went, if that has a name.
    pub target: Option<Box<str>>,
    /// Time from the call to its start.
    #[serde(rename = "started_seconds", serialize_with = "seconds")]
    pub started: Duration,
    /// Time from the call until it answered, or was given up; `None` if it was in flight when the call was answered.
    #[serde(rename = "ended_seconds", serialize_with = "optional_seconds")]
    pub ended: Option<Duration>,
    /// How it ended by then, as in [`Stats::outcomes`](crate::Stats::outcomes).
    pub outcome: Option<&'static str>,
    /// What it had used by then, as far as is known.
    pub tokens: Option<Tokens>,
}

/// Where records are written.
pub trait Sink: Send {
    /// Writes a batch of at most a hundred records, whole or not at all.
    ///
    /// After an error the same batch is written again a second later, until that succeeds; meanwhile records queue, and are
    /// dropped when the queue is full.
    ///
    /// # Errors
    ///
    /// The reason, which is logged (feature `tracing`).
    fn write(&mut self, batch: &[Record]) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// What became of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecordStats {
    /// Records that wait to be written.
    pub queued: u64,
    /// Records that were written.
    pub written: u64,
    /// Records that were dropped: the queue was full, or the sink failed when the recorder was stopped.
    pub dropped: u64,
    /// Writes that failed.
    pub failed_writes: u64,
}

/// A call that has ended, as it waits to be written.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) completion: Completion,
    pub(crate) used: Used,
    pub(crate) at: Instant,
    pub(crate) latency: Duration,
    pub(crate) first_token: Option<Duration>,
    pub(crate) attempts: Option<Arc<[Attempt]>>,
}

impl Ended {
    /// The record, if the call ended at `ended_unix_ms`.
    fn into_record(self, id: Box<str>, call: Option<&Call>, ended_unix_ms: u64) -> Record {
        let Self {
            completion, used, ..
        } = self;
        let owned = |name: Option<&str>| name.map(Box::from);
        Record {
            id,
            ended_unix_ms,
            caller: owned(call.and_then(Call::caller).map(Caller::as_str)),
            account: owned(call.and_then(Call::account)),
            provider: call
                .map_or("_OTHER", |call| call.provider().as_str())
                .into(),
            operation: call
                .map_or("_OTHER", |call| call.operation().as_str())
                .into(),
            model: owned(call.and_then(Call::model)),
            streamed: call.is_some_and(Call::streamed),
            outcome: OUTCOMES[crate::kinds::outcome(completion.outcome)],
            refused_by: completion.refused_by,
            status: completion.status,
            finish: completion.finish.map(finish),
            cache: completion.served.map(|served| match served {
                Served::Hit => "hit",
                _ => "follower",
            }),
            tokens: Tokens::of(&used.paid),
            saved_tokens: Tokens::of(&used.saved),
            estimated: used.is_estimated,
            cost: used.cost,
            latency: self.latency,
            first_token: self.first_token,
            request_bytes: call.and_then(Call::body_bytes),
            response_bytes: completion.body_bytes,
            attempts: self
                .attempts
                .iter()
                .flat_map(|all| all.iter())
                .map(AttemptRecord::of)
                .collect(),
        }
    }
}

impl AttemptRecord {
    fn of(attempt: &Attempt) -> Self {
        Self {
            target: attempt.target.as_deref().map(Box::from),
            started: attempt.started,
            ended: attempt.ended,
            outcome: attempt
                .outcome
                .map(|outcome| OUTCOMES[crate::kinds::outcome(outcome)]),
            tokens: attempt.usage.as_ref().map(Tokens::of),
        }
    }
}

pub(crate) const fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
        _ => "other",
    }
}

fn optional_seconds<S: serde::Serializer>(
    time: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => to.serialize_some(&time.as_secs_f64()),
        None => to.serialize_none(),
    }
}
