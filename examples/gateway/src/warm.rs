//! Warming: calls that the gateway makes itself, after its start or at the administrator's request, so that the cache has
//! their answers before callers ask.
//!
//! They are read from a file or from the body of that request, one JSON object a line:
//!
//! ```text
//! {"caller": 1, "path": "/v1/embeddings", "body": {"model": "text-embedding-3-small", "input": ["Why?"]}}
//! ```
//!
//! A cached answer belongs to one caller, so each line names its own: by the number of its key in `GATEWAY_KEYS`, or by the
//! headers that the caller would send. A call passes all layers and counts against its caller's limits.

use std::{
    collections::BTreeMap,
    fmt, fs,
    future::Future,
    num::NonZeroUsize,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, Uri,
    header::{CONTENT_TYPE, HeaderMap},
    uri::PathAndQuery,
};
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::{Value, json, value::RawValue};
use tokio::task::AbortHandle;
use tower_llm_stack::{
    BoxError,
    cache::{Warmed, Warming},
};

use crate::{
    Settings, StartError,
    access::{Access, CREDENTIALS},
};

/// Failures that a report lists; it counts the others.
const MAX_FAILURES: usize = 100;

/// The calls to make.
#[derive(Debug)]
pub(crate) struct Lines(Vec<Line>);

#[derive(Debug)]
struct Line {
    number: usize,
    request: Request<Bytes>,
}

/// Makes the gateway's own calls.
pub(crate) trait OwnCalls: Send + Sync {
    fn access(&self) -> &Access;

    fn send(self: Arc<Self>, request: Request<Bytes>) -> OwnCall;
}

pub(crate) type OwnCall = Pin<Box<dyn Future<Output = Result<Response<OwnBody>, BoxError>> + Send>>;
pub(crate) type OwnBody = UnsyncBoxBody<Bytes, BoxError>;

/// Warms the cache, with one list of calls at a time.
pub(crate) struct Warmer {
    calls: Arc<dyn OwnCalls>,
    concurrency: NonZeroUsize,
    last: Mutex<Last>,
}

/// The warming that runs, or the one that ran last.
#[derive(Default)]
struct Last {
    task: Option<AbortHandle>,
    report: Arc<Mutex<Report>>,
}

#[derive(Debug, Default)]
struct Report {
    calls: usize,
    answered: usize,
    cached: usize,
    failed: usize,
    failures: Vec<Value>,
}

/// Why a list of calls is not made.
#[derive(Debug)]
pub(crate) enum NotStarted {
    /// Another is being made.
    Busy,
    /// A line cannot be used; names it without its values.
    Wrong(String),
}

/// How far the warming is, for the log and the report.
struct Progress {
    /// The number of each request's line.
    numbers: Vec<usize>,
    failed: usize,
    /// How many calls have ended when the next line is written.
    next: usize,
    report: Arc<Mutex<Report>>,
}

impl Lines {
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
        let lines = Self::parse(&text, access).map_err(|what| wrong(&what))?;
        Ok(Some(lines))
    }

    fn parse(text: &str, access: &Access) -> Result<Self, String> {
        let lines = (1..).zip(text.lines());
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let lines = lines.map(|(number, line)| match parse(line, access) {
            Ok(request) => Ok(Line { number, request }),
            Err(what) => Err(format!("line {number} {what}")),
        });
        lines.collect::<Result<_, _>>().map(Self)
    }
}

impl Warmer {
    pub(crate) fn new(calls: Arc<dyn OwnCalls>, concurrency: NonZeroUsize) -> Self {
        Self {
            calls,
            concurrency,
            last: Mutex::default(),
        }
    }

    /// Makes the calls of a text in a task; returns how many there are.
    pub(crate) fn start_text(&self, text: &[u8]) -> Result<usize, NotStarted> {
        let text = str::from_utf8(text).map_err(|_| "the request body is not UTF-8".to_owned());
        let lines = text.and_then(|text| Lines::parse(text, self.calls.access()));
        let lines = lines.map_err(NotStarted::Wrong)?;
        if lines.0.is_empty() {
            let what = "the request body has no calls: one JSON object a line".to_owned();
            return Err(NotStarted::Wrong(what));
        }
        self.start(lines)
    }

