//! Sending a request once more when its connection was closed before a byte of the response.
//!
//! A pooled connection may be closed by the upstream at the moment at which a request is written to it. Whether the request was
//! read is not known then, so only a request that may be sent twice is sent again: GET and HEAD, once. A POST may have cost
//! tokens already. A request of which nothing was written is hyper-util's to send again, whatever its method.

use std::{
    error::Error,
    future::Future,
    io, iter,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Method, Request};
use hyper_util::client::legacy;
use pin_project_lite::pin_project;
use tower::Service;
use tower_llm_stack::{BoxError, Refusal, RequestBody, core::Oneshot};

/// Sends GET and HEAD requests once more.
#[derive(Clone, Debug)]
pub(crate) struct Resend<S> {
    inner: S,
}

pin_project! {
    /// The response to the request, or to the same request sent again.
    pub(crate) struct ResponseFuture<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
    {
        #[pin]
        state: State<S::Future, Oneshot<S, Request<RequestBody<B>>>>,
        again: Option<(S, Request<RequestBody<B>>)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, A> {
        First { #[pin] future: F },
        Again { #[pin] future: A },
    }
}

impl<S> Resend<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, B> Service<Request<RequestBody<B>>> for Resend<S>
where
    S: Service<Request<RequestBody<B>>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<RequestBody<B>>) -> Self::Future {
        let again = matches!(*request.method(), Method::GET | Method::HEAD)
            .then(|| RequestBody::try_clone_request(&request))
            .flatten()
            .map(|request| (self.inner.clone(), request));
        let future = self.inner.call(request);
        ResponseFuture {
            state: State::First { future },
            again,
        }
    }
}

impl<S, B> Future for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::First { future } => ready!(future.poll(cx)).map_err(Into::into),
                StateProj::Again { future } => return future.poll(cx).map_err(Into::into),
            };
            let again = this.again.take();
            match (result, again) {
                (Err(error), Some((service, request))) if was_closed(&*error) => {
                    tracing::debug!(%error, "the connection was closed; sending the request again");
                    let future = Oneshot::new(service, request);
                    this.state.set(State::Again { future });
                }
                (result, _) => return Poll::Ready(result),
            }
        }
    }
}

/// Whether the connection was closed or reset before a response. Errors of the connect itself are none of these.
fn was_closed(error: &(dyn Error + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let chain = || iter::successors(Some(error), |&error| error.source());
    let client = chain().find_map(|error| error.downcast_ref::<legacy::Error>());
    // The request for an access token fails with an error of a client too, and then nothing was sent.
    if client.is_none_or(legacy::Error::is_connect) || Refusal::find(error).is_some() {
        return false;
    }
    chain().any(|error| {
        let hyper = error.downcast_ref::<hyper::Error>();
        let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
        hyper.is_some_and(hyper::Error::is_incomplete_message)
            || matches!(
                io,
                Some(BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
            )
    })
}
