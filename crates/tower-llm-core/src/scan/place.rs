//! Where providers write what the scanner reads.
//!
//! One table serves all dialects, so that a stream of an unknown dialect can be read. This works because equal names mean
//! the same, or are distinguished by the members beside them: OpenAI's `input_tokens` includes what was cached and reports
//! the part in `input_tokens_details`, Anthropic's leaves it out and reports it as `cache_read_input_tokens`.

use super::{counters::Counter, json::StringMode};

/// A place in a response that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The document, or an element of the array that Gemini streams without SSE.
    Root,
    EventType,
    /// A text whose bytes are output; or an object that holds one.
    Text,
    /// Text by which the model declines, in place of an answer.
    Refusal,
    /// A list of things that hold text.
    Texts,
    /// Output that is not text, such as a function call that comes as an object.
    Payload,
    Choices,
    /// One of OpenAI's choices or Gemini's candidates.
    Choice,
    Candidates,
    Candidate,
    ChoiceIndex,
    ChoiceFinish,
    Delta,
    ToolCalls,
    ToolCall,
    Finish,
    Blocked,
    /// The object of an event of OpenAI's responses or of Gemini's interactions.
    Response,
    Message,
    ResponseStatus,
    Incomplete,
    XGroq,
    Error,
    /// An error's name: its code, type, status or reason.
    ErrorName,
    ErrorCode,
    ErrorMessage,
    ErrorDetails,
    ErrorDetail,
    ErrorMetadata,
    RetryDelay,
    Violations,
    Violation,
    QuotaId,
    QuotaDimensions,
    /// A member that only a quota of a model has.
    QuotaModel,
    Errors,
    /// A member at the root that errors have, but not only they.
    RootObject,
    RootCode,
    /// A member at the root that only errors have.
    RootErrorName,
    RootErrorCode,
    RootErrorMessage,
    RootSuccess,
    BaseResp,
    BaseRespCode,
    Usage,
    Iterations,
    Iteration,
    BilledUnits,
    InputDetails,
    OutputDetails,
    Count(Counter),
    /// The same, of one of several samplings that are summed up.
    IterationCount(Counter),
}

impl Place {
    /// The place of member `key` of the object at this place; `None` if it does not matter.
    pub(super) fn member(self, key: &[u8]) -> Option<Self> {
        match self {
            Self::Root => root(key),
            Self::Choice => choice(key),
            Self::Candidate => candidate(key),
            Self::Delta => delta(key),
            Self::ToolCall => tool_call(key),
            Self::Text => text(key),
            Self::Response => response(key),
            Self::Message if key == b"usage" => Some(Self::Usage),
            Self::Incomplete if key == b"reason" => Some(Self::Finish),
            Self::Blocked if key == b"blockReason" => Some(Self::Blocked),
            Self::XGroq => match key {
                b"usage" => Some(Self::Usage),
                b"error" => Some(Self::Error),
                _ => None,
            },
            Self::BaseResp => match key {
                b"status_code" => Some(Self::BaseRespCode),
                _ => None,
            },
            Self::Error
            | Self::ErrorDetails
            | Self::ErrorDetail
            | Self::ErrorMetadata
            | Self::Violation
            | Self::QuotaDimensions => error(self, key),
            Self::Usage
            | Self::Iteration
            | Self::BilledUnits
            | Self::InputDetails
            | Self::OutputDetails => usage(self, key),
            _ => None,
        }
    }

    /// The place of the items of the array at this place.
    pub(super) fn item(self) -> Option<Self> {
        match self {
            Self::Root => Some(Self::Root),
            Self::Choices => Some(Self::Choice),
            Self::Candidates => Some(Self::Candidate),
            Self::Text | Self::Texts => Some(Self::Text),
            Self::ToolCalls => Some(Self::ToolCall),
            Self::Errors => Some(Self::Error),
            Self::ErrorDetails => Some(Self::ErrorDetail),
            Self::Violations => Some(Self::Violation),
            Self::Iterations => Some(Self::Iteration),
            _ => None,
        }
    }

