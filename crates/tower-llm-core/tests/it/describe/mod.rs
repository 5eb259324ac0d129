//! A request is read once, described by its content, and passed on unchanged.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bodies;
mod callers;
mod calls;
mod limit;
mod readiness;
mod rename;
mod streamed;
use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use proptest::prelude::*;
use tokio::time::{Instant, Sleep};
use tower::{Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Caller, Completion, DescribeLayer, Described, Dialect, MAX_BODY_BYTES,
    Operation, Outcome, Provider, Refusal, RefusalKind, RequestBody, TooLarge,
};
use tower_test::mock;

use crate::support::{Script, Step};

type Sent<B = Full<Bytes>> = Request<RequestBody<B>>;

/// Responds with the request as it was passed on.
async fn echo<B>(request: Sent<B>) -> Result<Sent<B>, BoxError> {
    Ok(request)
}

/// The request as `layer` passes it on.
async fn pass<B>(layer: &DescribeLayer, request: Request<B>) -> Result<Sent<B>, BoxError>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    layer.layer(service_fn(echo::<B>)).oneshot(request).await
}

/// The call of a POST of `body` to `path`.
async fn call(path: &str, body: &str) -> Call {
    let request = Request::post(path)
        .body(Full::<Bytes>::from(body.to_owned()))
        .unwrap();
    pass(&DescribeLayer::new(), request)
        .await
        .unwrap()
        .call()
        .map(std::borrow::Cow::into_owned)
        .unwrap()
}

async fn bytes<B>(request: Sent<B>) -> Bytes
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    request.into_body().collect().await.unwrap().to_bytes()
}

fn post(path: &str) -> http::request::Builder {
    Request::post(path).header("content-type", "application/json")
}

/// A call in one line: dialect, provider, operation, model, streamed, input tokens, maximum, items.
fn line(call: &Call) -> String {
    let dialect = call
        .dialect()
        .map_or_else(|| "-".to_owned(), |dialect| format!("{dialect:?}"));
    let max = call
        .max_output_tokens()
        .map_or_else(|| "-".to_owned(), |max| max.to_string());
    format!(
        "{dialect} {} {} {} {} in={} max={max} items={}",
        call.provider(),
        call.operation(),
        call.model().unwrap_or("-"),
        if call.streamed() { "streamed" } else { "whole" },
        call.input_tokens(),
        call.items(),
    )
}

/// A body of `{}` that arrives after a while.
struct Slow {
    until: Pin<Box<Sleep>>,
    sent: bool,
}

impl Slow {
    fn new(wait: Duration) -> Self {
        Self {
            until: Box::pin(tokio::time::sleep(wait)),
            sent: false,
        }
    }
}

impl Body for Slow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.sent {
            return Poll::Ready(None);
        }
        ready!(self.until.as_mut().poll(cx));
        self.sent = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"{}")))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