    /// Makes calls in a task; returns how many there are.
    pub(crate) fn start(&self, lines: Lines) -> Result<usize, NotStarted> {
        let mut last = lock(&self.last);
        if last.is_running() {
            return Err(NotStarted::Busy);
        }
        let calls = lines.0.len();
        let report = Arc::new(Mutex::new(Report {
            calls,
            ..Report::default()
        }));
        let run = run(
            lines,
            Arc::clone(&self.calls),
            self.concurrency,
            Arc::clone(&report),
        );
        *last = Last {
            task: Some(tokio::spawn(run).abort_handle()),
            report,
        };
        Ok(calls)
    }

    /// How far the calls are.
    pub(crate) fn report(&self) -> Value {
        let last = lock(&self.last);
        let is_running = last.is_running();
        let report = lock(&last.report);
        json!({
            "running": is_running,
            "calls": report.calls,
            "answered": report.answered,
            "cached": report.cached,
            "failed": report.failed,
            "failures": report.failures,
        })
    }

    /// Ends the calls that run.
    pub(crate) fn stop(&self) {
        if let Some(task) = &lock(&self.last).task {
            task.abort();
        }
    }
}

impl Last {
    fn is_running(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    lines: Lines,
    calls: Arc<dyn OwnCalls>,
    concurrency: NonZeroUsize,
    report: Arc<Mutex<Report>>,
) {
    let (numbers, requests): (Vec<_>, Vec<_>) = lines
        .0
        .into_iter()
        .map(|line| (line.number, line.request))
        .unzip();
    let all = requests.len();
    tracing::info!(calls = all, "warming the cache");
    let send = move |request| Arc::clone(&calls).send(request);
    let mut progress = Progress::new(numbers, report);
    let warmed = Warming::new()
        .concurrency(concurrency)
        .on_progress(|warmed| progress.note(warmed))
        .run(tower::service_fn(send), requests)
        .await;
    let Warmed {
        answered, cached, ..
    } = warmed;
    let failed = warmed.failed.len();
    tracing::info!(calls = all, answered, cached, failed, "the cache is warm");
}

impl Progress {
    fn new(numbers: Vec<usize>, report: Arc<Mutex<Report>>) -> Self {
        let next = Self::step(&numbers);
        Self {
            numbers,
            failed: 0,
            next,
            report,
        }
    }

    /// About ten lines for a file.
    fn step(numbers: &[usize]) -> usize {
        numbers.len().div_ceil(10)
    }

    fn note(&mut self, warmed: &Warmed) {
        let mut report = lock(&self.report);
        report.answered = warmed.answered;
        report.cached = warmed.cached;
        report.failed = warmed.failed.len();
        for failure in &warmed.failed[self.failed..] {
            let line = self.numbers.get(failure.index());
            // It begins with the number of the request, which is not that of the line.
            let reason = failure.to_string();
            let reason = reason
                .split_once(": ")
                .map_or(&*reason, |(_, reason)| reason);
            tracing::warn!(line, reason, "a call to warm the cache failed");
            if report.failures.len() < MAX_FAILURES {
                report
                    .failures
                    .push(json!({ "line": line, "reason": reason }));
            }
        }
        drop(report);
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
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(line).map_err(|error| {
        let column = error.column();
        format!("is no JSON object, as column {column} shows")
    })?;
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = http::Method::POST;
    let (mut has_path, mut has_body, mut caller) = (false, false, None);
    for (name, written) in fields {
        if name == "body" {
            // As it is written: a model follows the order of a schema's members, so another order is another question.
            *request.body_mut() = String::from(Box::<str>::from(written)).into();
            has_body = true;
            continue;
        }
        let value = serde_json::from_str(written.get())
            .map_err(|_| format!("has a field `{name}` that cannot be read"))?;
        match name.as_str() {
            "path" => {
                *request.uri_mut() = path(&value).ok_or("has a `path` that cannot be one")?;
                has_path = true;
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

    #[test]
    fn a_body_is_sent_as_it_is_written() {
        let body = r#"{"b": 1.0, "a": 12345678901234567890123, "schema": {"z": {}, "y": {"a": "\u00e9"}}}"#;
        let line = format!(r#"{{"caller":1,"path":"/m","body":{body}}}"#);
        assert_eq!(parse(&line, &keys()).unwrap().body(), body);
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
