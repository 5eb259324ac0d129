//! Which paths are ambiguous, and which ones callers may use with the owner's credential.

use std::{borrow::Cow, str::FromStr};

use http::{Method, Uri};
use percent_encoding::percent_decode;

/// How often a path is decoded: no honest client encodes more than twice.
const MAX_DECODINGS: usize = 8;

/// Paths that callers may use with the owner's credential, besides those of inference and of model lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowPaths(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// This path alone.
    Exact(String),
    /// This path and everything below it.
    Below(String),
}

impl AllowPaths {
    pub(crate) fn allows(&self, path: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(allowed) => path == allowed,
            Pattern::Below(allowed) => path
                .strip_prefix(allowed.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        })
    }
}

impl FromStr for AllowPaths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim);
        let entries = entries.filter(|entry| !entry.is_empty());
        entries
            .map(Pattern::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Pattern {
    fn parse(entry: &str) -> Result<Self, String> {
        let (path, below) = match entry.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (entry, false),
        };
        if !entry.starts_with('/') {
            return Err(format!("{entry} must start with a slash"));
        }
        if path.contains(['*', '?', '#']) {
            return Err(format!(
                "{entry} may have a `*` only in a `/*` at its end, and no query"
            ));
        }
        if is_ambiguous(path) {
            return Err(format!("{entry} must not have dot segments"));
        }
        let path = path.to_owned();
        Ok(if below {
            Self::Below(path)
        } else {
            Self::Exact(path)
        })
    }
}

