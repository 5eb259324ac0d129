//! How a call has ended, in the words that all layers share.

use std::{error::Error, time::Duration};

use tokio::time::Instant;
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

use crate::{ClassifiedError, Refusal, TimedOut, Usage, error::chain};

/// How a call has ended: the verdict that every layer reads the same way.
///
/// HTTP 200 is not success: errors arrive inside streams, and a stream may break off without one.
///
/// | outcome | breaker | rate limit settles |
/// |---|---|---|
/// | [`Success`](Self::Success) | success | actual usage |
/// | [`Throttled`](Self::Throttled) | not a failure; with a time: open until then | refund tokens, keep the request |
/// | [`Exhausted`](Self::Exhausted) | opens the account, long | refund |
/// | [`Overloaded`](Self::Overloaded) | failure | refund |
/// | [`Failed`](Self::Failed) | failure | what was seen, by policy |
/// | [`ClientError`](Self::ClientError) | neutral | refund tokens, keep the request |
/// | [`Refused`](Self::Refused) | neutral | refund all |
/// | [`Abandoned`](Self::Abandoned) | neutral | what was seen, by policy |
/// | [`Superseded`](Self::Superseded) | neutral | what was seen, by policy |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The terminal marker came, or a response that is not streamed ended with a 2xx.
    Success,
    /// The provider's rate limit: a clock, not a fault.
    Throttled {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// Money or a long quota is used up: `insufficient_quota` and its kin. Retrying soon cannot help.
    Exhausted,
    /// The provider has no capacity.
    Overloaded {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// The provider or the way to it failed.
    Failed(Failure),
    /// The request was at fault: any other 4xx of the provider, in band too, or a request body that failed while it was
    /// sent.
    ClientError,
    /// A layer refused the call before it was sent; see [`Refusal`].
    Refused,
    /// The caller dropped it.
    Abandoned,
    /// A branch that lost a race.
    Superseded,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// A 5xx of the provider.
    Status,
    /// The connection, or anything below HTTP.
    Transport,
    /// An error inside a response that had begun well.
    InBand,
    /// The end came without the terminal marker.
    Truncated,
    /// Nothing came for too long in the middle of a response.
    Stalled,
    /// A deadline passed, and nothing had shown that the provider was at work.
    Timeout,
    /// The deadline for the first content token passed on a stream that showed signs of life: it was slow, not dead.
    Slow,
    /// The service panicked.
    Panic,
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// It was done, or met a stop sequence.
    Stop,
    /// It reached its limit of output tokens.
    Length,
    /// It wants a tool called.
    ToolCalls,
    /// The provider's filter cut it.
    ContentFilter,
    /// A reason that is not known here.
    Other,
}

impl FinishReason {
    /// The reason that a provider's word for it means; `None` if the word says that the model failed.
    pub(crate) fn parse(reason: &[u8]) -> Option<Self> {
        Some(match reason {
            b"stop" | b"end_turn" | b"stop_sequence" | b"STOP" | b"COMPLETE" | b"STOP_SEQUENCE"
            | b"completed" | b"eos" | b"eos_token" => Self::Stop,
            b"length"
            | b"max_tokens"
            | b"MAX_TOKENS"
            | b"max_output_tokens"
            | b"model_length"
            | b"model_context_window_exceeded"
            | b"ERROR_LIMIT" => Self::Length,
            b"tool_calls" | b"function_call" | b"tool_use" | b"TOOL_CALL" => Self::ToolCalls,
            b"content_filter"
            | b"refusal"
            | b"sensitive"
            | b"SAFETY"
            | b"RECITATION"
            | b"BLOCKLIST"
            | b"PROHIBITED_CONTENT"
            | b"SPII"
            | b"content_filtered"
            | b"guardrail_intervened"
            | b"ERROR_TOXIC" => Self::ContentFilter,
            _ if is_failure(reason) => return None,
            _ => Self::Other,
        })
    }
}

/// Whether a finish reason says that the model, or the server it runs on, failed.
fn is_failure(reason: &[u8]) -> bool {
    let has = |part: &[u8]| {
        let mut windows = reason.windows(part.len());
        windows.any(|window| window.eq_ignore_ascii_case(part))
    };
    // `network_error` of Z.ai, `error` of OpenRouter, Together, Mistral and Cohere.
    has(b"error")
        // DeepSeek.
        || has(b"insufficient_system_resource")
        // vLLM and SGLang: the request was aborted on their side.
        || [&b"abort"[..], b"aborted", b"failed", b"timeout"]
            .iter()
            .any(|word| reason.eq_ignore_ascii_case(word))
        || has(b"rate_limit")
        || has(b"overloaded")
}

/// What is known of a call when it has ended.
///
/// Points in time are instants, not durations: each layer counts from its own beginning, which for a layer near
/// the provider is not when the caller came.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// The verdict.
    pub outcome: Outcome,
    /// The usage the provider reported, complete or, if the call broke off, as far as it had come.
    pub usage: Option<Usage>,
    /// Output that was seen passing, as an estimate in tokens (bytes / 4): what a call that broke off has
    /// produced when no usage came.
    pub output_seen: u64,
    /// When the first content token of a stream passed; none for a response that is not streamed.
    pub first_token_at: Option<Instant>,
    /// When it ended; none where no response's body came to its end: [`Unary`](crate::Unary) reads no clock, nor does a
    /// call that failed or was dropped before its head.
    pub ended_at: Option<Instant>,
    /// Why the model stopped, if it said.
    pub finish: Option<FinishReason>,
    /// The response's HTTP status, if there was one.
    pub status: Option<u16>,
    /// What the provider's error is about, if it says so.
    pub subject: Option<Subject>,
}

/// What an error of the provider is about: no more than that should be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// The credential: it is missing, wrong, revoked, or not allowed to do this.
    Credential,
    /// The quota of one model.
    Model,
    /// The account: its money, or a quota over all models.
    Account,
}

impl Completion {
    /// A completion of which nothing but the outcome is known.
    #[must_use]
    pub const fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            usage: None,
            output_seen: 0,
            first_token_at: None,
            ended_at: None,
            finish: None,
            status: None,
            subject: None,
        }
    }

    /// The completion of a call that ended with an error instead of a response.
    ///
    /// The first of the error and its sources that is known decides:
    ///
    /// | error | outcome |
    /// |---|---|
    /// | [`ClassifiedError`] | the one that it states |
    /// | [`TimedOut`], tower's `Elapsed` | `Failed(Timeout)` |
    /// | [`Refusal`], tower's `Overloaded` from its `load_shed` | `Refused`: the call was never sent |
    /// | any other | `Failed(Transport)`: the connection to the provider |
    #[must_use]
    pub fn of_error(error: &(dyn Error + 'static)) -> Self {
        let known = chain(error).find_map(outcome_of);
        Self::new(known.unwrap_or(Outcome::Failed(Failure::Transport)))
    }
}

/// The outcome of an error by its type, without its sources.
fn outcome_of(error: &(dyn Error + 'static)) -> Option<Outcome> {
    if let Some(classified) = error.downcast_ref::<ClassifiedError>() {
        Some(classified.outcome())
    } else if error.is::<TimedOut>() || error.is::<Elapsed>() {
        Some(Outcome::Failed(Failure::Timeout))
    } else if error.is::<Refusal>() || error.is::<Overloaded>() {
        Some(Outcome::Refused)
    } else {
        None
    }
}
