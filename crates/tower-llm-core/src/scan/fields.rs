//! What is read of a response: where each provider puts it, and what was found.
//!
//! One table serves all dialects, so that a stream is understood also where nobody said whose it is. That is
//! possible because the names that collide mean the same, or can be told apart by their neighbours: OpenAI's
//! `input_tokens` includes what was cached and reports the part in `input_tokens_details`, Anthropic's leaves it
//! out and reports it as `cache_read_input_tokens`.

use std::time::Duration;

use super::{
    head::MAX_RETRY_AFTER,
    json::{Sink, StringMode},
};
use crate::{FinishReason, Usage};

/// A place in a response that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The document, or an element of the array that Gemini streams without SSE.
    Root,
    EventType,
    /// A text whose bytes are output; or an object that holds one.
    Text,
    /// A list of things that hold text.
    Texts,
    /// Output that is not text, such as a function call that comes as an object.
    Payload,
    Choices,
    Choice,
    Candidates,
    Candidate,
    Delta,
    ToolCalls,
    ToolCall,
    Finish,
    Blocked,
    Response,
    Message,
    ResponseStatus,
    Incomplete,
    XGroq,
    Error,
    ErrorCode,
    ErrorMessage,
    ErrorType,
    ErrorStatus,
    ErrorDetails,
    ErrorDetail,
    ErrorReason,
    RetryDelay,
    Violations,
    Violation,
    QuotaId,
    RootCode,
    Usage,
    BilledUnits,
    InputDetails,
    OutputDetails,
    Count(Counter),
}

/// A number in a usage object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// All input, cached too.
    TotalInput,
    /// Input beside what the cache counters say.
    PlainInput,
    ToolInput,
    CacheRead,
    CacheWrite,
    CachedPart,
    CacheWritePart,
    Output,
    /// Output beside the thoughts.
    Candidates,
    Thoughts,
    ReasoningPart,
    BilledInput,
    BilledOutput,
}

const COUNTERS: usize = Counter::BilledOutput as usize + 1;

/// The terminal marker and other signs that a dialect gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// `data: [DONE]`.
    Done,
    /// OpenAI responses' `response.completed` or `response.incomplete`, Anthropic's `message_stop`, Cohere's
    /// `message-end`, Gemini's finish reason.
    Event,
}

/// The dialect of a stream, as its first events show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Chat and legacy completions, which end with `[DONE]`.
    Choices,
    /// Streams that end with an event of their own.
    Events,
}

/// What was found in a response so far.
#[derive(Debug, Default)]
pub(super) struct Facts {
    counters: [Option<u64>; COUNTERS],
    text_bytes: i64,
    /// The dialect is known from the request.
    is_known: bool,
    pub(super) has_output: bool,
    pub(super) finish: Option<FinishReason>,
    pub(super) speaks: Option<Speaks>,
    pub(super) terminal: Option<Marker>,
    pub(super) error: Option<InBand>,
}

/// What an error body or an error inside a stream says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InBand {
    pub(super) kind: ErrorKind,
    pub(super) retry_after: Option<Duration>,
}

/// What an error code, type or status stands for. Ordered: what is decided later in the list wins when a body
/// says several things, because money is named besides a general `rate_limit_error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ErrorKind {
    /// Nothing that is known here.
    #[default]
    Unknown,
    /// The caller's fault, inside a response that had begun well.
    ClientError,
    Throttled,
    Overloaded,
    Exhausted,
}

impl ErrorKind {
    /// By code, then type, then status; never by the message, which may change.
    pub(super) fn parse(code: &[u8]) -> Self {
        match code {
            b"insufficient_quota"
            | b"credit_balance_exhausted"
            | b"organization_spend_limit_exceeded"
            | b"project_spend_limit_exceeded"
            | b"organization_usage_limit_exceeded"
            | b"enforced_spend_limit_reached"
            | b"billing_hard_limit_reached"
            | b"billing_not_active"
            | b"billing_error"
            | b"quota_exceeded"
            | b"402"
            | b"ServiceQuotaExceededException"
            | b"serviceQuotaExceededException" => Self::Exhausted,
            b"overloaded_error"
            | b"server_is_overloaded"
            | b"service_unavailable_error"
            | b"resource_unavailable"
            | b"MODEL_CAPACITY_EXHAUSTED"
            | b"UNAVAILABLE"
            | b"503"
            | b"529"
            | b"ServiceUnavailableException"
            | b"serviceUnavailableException" => Self::Overloaded,
            b"rate_limit_exceeded"
            | b"rate_limit_error"
            | b"slow_down"
            | b"too_many_requests"
            | b"RESOURCE_EXHAUSTED"
            | b"RateLimitReached"
            | b"429"
            | b"ThrottlingException"
            | b"throttlingException"
            | b"ModelNotReadyException" => Self::Throttled,
            b"invalid_request_error"
            | b"invalid_prompt"
            | b"authentication_error"
            | b"permission_error"
            | b"not_found_error"
            | b"request_too_large"
            | b"INVALID_ARGUMENT"
            | b"validationException" => Self::ClientError,
            _ => Self::Unknown,
        }
    }
}

