//! The API formats of requests, responses and errors.

use http::{HeaderMap, Method, Uri};

use crate::{Operation, Provider};

/// An API format of requests, responses and errors.
///
/// It does not identify the provider: many speak `OpenAI`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// `OpenAI` chat completions, legacy completions and embeddings; Azure's too.
    OpenAi,
    /// `OpenAI` responses.
    OpenAiResponses,
    /// Anthropic messages.
    Anthropic,
    /// Gemini content generation and embeddings.
    Gemini,
}

/// What a request's path and headers say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    pub(crate) dialect: Option<Dialect>,
    pub(crate) provider: Provider,
    pub(crate) operation: Operation,
    /// The model, if the path names it.
    pub(crate) model: Option<&'a str>,
    /// The path alone asks for a stream.
    pub(crate) streamed: bool,
}

impl Dialect {
    /// Returns the dialect of a request, by its path, or else by headers that only one provider's clients send.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        Route::of(method, uri, headers).dialect
    }
}

impl<'a> Route<'a> {
    pub(crate) fn of(method: &Method, uri: &'a Uri, headers: &HeaderMap) -> Self {
        if *method == Method::POST
            && let Some(route) = Self::by_path(uri.path())
        {
            return route;
        }
        let (dialect, provider) = if headers.contains_key("anthropic-version") {
            (Some(Dialect::Anthropic), Provider::ANTHROPIC)
        } else if headers.contains_key("x-goog-api-key") {
            (Some(Dialect::Gemini), Provider::GEMINI)
        } else {
            (None, Provider::OTHER)
        };
        let operation = match *method {
            Method::GET | Method::HEAD | Method::DELETE => Operation::RETRIEVE,
            Method::POST if is_of_stored_object(uri.path()) => Operation::RETRIEVE,
            _ => Operation::OTHER,
        };
        Route {
            dialect,
            provider,
            operation,
            model: None,
            streamed: false,
        }
    }

    /// Only the end of a path is compared: what comes before it, such as `/v1` or a gateway's prefix, differs between
    /// servers.
    fn by_path(path: &'a str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        // A gateway's prefix may contain a colon too.
        if let Some((path, method)) = path.rsplit_once(':')
            && let Some(route) = Self::gemini(path.rsplit('/').next()?, method)
        {
            return Some(route);
        }
        let azure = path
            .split_once("/openai/deployments/")
            .and_then(|(_, rest)| rest.split('/').next());
        let route = |dialect, provider, operation| Route {
            dialect: Some(dialect),
            provider,
            operation,
            model: azure,
            streamed: false,
        };
        let openai = |dialect, operation| {
            let provider = match azure {
                Some(_) => Provider::AZURE_OPENAI,
                None => Provider::OPENAI,
            };
            Some(route(dialect, provider, operation))
        };
        let anthropic = |operation| Some(route(Dialect::Anthropic, Provider::ANTHROPIC, operation));
        let mut last = path.rsplit('/');
        match (last.next()?, last.next().unwrap_or_default()) {
            ("completions", "chat") => openai(Dialect::OpenAi, Operation::CHAT),
            ("completions", _) => openai(Dialect::OpenAi, Operation::TEXT_COMPLETION),
            ("embeddings", _) => openai(Dialect::OpenAi, Operation::EMBEDDINGS),
            ("responses", _) => openai(Dialect::OpenAiResponses, Operation::CHAT),
            ("interactions", "v1" | "v1alpha" | "v1beta") => Some(route(
                Dialect::Gemini,
                Provider::GEMINI,
                Operation::GENERATE_CONTENT,
            )),
            // Messages of a thread, or of a stored completion, are something else.
            ("messages", parent) if is_root_or_version(parent) => anthropic(Operation::CHAT),
            ("count_tokens", "messages") if is_root_or_version(last.next().unwrap_or_default()) => {
                anthropic(Operation::COUNT_TOKENS)
            }
            _ => None,
        }
    }

    fn gemini(model: &'a str, method: &str) -> Option<Self> {
        let operation = match method {
            "generateContent" | "streamGenerateContent" => Operation::GENERATE_CONTENT,
            "embedContent" | "batchEmbedContents" => Operation::EMBEDDINGS,
            "countTokens" => Operation::COUNT_TOKENS,
            _ => return None,
        };
        Some(Route {
            dialect: Some(Dialect::Gemini),
            provider: Provider::GEMINI,
            operation,
            model: Some(model),
            streamed: method == "streamGenerateContent",
        })
    }
}

/// Whether a POST is about an object that is stored, such as the cancellation of a batch. It is answered with that object, and
/// so with what was used when it was made.
///
/// That is what cancels anything, what stands below an object of a collection, and a completion that is named: its
/// metadata is changed. `/v1/responses/compact` is none, nor is a name below `/v1/batches`.
fn is_of_stored_object(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut before = "";
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if is_last && (segment == "cancel" || segment.ends_with(":cancel")) {
            return true;
        }
        // No more than matters: a path can have thousands of segments.
        let below = segments.clone().take(2).count();
        let is_stored = match (before, segment) {
            ("fine_tuning", "jobs") | (_, "batches" | "responses" | "interactions") => below >= 2,
            ("chat", "completions") => below >= 1,
            _ => false,
        };
        if is_stored {
            return true;
        }
        before = segment;
    }
    false
}