    /// How a string at this place is read.
    pub(super) fn string_mode(self) -> StringMode {
        match self {
            Self::Text | Self::Refusal | Self::Delta => StringMode::Count,
            Self::Error | Self::ErrorMessage | Self::Message | Self::RootErrorMessage => {
                StringMode::Pass
            }
            Self::Root
            | Self::EventType
            | Self::Finish
            | Self::ChoiceFinish
            | Self::Blocked
            | Self::ResponseStatus
            | Self::ErrorName
            | Self::ErrorCode
            | Self::RetryDelay
            | Self::QuotaId
            | Self::QuotaModel
            | Self::RootObject
            | Self::RootCode
            | Self::RootErrorName
            | Self::RootErrorCode => StringMode::Capture,
            _ => StringMode::Skip,
        }
    }
}

fn root(key: &[u8]) -> Option<Place> {
    use Place as P;
    Some(match key {
        b"type" | b"event_type" => P::EventType,
        b"choices" => P::Choices,
        b"usage" | b"usageMetadata" => P::Usage,
        b"delta" => P::Delta,
        b"error" => P::Error,
        b"candidates" => P::Candidates,
        b"response" | b"interaction" => P::Response,
        b"message" | b"msg" | b"title" | b"detail" => P::Message,
        b"content" | b"output" | b"outputs" | b"steps" => P::Texts,
        b"finish_reason" | b"stop_reason" | b"stopReason" => P::Finish,
        b"status" => P::ResponseStatus,
        b"incomplete_details" => P::Incomplete,
        b"promptFeedback" => P::Blocked,
        b"x_groq" => P::XGroq,
        // vLLM's `object: "error"`, with its members beside it.
        b"object" => P::RootObject,
        b"code" | b"status_code" | b"statusCode" => P::RootCode,
        // TGI, Baidu, and proxies.
        b"error_type" | b"errorType" => P::RootErrorName,
        b"error_code" | b"errorCode" => P::RootErrorCode,
        b"error_msg" | b"error_message" | b"errorMessage" => P::RootErrorMessage,
        // Zhipu, Cloudflare.
        b"success" => P::RootSuccess,
        b"errors" => P::Errors,
        // MiniMax.
        b"base_resp" => P::BaseResp,
        _ => return None,
    })
}

fn choice(key: &[u8]) -> Option<Place> {
    use Place as P;
    Some(match key {
        b"delta" | b"message" => P::Delta,
        b"text" => P::Text,
        b"index" => P::ChoiceIndex,
        b"finish_reason" => P::ChoiceFinish,
        // OpenRouter.
        b"error" => P::Error,
        // Moonshot.
        b"usage" => P::Usage,
        _ => return None,
    })
}

fn candidate(key: &[u8]) -> Option<Place> {
    use Place as P;
    Some(match key {
        b"content" => P::Text,
        b"index" => P::ChoiceIndex,
        b"finishReason" => P::ChoiceFinish,
        b"error" => P::Error,
        _ => return None,
    })
}

fn delta(key: &[u8]) -> Option<Place> {
    use Place as P;
    Some(match key {
        b"content" | b"text" | b"thinking" | b"partial_json" | b"reasoning_content"
        | b"reasoning" | b"transcript" => P::Text,
        b"refusal" => P::Refusal,
        b"tool_calls" => P::ToolCalls,
        b"function_call" => P::ToolCall,
        b"audio" | b"message" => P::Delta,
        b"finish_reason" | b"stop_reason" => P::Finish,
        b"usage" => P::Usage,
        b"error" => P::Error,
        _ => return None,
    })
}

fn tool_call(key: &[u8]) -> Option<Place> {
    match key {
        b"function" | b"custom" => Some(Place::ToolCall),
        b"name" | b"arguments" | b"input" => Some(Place::Text),
        _ => None,
    }
}

fn text(key: &[u8]) -> Option<Place> {
    match key {
        b"text" | b"thinking" | b"arguments" => Some(Place::Text),
        b"parts" | b"content" | b"summary" => Some(Place::Texts),
        b"functionCall" | b"inlineData" | b"executableCode" | b"codeExecutionResult" | b"input" => {
            Some(Place::Payload)
        }
        _ => None,
    }
}