impl Facts {
    /// Nothing yet; `is_known` if the dialect is known from the request.
    pub(super) fn new(is_known: bool) -> Self {
        Self {
            is_known,
            ..Self::default()
        }
    }

    /// The usage so far, counted the same for every provider.
    pub(super) fn usage(&self) -> Option<Usage> {
        use Counter as C;
        let get = |counter: Counter| self.counters[counter as usize];
        if self.counters.iter().all(Option::is_none) {
            return None;
        }
        let or_zero = |counter: Counter| get(counter).unwrap_or(0);
        // Whoever reports the total as well has counted the cache in it.
        let beside_input = match get(C::TotalInput) {
            Some(_) => &[C::ToolInput][..],
            None => &[C::CacheRead, C::CacheWrite],
        };
        let input = get(C::TotalInput)
            .or(get(C::PlainInput))
            .or(get(C::BilledInput))
            .unwrap_or(0);
        let visible = get(C::Output)
            .or(get(C::Candidates))
            .or(get(C::BilledOutput))
            .unwrap_or(0);
        let input = beside_input
            .iter()
            .map(|&counter| or_zero(counter))
            .fold(input, u64::saturating_add);
        let output = visible.saturating_add(or_zero(C::Thoughts));
        let part = |counter, or| get(counter).unwrap_or(or_zero(or));
        Some(Usage {
            input,
            output,
            cached_input: part(C::CachedPart, C::CacheRead).min(input),
            cache_write: part(C::CacheWritePart, C::CacheWrite).min(input),
            reasoning: part(C::ReasoningPart, C::Thoughts).min(output),
        })
    }

    /// An estimate of the output tokens that passed.
    pub(super) fn output_seen(&self) -> u64 {
        u64::try_from(self.text_bytes).unwrap_or(0).div_ceil(4)
    }

    /// The bytes of content that passed; `None` in a dialect that nobody knows.
    pub(super) fn content_bytes(&self) -> Option<u64> {
        let is_known = self.is_known || self.speaks.is_some();
        is_known.then(|| u64::try_from(self.text_bytes).unwrap_or(0))
    }

    /// Notes an error that is not told by a JSON member, such as an SSE event's name.
    pub(super) fn note_error(&mut self) -> &mut InBand {
        self.error.get_or_insert_default()
    }

    /// An event has ended. In a dialect that nobody knows, any is content: there is no telling which is not.
    pub(super) fn note_unknown_event(&mut self) {
        self.has_output |= !self.is_known && self.speaks.is_none() && self.error.is_none();
    }

    fn note_error_code(&mut self, code: &[u8]) {
        let kind = ErrorKind::parse(code);
        let error = self.note_error();
        error.kind = error.kind.max(kind);
    }

    fn note_event(&mut self, event: &[u8]) {
        if let b"message_start" | b"message-start" = event {
            self.speaks = Some(Speaks::Events);
        }
        match event {
            b"message_stop" | b"message-end" | b"response.completed" | b"response.incomplete" => {
                self.terminal = Some(Marker::Event);
            }
            b"error" | b"response.failed" => {
                self.note_error();
            }
            _ if event.starts_with(b"response.") => self.speaks = Some(Speaks::Events),
            _ => {}
        }
    }

    fn note_finish(&mut self, reason: &[u8]) {
        self.finish = Some(FinishReason::parse(reason));
    }
}

impl Sink for Facts {
    type Place = Place;