/// Whether a path segment is the root or a version such as `v1`.
fn is_root_or_version(segment: &str) -> bool {
    let number = segment.strip_prefix('v').unwrap_or_default();
    segment.is_empty() || number.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &'static str) -> Option<Route<'static>> {
        Route::by_path(path)
    }

    #[test]
    fn paths_name_dialect_provider_operation_and_model() {
        let cases = [
            (
                "/v1/chat/completions",
                Dialect::OpenAi,
                "openai",
                "chat",
                None,
            ),
            ("/chat/completions", Dialect::OpenAi, "openai", "chat", None),
            (
                "/openai/v1/chat/completions/",
                Dialect::OpenAi,
                "openai",
                "chat",
                None,
            ),
            (
                "/v1/completions",
                Dialect::OpenAi,
                "openai",
                "text_completion",
                None,
            ),
            (
                "/v1/embeddings",
                Dialect::OpenAi,
                "openai",
                "embeddings",
                None,
            ),
            (
                "/v1/responses",
                Dialect::OpenAiResponses,
                "openai",
                "chat",
                None,
            ),
            (
                "/openai/deployments/gpt-4o-eu/chat/completions",
                Dialect::OpenAi,
                "azure.ai.openai",
                "chat",
                Some("gpt-4o-eu"),
            ),
            (
                "/v1/messages",
                Dialect::Anthropic,
                "anthropic",
                "chat",
                None,
            ),
            (
                "/v1/messages/count_tokens",
                Dialect::Anthropic,
                "anthropic",
                "count_tokens",
                None,
            ),
            (
                "/v1beta/models/gemini-2.5-pro:generateContent",
                Dialect::Gemini,
                "gcp.gemini",
                "generate_content",
                Some("gemini-2.5-pro"),
            ),
            (
                "/v1beta/models/text-embedding-004:batchEmbedContents",
                Dialect::Gemini,
                "gcp.gemini",
                "embeddings",
                Some("text-embedding-004"),
            ),
        ];
        for (path, dialect, provider, operation, model) in cases {
            let route = route(path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(route.dialect, Some(dialect), "{path}");
            assert_eq!(route.provider.as_str(), provider, "{path}");
            assert_eq!(route.operation.as_str(), operation, "{path}");
            assert_eq!(route.model, model, "{path}");
            assert!(!route.streamed, "{path}");
        }
    }

    #[test]
    fn gemini_streams_by_its_path() {
        let route = route("/v1beta/models/gemini-2.5-pro:streamGenerateContent").unwrap();
        assert!(route.streamed);
    }

    #[test]
    fn a_post_about_a_stored_object_is_known_from_one_that_makes_it() {
        let operation = |method: &Method, path: &'static str| {
            let uri = Uri::from_static(path);
            Route::of(method, &uri, &HeaderMap::new()).operation
        };
        for path in [
            "/v1/responses/resp_1/cancel",
            "/v1/responses/resp_1/cancel/",
            "/openai/v1/responses/resp_1/cancel?api-version=1",
            "/v1/batches/batch_1/cancel",
            "/v1/messages/batches/msgbatch_1/cancel",
            "/v1/chat/completions/chatcmpl-1",
            "/v1/fine_tuning/jobs/ftjob-1/pause",
            "/v1/threads/t/runs/run_1/cancel",
            "/v1/uploads/upload_1/cancel",
            "/v1beta/batches/b:cancel",
            "/v1beta/interactions/i/cancel",
            "/gateway/openai/v1/batches/batch_1/cancel",
        ] {
            assert_eq!(
                operation(&Method::POST, path),
                Operation::RETRIEVE,
                "{path}"
            );
        }
        assert_eq!(
            operation(&Method::DELETE, "/v1/responses/resp_1"),
            Operation::RETRIEVE
        );
        for path in [
            "/v1/responses/compact",
            "/v1/responses/input_tokens",
            "/v1/batches",
            "/v1/messages/batches",
            "/v1/fine_tuning/jobs",
            "/v1/threads/t/runs",
            "/v1/threads/t/runs/run_1/submit_tool_outputs",
            "/v1/images/generations",
            "/openai/deployments/d/images/generations",
            "/jobs/v1/audio/transcriptions",
            "/v1/cancel_culture",
        ] {
            assert_eq!(operation(&Method::POST, path), Operation::OTHER, "{path}");
        }
        assert_eq!(
            operation(&Method::POST, "/v1/batches/b/chat/completions"),
            Operation::CHAT,
        );
    }

    #[test]
    fn other_paths_are_not_guessed_at() {
        for path in [
            "/v1/threads/thread_1/messages",
            "/v1/chat/completions/chatcmpl-1/messages",
            "/v1/threads/messages/count_tokens",
            "/",
            "",
            "/v1/models",
            "/v1/files",
            "/v1/models/m:predict",
            "/healthz",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }
}
