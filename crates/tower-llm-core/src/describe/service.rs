use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, header};
use http_body::Body;
use http_body_util::Full;
use tokio::time::Instant;
use tower_service::Service;

use super::{ResponseFuture, layer::Settings};
use crate::{BoxError, TooLarge};

/// Reads each request once; see [`DescribeLayer`](super::DescribeLayer).
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
    S: Service<Request<Full<Bytes>>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = self.settings.max_body_bytes;
        if announced_length(&request).is_some_and(|length| length > limit as u64) {
            return ResponseFuture::refused(TooLarge::new(limit));
        }
        ResponseFuture::reading(
            self.inner.clone(),
            request,
            Arc::clone(&self.settings),
            Instant::now(),
        )
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for Describe<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Describe")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

fn announced_length<B: Body>(request: &Request<B>) -> Option<u64> {
    let header = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    header.max(Some(request.body().size_hint().lower()))
}