    fn member(&mut self, parent: Place, key: &[u8]) -> Option<Place> {
        use Counter as C;
        use Place as P;
        let place = match parent {
            P::Root => match key {
                b"type" => P::EventType,
                b"choices" => {
                    self.speaks.get_or_insert(Speaks::Choices);
                    P::Choices
                }
                b"usage" | b"usageMetadata" => P::Usage,
                b"delta" => P::Delta,
                b"error" => P::Error,
                b"candidates" => {
                    self.speaks = Some(Speaks::Events);
                    P::Candidates
                }
                b"response" => P::Response,
                b"message" => P::Message,
                b"content" | b"output" => P::Texts,
                b"finish_reason" | b"stop_reason" | b"stopReason" => P::Finish,
                b"status" => P::ResponseStatus,
                b"incomplete_details" => P::Incomplete,
                b"promptFeedback" => P::Blocked,
                b"code" | b"error_code" => P::RootCode,
                b"x_groq" => P::XGroq,
                _ => return None,
            },
            P::Choice => match key {
                b"delta" | b"message" => P::Delta,
                b"text" => P::Text,
                b"finish_reason" => P::Finish,
                _ => return None,
            },
            P::Delta => match key {
                b"content" | b"text" | b"thinking" | b"partial_json" | b"reasoning_content"
                | b"reasoning" | b"refusal" | b"transcript" => P::Text,
                b"tool_calls" => P::ToolCalls,
                b"function_call" => P::ToolCall,
                b"audio" | b"message" => P::Delta,
                b"finish_reason" | b"stop_reason" => P::Finish,
                b"usage" => P::Usage,
                _ => return None,
            },
            P::ToolCall => match key {
                b"function" | b"custom" => P::ToolCall,
                b"name" | b"arguments" | b"input" => P::Text,
                _ => return None,
            },
            P::Candidate => match key {
                b"content" => P::Text,
                b"finishReason" => P::Finish,
                _ => return None,
            },
            P::Text => match key {
                b"text" | b"thinking" | b"arguments" => P::Text,
                b"parts" | b"content" | b"summary" => P::Texts,
                b"functionCall"
                | b"inlineData"
                | b"executableCode"
                | b"codeExecutionResult"
                | b"input" => P::Payload,
                _ => return None,
            },
            P::Response => match key {
                b"usage" => P::Usage,
                b"error" => P::Error,
                b"incomplete_details" => P::Incomplete,
                _ => return None,
            },
            P::Message if key == b"usage" => P::Usage,
            P::Incomplete if key == b"reason" => P::Finish,
            P::Blocked if key == b"blockReason" => P::Blocked,
            P::XGroq => match key {
                b"usage" => P::Usage,
                b"error" => P::Error,
                _ => return None,
            },
            P::Error => match key {
                b"code" | b"error_code" => P::ErrorCode,
                b"message" => P::ErrorMessage,
                b"type" => P::ErrorType,
                b"status" => P::ErrorStatus,
                b"details" => P::ErrorDetails,
                _ => return None,
            },
            // Google's details are a list, Anthropic's an object.
            P::ErrorDetails | P::ErrorDetail => match key {
                b"reason" => P::ErrorReason,
                b"retryDelay" => P::RetryDelay,
                b"violations" => P::Violations,
                b"error_code" => P::ErrorCode,
                _ => return None,
            },
            P::Violation if key == b"quotaId" => P::QuotaId,
            P::Usage => match key {
                b"prompt_tokens" | b"promptTokenCount" => P::Count(C::TotalInput),
                b"input_tokens" | b"inputTokens" => P::Count(C::PlainInput),
                b"completion_tokens" | b"output_tokens" | b"outputTokens" => P::Count(C::Output),
                b"candidatesTokenCount" => P::Count(C::Candidates),
                b"thoughtsTokenCount" => P::Count(C::Thoughts),
                b"toolUsePromptTokenCount" => P::Count(C::ToolInput),
                b"cache_read_input_tokens" | b"cacheReadInputTokens" => P::Count(C::CacheRead),
                b"cache_creation_input_tokens" | b"cacheWriteInputTokens" => {
                    P::Count(C::CacheWrite)
                }
                b"cachedContentTokenCount" | b"cached_tokens" => P::Count(C::CachedPart),
                b"prompt_tokens_details" | b"input_tokens_details" => P::InputDetails,
                b"completion_tokens_details" | b"output_tokens_details" => P::OutputDetails,
                b"tokens" => P::Usage,
                b"billed_units" => P::BilledUnits,
                _ => return None,
            },
            P::BilledUnits => match key {
                b"input_tokens" => P::Count(C::BilledInput),
                b"output_tokens" => P::Count(C::BilledOutput),
                _ => return None,
            },
            P::InputDetails => match key {
                b"cached_tokens" => P::Count(C::CachedPart),
                b"cache_write_tokens" => P::Count(C::CacheWritePart),
                _ => return None,
            },
            P::OutputDetails => match key {
                b"reasoning_tokens" | b"thinking_tokens" => P::Count(C::ReasoningPart),
                _ => return None,
            },
            _ => return None,
        };
        Some(place)
    }

