//! A provider on paused time with scripted answers; it records when each call arrived.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, response::Builder};
use http_body_util::{BodyExt, Full};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Call, Dialect, Operation, Provider, Refusal, RefusalKind, Watched};
use tower_llm_ratelimit::{RateLimitLayer, RateLimited, Reservation};

type Request = http::Request<()>;
pub(crate) type Answer = Response<Full<Bytes>>;

/// Time in these tests: milliseconds from the start.
pub(crate) type Millis = u64;

#[derive(Clone)]
pub(crate) struct Timeline {
    shared: Arc<Mutex<Shared>>,
    layer: RateLimitLayer,
}

struct Shared {
    began: Instant,
    /// The answers to the next calls; later calls get the default.
    answers: VecDeque<Told>,
    default: Vec<(&'static str, String)>,
    /// The models of the calls that arrived, and when.
    came: Vec<(String, Millis)>,
}

/// How the provider answers a call.
enum Told {
    Now(Answer),
    When(oneshot::Receiver<Answer>),
}

impl Timeline {
    /// Starts now; the default answers report nothing.
    pub(crate) fn new(layer: RateLimitLayer) -> Self {
        let shared = Shared {
            began: Instant::now(),
            answers: VecDeque::new(),
            default: Vec::new(),
            came: Vec::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            layer,
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics within")
    }

    pub(crate) fn now(&self) -> Millis {
        millis(self.shared().began.elapsed())
    }

    /// Answers the next call that has no answer yet with `response`.
    pub(crate) fn push(&self, response: Answer) {
        self.shared().answers.push_back(Told::Now(response));
    }

    /// The next call without an answer is answered when the test says, or fails when the test drops the sender.
    pub(crate) fn hold(&self) -> oneshot::Sender<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.shared().answers.push_back(Told::When(receiver));
        sender
    }

    /// When the calls arrived upstream.
    pub(crate) fn times(&self) -> Vec<Millis> {
        self.shared().came.iter().map(|came| came.1).collect()
    }

    /// Which models were called, in order of arrival.
    pub(crate) fn models(&self) -> Vec<String> {
        self.shared()
            .came
            .iter()
            .map(|came| came.0.clone())
            .collect()
    }

    /// Calls, and reads the response to its end.
    pub(crate) async fn call(&self, request: Request) -> Result<Answer, BoxError> {
        let (parts, body) = self.call_unread(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Response::from_parts(parts, Full::new(body)))
    }

    async fn call_unread(
        &self,
        request: Request,
    ) -> Result<Response<Watched<Full<Bytes>, Reservation>>, BoxError> {
        let shared = Arc::clone(&self.shared);
        let upstream = service_fn(move |request: Request| {
            let answer = {
                let mut shared = shared.lock().expect("nothing panics within");
                let model = model_of(&request).to_owned();
                let now = millis(shared.began.elapsed());
                shared.came.push((model, now));
                let default = &shared.default;
                let default = answer(default.iter().map(|(name, value)| (*name, value.as_str())));
                shared.answers.pop_front().unwrap_or(Told::Now(default))
            };
            async move {
                match answer {
                    Told::Now(answer) => Ok(answer),
                    // As an inner layer does.
                    Told::When(receiver) => receiver
                        .await
                        .map_err(|_| Refusal::new(RefusalKind::Unavailable, "not answered")),
                }
            }
        });
        self.layer.layer(upstream).oneshot(request).await
    }

    /// Starts a call whose response is dropped unread.
    pub(crate) async fn start_unread(&self, request: Request) -> JoinHandle<()> {
        let timeline = self.clone();
        let task = tokio::spawn(async move {
            let answer = timeline.call_unread(request).await;
            assert!(answer.is_ok(), "let through");
        });
        settle().await;
        task
    }

    /// Starts a call; it has arrived upstream or waits when this returns.
    pub(crate) async fn start(&self, request: Request) -> JoinHandle<Result<Answer, BoxError>> {
        let timeline = self.clone();
        let task = tokio::spawn(async move { timeline.call(request).await });
        settle().await;
        task
    }

    /// Starts `calls` calls to the model `m` one after the other, and waits until all are answered.
    pub(crate) async fn calls(&self, calls: usize) {
        let mut tasks = Vec::new();
        for _ in 0..calls {
            tasks.push(self.start(chat("m")).await);
        }
        for task in tasks {
            ended(task).await.expect("admitted in time");
        }
    }
}

/// The result of a call that ends within an hour, which is at once on paused time.
pub(crate) async fn ended(task: JoinHandle<Result<Answer, BoxError>>) -> Result<Answer, BoxError> {
    let within = timeout(Duration::from_secs(3_600), task).await;
    within.expect("it ends").expect("nothing panics")
}

/// Runs the other tasks until they all wait, without letting time pass.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A chat request to one of OpenAI's models.
pub(crate) fn chat(model: &str) -> Request {
    chat_of(Provider::OPENAI, Dialect::OpenAi, model)
}

pub(crate) fn chat_of(provider: Provider, dialect: Dialect, model: &str) -> Request {
    let call = Call::builder(provider, Operation::CHAT)
        .dialect(dialect)
        .model(model)
        .input_tokens(100)
        .max_output_tokens(400);
    described(call.build())
}

pub(crate) fn described(call: Call) -> Request {
    let mut request = Request::new(());
    request.extensions_mut().insert(call);
    request
}

fn model_of(request: &Request) -> &str {
    let call = request.extensions().get::<Call>();
    call.and_then(Call::model).unwrap_or_default()
}

/// A successful response with these headers.
pub(crate) fn answer<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Answer {
    json(
        200,
        headers,
        r#"{"usage":{"prompt_tokens":100,"completion_tokens":400}}"#,
    )
}

/// A 429 with these headers.
pub(crate) fn throttled<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Answer {
    json(429, headers, r#"{"error":{"code":"rate_limit_exceeded"}}"#)
}

pub(crate) fn json<'a>(
    status: u16,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    body: &'static str,
) -> Answer {
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    headers
        .into_iter()
        .fold(response, |response: Builder, (name, value)| {
            response.header(name, value)
        })
        .body(Full::from(body))
        .expect("a legal response")
}

/// OpenAI's headers of one family.
pub(crate) fn family(name: &str, limit: u64, remaining: u64, reset: &str) -> [(String, String); 3] {
    [
        (format!("x-ratelimit-limit-{name}"), limit.to_string()),
        (
            format!("x-ratelimit-remaining-{name}"),
            remaining.to_string(),
        ),
        (format!("x-ratelimit-reset-{name}"), reset.to_owned()),
    ]
}

/// A successful response with the headers of one family.
pub(crate) fn reported(name: &str, limit: u64, remaining: u64, reset: &str) -> Answer {
    let family = family(name, limit, remaining, reset);
    answer(
        family
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    )
}

pub(crate) fn refused(error: &BoxError) -> &RateLimited {
    error.downcast_ref().expect("a limit refused the call")
}

fn millis(duration: Duration) -> Millis {
    duration
        .as_millis()
        .try_into()
        .expect("these tests are short")
}
