use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, header::CONTENT_ENCODING, request::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use super::{
    body::describe,
    layer::Settings,
    reader::{Held, Reader},
};
use crate::{BoxError, RequestBody, oneshot::Oneshot};

pin_project! {
    /// Resolves when the request has been described and the inner service has responded.
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
    {
        #[pin]
        state: State<S, B, Oneshot<S, Request<RequestBody<B>>>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        // `None` only while it turns into `Calling`.
        Reading { reading: Option<Reading<S, B>> },
        Calling { #[pin] future: F },
    }
}

/// A request whose body is being read.
struct Reading<S, B> {
    inner: S,
    parts: Parts,
    body: Reader<B>,
    settings: Arc<Settings>,
    received_at: Instant,
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(
        inner: S,
        request: Request<B>,
        settings: Arc<Settings>,
        received_at: Instant,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let reading = Some(Reading {
            inner,
            body: Reader::new(&parts.headers, body),
            parts,
            settings,
            received_at,
        });
        Self {
            state: State::Reading { reading },
        }
    }
}

impl<S, B> Future for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
    S::Error: Into<BoxError>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                // Reads as much of the body as is needed, then describes and calls.
                StateProj::Reading { reading } => {
                    let polled = reading.as_mut().expect("polled after it was ready");
                    let held = ready!(polled.body.poll(&polled.parts, &polled.settings, cx))?;
                    let Reading {
                        inner,
                        mut parts,
                        body,
                        settings,
                        received_at,
                    } = reading.take().expect("it was polled just now");
                    // Compressed JSON without its content type is not known from a file.
                    let is_encoded = parts.headers.contains_key(CONTENT_ENCODING);
                    let unread = match held {
                        Held::No if is_encoded => body.at_least(),
                        _ => 0,
                    };
                    let body = body.finish(held, &settings)?;
                    let json = body.as_bytes().map_or(&[][..], |bytes| bytes);
                    let call = describe(&parts, json, unread, &settings, received_at);
                    parts.extensions.insert(call);
                    let request = Request::from_parts(parts, body);
                    let future = Oneshot::new(inner, request);
                    this.state.set(State::Calling { future });
                }
                StateProj::Calling { future } => return future.poll(cx).map_err(Into::into),
            }
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
