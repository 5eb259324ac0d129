use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::BoxError;
use tower_service::Service;

use crate::{Batcher, ResponseFuture, send, shared::Shared};

/// Merges calls; see [`BatchLayer`](crate::BatchLayer).
pub struct Batch<S, Bt: Batcher> {
    inner: S,
    shared: Arc<Shared<Bt>>,
}

impl<S, Bt: Batcher> Batch<S, Bt> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<Bt>>) -> Self {
        Self { inner, shared }
    }
}

impl<S, Bt> Service<Bt::Request> for Batch<S, Bt>
where
    Bt: Batcher,
    S: Service<Bt::Batch, Response = Bt::Reply> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Bt::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Bt>;

    /// Always ready: what a call waits for belongs to its key, and the inner service is readied for each batch.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Bt::Request) -> Self::Future {
        let (shared, inner) = (Arc::clone(&self.shared), self.inner.clone());
        let Some(terms) = shared.batcher.terms(&request) else {
            shared.queue(|queue, _| queue.counts.alone += 1);
            return ResponseFuture::alone(send::alone(shared, inner, request));
        };
        match shared.join(request, terms) {
            Ok(id) => ResponseFuture::waiting(shared, inner, id),
            Err(full) => ResponseFuture::refused(full),
        }
    }
}

impl<S: Clone, Bt: Batcher> Clone for Batch<S, Bt> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: fmt::Debug, Bt: Batcher> fmt::Debug for Batch<S, Bt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("inner", &self.inner)
            .field("shared", &self.shared)
            .finish()
    }
}
