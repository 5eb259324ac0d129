//! How a call ended, as all layers see it.

use std::{error::Error, time::Duration};

use tokio::time::Instant;
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

use crate::{
    Billed, ClassifiedError, Refusal, Served, TimedOut, Usage, error::chain, watch::while_dropping,
};

/// How a call ended. Every layer acts on the same verdict.
///
/// A 200 is not yet a success: errors arrive inside streams, and a stream may break off without one.
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
    /// The terminal marker arrived, or a response that is not streamed ended with a 2xx.
    Success,
    /// The provider's rate limit: a time to wait, not a failure.
    Throttled {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// Money or a long-term quota is used up, such as `insufficient_quota`. Retrying soon does not help.
    Exhausted,
    /// The provider has no capacity.
    Overloaded {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// The provider, or the connection to it, failed.
    Failed(Failure),
    /// The request was at fault: any other 4xx of the provider, also inside a stream, or a request body that failed while
    /// it was sent.
    ClientError,
    /// A layer refused the call before it was sent; see [`Refusal`].
    Refused,
    /// The caller dropped the call.
    Abandoned,
    /// The call lost a race against another one.
    Superseded,
}

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// A 5xx of the provider.
    Status,
    /// The connection, or anything below HTTP.
    Transport,
    /// An error inside a response that began as a success.
    InBand,
    /// The stream ended without its terminal marker.
    Truncated,
    /// Nothing arrived for too long in the middle of a response.
    Stalled,
    /// A deadline passed without a sign that the provider was at work.
    Timeout,
    /// The deadline for the first content token passed in a stream that showed signs of life: slow, not dead.
    Slow,
    /// The service panicked.
    Panic,
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// It finished, or reached a stop sequence.
    Stop,
    /// It reached its limit of output tokens.
    Length,
    /// It calls a tool.
    ToolCalls,
    /// The provider's content filter stopped it.
    ContentFilter,
    /// Any other reason.
    Other,
}

impl FinishReason {
    /// Parses a provider's finish reason; `None` if it means that the model failed.
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

/// Whether a finish reason means that the model, or its server, failed.
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

/// What is known about a call when it has ended.
///
/// Times are instants, not durations: each layer measures from when the call reached it, which for inner layers is later
/// than the call's arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// How the call ended.
    pub outcome: Outcome,
    /// The usage that the provider reported; incomplete if the call broke off.
    pub usage: Option<Usage>,
    /// The output that was seen passing, estimated in tokens (bytes / 4). It stands for the usage if a call breaks off
    /// without one.
    pub output_seen: u64,
    /// When the first content token of a stream passed; `None` for a response that is not streamed.
    pub first_token_at: Option<Instant>,
    /// When the response body ended; `None` for a call that failed or was dropped before its response headers, and with
    /// [`Unary`](crate::Unary), which reads no clock.
    pub ended_at: Option<Instant>,
    /// Why the model stopped, if it said. Of several choices, the reason that is least an answer counts; if one of them has
    /// not finished, none that makes the answer look whole.
    pub finish: Option<FinishReason>,
    /// The number of choices, or of Gemini's candidates, that have finished, up to 64; 0 for dialects that have none.
    pub finished_choices: u32,
    /// The response's HTTP status, if there was one.
    pub status: Option<u16>,
    /// What the provider's error concerns, if it says so.
    pub subject: Option<Subject>,
    /// Where the response came from if no call was made for it; its usage is that of the call that was made once.
    pub served: Option<Served>,
    /// The usage of other calls that were made for the response, and that `usage` leaves out: a cache may send a part of a
    /// batch, and then not get the rest. The caller pays for it whatever became of its own call.
    pub extra_usage: Option<Usage>,
    /// The layer that refused the call, such as `bulkhead`; `None` if the call was not refused, or if it was given up while it
    /// waited in a layer.
    pub refused_by: Option<&'static str>,
    /// The size of what has passed of the response body, in bytes; 0 with [`Unary`](crate::Unary).
    pub body_bytes: u64,
}

