//! Faults of an answer.

/// A fault that replaces or interrupts a good answer.
///
/// Errors have the dialect of the request's path, with the status and the headers that the provider
/// sends. Keep-alives do not count as events. A fault after a number of events always comes before the
/// event that ends the stream: `usize::MAX` loses the end alone. A body that is not streamed is one
/// event: half of it is sent before the fault, nothing if the number is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// 429 for the rate, with the time to wait, if any, in this provider's form.
    Throttled(RetryAfter),
    /// 429 for money: OpenAI's `insufficient_quota`, Anthropic's spend limit, Gemini's daily quota.
    QuotaExhausted,
    /// No capacity: Anthropic's 529, elsewhere 503.
    Overloaded,
    /// An error of this status, with the type and code the dialect has for it.
    Status(u16),
    /// A TCP reset instead of response headers.
    ResetBeforeHead,
    /// A TCP reset after this many events (over HTTP/2 a stream reset).
    ResetAfter(usize),
    /// A clean end of the body after this many events, without the event that ends the stream.
    CutAfter(usize),
    /// An error event after this many events, then the end of the stream. A body that is not
    /// streamed is the error alone, with status 200.
    ErrorAfter(usize, InBand),
    /// The same as `ErrorAfter`, except that Responses streams send `response.failed` instead of
    /// `error`.
    FailedAfter(usize, InBand),
    /// No response headers, ever.
    NoAnswer,
    /// Silence after this many events, on an open connection.
    StallAfter(usize),
}

/// How a 429 states the time to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAfter {
    /// Whole seconds in `retry-after`; for Gemini in the body.
    Seconds(u64),
    /// Milliseconds in `retry-after-ms` alone; for Gemini in the body.
    Millis(u64),
    /// Not at all.
    Untold,
}

/// The kind of an error inside a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InBand {
    /// No capacity: Anthropic's `overloaded_error`, OpenAI's `server_is_overloaded`.
    Overloaded,
    /// The rate: `rate_limit_exceeded` and its kin.
    RateLimited,
    /// The provider's own failure.
    ServerError,
}

impl Fault {
    /// The fault that `x-sim-fault: name` asks for; `None` if there is none of that name.
    pub(crate) fn named(name: &str, after: usize) -> Option<Self> {
        Some(match name {
            "429" => Self::Throttled(RetryAfter::Seconds(1)),
            "quota" => Self::QuotaExhausted,
            "overloaded" => Self::Overloaded,
            "reset" => Self::ResetAfter(after),
            "reset-head" => Self::ResetBeforeHead,
            "cut" => Self::CutAfter(after),
            "error" => Self::ErrorAfter(after, InBand::ServerError),
            "error-overloaded" => Self::ErrorAfter(after, InBand::Overloaded),
            "error-429" => Self::ErrorAfter(after, InBand::RateLimited),
            "failed" => Self::FailedAfter(after, InBand::ServerError),
            "silence" => Self::NoAnswer,
            "stall" => Self::StallAfter(after),
            status => Self::Status(
                status
                    .parse()
                    .ok()
                    .filter(|status| (400..=599).contains(status))?,
            ),
        })
    }
}
