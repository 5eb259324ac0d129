//! Warming: calls that the gateway makes itself after its start, so that the cache has their answers before callers ask.
//!
//! They are read from a file, one JSON object a line:
//!
//! ```text
//! {"caller": 1, "path": "/v1/embeddings", "body": {"model": "text-embedding-3-small", "input": ["Why?"]}}
//! ```
//!
//! A cached answer belongs to one caller, so each line names its own: by the number of its key in `GATEWAY_KEYS`, or by the
//! headers that the caller would send. A call passes all layers and counts against its caller's limits.

use std::{fmt, fs, future::Future, num::NonZeroUsize};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, Uri,
    header::{CONTENT_TYPE, HeaderMap},
    uri::PathAndQuery,
};
use http_body::Body;
use serde_json::{Map, Value};
use tower_llm_stack::{
    BoxError,
    cache::{Warmed, Warming},
};

use crate::{
    Settings, StartError,
    access::{Access, CREDENTIALS},
};

/// The calls of a file.
#[derive(Debug)]
pub(crate) struct Warm {
    lines: Vec<Line>,
    concurrency: NonZeroUsize,
}

#[derive(Debug)]
struct Line {
    number: usize,
    request: Request<Bytes>,
}

/// How far the warming is, for the log.
struct Progress {
    /// The number of each request's line.
    numbers: Vec<usize>,
    failed: usize,
    /// How many calls have ended when the next line is written.
    next: usize,
}

impl Warm {
    /// Reads the file, if one is configured.
    pub(crate) fn load(
        settings: &Settings,
        access: &Access,
        has_cache: bool,
    ) -> Result<Option<Self>, StartError> {
        let Some(file) = &settings.cache.warm else {
            return Ok(None);
        };
        let wrong = |what: &dyn fmt::Display| {
            let what = format!("{}: {what}", file.display());
            StartError::setting(settings.names.of("--cache-warm"), what)
        };
        if !has_cache {
            return Err(wrong(&"the cache is off"));
        }
        let text = fs::read_to_string(file).map_err(|error| wrong(&error))?;
        let lines = (1..).zip(text.lines());
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let lines = lines.map(|(number, line)| match parse(line, access) {
            Ok(request) => Ok(Line { number, request }),
            Err(what) => Err(wrong(&format_args!("line {number} {what}"))),
        });
        Ok(Some(Self {
            lines: lines.collect::<Result<_, _>>()?,
            concurrency: settings.cache.warm_concurrency,
        }))
    }

    /// Makes the calls by `send`, and logs how far it is and what fails.
    pub(crate) async fn run<F, B>(self, send: impl Fn(Request<Bytes>) -> F + Clone)
    where
        F: Future<Output = Result<Response<B>, BoxError>>,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let calls = self.lines.len();
        tracing::info!(calls, "warming the cache");
        let (numbers, requests): (Vec<_>, Vec<_>) = self
            .lines
            .into_iter()
            .map(|line| (line.number, line.request))
            .unzip();
        let mut progress = Progress::new(numbers);
        let warmed = Warming::new()
            .concurrency(self.concurrency)
            .on_progress(|warmed| progress.note(warmed))
            .run(tower::service_fn(send), requests)
            .await;
        let Warmed {
            answered, cached, ..
        } = warmed;
        let failed = warmed.failed.len();
        tracing::info!(calls, answered, cached, failed, "the cache is warm");
    }
}

impl Progress {
    fn new(numbers: Vec<usize>) -> Self {
        let next = Self::step(&numbers);
        Self {
            numbers,
            failed: 0,
            next,
        }
    }

    /// About ten lines for a file.
    fn step(numbers: &[usize]) -> usize {
        numbers.len().div_ceil(10)
    }

    fn note(&mut self, warmed: &Warmed) {
        for failure in &warmed.failed[self.failed..] {
            let line = self.numbers.get(failure.index());
            // It begins with the number of the request, which is not that of the line.
            let reason = failure.to_string();
            let reason = reason
                .split_once(": ")
                .map_or(&*reason, |(_, reason)| reason);
            tracing::warn!(line, reason, "a call to warm the cache failed");
        }
        self.failed = warmed.failed.len();
        let (ended, calls) = (warmed.ended(), self.numbers.len());
        if ended >= self.next && ended < calls {
            self.next += Self::step(&self.numbers);
            let failed = self.failed;
            tracing::info!(ended, calls, failed, "warming the cache");
        }
    }
}

