//! Requests that are many calls: batches of chats and of embeddings, and a list of items put into a template.
//!
//! Each call passes all layers as if its caller had made it alone: it counts against the caller's limit, may be cached, and fails
//! alone. The response lists what became of each, in order.

mod asked;
mod told;

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{self, CONTENT_TYPE},
    request::Parts,
};
use http_body_util::Full;
use tower::{Layer, ServiceExt, util::BoxCloneService};
use tower_llm_stack::{
    BoxError, FanoutLayer,
    fanout::{self, RipeBody},
};

pub(crate) use self::told::refused;
use self::{
    asked::Template,
    told::{Outcome, answer, by_text, failed, listed, problem, read_whole, respond, said},
};
use crate::{caller::PatientBody, warm::OwnBody};

/// What the answers of one request may have in all, and each of them at least and at most.
const ANSWERS: usize = 512 << 20;
const ANSWER: [usize; 2] = [256 << 10, 32 << 20];
/// The longest deadline that a layer takes.
const DAY: Duration = Duration::from_secs(86_400);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// An endpoint whose requests are many calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chats,
    Embeddings,
    FanOut,
}

/// The calls of one request.
#[derive(Debug)]
pub(crate) struct Plan {
    path: &'static str,
    bodies: Vec<Bytes>,
    max_concurrent: usize,
    /// The last call, into which the results are put.
    fan_in: Option<Template>,
    /// For embeddings: how many texts each call has.
    texts: Option<Vec<usize>>,
    bounds: Bounds,
}

/// Makes one call, through all layers.
pub(crate) type Calls = BoxCloneService<Request<PatientBody>, Response<OwnBody>, BoxError>;

/// The answer to one request.
pub(crate) type Answered = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

type Collected = fanout::Collected<Response<RipeBody<OwnBody>>>;

/// What a request may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of each call.
    pub(crate) max_body_bytes: usize,
    /// Of all calls together; at most a day counts.
    pub(crate) deadline: Duration,
}

impl Endpoint {
    /// The endpoint that a request is for.
    pub(crate) fn of(method: &Method, path: &str) -> Option<Self> {
        match path {
            _ if method != Method::POST => None,
            "/v1/batch/chat" | "/v1/completions/batch" => Some(Self::Chats),
            "/v1/batch/embeddings" | "/v1/embeddings/batch" => Some(Self::Embeddings),
            "/v1/fan_out" => Some(Self::FanOut),
            _ => None,
        }
    }

    /// Where its calls go.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chats | Self::FanOut => "/v1/chat/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

impl Plan {
    /// Makes the calls on `service`, each with the headers of `parts`, and returns what became of them.
    pub(crate) async fn run(self, service: Calls, parts: &Parts) -> Response<Full<Bytes>> {
        let items = self.bodies.iter().enumerate();
        let items = items.map(|(index, body)| self.request(parts, &index.to_string(), body));
        let items = items.collect();
        let max_held = (ANSWERS / self.bodies.len()).clamp(ANSWER[0], ANSWER[1]);
        let map = FanoutLayer::map(self.max_concurrent)
            .max_held_bytes(max_held)
            .deadline(self.bounds.deadline.min(DAY))
            .build();
        let map =
            map.expect("the number at once and the deadline are checked, the rest is constant");
        // Boxed, so that the compiler need not prove of this function what it has proved of the call.
        let calling: Pin<Box<dyn Future<Output = Result<Collected, BoxError>> + Send>> =
            Box::pin(map.layer(service.clone()).oneshot(items));
        let answers: Vec<_> = match calling.await {
            Ok(collected) => collected.into_items().into_iter().map(answer).collect(),
            Err(error) => return respond(StatusCode::BAD_GATEWAY, &problem(&error.to_string())),
        };
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(response) => read_whole(response, max_held).await,
                Err(failed) => Err(failed),
            });
        }
        let outcomes = match &self.texts {
            Some(texts) => by_text(outcomes, texts),
            None => outcomes,
        };
        let fan_in = match &self.fan_in {
            Some(fan_in) => Some(self.fan_in(fan_in, &outcomes, service, parts).await),
            None => None,
        };
        respond(StatusCode::OK, &listed(outcomes, fan_in))
    }

    /// The last call, over what succeeded.
    async fn fan_in(
        &self,
        fan_in: &Template,
        outcomes: &[Outcome],
        service: Calls,
        parts: &Parts,
    ) -> Outcome {
        let good = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
        let good: Vec<_> = good.map(|answer| said(answer)).collect();
        if good.is_empty() {
            let none = problem("no item succeeded, so there is nothing to put into fan_in");
            return Err((StatusCode::FAILED_DEPENDENCY.as_u16(), none));
        }
        let body = match fan_in.with_list(&good, self.bounds) {
            Ok(body) => body,
            Err(what) => return Err((StatusCode::PAYLOAD_TOO_LARGE.as_u16(), problem(&what))),
        };
        match service.oneshot(self.request(parts, "fan-in", &body)).await {
            Ok(response) => read_whole(response, ANSWER[1]).await,
            Err(error) => Err(failed(&error)),
        }
    }

    /// One of the calls, by its name among them.
    fn request(&self, parts: &Parts, name: &str, body: &Bytes) -> Request<PatientBody> {
        let mut parts = parts.clone();
        parts.uri = Uri::from_static(self.path);
        for name in [
            header::CONTENT_LENGTH,
            header::EXPECT,
            header::TRANSFER_ENCODING,
        ] {
            parts.headers.remove(name);
        }
        // With the same key, a provider may take all calls for the first one.
        if let Some(key) = parts.headers.remove(IDEMPOTENCY_KEY) {
            let key = [key.as_bytes(), b"-", name.as_bytes()].concat();
            let key = HeaderValue::from_bytes(&key);
            parts.headers.extend(key.map(|key| (IDEMPOTENCY_KEY, key)));
        }
        let json = HeaderValue::from_static("application/json");
        parts.headers.insert(CONTENT_TYPE, json);
        Request::from_parts(parts, PatientBody::own(body.clone()))
    }
}