/// The address with repeated slashes in its path merged; `None` if there are none.
///
/// Clients join a base URL that ends in a slash with a path that begins with one.
pub(crate) fn merge_slashes(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") {
        return None;
    }
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    if let Some(query) = uri.query() {
        merged.push('?');
        merged.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(merged.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Whether two servers could read `path` as different places: it has `.` or `..` as a segment, however it is written, or
/// bytes that no path has.
///
/// An upstream may decode and resolve what this gateway only compares, so such a path could leave the part of the API
/// that the caller may use.
pub(crate) fn is_ambiguous(path: &str) -> bool {
    // Nearly every path; the rest of this function is for the others.
    if !path.contains(['%', '\\']) && !path.contains("/.") {
        return false;
    }
    let mut path = Cow::Borrowed(path.as_bytes());
    for _ in 0..MAX_DECODINGS {
        if has_dot_segment(&path) || !is_text(&path) {
            return true;
        }
        let decoded: Cow<'_, [u8]> = percent_decode(&path).into();
        if decoded == path {
            return false;
        }
        path = Cow::Owned(decoded.into_owned());
    }
    true
}

fn has_dot_segment(path: &[u8]) -> bool {
    let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\'));
    segments.any(|segment| {
        // Some servers drop what follows a semicolon before they resolve the dots.
        let name = segment.split(|byte| *byte == b';').next();
        matches!(name, Some(b"." | b".."))
    })
}

fn is_text(path: &[u8]) -> bool {
    std::str::from_utf8(path).is_ok_and(|path| !path.contains(char::is_control))
}

/// Whether a request runs a model, or lists models: what callers may do with the owner's credential.
///
/// `path` is relative to the upstream's base. Paths are compared whole: by its end alone, `/v1/files/x/completions` would
/// pass for inference.
pub(crate) fn is_inference_or_models(method: &Method, path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else {
        return false;
    };
    let mut path = path.strip_suffix('/').unwrap_or(path);
    // `/v1`, Azure's `/openai` and `/openai/v1`, Gemini's `/v1beta/openai`.
    for _ in 0..2 {
        match path.split_once('/') {
            Some((first, rest)) if first == "openai" || is_version(first) => path = rest,
            _ => break,
        }
    }
    match *method {
        Method::POST => is_inference(path),
        Method::GET | Method::HEAD => {
            let model = path.strip_prefix("models/");
            path == "models" || model.is_some_and(is_one_segment) && !is_inference(path)
        }
        _ => false,
    }
}

fn is_inference(path: &str) -> bool {
    if let Some(rest) = path.strip_prefix("deployments/") {
        return rest.split_once('/').is_some_and(|(deployment, operation)| {
            is_one_segment(deployment)
                && matches!(operation, "chat/completions" | "completions" | "embeddings")
        });
    }
    let model = path
        .strip_prefix("models/")
        .or_else(|| path.strip_prefix("tunedModels/"));
    if let Some((model, method)) = model.and_then(|model| model.rsplit_once(':')) {
        return is_one_segment(model)
            && matches!(
                method,
                "generateContent"
                    | "streamGenerateContent"
                    | "embedContent"
                    | "batchEmbedContents"
                    | "countTokens"
            );
    }
    matches!(
        path,
        "chat/completions"
            | "completions"
            | "embeddings"
            | "responses"
            | "messages"
            | "messages/count_tokens"
    )
}

/// `v1`, `v1beta`, ...
fn is_version(segment: &str) -> bool {
    let number = segment.strip_prefix('v').unwrap_or_default();
    number.starts_with(|first: char| first.is_ascii_digit())
        && number.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether `id` is one segment to every server: an encoded slash is one to some.
fn is_one_segment(id: &str) -> bool {
    let mut decoded = Cow::Borrowed(id.as_bytes());
    // The path is known to be unambiguous, so this ends.
    loop {
        if decoded.is_empty() || decoded.iter().any(|byte| matches!(byte, b'/' | b'\\')) {
            return false;
        }
        let next: Cow<'_, [u8]> = percent_decode(&decoded).into();
        if next == decoded {
            return true;
        }
        decoded = Cow::Owned(next.into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_in_a_row_are_one_and_the_query_is_left_alone() {
        let merged = |uri| merge_slashes(&Uri::from_static(uri)).map(|uri| uri.to_string());
        assert_eq!(merged("//v1/models").as_deref(), Some("/v1/models"));
        assert_eq!(
            merged("/v1///a//b//?x=//y").as_deref(),
            Some("/v1/a/b/?x=//y")
        );
        assert_eq!(merged("http://h//v1/m").as_deref(), Some("http://h/v1/m"));
        assert_eq!(merged("/v1/models?x=//y"), None);
        assert_eq!(merged("*"), None);
    }

    #[test]
    fn a_dot_segment_is_found_however_it_is_written() {
        for path in [
            "/.",
            "/..",
            "/v1/../admin",
            "/v1/./models",
            "/v1/chat/completions/..",
            "/v1/%2e%2e/admin",
            "/v1/%2E%2e/admin",
            "/v1/.%2e/admin",
            "/v1/%2e/models",
            "/v1/%252e%252e/admin",
            "/v1/%25252e%2e/admin",
            "/v1/models/x%2f..%2fadmin",
            "/v1/models/x%2F%2e%2e%2Fadmin",
            "/v1/models/x%252f..%252fadmin",
            "/v1/models/..%2fadmin",
            "/v1/models/..%5cadmin",
            "/v1/models\\..\\admin",
            "/v1/models/%5c..",
            "/v1/..;/admin",
            "/v1/..;x=1/admin",
            "/v1/%2e%2e%3b/admin",
            // Overlong dots, and bytes that end a path for some.
            "/v1/%c0%ae%c0%ae/admin",
            "/v1/models/x%00",
            "/v1/models/x%0d%0a",
            "/v1/models/%2500",
            // Encoded more often than anybody would.
            "/%2525252525252525252525252525252541",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn dots_elsewhere_are_names() {
        for path in [
            "/v1/chat/completions",
            "/v1/models/gpt-4.1",
            "/v1/models/.hidden",
            "/v1/models/...",
            "/v1/models/..x",
            "/v1/models/x..",
            "/v1/models/a..b",
            "/v1/models/meta-llama%2FLlama-3.1",
            "/v1/models/100%25",
            "/v1/models/caf%C3%A9",
            "/v1/models/50%",
            "/v1beta/models/gemini-2.5-pro:generateContent",
            "*",
            "",
        ] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn inference_and_models_are_whole_paths() {
        for path in [
            "/v1/chat/completions",
            "/v1/chat/completions/",
            "/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
            "/messages",
            "/v1/messages/count_tokens",
            "/v1beta/models/gemini-2.5-pro:generateContent",
            "/v1/models/m:streamGenerateContent",
            "/v1beta/models/m:embedContent",
            "/v1beta/models/m:batchEmbedContents",
            "/v1beta/models/m:countTokens",
            "/v1beta/tunedModels/m:generateContent",
            "/v1beta/openai/chat/completions",
            "/openai/v1/responses",
            "/openai/responses",
            "/openai/deployments/d/chat/completions",
            "/openai/deployments/d/embeddings",
        ] {
            assert!(is_inference_or_models(&Method::POST, path), "{path}");
            for method in [Method::GET, Method::DELETE, Method::PUT, Method::OPTIONS] {
                assert!(!is_inference_or_models(&method, path), "{method} {path}");
            }
        }
        for path in [
            "/v1/models",
            "/models/",
            "/v1/models/gpt-5",
            "/openai/v1/models",
            "/v1beta/models",
        ] {
            assert!(is_inference_or_models(&Method::GET, path), "{path}");
            assert!(is_inference_or_models(&Method::HEAD, path), "{path}");
            for method in [Method::POST, Method::DELETE, Method::PATCH] {
                assert!(!is_inference_or_models(&method, path), "{method} {path}");
            }
        }
    }

    #[test]
    fn everything_else_is_out_of_reach() {
        for path in [
            "/",
            "",
            "*",
            "/v1",
            "/v1/files",
            "/v1/files/x/completions",
            "/v1/files/chat/completions",
            "/v1/organization/embeddings",
            "/v1/batches",
            "/v1/fine_tuning/jobs",
            "/v1/responses/resp_1",
            "/v1/responses/resp_1/cancel",
            "/v1/messages/batches",
            "/v1/threads/thread_1/messages",
            "/v1/v1/v1/messages",
            "/v1/models/a/b:generateContent",
            "/v1/models/a%2fb:generateContent",
            "/v1/models/a%252fb:generateContent",
            "/v1/models/:generateContent",
            "/v1/models/m:predict",
            "/openai/deployments/d",
            "/openai/deployments/d/e/chat/completions",
            "/openai/deployments/d%2fe/chat/completions",
            "/openai/deployments/d/images/generations",
            "/v1/Chat/Completions",
            "/v1/chat//completions",
            "/v1x/../chat/completions",
            "/version/chat/completions",
        ] {
            assert!(!is_inference_or_models(&Method::POST, path), "{path}");
        }
        for path in [
            "/v1/models/a/permissions",
            "/v1/models/a%2Fpermissions",
            "/v1/models/a%5c",
        ] {
            assert!(!is_inference_or_models(&Method::GET, path), "{path}");
        }
    }

    #[test]
    fn allowed_paths_are_exact_or_end_in_a_star() {
        let allowed: AllowPaths = "/v1/files, /v1/batches/*,".parse().unwrap();
        for (path, is_allowed) in [
            ("/v1/files", true),
            ("/v1/files/", false),
            ("/v1/files/x", false),
            ("/v1/filesystem", false),
            ("/v1/batches", true),
            ("/v1/batches/", true),
            ("/v1/batches/b/cancel", true),
            ("/v1/batches2", false),
            ("/v1/BATCHES/x", false),
            ("/x/v1/files", false),
        ] {
            assert_eq!(allowed.allows(path), is_allowed, "{path}");
        }
        assert!(!AllowPaths::default().allows(""));
        assert!("/*".parse::<AllowPaths>().unwrap().allows("/v1/anything"));
        for absurd in [
            "v1/files",
            "/v1/*/x",
            "/v1/files*",
            "*",
            "/v1/../x",
            "/v1/%2e%2e/*",
            "/v1?x=1",
        ] {
            assert!(absurd.parse::<AllowPaths>().is_err(), "{absurd}");
        }
    }
}
