//! Which members of a request change its answer.
//!
//! What a dialect is known to have for other purposes is dropped: how the answer is sent, who pays for it, what the provider
//! caches. Anything else is kept, so a member that a provider adds later makes keys differ, which costs an answer that could
//! have been reused. The other way round it would cost a wrong answer.
//!
//! The names are the API's own only where the API defines the object. Below, in a tool's schema or the arguments of a call,
//! a member of the same name is the caller's data.
//!
//! The order of members does not change an answer, with one exception: models write structured output, and the arguments of a
//! call, in the order of the schema's properties. An answer before its reasons is another answer than one after them.

use super::json::Node;

/// Where in a request a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing here or below is dropped.
    Data,
    /// Nothing here or below is dropped, and the order of members matters.
    Schema,
    ChatBody,
    ChatMessages,
    ChatMessage,
    ChatContent,
    EmbeddingsBody,
    ResponsesBody,
    ResponsesInput,
    /// Decided by its role.
    ResponsesItem,
    ResponsesMessage,
    ResponsesAnswer,
    ResponsesContent,
    ResponsesText,
    OpenAiParts,
    OpenAiPart,
    MessagesBody,
    Messages,
    Message,
    /// A text, or blocks.
    MessageContent,
    Blocks,
    /// Decided by its type.
    AnyBlock,
    Block,
    NestingBlock,
    Document,
    /// Decided by its type.
    AnySource,
    ContentSource,
    Tools,
    Tool,
    GeminiBody,
    GeminiConfig,
    InteractionsBody,
}

impl Place {
    /// Returns the place of an object, once its kind is known.
    pub(super) fn of(self, object: Node<'_>) -> Self {
        let text = |name| object.get(name).and_then(Node::as_str);
        match self {
            // A text of the model's is another type of part than a text of the user's.
            Self::ResponsesItem => match text("role") {
                None => Self::Data,
                Some("assistant") => Self::ResponsesAnswer,
                Some(_) => Self::ResponsesMessage,
            },
            Self::AnyBlock => match text("type") {
                Some("tool_result" | "search_result") => Self::NestingBlock,
                Some("document") => Self::Document,
                _ => Self::Block,
            },
            Self::AnySource => match text("type") {
                Some("content") => Self::ContentSource,
                _ => Self::Data,
            },
            other => other,
        }
    }

    /// Returns the place of a member of an object here; `None` if the member does not change the answer.
    pub(super) fn member(self, name: &str, value: Node<'_>) -> Option<Self> {
        let place = match (self, name) {
            (Self::Schema, _) => Self::Schema,

            (Self::ChatBody | Self::ResponsesBody, name) if is_openai_extra(name) => return None,
            (Self::ChatBody, name) if is_chat_schema(name) => Self::Schema,
            (Self::ChatBody, "messages") => Self::ChatMessages,
            (Self::ChatMessage, "content") => Self::ChatContent,

            // Only `true` asks for anything, and bypasses the cache.
            (Self::ResponsesBody | Self::InteractionsBody, "background") => return None,
            (Self::ResponsesBody, "input") => Self::ResponsesInput,
            (Self::ResponsesBody, "tools") | (Self::ResponsesText, "format") => Self::Schema,
            (Self::ResponsesBody, "text") => Self::ResponsesText,
            // An item with a role is a message, whether it says so or not.
            (Self::ResponsesMessage | Self::ResponsesAnswer, "type")
                if value.as_str() == Some("message") =>
            {
                return None;
            }
            (Self::ResponsesMessage, "content") => Self::ResponsesContent,
            (Self::ResponsesAnswer, "content") => Self::OpenAiParts,
            (Self::OpenAiPart, "prompt_cache_breakpoint") => return None,

            (Self::EmbeddingsBody, "user") => return None,

            (Self::MessagesBody, name) if is_messages_extra(name) => return None,
            (Self::MessagesBody, "system") => Self::MessageContent,
            (Self::MessagesBody, "messages") => Self::Messages,
            (Self::MessagesBody, "tools") => Self::Tools,
            (Self::MessagesBody, "output_config" | "output_format") => Self::Schema,
            (Self::Message, "content") => Self::MessageContent,
            (Self::Tool | Self::Block | Self::NestingBlock | Self::Document, "cache_control") => {
                return None;
            }
            (Self::Tool, _) => Self::Schema,
            (Self::NestingBlock, "content") => Self::Blocks,
            (Self::Document, "source") => Self::AnySource,
            (Self::ContentSource, "content") => Self::Blocks,

            (Self::InteractionsBody, "stream") => return None,
            (Self::GeminiBody | Self::InteractionsBody, name) if is_gemini_extra(name) => {
                return None;
            }
            (Self::GeminiBody | Self::InteractionsBody, "tools") => Self::Schema,
            (
                Self::GeminiBody | Self::InteractionsBody,
                "generationConfig" | "generation_config",
            ) => Self::GeminiConfig,
            (Self::GeminiConfig | Self::InteractionsBody, name) if is_gemini_schema(name) => {
                Self::Schema
            }
            _ => Self::Data,
        };
        Some(place)
    }

    /// Returns the place of the elements of an array here.
    pub(super) fn element(self) -> Self {
        match self {
            Self::ChatMessages => Self::ChatMessage,
            Self::ChatContent | Self::ResponsesContent | Self::OpenAiParts => Self::OpenAiPart,
            Self::ResponsesInput => Self::ResponsesItem,
            Self::Messages => Self::Message,
            Self::MessageContent | Self::Blocks => Self::AnyBlock,
            Self::Tools => Self::Tool,
            Self::Schema => Self::Schema,
            _ => Self::Data,
        }
    }

    /// Returns the type of the part that a text here stands for.
    pub(super) fn part_type(self) -> Option<&'static str> {
        match self {
            Self::ChatContent | Self::MessageContent => Some("text"),
            Self::ResponsesContent => Some("input_text"),
            _ => None,
        }
    }
}

fn is_openai_extra(name: &str) -> bool {
    matches!(
        name,
        "stream"
            | "stream_options"
            | "user"
            | "safety_identifier"
            | "metadata"
            | "store"
            | "service_tier"
            | "prompt_cache_key"
            | "prompt_cache_options"
            | "prompt_cache_retention"
    )
}

/// OpenAI's own, and those of servers that constrain the output otherwise: vLLM, llama.cpp, Ollama.
fn is_chat_schema(name: &str) -> bool {
    matches!(
        name,
        "response_format"
            | "tools"
            | "functions"
            | "guided_json"
            | "structured_outputs"
            | "json_schema"
            | "format"
    )
}

fn is_messages_extra(name: &str) -> bool {
    matches!(
        name,
        "stream"
            | "metadata"
            | "service_tier"
            | "speed"
            | "diagnostics"
            | "user_profile_id"
            | "cache_control"
    )
}

fn is_gemini_extra(name: &str) -> bool {
    matches!(
        name,
        "labels" | "service_tier" | "serviceTier" | "store" | "http_options" | "httpOptions"
    )
}

fn is_gemini_schema(name: &str) -> bool {
    matches!(
        name,
        "responseSchema"
            | "response_schema"
            | "responseJsonSchema"
            | "response_json_schema"
            | "_responseJsonSchema"
            | "responseFormat"
            | "response_format"
    )
}