    fn item(&mut self, parent: Place) -> Option<Place> {
        match parent {
            Place::Root => Some(Place::Root),
            Place::Choices => Some(Place::Choice),
            Place::Candidates => Some(Place::Candidate),
            Place::Text | Place::Texts => Some(Place::Text),
            Place::ToolCalls => Some(Place::ToolCall),
            Place::ErrorDetails => Some(Place::ErrorDetail),
            Place::Violations => Some(Place::Violation),
            _ => None,
        }
    }

    fn string_mode(&self, place: Place) -> StringMode {
        match place {
            Place::Text | Place::Delta => StringMode::Count,
            Place::EventType
            | Place::Finish
            | Place::Blocked
            | Place::ResponseStatus
            | Place::Error
            | Place::ErrorCode
            | Place::ErrorMessage
            | Place::ErrorType
            | Place::ErrorStatus
            | Place::ErrorReason
            | Place::RetryDelay
            | Place::QuotaId
            | Place::RootCode => StringMode::Capture,
            _ => StringMode::Skip,
        }
    }

    fn open(&mut self, place: Place) {
        // Not an error's: an empty object is none, and neither is one whose members are null.
        self.has_output |= place == Place::Payload;
    }

    fn string(&mut self, place: Place, raw: &[u8]) {
        match place {
            Place::EventType => self.note_event(raw),
            Place::Finish => {
                self.note_finish(raw);
                // Gemini's streams have no other end; the others go on to a marker of their own.
                if self.speaks == Some(Speaks::Events)
                    && raw.first().is_some_and(u8::is_ascii_uppercase)
                {
                    self.terminal = Some(Marker::Event);
                }
            }
            Place::Blocked => {
                self.finish = Some(FinishReason::ContentFilter);
                self.speaks = Some(Speaks::Events);
                self.terminal = Some(Marker::Event);
            }
            Place::ResponseStatus => match raw {
                b"completed" | b"incomplete" => {
                    self.finish.get_or_insert(FinishReason::parse(raw));
                }
                b"failed" => {
                    self.note_error();
                }
                _ => {}
            },
            Place::Error | Place::ErrorMessage if raw.is_empty() => {}
            // That there is one tells an error; what it says may change.
            Place::ErrorMessage => {
                self.note_error();
            }
            Place::Error
            | Place::ErrorCode
            | Place::ErrorType
            | Place::ErrorStatus
            | Place::ErrorReason => self.note_error_code(raw),
            Place::RootCode => {
                // The code of OpenAI responses' `error` event; elsewhere no error by itself.
                let kind = ErrorKind::parse(raw);
                if kind != ErrorKind::Unknown {
                    self.note_error_code(raw);
                }
            }
            Place::RetryDelay => self.note_error().retry_after = parse_seconds(raw),
            // A daily quota is refilled at midnight, whatever the delay beside it says.
            Place::QuotaId if memchr::memmem::find(raw, b"PerDay").is_some() => {
                self.note_error().kind = ErrorKind::Exhausted;
            }
            _ => {}
        }
    }

    fn text(&mut self, _: Place, bytes: i64) {
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        self.has_output |= bytes > 0;
    }

    fn number(&mut self, place: Place, value: u64) {
        match place {
            Place::Count(counter) => self.counters[counter as usize] = Some(value),
            Place::ErrorCode if value != 0 && !matches!(value, 402 | 429 | 503 | 529) => {
                self.note_error();
            }
            Place::ErrorCode | Place::RootCode => match value {
                402 => self.note_error_code(b"402"),
                429 => self.note_error_code(b"429"),
                503 => self.note_error_code(b"503"),
                529 => self.note_error_code(b"529"),
                _ => {}
            },
            _ => {}
        }
    }

    fn word(&mut self, place: Place, word: &[u8]) {
        match (place, word) {
            // `data: [DONE]` reads as an array of one bare word.
            (Place::Root, b"DONE") => self.terminal = Some(Marker::Done),
            (Place::Error, b"true") => {
                self.note_error();
            }
            _ => {}
        }
    }
}

/// A protobuf duration such as `57.238747106s`, rounded up to milliseconds.
fn parse_seconds(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?;
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    let exact = Duration::try_from_secs_f64(seconds).ok()?;
    let millis = u64::try_from(exact.as_nanos().div_ceil(1_000_000)).ok()?;
    Some(Duration::from_millis(millis).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delay_is_rounded_up_to_milliseconds() {
        assert_eq!(parse_seconds(b"36s"), Some(Duration::from_secs(36)));
        assert_eq!(
            parse_seconds(b"57.238747106s"),
            Some(Duration::from_millis(57_239))
        );
        for odd in [&b"-1s"[..], b"1", b"s", b"NaNs", b"infs", b""] {
            assert_eq!(parse_seconds(odd), None, "{odd:?}");
        }
    }
}
