use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use super::{ResponseFuture, layer::Settings};
use crate::{BoxError, RequestBody};

/// Describes each request; see [`DescribeLayer`](super::DescribeLayer).
#[derive(Clone)]
pub struct Describe<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> Describe<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
}

impl<S, B> Service<Request<B>> for Describe<S>
where
    S: Service<Request<RequestBody<B>>> + Clone,
    S::Error: Into<BoxError>,
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::new(
            self.inner.clone(),
            request,
            Arc::clone(&self.settings),
            Instant::now(),
        )
    }
}

impl<S: fmt::Debug> fmt::Debug for Describe<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Describe")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
