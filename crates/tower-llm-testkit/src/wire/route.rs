//! Which API a path asks for.

use http::{HeaderMap, Method};

/// Whose error bodies and headers an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Azure,
    Anthropic,
    Gemini,
}

impl Dialect {
    /// The dialect of a client, by headers that only the clients of one provider send.
    pub(crate) fn of_client(headers: &HeaderMap) -> Option<Self> {
        let is_google = |name| headers.contains_key(name);
        if headers.contains_key("anthropic-version") {
            Some(Self::Anthropic)
        } else if ["x-goog-api-key", "x-goog-api-client"]
            .into_iter()
            .any(is_google)
        {
            Some(Self::Gemini)
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Responses,
    Embeddings,
    Completions,
    Messages,
    /// Anthropic's and Gemini's.
    CountTokens,
    Generate,
    /// `sse` as `?alt=sse` asks for, else a JSON array.
    StreamGenerate {
        sse: bool,
    },
    EmbedContent,
    BatchEmbedContents,
    /// The list of models.
    Models,
    /// One model, which the route names.
    Model,
    Unknown,
}

impl Endpoint {
    pub(crate) fn method(self) -> Option<Method> {
        match self {
            Self::Unknown => None,
            Self::Models | Self::Model => Some(Method::GET),
            _ => Some(Method::POST),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) dialect: Dialect,
    pub(crate) endpoint: Endpoint,
    /// The model or the deployment, where the path names it.
    pub(crate) model: Option<String>,
}

impl Route {
    /// Reads a path; the version prefix and Groq's and Azure's `/openai` before it may be left out.
    ///
    /// The providers have paths in common; `client` is the dialect of the client that the headers show.
    pub(crate) fn of(path_and_query: &str, client: Option<Dialect>) -> Self {
        let (path, query) = path_and_query
            .split_once('?')
            .unwrap_or((path_and_query, ""));
        let mut segments: Vec<&str> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        if let ["openai", "deployments", deployment, rest @ ..] = &segments[..] {
            return Self::new(Dialect::Azure, openai(rest)).model(deployment);
        }
        let version = segments.iter().take(2).find(|segment| is_version(segment));
        let is_beta = version.is_some_and(|version| *version != "v1");
        // Gemini's form of OpenAI's API has it behind the version.
        let is_openai = segments.iter().take(2).any(|segment| *segment == "openai");
        while segments
            .first()
            .is_some_and(|first| is_version(first) || *first == "openai")
        {
            segments.remove(0);
        }
        let others = match client {
            _ if is_openai => Dialect::OpenAi,
            Some(client) => client,
            None if is_beta => Dialect::Gemini,
            None => Dialect::OpenAi,
        };
        match &segments[..] {
            ["messages"] => Self::new(Dialect::Anthropic, Endpoint::Messages),
            ["messages", "count_tokens"] => Self::new(Dialect::Anthropic, Endpoint::CountTokens),
            ["messages", ..] => Self::new(Dialect::Anthropic, Endpoint::Unknown),
            ["models"] => Self::new(others, Endpoint::Models),
            ["models", rest @ ..] if !rest.is_empty() => {
                let named = rest.join("/");
                match named
                    .rsplit_once(':')
                    .map(|(model, method)| (model, gemini(method, query)))
                {
                    Some((model, Some(endpoint))) => {
                        Self::new(Dialect::Gemini, endpoint).model(model)
                    }
                    Some((model, None)) if others == Dialect::Gemini => {
                        Self::new(Dialect::Gemini, Endpoint::Unknown).model(model)
                    }
                    _ => Self::new(others, Endpoint::Model).model(&named),
                }
            }
            ["responses"] => Self::new(Dialect::OpenAi, Endpoint::Responses),
            rest => match openai(rest) {
                Endpoint::Unknown => Self::new(others, Endpoint::Unknown),
                endpoint => Self::new(Dialect::OpenAi, endpoint),
            },
        }
    }

    fn new(dialect: Dialect, endpoint: Endpoint) -> Self {
        Self {
            dialect,
            endpoint,
            model: None,
        }
    }

    fn model(self, model: &str) -> Self {
        Self {
            model: Some(model.to_owned()),
            ..self
        }
    }
}

fn openai(rest: &[&str]) -> Endpoint {
    match rest {
        ["chat", "completions"] => Endpoint::Chat,
        ["completions"] => Endpoint::Completions,
        ["embeddings"] => Endpoint::Embeddings,
        _ => Endpoint::Unknown,
    }
}

fn gemini(method: &str, query: &str) -> Option<Endpoint> {
    Some(match method {
        "generateContent" => Endpoint::Generate,
        "streamGenerateContent" => Endpoint::StreamGenerate {
            sse: query.split('&').any(|pair| pair == "alt=sse"),
        },
        "embedContent" => Endpoint::EmbedContent,
        "batchEmbedContents" => Endpoint::BatchEmbedContents,
        "countTokens" => Endpoint::CountTokens,
        _ => return None,
    })
}

/// `v1`, `v1beta`, `v1alpha` and the like.
fn is_version(segment: &str) -> bool {
    segment
        .strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_with_and_without_the_version() {
        for (path, dialect, endpoint) in [
            ("/v1/chat/completions", Dialect::OpenAi, Endpoint::Chat),
            ("/chat/completions?x=1", Dialect::OpenAi, Endpoint::Chat),
            (
                "/openai/v1/chat/completions",
                Dialect::OpenAi,
                Endpoint::Chat,
            ),
            ("/v1/completions", Dialect::OpenAi, Endpoint::Completions),
            ("/v1/responses", Dialect::OpenAi, Endpoint::Responses),
            ("/embeddings", Dialect::OpenAi, Endpoint::Embeddings),
            ("/v1/models", Dialect::OpenAi, Endpoint::Models),
            ("/messages", Dialect::Anthropic, Endpoint::Messages),
            (
                "/v1/messages/count_tokens",
                Dialect::Anthropic,
                Endpoint::CountTokens,
            ),
            ("/v1/responses/resp_1", Dialect::OpenAi, Endpoint::Unknown),
            ("/", Dialect::OpenAi, Endpoint::Unknown),
        ] {
            let route = Route::of(path, None);
            assert_eq!(
                (route.dialect, route.endpoint),
                (dialect, endpoint),
                "{path}"
            );
        }
    }

    #[test]
    fn reads_the_model_where_the_path_names_it() {
        let route = Route::of(
            "/openai/deployments/gpt-east/embeddings?api-version=2025-04-01",
            None,
        );
        assert_eq!(
            (route.dialect, route.endpoint),
            (Dialect::Azure, Endpoint::Embeddings)
        );
        assert_eq!(route.model.as_deref(), Some("gpt-east"));

        let route = Route::of(
            "/v1beta/models/gemini-3-flash:streamGenerateContent?key=k&alt=sse",
            None,
        );
        assert_eq!(route.endpoint, Endpoint::StreamGenerate { sse: true });
        assert_eq!(route.model.as_deref(), Some("gemini-3-flash"));
        let route = Route::of("/models/gemini-3-flash:streamGenerateContent", None);
        assert_eq!(route.endpoint, Endpoint::StreamGenerate { sse: false });
    }

    #[test]
    fn lists_and_unknown_paths_belong_to_the_provider_of_the_request() {
        for (path, client, dialect, endpoint) in [
            ("/v1/models", None, Dialect::OpenAi, Endpoint::Models),
            (
                "/v1/models",
                Some(Dialect::Anthropic),
                Dialect::Anthropic,
                Endpoint::Models,
            ),
            (
                "/v1/models",
                Some(Dialect::Gemini),
                Dialect::Gemini,
                Endpoint::Models,
            ),
            ("/v1beta/models", None, Dialect::Gemini, Endpoint::Models),
            (
                "/v1beta/openai/models",
                None,
                Dialect::OpenAi,
                Endpoint::Models,
            ),
            ("/v1/models/a/b", None, Dialect::OpenAi, Endpoint::Model),
            (
                "/v1/models/ft:m:org::1",
                None,
                Dialect::OpenAi,
                Endpoint::Model,
            ),
            (
                "/v1/models/c",
                Some(Dialect::Anthropic),
                Dialect::Anthropic,
                Endpoint::Model,
            ),
            ("/v1beta/models/g", None, Dialect::Gemini, Endpoint::Model),
            (
                "/v1beta/models/g:countTokens",
                None,
                Dialect::Gemini,
                Endpoint::CountTokens,
            ),
            (
                "/v1beta/models/g:other",
                None,
                Dialect::Gemini,
                Endpoint::Unknown,
            ),
            ("/v1beta/files", None, Dialect::Gemini, Endpoint::Unknown),
            ("/v1/files", None, Dialect::OpenAi, Endpoint::Unknown),
            (
                "/v1/files",
                Some(Dialect::Anthropic),
                Dialect::Anthropic,
                Endpoint::Unknown,
            ),
            (
                "/v1/messages/batches",
                None,
                Dialect::Anthropic,
                Endpoint::Unknown,
            ),
            (
                "/openai/deployments/d/images",
                None,
                Dialect::Azure,
                Endpoint::Unknown,
            ),
            (
                "/v1beta/openai/chat/completions",
                None,
                Dialect::OpenAi,
                Endpoint::Chat,
            ),
        ] {
            let route = Route::of(path, client);
            assert_eq!(
                (route.dialect, route.endpoint),
                (dialect, endpoint),
                "{path}"
            );
        }
        let route = Route::of("/v1/models/ft:m:org::1", None);
        assert_eq!(route.model.as_deref(), Some("ft:m:org::1"));
    }
}