fn response(key: &[u8]) -> Option<Place> {
    match key {
        b"usage" => Some(Place::Usage),
        b"error" => Some(Place::Error),
        b"incomplete_details" => Some(Place::Incomplete),
        _ => None,
    }
}

fn error(parent: Place, key: &[u8]) -> Option<Place> {
    use Place as P;
    Some(match (parent, key) {
        (P::Error, b"code" | b"error_code") => P::ErrorCode,
        (P::Error, b"status_code" | b"http_code" | b"http_status") => P::ErrorCode,
        (P::Error, b"status" | b"type" | b"error_type") => P::ErrorName,
        (P::Error, b"message" | b"msg") => P::ErrorMessage,
        // Google's details are a list, Anthropic's an object.
        (P::Error, b"details") => P::ErrorDetails,
        (P::Error, b"metadata") => P::ErrorMetadata,
        (P::Error, b"model") | (P::ErrorMetadata | P::QuotaDimensions, b"model") => P::QuotaModel,
        // A proxy's error around a provider's.
        (P::Error, b"error") => P::Error,
        (P::ErrorDetails | P::ErrorDetail, b"reason") => P::ErrorName,
        (P::ErrorDetails | P::ErrorDetail, b"retryDelay") => P::RetryDelay,
        (P::ErrorDetails | P::ErrorDetail, b"violations") => P::Violations,
        (P::ErrorDetails | P::ErrorDetail, b"error_code") => P::ErrorCode,
        (P::ErrorDetails | P::ErrorDetail, b"metadata") => P::ErrorMetadata,
        (P::Violation, b"quotaId") | (P::ErrorMetadata, b"quota_limit") => P::QuotaId,
        (P::Violation, b"quotaDimensions") => P::QuotaDimensions,
        _ => return None,
    })
}

fn usage(parent: Place, key: &[u8]) -> Option<Place> {
    use {Counter as C, Place as P};
    let counter = match parent {
        P::Usage | P::Iteration => match key {
            b"total_tokens" | b"totalTokenCount" | b"totalTokens" => C::Total,
            b"prompt_tokens" | b"promptTokenCount" | b"total_input_tokens" => C::TotalInput,
            b"input_tokens" | b"inputTokens" => C::PlainInput,
            b"completion_tokens" | b"output_tokens" | b"outputTokens" => C::Output,
            b"candidatesTokenCount" | b"total_output_tokens" => C::Candidates,
            b"thoughtsTokenCount" | b"total_thought_tokens" => C::Thoughts,
            b"reasoning_tokens" => C::ReasoningPart,
            b"toolUsePromptTokenCount" | b"total_tool_use_tokens" => C::ToolInput,
            b"cache_read_input_tokens" | b"cacheReadInputTokens" => C::CacheRead,
            b"cache_creation_input_tokens" | b"cacheWriteInputTokens" => C::CacheWrite,
            b"cachedContentTokenCount" | b"cached_tokens" | b"total_cached_tokens" => C::CachedPart,
            b"prompt_tokens_details" | b"input_tokens_details" => return Some(P::InputDetails),
            b"completion_tokens_details" | b"output_tokens_details" => {
                return Some(P::OutputDetails);
            }
            b"tokens" => return Some(P::Usage),
            b"billed_units" => return Some(P::BilledUnits),
            b"iterations" => return Some(P::Iterations),
            _ => return None,
        },
        P::BilledUnits => match key {
            b"input_tokens" => C::BilledInput,
            b"output_tokens" => C::BilledOutput,
            _ => return None,
        },
        P::InputDetails => match key {
            b"cached_tokens" => C::CachedPart,
            b"cache_write_tokens" => C::CacheWritePart,
            _ => return None,
        },
        P::OutputDetails => match key {
            b"reasoning_tokens" | b"thinking_tokens" => C::ReasoningPart,
            _ => return None,
        },
        _ => return None,
    };
    Some(match parent {
        P::Iteration => P::IterationCount(counter),
        _ => P::Count(counter),
    })
}