/// What an error of the provider concerns. A circuit should open for no more than that.
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
    /// Runs `drop`, which drops the future of a call before its response, and returns how that ends the call: as
    /// [`Refused`](Outcome::Refused) if a layer still held it back, and else as [`Abandoned`](Outcome::Abandoned); if it was
    /// shared, with what its caller pays.
    ///
    /// For a layer that drops the call of one caller, or of several, and says itself what they pay.
    pub fn of_drop(drop: impl FnOnce()) -> Self {
        let report = while_dropping(drop);
        let seen = Self::new(match report.is_unsent {
            true => Outcome::Refused,
            false => Outcome::Abandoned,
        });
        match report.bill {
            Some(bill) => bill.of(seen),
            None => seen,
        }
    }

    /// Returns what the call has used, with what else was used for its response: as reported, or else the estimated
    /// `input_tokens` and the output that was seen. A call that another one pays for has used nothing, nor has one that the
    /// provider did not work on; see the table of [`Outcome`].
    #[must_use]
    pub fn used(&self, input_tokens: u64) -> Usage {
        let used = match self.served {
            Some(_) => Usage::default(),
            None => self.used_by_itself(input_tokens),
        };
        used.plus(&self.extra_usage.unwrap_or_default())
    }

    fn used_by_itself(&self, input_tokens: u64) -> Usage {
        let was_at_work = match self.outcome {
            Outcome::Success | Outcome::Abandoned | Outcome::Superseded => true,
            Outcome::Failed(failure) => match self.status {
                Some(status) => (200..300).contains(&status),
                None => failure != Failure::Transport,
            },
            _ => return Usage::default(),
        };
        match self.usage {
            Some(mut usage) => {
                if self.outcome != Outcome::Success {
                    usage.output = usage.output.max(self.output_seen);
                }
                usage
            }
            None if was_at_work => Usage::new(input_tokens, self.output_seen),
            None => Usage::default(),
        }
    }

    /// Creates a completion with nothing but an outcome.
    #[must_use]
    pub const fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            usage: None,
            output_seen: 0,
            first_token_at: None,
            ended_at: None,
            finish: None,
            finished_choices: 0,
            status: None,
            subject: None,
            served: None,
            extra_usage: None,
            refused_by: None,
            body_bytes: 0,
        }
    }

    /// Returns the completion of a call that ended with an error instead of a response.
    ///
    /// The first known error among it and its sources decides:
    ///
    /// | error | outcome |
    /// |---|---|
    /// | [`Billed`], of a call that failed | that of the call |
    /// | [`ClassifiedError`] | the one that it states |
    /// | [`TimedOut`], tower's `Elapsed` | `Failed(Timeout)`; `Refused` if the call [is known](Billed::dropping) not to have been sent |
    /// | [`Refusal`], tower's `Overloaded` from its `load_shed` | `Refused`: the call was never sent |
    /// | any other | `Failed(Transport)`: the connection to the provider |
    #[must_use]
    pub fn of_error(error: &(dyn Error + 'static)) -> Self {
        let billed = Billed::find(error);
        let known = chain(error).find_map(outcome_of);
        // A shared call that was dropped has no outcome of its own; that of the error, if it has one, comes first.
        let known = known.or_else(|| billed.and_then(Billed::outcome));
        let mut seen = Self::new(known.unwrap_or(Outcome::Failed(Failure::Transport)));
        if seen.outcome == Outcome::Refused {
            seen.refused_by = chain(error).find_map(refuser);
        }
        match billed {
            Some(billed) => billed.bill().of(seen),
            None => seen,
        }
    }
}

/// Returns the layer that an error names as the one that refused the call, without its sources.
fn refuser(error: &(dyn Error + 'static)) -> Option<&'static str> {
    match error.downcast_ref::<Refusal>() {
        Some(refusal) => Some(refusal.layer()),
        None => error.is::<Overloaded>().then_some("load_shed"),
    }
}

/// Returns the outcome of an error by its type, without its sources.
fn outcome_of(error: &(dyn Error + 'static)) -> Option<Outcome> {
    if let Some(billed) = error.downcast_ref::<Billed>() {
        let outcome = billed.outcome();
        outcome.filter(|outcome| *outcome != Outcome::Abandoned)
    } else if let Some(classified) = error.downcast_ref::<ClassifiedError>() {
        Some(classified.outcome())
    } else if error.is::<TimedOut>() || error.is::<Elapsed>() {
        Some(Outcome::Failed(Failure::Timeout))
    } else if error.is::<Refusal>() || error.is::<Overloaded>() {
        Some(Outcome::Refused)
    } else {
        None
    }
}