/// The request of a line. Errors do not repeat its values, which may be credentials.
fn parse(line: &str, access: &Access) -> Result<Request<Bytes>, String> {
    let fields: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        let column = error.column();
        format!("is no JSON object, as column {column} shows")
    })?;
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = http::Method::POST;
    let (mut has_path, mut has_body, mut caller) = (false, false, None);
    for (name, value) in fields {
        match name.as_str() {
            "path" => {
                *request.uri_mut() = path(&value).ok_or("has a `path` that cannot be one")?;
                has_path = true;
            }
            "body" => {
                *request.body_mut() = value.to_string().into();
                has_body = true;
            }
            "headers" => *request.headers_mut() = headers(&value)?,
            "caller" => caller = Some(value),
            _ => return Err(format!("has a field `{name}` that is not known")),
        }
    }
    if !has_path || !has_body {
        return Err("needs a `path` and a `body`".to_owned());
    }
    match (caller, access) {
        (Some(number), Access::Keys(keys)) => {
            let key = number.as_u64().and_then(|number| keys.number(number));
            let key =
                key.ok_or("has a `caller` that is not the number of a key in GATEWAY_KEYS")?;
            request.extensions_mut().insert(key);
        }
        (Some(_), Access::Open) => {
            return Err("has a `caller`, but there are no GATEWAY_KEYS".to_owned());
        }
        // Without one it would be made, and paid for, and not be cached.
        (None, _) => {
            let names_caller = |name| request.headers().contains_key(name);
            if !CREDENTIALS.iter().any(names_caller) {
                return Err("names no caller: it needs a `caller`, the number of a key in GATEWAY_KEYS, or the `headers` \
                     that the caller sends"
                    .to_owned());
            }
        }
    }
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().entry(CONTENT_TYPE).or_insert(json);
    Ok(request)
}

fn path(value: &Value) -> Option<Uri> {
    let path = value.as_str().filter(|path| path.starts_with('/'))?;
    let path: PathAndQuery = path.parse().ok()?;
    Some(path.into())
}

fn headers(value: &Value) -> Result<HeaderMap, String> {
    let fields = value
        .as_object()
        .ok_or("has `headers` that are no object")?;
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let wrong = || format!("has a header `{name}` that cannot be one (the value is not shown)");
        let value = value
            .as_str()
            .and_then(|value| HeaderValue::from_str(value).ok());
        let header = HeaderName::from_bytes(name.as_bytes());
        headers.insert(header.map_err(|_| wrong())?, value.ok_or_else(wrong)?);
    }
    Ok(headers)
}

/// Why a call was not cached, if its response says so.
pub(crate) fn not_cached(headers: &HeaderMap) -> Option<String> {
    let status = headers.get("cache-status")?.to_str().ok()?;
    let status = status.contains("fwd=bypass").then_some(status)?;
    Some(format!("the call is not one that is cached: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{KeyNumber, Keys};

    fn key_of(request: &Request<Bytes>) -> Option<KeyNumber> {
        request.extensions().get().copied()
    }

    fn keys() -> Access {
        Access::Keys(Box::new(Keys::new(&["one", "two"], None).unwrap()))
    }

    #[test]
    fn a_line_is_a_request_of_its_caller() {
        let line = r#"{"caller":2,"path":"/v1/embeddings?x=1","headers":{"X-Own":"v"},"body":{"input":["Why?"]}}"#;
        let request = parse(line, &keys()).unwrap();
        assert_eq!(key_of(&request), keys_number(2));
        assert_eq!(request.uri(), "/v1/embeddings?x=1");
        assert_eq!(request.headers()["x-own"], "v");
        assert_eq!(request.headers()["content-type"], "application/json");
        let line =
            r#"{"path":"/v1/embeddings","headers":{"authorization":"Bearer one"},"body":{}}"#;
        for access in [keys(), Access::Open] {
            assert_eq!(key_of(&parse(line, &access).unwrap()), None);
        }
    }

    fn keys_number(number: u64) -> Option<KeyNumber> {
        let Access::Keys(keys) = keys() else {
            return None;
        };
        keys.number(number)
    }

    #[test]
    fn a_line_that_cannot_be_is_refused_without_its_values() {
        for (line, says) in [
            ("hidden", "JSON"),
            ("[]", "JSON"),
            (r#"{"path":"/m","caller":1}"#, "`body`"),
            (r#"{"body":{},"caller":1}"#, "`path`"),
            (r#"{"path":"hidden","body":{},"caller":1}"#, "`path`"),
            (r#"{"path":"/hid den","body":{},"caller":1}"#, "`path`"),
            (r#"{"path":"/m","body":{},"caller":0}"#, "`caller`"),
            (r#"{"path":"/m","body":{},"caller":3}"#, "`caller`"),
            (r#"{"path":"/m","body":{},"caller":"hidden"}"#, "`caller`"),
            (r#"{"path":"/m","body":{}}"#, "names no caller"),
            (
                r#"{"path":"/m","body":{},"headers":{"x":"hidden"}}"#,
                "names no caller",
            ),
            (
                r#"{"path":"/m","body":{},"headers":{"authorization":"hid\nden"}}"#,
                "`authorization`",
            ),
            (
                r#"{"path":"/m","body":{},"headers":{"x y":"hidden"}}"#,
                "`x y`",
            ),
            (
                r#"{"path":"/m","body":{},"headers":["hidden"]}"#,
                "`headers`",
            ),
            (
                r#"{"path":"/m","body":{},"caller":1,"bdy":"hidden"}"#,
                "`bdy`",
            ),
        ] {
            let error = parse(line, &keys()).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
            assert!(!error.contains("hid"), "{line}: {error}");
        }
        let line = r#"{"path":"/m","body":{},"caller":1}"#;
        assert!(
            parse(line, &Access::Open)
                .unwrap_err()
                .contains("GATEWAY_KEYS")
        );
    }
}
