//! Checks that take an account out while it fails, and bring it back.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE, uri::PathAndQuery,
};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tower_llm_core::{Availability, BoxError, ConfigError, Dialect, Oneshot, RequestBody};
use tower_service::Service;

use super::{Account, AccountService};

/// Longest time that a check waits for an answer.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Longest answer that is read, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Failed checks in a row that take an account out.
const FAILURES: u32 = 2;

/// A check of an account, every so often: a GET, or a call of one token.
///
/// Two checks that fail in a row take the account out, and the first one that does not brings it back. A check fails if there
/// is no answer within the interval, or 10 s if that is shorter, if its status is a 5xx, or if the account's own credential is
/// refused (401, 403). Any other answer shows that the provider is there: a 429 that it is busy, a 404 that the check is wrong.
///
/// It goes to the provider past the account's limits and circuits, since it is to tell whether calls should go there at all.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    probe: Probe,
    interval: Duration,
}

#[derive(Clone, Debug)]
enum Probe {
    Get(PathAndQuery),
    Call(Box<str>),
}

/// Whether an account is out; see [`HealthCheck`]. The checks stop when the last clone is dropped.
#[derive(Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    next_check: Option<Instant>,
}

// === impl HealthCheck ===

impl HealthCheck {
    /// A GET of `path`, below the account's base URL: `/models` costs nothing at most providers.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `path` does not begin with a slash, or is not one.
    pub fn get(path: &str) -> Result<Self, ConfigError> {
        let parsed = path.parse().ok().filter(|_| path.starts_with('/'));
        let reason = "it must be a path that begins with a slash";
        let path = parsed.ok_or_else(|| ConfigError::new("path", path, reason))?;
        Ok(Self::new(Probe::Get(path)))
    }

    /// A call of one token to `model`, for servers whose lists of models work while the models do not.
    pub fn call(model: impl Into<Box<str>>) -> Self {
        Self::new(Probe::Call(model.into()))
    }

    const fn new(probe: Probe) -> Self {
        let interval = Duration::from_secs(30);
        Self { probe, interval }
    }

    /// Sets the time between two checks; 30 s unless set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `interval` is zero, or longer than a day.
    pub fn interval(mut self, interval: Duration) -> Result<Self, ConfigError> {
        self.interval = ConfigError::check_duration("interval", interval)?;
        Ok(self)
    }

    /// Begins to check, in a task of its own.
    #[must_use = "the checks stop when this is dropped"]
    pub fn start<S, B, R>(self, service: AccountService<S>) -> Health
    where
        S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Send + 'static,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        let health = Health(Arc::default());
        let state = Arc::downgrade(&health.0);
        tokio::spawn(self.run(state, service));
        health
    }

    async fn run<S, B, R>(self, state: Weak<Mutex<State>>, service: AccountService<S>)
    where
        S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
        S::Error: Into<BoxError>,
        R: Body,
        R::Error: Into<BoxError>,
    {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if state.strong_count() == 0 {
                return;
            }
            let next_check = Instant::now() + self.interval;
            let request = self.probe.request(service.account());
            let checking = check(service.clone(), request);
            let is_up = timeout(self.interval.min(MAX_WAIT), checking).await;
            if let Some(state) = state.upgrade() {
                lock(&state).record(is_up.unwrap_or(false), next_check);
            }
        }
    }
}

/// Whether the provider is there.
async fn check<S, B, R>(service: AccountService<S>, request: Request<RequestBody<B>>) -> bool
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
    S::Error: Into<BoxError>,
    R: Body,
    R::Error: Into<BoxError>,
{
    let has_credential = service.account().has_credential();
    let Ok(answer) = Oneshot::new(service, request).await else {
        return false;
    };
    let status = answer.status();
    let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    // What follows the headers is not judged.
    let _ = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await;
    let has_failed = status.is_server_error() || is_refused && has_credential;
    !has_failed
}

// === impl Probe ===

impl Probe {
    fn request<B>(&self, account: &Account) -> Request<RequestBody<B>> {
        let model = match self {
            Self::Get(path) => {
                let mut request = Request::new(RequestBody::default());
                *request.uri_mut() = path.clone().into();
                return request;
            }
            Self::Call(model) => &**model,
        };
        let messages = json!([{"role": "user", "content": "ping"}]);
        let chat = json!({"model": model, "messages": messages, "max_tokens": 1});
        let (path, body) = match account.speaks() {
            Dialect::Anthropic => ("/v1/messages".to_owned(), chat),
            Dialect::Gemini => {
                let model = utf8_percent_encode(model, NON_ALPHANUMERIC);
                let contents = json!([{"role": "user", "parts": [{"text": "ping"}]}]);
                let config = json!({"maxOutputTokens": 1});
                let path = format!("/v1beta/models/{model}:generateContent");
                (
                    path,
                    json!({"contents": contents, "generationConfig": config}),
                )
            }
            _ => ("/v1/chat/completions".to_owned(), chat),
        };
        let mut request = Request::new(RequestBody::held(body.to_string()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().expect("an escaped model makes a path");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if account.speaks() == Dialect::Anthropic {
            headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
        }
        request
    }
}

// === impl Health ===

impl Health {
    /// Returns whether the account takes calls.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !lock(&self.0).is_down()
    }

    /// When the account takes a call, for the availability of a pool's target: at once, or after the next check.
    #[must_use]
    pub fn availability(&self) -> Availability {
        lock(&self.0).availability(Instant::now())
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("is_up", &self.is_up())
            .finish()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl State ===

impl State {
    fn record(&mut self, is_up: bool, next_check: Instant) {
        self.failures = match is_up {
            true => 0,
            false => self.failures.saturating_add(1),
        };
        self.next_check = Some(next_check);
    }

    fn is_down(&self) -> bool {
        self.failures >= FAILURES
    }

    fn availability(&self, now: Instant) -> Availability {
        match self.next_check {
            Some(at) if self.is_down() => Availability::After(at.saturating_duration_since(now)),
            _ => Availability::Now,
        }
    }
}
