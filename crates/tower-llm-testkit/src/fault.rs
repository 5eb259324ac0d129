//! What can go wrong with an answer.

/// What the provider does instead of a good answer.
///
/// Errors come in the dialect of the request's path, with the status and the headers that provider
/// sends. Events are those of the stream without keep-alives. A fault "after" so many events always
/// strikes before the event that ends the stream, so that `usize::MAX` loses just the end. A body that
/// is not streamed is one event: half of it goes out before the fault, nothing if the number is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// 429 for the rate, with the time to wait, if any, told as this provider does.
    Throttled(RetryAfter),
    /// 429 for money: OpenAI's `insufficient_quota`, Anthropic's spend limit, Gemini's daily quota.
    QuotaExhausted,
    /// No capacity: Anthropic's 529, elsewhere 503.
    Overloaded,
    /// An error of this status, with the type and code the dialect has for it.
    Status(u16),
    /// A TCP reset in place of a response head.
    ResetBeforeHead,
    /// A TCP reset after so many events (over HTTP/2 a stream reset).
    ResetAfter(usize),
    /// A clean end of the body after so many events, without the event that ends the stream.
    CutAfter(usize),
    /// An error inside the stream after so many events, which then ends. A body that is not
    /// streamed is the error alone, with status 200.
    ErrorAfter(usize, InBand),
    /// The same as `ErrorAfter`, except that Responses streams say it with `response.failed` in
    /// place of `error`.
    FailedAfter(usize, InBand),
    /// No response head, ever.
    NoAnswer,
    /// Nothing more after so many events, on an open connection.
    StallAfter(usize),
}

/// How a 429 tells the time to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAfter {
    /// Whole seconds, in `retry-after`; Gemini tells them in the body.
    Seconds(u64),
    /// Milliseconds, in `retry-after-ms` alone; Gemini tells them in the body.
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
