//! Which API a path asks for.

/// Whose error bodies and headers an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Azure,
    Anthropic,
    Gemini,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Responses,
    Embeddings,
    Completions,
    Messages,
    CountTokens,
    Generate,
    /// `sse` as `?alt=sse` asks for, else a JSON array.
    StreamGenerate {
        sse: bool,
    },
    EmbedContent,
    BatchEmbedContents,
    Models,
    Unknown,
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
    pub(crate) fn of(path_and_query: &str) -> Self {
        let (path, query) = path_and_query
            .split_once('?')
            .unwrap_or((path_and_query, ""));
        let mut segments: Vec<&str> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        if let ["openai", "deployments", deployment, rest @ ..] = &segments[..] {
            return Self::azure(deployment, rest);
        }
        if segments.first() == Some(&"openai") {
            segments.remove(0);
        }
        if segments.first().is_some_and(|segment| is_version(segment)) {
            segments.remove(0);
        }
        if let ["models", method] = &segments[..]
            && let Some((model, method)) = method.rsplit_once(':')
        {
            return Self::gemini(model, method, query);
        }
        let (dialect, endpoint) = match &segments[..] {
            ["messages"] => (Dialect::Anthropic, Endpoint::Messages),
            ["messages", "count_tokens"] => (Dialect::Anthropic, Endpoint::CountTokens),
            ["responses"] => (Dialect::OpenAi, Endpoint::Responses),
            ["models"] => (Dialect::OpenAi, Endpoint::Models),
            rest => (Dialect::OpenAi, openai(rest)),
        };
        Self {
            dialect,
            endpoint,
            model: None,
        }
    }

    fn azure(deployment: &str, rest: &[&str]) -> Self {
        Self {
            dialect: Dialect::Azure,
            endpoint: openai(rest),
            model: Some(deployment.to_owned()),
        }
    }

    fn gemini(model: &str, method: &str, query: &str) -> Self {
        let endpoint = match method {
            "generateContent" => Endpoint::Generate,
            "streamGenerateContent" => Endpoint::StreamGenerate {
                sse: query.split('&').any(|pair| pair == "alt=sse"),
            },
            "embedContent" => Endpoint::EmbedContent,
            "batchEmbedContents" => Endpoint::BatchEmbedContents,
            _ => Endpoint::Unknown,
        };
        Self {
            dialect: Dialect::Gemini,
            endpoint,
            model: Some(model.to_owned()),
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
            let route = Route::of(path);
            assert_eq!(
                (route.dialect, route.endpoint),
                (dialect, endpoint),
                "{path}"
            );
        }
    }

    #[test]
    fn reads_the_model_where_the_path_names_it() {
        let route = Route::of("/openai/deployments/gpt-east/embeddings?api-version=2025-04-01");
        assert_eq!(
            (route.dialect, route.endpoint),
            (Dialect::Azure, Endpoint::Embeddings)
        );
        assert_eq!(route.model.as_deref(), Some("gpt-east"));

        let route = Route::of("/v1beta/models/gemini-3-flash:streamGenerateContent?key=k&alt=sse");
        assert_eq!(route.endpoint, Endpoint::StreamGenerate { sse: true });
        assert_eq!(route.model.as_deref(), Some("gemini-3-flash"));
        let route = Route::of("/models/gemini-3-flash:streamGenerateContent");
        assert_eq!(route.endpoint, Endpoint::StreamGenerate { sse: false });
    }
}
